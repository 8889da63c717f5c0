"""Every test runs offline, with the checkpoint that comes along, and shares the machine."""

import os

# Before torch is imported: OpenMP reads its settings once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("SVDNB_CHECKPOINT", None)
