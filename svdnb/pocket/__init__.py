"""Pocket SVD: the small checkpoint that comes along, the world it learned, and its recipe."""
