"""Helpers for notebooks that teach Stable Video Diffusion with diffusers.

`__init__.pyi` lists the public names. Each is imported on first use, so `import svdnb` is quick and
does not import torch. Import svdnb before diffusers: some of the noise it silences is logged while
diffusers is imported.
"""

import lazy_loader

from svdnb.checkpoints import quiet

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

quiet()
