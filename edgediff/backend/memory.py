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


MEASURED = {"every step": 860_000_000, "once": 49_500_000}
"""Weights of that UNet and that decoder. A smaller network takes less work space: values between
layers grow with the channels, weights with their square."""


LEAST_BYTES_PER_PIXEL = 700
"""The least estimate, since very small networks have few channels but as many layers."""


BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
"""Of a stored weight."""


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
    denoiser = manifest.denoiser.graph
    embeds_guidance = denoiser.input(GUIDANCE_EMBEDDING) is not None
    guided = Guidance(scale=defaults.guidance_scale).needs_negative and not embeds_guidance
    pixels = width * height
    at_once = pixels if tile is None else min(tile, width) * min(tile, height)

    def work(graph: GraphSpec) -> int:
        if graph.role == "text_encoder":
            return 0
        # A control network is half a UNet, but its outputs are as large as its inner values.
        if graph.role in EVERY_STEP:
            lowered = denoiser.loaded_bytes is not None
            most = LOWERED_UNET_BYTES_PER_PIXEL if lowered else WORK_BYTES_PER_PIXEL
            return (2 if guided else 1) * pixels * _per_pixel(manifest, graph, most, "every step")
        return at_once * _per_pixel(manifest, graph, WORK_BYTES_PER_PIXEL, "once")

    return {
        stage: StageMemory(
            weights=manifest.files[graph.file].size + _loaded(manifest, graph), work=work(graph)
        )
        for stage, graph in manifest.graphs.items()
    }


def _per_pixel(manifest: Manifest, graph: GraphSpec, most: int, kind: str) -> int:
    """Bytes of work space for each pixel. most: of the network that was measured."""
    weights = sum(manifest.files[name].size for name in graph.data) / BYTES[graph.precision]
    scaled = most * math.sqrt(weights / MEASURED[kind])
    return round(min(most, max(scaled, LEAST_BYTES_PER_PIXEL)))


def _loaded(manifest: Manifest, graph: GraphSpec) -> int:
    """Bytes of a graph's weights once loaded: as the export states, or else at worst."""
    if graph.loaded_bytes is not None:
        return graph.loaded_bytes
    stored = sum(manifest.files[name].size for name in graph.data)
    return stored * WIDENED[graph.precision]


AUTO = "auto"
"""The limit that follows from the memory that is left."""


def fit(
    manifest: Manifest, tile: int | None = None, left: Left | None = None
) -> tuple[int | None, str | None]:
    """How the stages of one image fit into the memory that is left: the limit for all of them
    together, None if they all fit, and a note if there is a limit.

    left: None = `left_memory`. Raises ProviderError if the weights of one stage do not fit, and the
    system would end the process for it."""
    left = left or left_memory()
    if left is None:
        return None, None
    calls = [
        [part for stage, part in estimate(manifest, tile).items() if stage in stages]
        for stages in _calls(manifest)
    ]
    together = max(sum(p.weights for p in call) + max(p.work for p in call) for call in calls)
    if together <= left.left:
        return None, None
    weights = max(part.weights for call in calls for part in call)
    if weights > left.left and left.hard:
        raise ProviderError(_too_little(f"{manifest.name} has a stage that", left, weights))
    least = max(part.peak for call in calls for part in call)
    note = (
        f"memory: {megabytes(left.left)} are left of the {left.limit}, less than the"
        f" {megabytes(together)} of all stages: each is loaded when it runs"
    )
    return max(least, left.left), note


def check_fits(
    manifest: Manifest,
    size: tuple[int, int],
    tile: int | None,
    left: Left,
    *,
    loaded: Collection[str],
    limited: bool,
) -> None:
    """Raise ProviderError if one image of `size` does not fit into a hard limit, which would end
    the process.

    loaded: the stages whose weights are in memory. limited: whether they make room for others."""
    if not left.hard:
        return
    stages = estimate(manifest, tile, size=size)

    def needed(call: Collection[str]) -> int:
        if limited:
            freed = sum(stages[stage].weights for stage in loaded)
            return max(stages[stage].peak for stage in call) - freed
        absent = sum(stages[stage].weights for stage in call if stage not in loaded)
        return absent + max(stages[stage].work for stage in call)

    need = min(needed(call) for call in _calls(manifest))
    if need > left.left:
        image = f"an image of {size[0]}x{size[1]} by {manifest.name}"
        raise ProviderError(_too_little(image, left, need))


def _calls(manifest: Manifest) -> list[list[str]]:
    """The stages of a call without control networks, and of one with all of them. The encoder is
    small, and only calls with an image run it."""
    roles: list[tuple[Role, ...]] = [("text_encoder", "denoiser", "decoder")]
    if manifest.controlnets:
        roles.append(("text_encoder", "controlled_denoiser", "controlnet", "decoder"))
    return [[k for k, graph in manifest.graphs.items() if graph.role in some] for some in roles]


def _too_little(subject: str, left: Left, need: int) -> str:
    return (
        f"{subject} needs about {megabytes(need)} more, but the {left.limit} leaves"
        f" {megabytes(left.left)}: raise the limit, choose a smaller size or a smaller bundle, or"
        " try it nonetheless with max_memory=None (--max-memory none)"
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
            " such as 1.4GB, 900MB or 1GiB, or auto or none"
        )
    return amount
