"""What can be exported: the families of pipelines, and what each must be made of for the runtime to
run it."""

from collections.abc import Mapping
from typing import Any

from edgediff.errors import ExportError

SUPPORTED = (
    "edgediff exports the Stable Diffusion family: SD 1.x, SD 2.x (epsilon and v-prediction), SDXL,"
    " LCM, Turbo, their inpainting UNets, and narrower or distilled UNets of that shape"
)
VAES = ("AutoencoderKL", "AutoencoderTiny")
_SD = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": VAES,
}
_SDXL = {
    **_SD,
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
PIPELINES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "LatentConsistencyModelPipeline": _SD,
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL,
}
"""Pipeline → its components, and the classes that each may be of."""
UNET = "unet"
CONTROLLED_UNET = "unet_controlled"
VAE_DECODER = "vae_decoder"
VAE_ENCODER = "vae_encoder"
"""The names of stages in a bundle; text encoders have those of their components."""
TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Text encoder → the folder of its tokenizer."""
TIME_IDS = 6
"""Numbers that SDXL's UNet is told of an image (Podell et al. 2023, arXiv:2307.01952, section
2.2): the size that it had, where it was cropped, the size to make, each as height and width."""


def check_index(source: str, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline of another family. index: its model_index.json."""
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise ExportError(f"{source}: is a {pipeline}; {SUPPORTED}")
    for component, classes in PIPELINES[str(pipeline)].items():
        entry = index.get(component)
        cls = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if cls not in classes:
            raise ExportError(
                f"{source}: {component} is {cls}, expected {' or '.join(classes)}; {SUPPORTED}"
            )
