"""The programs of diffusers' guide to Stable Video Diffusion, which the notebooks show as written.

Source: https://huggingface.co/docs/diffusers/using-diffusers/svd (Apache-2.0).
"""

from textwrap import indent

INSTALL = "pip install -U diffusers transformers accelerate"
ADDRESS = "https://huggingface.co/docs/diffusers/using-diffusers/svd"

FIRST = """\
import torch

from diffusers import StableVideoDiffusionPipeline
from diffusers.utils import load_image, export_to_video

pipe = StableVideoDiffusionPipeline.from_pretrained(
    "stabilityai/stable-video-diffusion-img2vid-xt", torch_dtype=torch.float16, variant="fp16"
)
pipe.enable_model_cpu_offload()

# Load the conditioning image
image = load_image("https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/svd/rocket.png")
image = image.resize((1024, 576))

generator = torch.manual_seed(42)
frames = pipe(image, decode_chunk_size=8, generator=generator).frames[0]

export_to_video(frames, "generated.mp4", fps=7)
"""
_OFFLOAD = "pipe.enable_model_cpu_offload()\n"
_CALL = "frames = pipe(image, decode_chunk_size=8, generator=generator).frames[0]\n"
_COMPILE = """\
pipe.to("cuda")
pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)
"""
_CHUNK = f"{_OFFLOAD}pipe.unet.enable_forward_chunking()\n"
_SMALL = "frames = pipe(image, decode_chunk_size=2, generator=generator, num_frames=25).frames[0]\n"
_LIVELY = """\
frames = pipe(image, decode_chunk_size=8, generator=generator, motion_bucket_id=180, \
noise_aug_strength=0.1).frames[0]
"""

PROGRAMS = {
    "02_torch_compile": FIRST.replace(_OFFLOAD, _COMPILE),
    "03_memory_under_8gb": FIRST.replace(_OFFLOAD, _CHUNK).replace(_CALL, _SMALL),
    "04_micro_conditioning": FIRST.replace(_CALL, _LIVELY),
}
"""The program of each notebook; the others show the first one."""
CHANGES = {
    "02_torch_compile": f"-{_OFFLOAD}" + indent(_COMPILE, "+"),
    "03_memory_under_8gb": f"-{_OFFLOAD}-{_CALL}" + indent(_CHUNK + _SMALL, "+"),
}
"""What the guide says to change in its first program."""
