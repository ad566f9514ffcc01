"""How much memory a bundle's stages take, and the limit that a caller sets."""

import math
import re
from dataclasses import dataclass

from edgediff.bundle.manifest import EVERY_STEP, GraphSpec, Manifest, Role
from edgediff.bundle.tensor_names import GUIDANCE_EMBEDDING
from edgediff.checks import whole_number
from edgediff.errors import InputError
from edgediff.sampling.guidance import Guidance

UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}


WIDENED = {"fp32": 1, "fp16": 2, "int8": 4}
"""Bytes that a byte of stored weights takes once loaded, at most: if a provider has no kernel of
the precision, as onnxruntime's CPU has none for most, the weights become float32 while loading."""


WORK_BYTES_PER_PIXEL = 4608
"""What a run takes besides the weights for each pixel of the image: 1.2 GB at 512×512, measured on
the UNet and on the decoder of Stable Diffusion 1.5's shape, in float32."""


LOWERED_UNET_BYTES_PER_PIXEL = 600
"""The same of a lowered UNet, whose attention never holds all its scores: 0.16 GB."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """An estimate of what a stage takes, in bytes: `weights` once loaded, `work` while it runs."""

    weights: int
    work: int

    @property
    def peak(self) -> int:
        return self.weights + self.work


def estimate(manifest: Manifest, tile: int | None = None) -> dict[str, StageMemory]:
    """Stage → what it takes: its graph, its weight files as float32 at worst, and for the stages
    that work on images an allowance for one of the default size (two rows under guidance).

    tile: the side of the tiles, in pixels, that the autoencoder works on; None = whole images."""
    defaults = manifest.defaults
    pixels = defaults.width * defaults.height
    denoiser = manifest.denoiser.graph
    embeds_guidance = denoiser.input(GUIDANCE_EMBEDDING) is not None
    guided = Guidance(scale=defaults.guidance_scale).needs_negative and not embeds_guidance
    rows = 2 if guided else 1
    lowered = denoiser.loaded_bytes is not None
    unet = LOWERED_UNET_BYTES_PER_PIXEL if lowered else WORK_BYTES_PER_PIXEL
    works: dict[Role, int] = {"text_encoder": 0}
    # A control network is half a UNet, whose results are as large as its inner values.
    works |= dict.fromkeys(EVERY_STEP, rows * pixels * unet)
    at_once = pixels if tile is None else min(tile, defaults.width) * min(tile, defaults.height)
    return {
        stage: StageMemory(
            weights=manifest.files[graph.file].size + _loaded(manifest, graph),
            work=works.get(graph.role, at_once * WORK_BYTES_PER_PIXEL),
        )
        for stage, graph in manifest.graphs.items()
    }


def _loaded(manifest: Manifest, graph: GraphSpec) -> int:
    """Bytes of a graph's weights once loaded: as the export reckoned, or widened at worst."""
    if graph.loaded_bytes is not None:
        return graph.loaded_bytes
    stored = sum(manifest.files[name].size for name in graph.data)
    return stored * WIDENED[graph.precision]


def memory_limit(
    manifest: Manifest, max_memory: int | str | None, tile: int | None = None
) -> int | None:
    """A limit as `load` takes it → bytes, None if there is none. tile: see `estimate`.

    Raises InputError if it is not a size, or if a stage alone takes more."""
    if max_memory is None:
        return None
    limit = parse_memory(max_memory)
    stages = estimate(manifest, tile)
    largest = max(stages, key=lambda stage: stages[stage].peak)
    if stages[largest].peak > limit:
        raise InputError(
            f"`max_memory` is {max_memory}: the largest stage, {largest}, takes about"
            f" {math.ceil(stages[largest].peak / 1000000.0)}MB: give that or more, or a"
            " smaller bundle"
        )
    return limit


def parse_memory(size: int | str) -> int:
    """A number of bytes, or text such as "1.4GB" (10⁹ bytes) or "1GiB" (2³⁰) → bytes.

    Raises InputError."""
    try:
        if isinstance(size, str):
            match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([a-z]*)\s*", size.lower())
            amount = int(float(match[1]) * UNITS[match[2]]) if match else 0
        else:
            amount = whole_number(size) or 0
    except KeyError:  # no such unit
        amount = 0
    if amount < 1:
        raise InputError(
            f"`max_memory` is {size!r}: expected bytes as a whole number from 1 up, or text"
            " such as 1.4GB, 900MB or 1GiB"
        )
    return amount
