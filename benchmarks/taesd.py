"""TAESD, a tiny autoencoder for Stable Diffusion's latents, as a diffusers folder.

Its repository (madebyollin/taesd) numbers the layers of two `nn.Sequential`. diffusers'
AutoencoderTiny has the same layers under `encoder.layers` and `decoder.layers`, without the
decoder's first layer, which clamps and has no weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ENCODER = "taesd_encoder.safetensors"
DECODER = "taesd_decoder.safetensors"


def diffusers_keys(encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of both halves under AutoencoderTiny's names."""
    keys = {f"encoder.layers.{name}": weight for name, weight in encoder.items()}
    for name, weight in decoder.items():
        layer, rest = name.split(".", 1)
        keys[f"decoder.layers.{int(layer) - 1}.{rest}"] = weight
    return keys


def write_vae(taesd: Path, out: Path) -> None:
    """`taesd`, a folder with two safetensors files → an AutoencoderTiny in the folder `out`."""
    from edgediff_export.quiet import quiet

    with quiet():
        from diffusers import AutoencoderTiny
        from safetensors.torch import load_file

        vae = AutoencoderTiny()  # its defaults are TAESD's
        vae.load_state_dict(diffusers_keys(load_file(taesd / ENCODER), load_file(taesd / DECODER)))
        vae.save_pretrained(out)
