"""What can be exported: the families of pipelines, and what each must be made of for the runtime to
run it."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edgediff.errors import ExportError
from edgediff_export.source.file_kinds import FAMILIES

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
_OTHER_PIPELINES: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        ("Onnx|^OV|^ORT|Neuron|CoreML", "which is exported already, for another runtime"),
        ("^Flax", "whose weights are Flax's and not PyTorch's"),
        (
            "Video|Animate|^LTX|^Wan|Mochi|Allegro|Latte|I2V|T2V|SkyReels|Cosmos|^PIA|Helios"
            "|ConsisID|LucyEdit|ChronoEdit|AnyFlow",
            "which makes video",
        ),
        ("Audio|Music|AceStep|Spectrogram|DanceDiffusion", "which makes sound"),
        ("ShapE", "which makes shapes"),
        ("Upscale|SuperResolution", "which enlarges finished images"),
        ("Marigold", "which estimates depth and the like from an image"),
        (
            "Pix2Pix|PaintByExample|Edit|CycleDiffusion",
            "which edits an image by a method of its own",
        ),
        ("Depth2Img|LDM3D", "whose UNet takes or gives a depth map beside the latents"),
        ("ControlNetUnion|ControlNetXS", "whose control network is of another architecture"),
        ("Adapter|GLIGEN|Blip", "which feeds the UNet more than a prompt"),
        (
            "PAG|SAG|Panorama|AttendAndExcite|Semantic|Paradigms",
            "which samples by a method of its own",
        ),
        ("Cascade|Wuerstchen", "which has three stages of its own"),
        ("UnCLIP|ImageVariation|Kandinsky(?!5)|Versatile|UniDiffuser", "which has a prior"),
        ("^IF|Kolors", "which does not read prompts with CLIP"),
    )
)
"""Pipelines by their class → why they are not exported."""
_METHODS = "samples by a method"
TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Text encoder → the folder of its tokenizer."""
TIME_IDS = 6
"""Numbers that SDXL's UNet is told of an image (Podell et al. 2023, arXiv:2307.01952, section
2.2): the size that it had, where it was cropped, the size to make, each as height and width."""


def check_index(
    source: str, index: Mapping[str, Any], *, replaced: Collection[str] = ()
) -> tuple[str, ...]:
    """Refuse a pipeline of another family → notes on the parts that are left out.

    index: its model_index.json. replaced: components that come from elsewhere."""
    pipeline = index.get("_class_name")
    if pipeline is None:
        raise ExportError(
            f"{source}: its model_index.json has no _class_name: download the pipeline"
            f" again, one of {FAMILIES}"
        )
    known = PIPELINES.get(SAME_AS.get(str(pipeline), str(pipeline)))
    if known is None:
        raise ExportError(f"{source}: is a {pipeline}, {_other(str(pipeline), index)}")
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
            raise ExportError(
                f"{source}: {component} is {cls}, expected {expected}, as {FAMILIES} have it"
                + _remedy(component)
            )
    if _class_of(index, "controlnet") is not None:
        return (
            "the pipeline's own control network was left out: --controlnet"
            f" {source}/controlnet exports it too",
        )
    return ()


def _other(pipeline: str, index: Mapping[str, Any]) -> str:
    """Why a pipeline is not exported, and what to give instead."""
    reason = next((r for pattern, r in _OTHER_PIPELINES if pattern.search(pipeline)), None)
    if reason is None and "transformer" in index:
        reason = f"whose denoiser is a transformer ({_class_of(index, 'transformer')}), not a UNet"
    if reason is None or _METHODS in reason:
        base = (
            "StableDiffusionXLPipeline" if "text_encoder_2" in index else "StableDiffusionPipeline"
        )
        return (
            f"{reason or 'which edgediff does not know'}: give a pipeline of {FAMILIES}, or, if its"
            f" components make a {base}, write that into its model_index.json as _class_name"
        )
    return f"{reason}: give a pipeline of {FAMILIES}"


def _remedy(component: str) -> str:
    if component.startswith("tokenizer"):
        return ": download the pipeline again, one whose text encoder is CLIP's"
    flag = "--" + component.replace("_", "-")
    return f": give one with {flag}, a folder or a .safetensors file"


def _class_of(index: Mapping[str, Any], component: str) -> str | None:
    entry = index.get(component)
    cls = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    return None if cls is None else str(cls)
