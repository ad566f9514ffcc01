"""Estimates the memory of a bundle's stages, and plans how they fit into the rest."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from edgediff.backend.left_memory import Left, left_memory
from edgediff.bundle.manifest import EVERY_STEP, GraphSpec, Manifest, Role
from edgediff.bundle.tensor_names import GUIDANCE_EMBEDDING
from edgediff.checks import whole_number
from edgediff.errors import InputError, ProviderError
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


def estimate(
    manifest: Manifest, tile: int | None = None, *, size: tuple[int, int] | None = None
) -> dict[str, StageMemory]:
    """Stage → its memory: the graph, its weights, at worst widened to float32, and for the stages
    that work on images the memory of a run (two rows with the default guidance).

    tile: the side, in pixels, of the tiles that the autoencoder works on; None = whole images.
    size: (width, height) of the image; None = the default."""
    defaults = manifest.defaults
    width, height = size or (defaults.width, defaults.height)
    pixels = width * height
    denoiser = manifest.denoiser.graph
    embeds_guidance = denoiser.input(GUIDANCE_EMBEDDING) is not None
    guided = Guidance(scale=defaults.guidance_scale).needs_negative and not embeds_guidance
    rows = 2 if guided else 1
    lowered = denoiser.loaded_bytes is not None
    per_pixel = LOWERED_UNET_BYTES_PER_PIXEL if lowered else WORK_BYTES_PER_PIXEL
    works: dict[Role, int] = {"text_encoder": 0}
    # A control network is half a UNet, but its outputs are as large as its inner values.
    works |= dict.fromkeys(EVERY_STEP, rows * pixels * per_pixel)
    at_once = pixels if tile is None else min(tile, width) * min(tile, height)
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


AUTO = "auto"
"""The limit that follows from the memory that is left."""


def fit(
    manifest: Manifest, stages: Collection[str], tile: int | None = None, left: Left | None = None
) -> tuple[int | None, str | None]:
    """How the `stages` of one image fit into the memory that is left: the limit for all of them
    together, None if they all fit, and a note if there is a limit.

    left: None = `left_memory`. Raises ProviderError if not even the largest stage fits, and the
    system would end the process for it."""
    left = left or left_memory()
    parts = {k: v for k, v in estimate(manifest, tile).items() if k in stages}
    together = sum(p.weights for p in parts.values()) + max(p.work for p in parts.values())
    if left is None or together <= left.left:
        return None, None
    largest = max(parts, key=lambda stage: parts[stage].peak)
    least = parts[largest].peak
    if least > left.left and left.hard:
        raise ProviderError(_too_little(manifest, left, least))
    note = (
        f"memory: {megabytes(left.left)} are left of the {left.limit}, less than the"
        f" {megabytes(together)} of all stages: each is loaded when it runs"
    )
    return max(least, left.left), note


def check_fits(manifest: Manifest, size: tuple[int, int], tile: int | None, left: Left) -> None:
    """Raise ProviderError if the work space of one image of `size` does not fit into a hard limit,
    which would end the process. The weights are loaded by then, or take the place of others."""
    work = max(stage.work for stage in estimate(manifest, tile, size=size).values())
    if left.hard and work > left.left:
        raise ProviderError(_too_little(manifest, left, work, size))


def _too_little(
    manifest: Manifest, left: Left, need: int, size: tuple[int, int] | None = None
) -> str:
    width, height = size or (manifest.defaults.width, manifest.defaults.height)
    return (
        f"{manifest.name} needs about {megabytes(need)} more for an image of {width}x{height}, but"
        f" the {left.limit} leaves {megabytes(left.left)}: raise it, give a smaller `size` or a"
        f" smaller bundle, set `tile`, or set `max_memory` yourself"
    )


def megabytes(size: int) -> str:
    """Bytes as text: 250MB."""
    return f"{math.ceil(size / 1e6)}MB"


def memory_limit(
    manifest: Manifest, max_memory: int | str | None, tile: int | None = None
) -> int | None:
    """A limit as `load` takes it → bytes; None = no limit, also for "auto". tile: see `estimate`.

    Raises InputError if it is not a size, or if one stage takes more than it."""
    if max_memory is None or max_memory == AUTO:
        return None
    limit = parse_memory(max_memory)
    stages = estimate(manifest, tile)
    largest = max(stages, key=lambda stage: stages[stage].peak)
    if stages[largest].peak > limit:
        raise InputError(
            f"`max_memory` is {max_memory}: the largest stage, {largest}, takes about"
            f" {megabytes(stages[largest].peak)}: give that or more, or a smaller bundle"
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
            " such as 1.4GB, 900MB or 1GiB, or auto"
        )
    return amount
