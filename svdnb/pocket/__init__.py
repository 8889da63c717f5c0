"""Pocket SVD: the bundled checkpoint, and the programs that train and measure it."""
