"""Adapters that people give as a control network and that are none: each is refused by its name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from edgediff.errors import ExportError

_ONE_KIND = "give a ControlNet of one kind, such as canny or depth"


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """classes: of diffusers, in a config. tensors: matches the name of a tensor that only this kind
    has. why: why it cannot be exported; instead: the remedy."""

    called: str
    why: str
    instead: str = _ONE_KIND
    classes: tuple[str, ...] = ()
    tensors: str = "(?!)"


_KINDS = (
    _Kind(
        called="a Union ControlNet",
        classes=("ControlNetUnionModel", "MultiControlNetUnionModel"),
        tensors=r".*(?:^|\.)(?:task_embedding$|control_type_proj|control_add_embedding|spatial_ch_"
        r"projs|transformer_layes)",
        why="it takes the type of its control image as a further input, which bundles do not have",
    ),
    _Kind(
        called="a Control-LoRA",
        tensors=r"lora_controlnet$|(?!.*lora_).*\.(?:up|down)(?:\.weight)?$",
        why="it holds low-rank changes of a UNet, and not a whole network",
    ),
    _Kind(
        called="a ControlNet-XS",
        classes=("ControlNetXSAdapter", "UNetControlNetXSModel"),
        tensors=r".*(?:control_to_base_for_conv_in|base_to_ctrl|ctrl_to_base|enc_zero_convs_|"
        r"dec_zero_convs_)",
        why="it exchanges values with the UNet in each layer, and a bundle only adds to the UNet",
        instead="give a ControlNet (ControlNetModel) of the same kind",
    ),
    _Kind(
        called="a T2I-Adapter",
        classes=("T2IAdapter", "MultiAdapter"),
        tensors=r"(?:adapter\.)?body\.\d+\.",
        why="it runs once for an image and steers the UNet elsewhere than a ControlNet does",
        instead="give a ControlNet (ControlNetModel) of the same kind",
    ),
    _Kind(
        called="an IP-Adapter",
        tensors=r"(?:image_proj|ip_adapter)(?:_model)?\.",
        why="it adds attention to an image's embedding to the UNet, which bundles do not have",
    ),
    _Kind(
        called="a ControlNet-LLLite",
        tensors="lllite_",
        why="it changes the inputs of the UNet's attention, and a bundle only adds to the UNet",
        instead="give a ControlNet (ControlNetModel) of the same kind",
    ),
    _Kind(
        called="a SparseCtrl network",
        classes=("SparseControlNetModel",),
        why="it steers the frames of a video",
    ),
    _Kind(
        called="a LoRA",
        tensors=r"lora_(?:unet|te)|.*lora_(?:up|down|A|B)\.",
        why="it changes weights and takes no image",
        instead="give it as --lora",
    ),
    _Kind(
        called="a control network for a transformer",
        classes=(
            *("CosmosControlNetModel", "FluxControlNetModel", "FluxMultiControlNetModel"),
            *("HunyuanDiT2DControlNetModel", "QwenImageControlNetModel", "SanaControlNetModel"),
            *("SD3ControlNetModel", "SD3MultiControlNetModel", "ZImageControlNetModel"),
        ),
        tensors=r"(?:double_blocks|single_transformer_blocks|transformer_blocks|joint_blocks|"
        r"controlnet_blocks|controlnet_x_embedder|pos_embed_input)\.",
        why="it is for FLUX, Stable Diffusion 3 and the like, and bundles have a UNet",
        instead="give a ControlNet that was made for this model's family",
    ),
    _Kind(
        called="the difference of a ControlNet and a UNet",
        tensors=r"(?:.*\.)?difference$",
        why="its weights are complete only together with those of one UNet",
        instead="give the whole ControlNet",
    ),
)


def check_class(where: str, name: object) -> None:
    """Refuse a config's class that is not ControlNetModel. Raises ExportError."""
    if name == "ControlNetModel":
        return
    kind = next((kind for kind in _KINDS if name in kind.classes), None)
    if kind is not None:
        raise _refusal(where, kind)
    raise ExportError(
        f"{where}: is a {name}, expected a ControlNetModel: give the folder of a ControlNet"
    )


def check_tensors(where: str, names: Iterable[str]) -> None:
    """Refuse weights whose names are those of another kind, whatever a config says. Raises
    ExportError."""
    found = list(names)
    for kind in _KINDS:
        if any(re.match(kind.tensors, name) for name in found):
            raise _refusal(where, kind)


def _refusal(where: str, kind: _Kind) -> ExportError:
    return ExportError(f"{where}: is {kind.called}, which is not supported, since {kind.why}:"
                       f" {kind.instead}")  # fmt: skip
