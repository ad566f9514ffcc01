"""Tiny autoencoders by name: which latents each decodes, from where it comes and under which terms.

Each is distilled from the autoencoder of one family (madebyollin/taesd) and takes latents as the
denoiser has them: scaling factor 1. Latents of another family give wrong colours and no error, so
that a tiny autoencoder is checked by its name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediff.errors import ExportError
from edgediff_export.source.safetensors_file import Header, open_tensors

LICENSE = "MIT"
AUTHOR = "Ollin Boer Bohan"
CLASS = "AutoencoderTiny"
LEVELS = 4
"""Blocks of a tiny autoencoder, and of those whose latents it takes: 8 pixels to a latent."""


@dataclass(frozen=True, kw_only=True)
class TinyVae:
    """repository: its hub id. latents: the models whose latents it takes, which have `channels`.
    scaling_factor: of their own autoencoder, by which it is known; None if that has no such
    factor."""

    repository: str
    latents: str
    channels: int
    scaling_factor: float | None

    @property
    def credit(self) -> str:
        """For the bundle's attribution."""
        return f"VAE: {self.repository} by {AUTHOR}, {LICENSE}"


TINY_VAES: Mapping[str, TinyVae] = {
    "taesd": TinyVae(
        repository="madebyollin/taesd",
        latents="Stable Diffusion 1 and 2",
        channels=4,
        scaling_factor=0.18215,
    ),
    "taesdxl": TinyVae(
        repository="madebyollin/taesdxl", latents="SDXL", channels=4, scaling_factor=0.13025
    ),
    "taesd3": TinyVae(
        repository="madebyollin/taesd3",
        latents="Stable Diffusion 3",
        channels=16,
        scaling_factor=1.5305,
    ),
    "taef1": TinyVae(
        repository="madebyollin/taef1", latents="FLUX.1", channels=16, scaling_factor=0.3611
    ),
    "taef2": TinyVae(
        repository="madebyollin/taef2", latents="FLUX.2", channels=32, scaling_factor=None
    ),
}
"""The names that --vae takes."""
FITTING: Mapping[str, str] = {
    "StableDiffusionPipeline": "taesd",
    "StableDiffusionInpaintPipeline": "taesd",
    "LatentConsistencyModelPipeline": "taesd",
    "StableDiffusionXLPipeline": "taesdxl",
    "StableDiffusionXLInpaintPipeline": "taesdxl",
}
"""Pipeline → the tiny autoencoder of its latents."""
_NAME = re.compile(
    rf"(?<![a-z0-9])(?:{'|'.join(sorted(TINY_VAES, key=len, reverse=True))})(?![a-z0-9])",
    re.IGNORECASE,
)


def known_as(names: Sequence[str]) -> str | None:
    """The name in TINY_VAES that a tiny autoencoder goes by, or None."""
    found = (m for name in names if (m := _NAME.search(name)))
    return next((m[0].lower() for m in found), None)


def fitting(own: Mapping[str, Any], *, pipeline: str, channels: int) -> str | None:
    """The name of the tiny autoencoder for a pipeline's latents; None if there is none.

    own: the config of the pipeline's own autoencoder, empty if it has none. channels: of the
        denoiser's latents."""
    name = FITTING.get(pipeline)
    if name is None or TINY_VAES[name].channels != channels:
        return None
    if own.get("_class_name") != "AutoencoderKL":
        return name
    # Such as Playground v2.5's, whose latents are SDXL's with another mean and scale.
    normalized = own.get("latents_mean") is not None
    scale = own.get("scaling_factor", TINY_VAES["taesd"].scaling_factor)  # AutoencoderKL's default
    levels = len(own.get("block_out_channels", ()))
    same = (scale, levels) == (TINY_VAES[name].scaling_factor, LEVELS)
    return name if same and not normalized else None


def check_fits(
    name: str, given: str, own: Mapping[str, Any], *, pipeline: str, channels: int
) -> None:
    """Raise ExportError, with the one that fits, for a tiny autoencoder of other latents.

    name: in TINY_VAES. given: as it was typed. own, channels: as in `fitting`."""
    right = fitting(own, pipeline=pipeline, channels=channels)
    if name == right:
        return
    decodes = f"--vae {given}: decodes latents of {TINY_VAES[name].latents}"
    if right is None:
        raise ExportError(
            f"{decodes}, but this pipeline's are of its own kind ({channels} channels), for which"
            " there is no tiny VAE: leave --vae out"
        )
    raise ExportError(
        f"{decodes}, but this pipeline's are of {TINY_VAES[right].latents}: give --vae {right}"
    )


# Files of weights


def tiny_config(header: Header) -> dict[str, Any] | None:
    """The config of a file of AutoencoderTiny's weights, encoder and decoder; None for others."""
    if not {"decoder.layers.0.weight", "encoder.layers.0.weight"} <= header.shapes.keys():
        return None
    return {
        "_class_name": CLASS,
        "latent_channels": header.shapes["decoder.layers.0.weight"][1],
    }


_FIRST = {"encoder": "0.weight", "decoder": "1.weight"}
_HALVES = re.compile(r"(.*?)(encoder|decoder)(.*\.safetensors)", re.IGNORECASE)


def is_half(header: Header) -> bool:
    """Whether a file has the encoder or the decoder as their author publishes them, apart."""
    return any(
        first in header.shapes and len(header.shapes[first]) == 4 for first in _FIRST.values()
    )


def join_halves(path: Path, folder: Path) -> Path:
    """The files of an encoder and a decoder as their author publishes them, such as
    taesd_encoder.safetensors and taesd_decoder.safetensors → one file in `folder`, under diffusers'
    names. path: one of the two; the other lies beside it.

    Raises ExportError if it does not."""
    m = _HALVES.fullmatch(path.name)
    joined = {}
    for half, first in _FIRST.items():
        file = path if m is None else path.with_name(f"{m[1]}{half}{m[3]}")
        if m is None or not file.is_file():
            raise ExportError(
                f"--vae {path}: holds half of a tiny VAE, and no {half} lies beside it"
                f" ({file.name}): give the file of the whole one,"
                " diffusion_pytorch_model.safetensors, or put the other half there"
            )
        with open_tensors(file, flag="--vae") as tensors:
            keys = set(tensors.keys())
            if first not in keys:
                raise ExportError(
                    f"--vae {file}: expected the {half} of a tiny VAE, with a tensor {first}:"
                    " download it again"
                )
            # The decoder's first step clamps, for which diffusers has no layer.
            shift = int(half == "decoder")
            for key in keys:
                number, _, rest = key.partition(".")
                joined[f"{half}.layers.{int(number) - shift}.{rest}"] = tensors.get_tensor(key)
    from safetensors.torch import save_file

    whole = folder / f"{path.stem}.safetensors"
    save_file(joined, whole)
    return whole
