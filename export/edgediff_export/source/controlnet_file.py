"""A control network in one .safetensors file, which comes without a config.

A control network has the shape of its UNet's way down. So the options that no shape shows, such as
the number of attention heads, are the UNet's; everything else is read from the shapes. The names
are diffusers' or those of Zhang's original code (`control_model.input_blocks…`)."""

import re
from collections.abc import Mapping
from typing import Any

from edgediff.errors import ExportError
from edgediff_export.source.file_kinds import misplaced
from edgediff_export.source.safetensors_file import Header

_AS_THE_UNET = (
    *("act_fn", "addition_embed_type_num_heads", "addition_time_embed_dim", "attention_head_dim"),
    *("downsample_padding", "flip_sin_to_cos", "freq_shift", "mid_block_scale_factor", "norm_eps"),
    *("norm_num_groups", "num_attention_heads", "only_cross_attention", "resnet_time_scale_shift"),
    *("upcast_attention", "use_linear_projection"),
)
_Shapes = Mapping[str, tuple[int, ...]]


def file_config(where: str, header: Header, unet: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the control network in a file. unet: the config of the UNet that it is for.

    Raises ExportError if the file holds no control network."""
    shapes = _own(header.shapes)
    original = "input_blocks.0.0.weight" in shapes
    first = shapes.get("input_blocks.0.0.weight" if original else "conv_in.weight")
    hint = _hint(shapes)
    levels = _original_levels(shapes) if original else _levels(shapes)
    if first is None or not hint or not levels:
        lacks = min(header.shapes, default="no tensors")
        what = misplaced(header.shapes, "a control network") or (
            f"holds no ControlNet (but {lacks}, …): give a .safetensors file of a ControlNet's"
            " weights, or a folder with its config.json"
        )
        raise ExportError(f"{where}: {what}")
    middle = "middle_block.1" if original else "mid_block.attentions.0"
    depth = _depth(shapes, middle)
    added = shapes.get("label_emb.0.0.weight" if original else "add_embedding.linear_1.weight")
    text = next((s[1] for k, s in shapes.items() if k.endswith("attn2.to_k.weight")), None)
    depths = [max((d for _, d in layers), default=0) or 1 for layers in levels]
    counts = {len(layers) for layers in levels}
    return {
        "_class_name": "ControlNetModel",
        **{key: unet[key] for key in _AS_THE_UNET if unet.get(key) is not None},
        "in_channels": first[1],
        "conditioning_channels": hint[0][1],
        "conditioning_embedding_out_channels": [shape[0] for shape in hint[:-1:2]],
        "block_out_channels": [layers[0][0] for layers in levels],
        "layers_per_block": counts.pop() if len(counts) == 1 else [len(its) for its in levels],
        "down_block_types": [
            "CrossAttnDownBlock2D" if any(d for _, d in layers) else "DownBlock2D"
            for layers in levels
        ],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if depth else "UNetMidBlock2D",
        "transformer_layers_per_block": [*depths[:-1], depth or depths[-1]],
        "cross_attention_dim": text if text is not None else unet.get("cross_attention_dim", 1280),
        "addition_embed_type": "text_time" if added is not None else None,
        "projection_class_embeddings_input_dim": None if added is None else added[1],
    }


def _own(shapes: _Shapes) -> _Shapes:
    """Those of the network, without the rest of a file of the original code."""
    for prefix in ("control_model.", "controlnet."):
        if any(name.startswith(prefix) for name in shapes):
            return {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
    return shapes


def _hint(shapes: _Shapes) -> list[tuple[int, ...]]:
    """The convolutions of the control image, in order: each but the first and the last comes in a
    pair, of which the second halves the image."""
    original = [shapes.get(f"input_hint_block.{2 * k}.weight") for k in range(64)]
    names = ["conv_in", *(f"blocks.{k}" for k in range(62)), "conv_out"]
    diffusers = [shapes.get(f"controlnet_cond_embedding.{name}.weight") for name in names]
    return [s for s in original if s is not None] or [s for s in diffusers if s is not None]


def _levels(shapes: _Shapes) -> list[list[tuple[int, int]]]:
    """(channels, transformer blocks) of the layers of each level, under diffusers' names."""
    levels: list[list[tuple[int, int]]] = []
    while first := _level(shapes, len(levels)):
        levels.append(first)
    return levels


def _level(shapes: _Shapes, level: int) -> list[tuple[int, int]]:
    layers: list[tuple[int, int]] = []
    block = f"down_blocks.{level}"
    while (conv := shapes.get(f"{block}.resnets.{len(layers)}.conv1.weight")) is not None:
        layers.append((conv[0], _depth(shapes, f"{block}.attentions.{len(layers)}")))
    return layers


def _original_levels(shapes: _Shapes) -> list[list[tuple[int, int]]]:
    """The same under the original names, where a downsampler ends a level."""
    levels: list[list[tuple[int, int]]] = [[]]
    place = 1
    while True:
        block = f"input_blocks.{place}"
        conv = shapes.get(f"{block}.0.in_layers.2.weight")
        if conv is not None:
            levels[-1].append((conv[0], _depth(shapes, f"{block}.1")))
        elif f"{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            return levels if all(levels) else []
        place += 1


def _depth(shapes: _Shapes, place: str) -> int:
    """How many transformer blocks the attention at a place has; 0 if there is none."""
    pattern = re.compile(re.escape(place) + r"\.transformer_blocks\.(\d+)\.")
    return 1 + max((int(m[1]) for name in shapes if (m := pattern.match(name))), default=-1)
