"""The names that the original code gives to layers that diffusers calls otherwise.

Rombach et al.'s latent-diffusion and stability.ai's generative-models number all resnets,
downsamplers and upsamplers of a UNet in one row; single-file checkpoints and many LoRAs use these
names. All functions take diffusers' names of layers, without ".weight" and ".bias".
"""

import re
from collections import Counter
from collections.abc import Collection

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_CONTROL_EMBEDDING = "controlnet_cond_embedding."


def unet_names(layers: Collection[str]) -> dict[str, str]:
    """UNet layers → their original names: "down_blocks.1.attentions.0.proj_in" →
    "input_blocks.4.1.proj_in"."""
    found = {name: _UNET_ENDS[name] for name in layers if name in _UNET_ENDS}
    split = {name: name.split(".") for name in layers}
    resnets = Counter(
        (p[0], int(p[1])) for p in split.values() if p[2:3] == ["resnets"] and p[4:] == ["conv1"]
    )
    attending = {(p[0], int(p[1])) for p in split.values() if p[2:3] == ["attentions"]}
    for name, (side, *parts) in split.items():
        if side == "mid_block":
            kind, number, *inner = parts
            place = f"middle_block.{2 * int(number) if kind == 'resnets' else 1}"
        elif side in ("down_blocks", "up_blocks"):
            block, (kind, number, *inner) = int(parts[0]), parts[1:]
            before = sum(resnets[side, b] for b in range(block))
            column = int(kind == "attentions")
            if kind == "downsamplers":
                place, inner = f"input_blocks.{before + block + 1 + resnets[side, block]}.0", ["op"]
            elif kind == "upsamplers":
                column = 1 + ((side, block) in attending)
                place = f"output_blocks.{before + resnets[side, block] - 1}.{column}"
            elif side == "down_blocks":
                place = f"input_blocks.{before + block + 1 + int(number)}.{column}"
            else:
                place = f"output_blocks.{before + int(number)}.{column}"
        else:
            continue
        if kind == "resnets":
            inner = [_UNET_RESNET[inner[0]]]
        found[name] = ".".join([place, *inner])
    return found


def controlnet_names(layers: Collection[str]) -> dict[str, str]:
    """A control network's layers → their original names: the UNet's way down, the embedding of the
    control image ("input_hint_block"), and a convolution of zeros for each residual."""
    found = unet_names(layers)
    blocks = {
        int(m[1])
        for name in layers
        if (m := re.match(_CONTROL_EMBEDDING + r"blocks\.(\d+)", name)) is not None
    }
    for name in layers:
        if name.startswith(_CONTROL_EMBEDDING):
            inner = name.removeprefix(_CONTROL_EMBEDDING)
            # Each convolution is followed by an activation.
            place = {"conv_in": 0, "conv_out": 2 * len(blocks) + 2}.get(inner)
            if place is None:
                place = 2 * int(inner.removeprefix("blocks.")) + 2
            found[name] = f"input_hint_block.{place}"
        elif name.startswith("controlnet_down_blocks."):
            found[name] = f"zero_convs.{name.rpartition('.')[2]}.0"
        elif name == "controlnet_mid_block":
            found[name] = "middle_block_out.0"
    return found


def vae_names(layers: Collection[str]) -> dict[str, str]:
    """AutoencoderKL's layers → their original names: "decoder.up_blocks.0.resnets.1.conv1" →
    "decoder.up.3.block.1.conv1", whose blocks are numbered from the image on."""
    found = {}
    blocks = 1 + max(
        (int(m[1]) for name in layers if (m := re.match(r"\w+\.up_blocks\.(\d+)", name))),
        default=0,
    )
    for name in layers:
        side, *parts = name.split(".")
        if parts[:1] == ["down_blocks"] or parts[:1] == ["up_blocks"]:
            place = parts[1] if parts[0] == "down_blocks" else str(blocks - 1 - int(parts[1]))
            way = parts[0].removesuffix("_blocks")
            if parts[2] in ("downsamplers", "upsamplers"):
                inner = [parts[2].removesuffix("rs"), *parts[4:]]  # "downsample", "conv"
            else:
                inner = ["block", *parts[3:]]
            new = [side, way, place, *inner]
        elif parts[:2] == ["mid_block", "resnets"]:
            new = [side, "mid", f"block_{int(parts[2]) + 1}", *parts[3:]]
        elif parts[:2] == ["mid_block", "attentions"]:
            new = [side, "mid", f"attn_{int(parts[2]) + 1}", _VAE_ATTENTION[".".join(parts[3:])]]
        elif parts == ["conv_norm_out"]:
            new = [side, "norm_out"]
        else:
            new = [side, *parts]
        found[name] = ".".join("nin_shortcut" if p == "conv_shortcut" else p for p in new)
    return found


def old_vae_names(layers: Collection[str]) -> dict[str, str]:
    """AutoencoderKL's layers → diffusers' own names for them before 0.17."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    found = {}
    for name in layers:
        new = name
        for now, then in old.items():
            if f".attentions.0.{now}" in name:
                new = name.replace(now, then)
        found[name] = new
    return found
