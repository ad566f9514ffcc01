"""What can be exported: the families of pipelines, and what each must be made of for the runtime to
run it."""

from collections.abc import Collection, Mapping
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
SAME_AS: Mapping[str, str] = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
    "StableDiffusionPipelineSafe": "StableDiffusionPipeline",
    "StableDiffusionInpaintPipelineLegacy": "StableDiffusionPipeline",
    "LatentConsistencyModelImg2ImgPipeline": "LatentConsistencyModelPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLPipeline",
}
"""Pipelines that only call the same components otherwise → the one that they are exported as."""
TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Text encoder → the folder of its tokenizer."""
TIME_IDS = 6
"""Numbers that SDXL's UNet is told of an image (Podell et al. 2023, arXiv:2307.01952, section
2.2): the size that it had, where it was cropped, the size to make, each as height and width."""


def check_index(
    source: str, index: Mapping[str, Any], *, replaced: Collection[str] = ()
) -> tuple[str, ...]:
    """Refuse a pipeline of another family → notes on what is left out of it.

    index: its model_index.json. replaced: components that come from elsewhere."""
    pipeline = index.get("_class_name")
    if pipeline is None:
        raise ExportError(
            f"{source}: is a None: its model_index.json has no _class_name: download the pipeline"
            f" again; {SUPPORTED}"
        )
    known = PIPELINES.get(SAME_AS.get(str(pipeline), str(pipeline)))
    if known is None:
        raise ExportError(f"{source}: is a {pipeline}; {SUPPORTED}")
    if (
        known is _SDXL
        and _class_of(index, "text_encoder") is None
        and "text_encoder" not in replaced
    ):
        refiner = pipeline == "StableDiffusionXLImg2ImgPipeline"
        raise ExportError(
            f"{source}: text_encoder is None, expected CLIPTextModel"
            + (
                ": an SDXL refiner, which only finishes another model's images: give SDXL's base"
                " model or a model made from it"
                if refiner
                else ": give one with --text-encoder, a folder or a .safetensors file"
            )
        )
    for component, classes in known.items():
        cls = _class_of(index, component)
        if component not in replaced and cls not in classes:
            expected = " or ".join(classes)
            if cls is None:
                raise ExportError(
                    f"{source}: {component} is None, expected {expected}: the pipeline was saved"
                    f" without it{_remedy(component)}"
                )
            raise ExportError(f"{source}: {component} is {cls}, expected {expected}; {SUPPORTED}")
    if _class_of(index, "controlnet") is not None:
        return (
            "the pipeline's own control network was left out: --controlnet"
            f" {source}/controlnet exports it too",
        )
    return ()


def _remedy(component: str) -> str:
    if component.startswith("tokenizer"):
        return ": download it again"
    flag = "--" + component.replace("_", "-")
    return f": give one with {flag}, a folder or a .safetensors file"


def _class_of(index: Mapping[str, Any], component: str) -> str | None:
    entry = index.get(component)
    cls = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    return None if cls is None else str(cls)
