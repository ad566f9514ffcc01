"""Estimates the memory that a bundle's stages take, and parses the limit that a caller sets."""

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
"""The most bytes that a byte of stored weights takes once loaded. If a provider has no kernel for
the precision, as onnxruntime's CPU often does not, the weights become float32 while loading."""


WORK_BYTES_PER_PIXEL = 4608
"""The memory that a run takes besides the weights, for each pixel of the image: 1.2 GB at 512×512,
measured on a UNet and a decoder of Stable Diffusion 1.5's shape, in float32."""


LOWERED_UNET_BYTES_PER_PIXEL = 600
"""The same for a lowered UNet, whose attention never holds all its scores: 0.16 GB at 512×512."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """An estimate of a stage's memory in bytes: `weights` once loaded, and `work` while it runs."""

    weights: int
    work: int

    @property
    def peak(self) -> int:
        """Bytes while it runs."""
        return self.weights + self.work


def estimate(manifest: Manifest, tile: int | None = None) -> dict[str, StageMemory]:
    """Stage → its memory: the graph, its weights, at worst widened to float32, and for the stages
    that work on images the memory of a run at the default size (two rows with guidance).

    tile: the side, in pixels, of the tiles that the autoencoder works on; None = whole images."""
    defaults = manifest.defaults
    pixels = defaults.width * defaults.height
    denoiser = manifest.denoiser.graph
    embeds_guidance = denoiser.input(GUIDANCE_EMBEDDING) is not None
    guided = Guidance(scale=defaults.guidance_scale).needs_negative and not embeds_guidance
    rows = 2 if guided else 1
    lowered = denoiser.loaded_bytes is not None
    per_pixel = LOWERED_UNET_BYTES_PER_PIXEL if lowered else WORK_BYTES_PER_PIXEL
    works: dict[Role, int] = {"text_encoder": 0}
    # A control network is half a UNet, but its outputs are as large as its inner values.
    works |= dict.fromkeys(EVERY_STEP, rows * pixels * per_pixel)
    at_once = pixels if tile is None else min(tile, defaults.width) * min(tile, defaults.height)
    return {
        stage: StageMemory(
            weights=manifest.files[graph.file].size + _loaded(manifest, graph),
            work=works.get(graph.role, at_once * WORK_BYTES_PER_PIXEL),
        )
        for stage, graph in manifest.graphs.items()
    }


def _loaded(manifest: Manifest, graph: GraphSpec) -> int:
    """Bytes of a graph's weights once loaded: as the export states, or else at worst."""
    if graph.loaded_bytes is not None:
        return graph.loaded_bytes
    stored = sum(manifest.files[name].size for name in graph.data)
    return stored * WIDENED[graph.precision]


def memory_limit(
    manifest: Manifest, max_memory: int | str | None, tile: int | None = None
) -> int | None:
    """A limit as `load` takes it → bytes; None = no limit. tile: see `estimate`.

    Raises InputError if it is not a size, or if one stage takes more than it."""
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

    Raises InputError for anything else."""
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
