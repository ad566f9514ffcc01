"""The sessions of a bundle's stages: loaded, and released again where memory is limited."""

import ctypes
import functools
import math
import operator
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgediff.bundle import EVERY_STEP, Bundle, GraphSpec, Manifest, Role
from edgediff.cancellation import CancelToken
from edgediff.compiled import Outcome
from edgediff.errors import InputError, Name
from edgediff.guidance import Guidance
from edgediff.providers import PROVIDERS
from edgediff.session import Array, Session, SessionOptions, free_dimensions
from edgediff.tensor_names import GUIDANCE_EMBEDDING

RunStage = Callable[[str, dict[str, Array]], dict[str, Array]]
"""(stage, inputs by name) → outputs by name."""

UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}

WIDENED = {"fp32": 1, "fp16": 2, "int8": 4}
"""Bytes that a byte of stored weights takes once loaded, at most: where a provider has no kernel of
the precision, as onnxruntime's CPU has none for most, the weights become float32 while loading."""
WORK_BYTES_PER_PIXEL = 4608
"""What a run takes beside the weights for each pixel of the picture: 1.2 GB at 512×512, measured on
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
    that work on pictures an allowance for one of the default size (two rows under guidance).

    tile: the side of the tiles, in pixels, that the autoencoder works on; None = whole pictures."""
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
    """A limit as `load` takes it → bytes, None where there is none. tile: see `estimate`.

    Raises InputError where it is no size, or where a stage alone takes more."""
    if max_memory is None:
        return None
    limit = parse_memory(max_memory)
    stages = estimate(manifest, tile)
    largest = max(stages, key=lambda stage: stages[stage].peak)
    if stages[largest].peak > limit:
        raise InputError(
            Name("max_memory"),
            f" is {max_memory}: the largest stage, {largest}, takes about"
            f" {math.ceil(stages[largest].peak / 1e6)}MB: give that or more, or a smaller bundle",
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
            amount = 0 if isinstance(size, bool) else operator.index(size)
    except (KeyError, TypeError):  # no such unit; a float or another type
        amount = 0
    if amount < 1:
        raise InputError(
            Name("max_memory"),
            f" is {size!r}: expected bytes as a whole number from 1 up, or text such as 1.4GB,"
            " 900MB or 1GiB",
        )
    return amount


class Stages:
    """A bundle's sessions; may be called from several threads.

    With `max_memory` (bytes), the stages used longest ago are released before one that would not
    fit beside them. A session that another thread is running lives on until that run ends."""

    def __init__(
        self,
        bundle: Bundle,
        options: SessionOptions,
        max_memory: int | None,
        tile: int | None = None,
    ) -> None:
        self._bundle = bundle
        self._options = options
        self._max_memory = max_memory
        self._memory = estimate(bundle.manifest, tile)
        self._lock = threading.Lock()
        # Least recently used first. A provider that compiles has one for each set of shapes.
        self._sessions: dict[tuple[str, tuple[tuple[str, int], ...]], Session] = {}
        self.load_seconds: dict[str, float] = {}
        """Stage → how long its last session took to load."""

    @property
    def loaded(self) -> tuple[str, ...]:
        """The stages that are in memory now, least recently used first."""
        with self._lock:
            return tuple(dict.fromkeys(stage for stage, _ in self._sessions))

    def runner(self, token: CancelToken | None = None) -> RunStage:
        """The function by which one run runs its stages, each stopped by `token`. It raises
        BundleError, ProviderError, InputError, and Cancelled or DeadlineExceeded."""
        static = PROVIDERS[self._options.provider].static_shapes

        def run_stage(stage: str, inputs: dict[str, Array]) -> dict[str, Array]:
            if token is not None:
                token.check()  # before a session is loaded
            dimensions: dict[str, int] = {}
            if static:
                specs = {i.name: i for i in self._bundle.manifest.graphs[stage].inputs}
                for name, array in inputs.items():
                    dimensions |= free_dimensions(specs[name], array.shape)
            return self.session(stage, dimensions).run(token, **inputs)

        return run_stage

    def session(self, stage: str, dimensions: Mapping[str, int]) -> Session:
        """The stage's session, loaded where it is not. Raises BundleError, ProviderError."""
        key = (stage, tuple(sorted(dimensions.items())))
        with self._lock:
            session = self._sessions.pop(key, None)
            # Also where it is loaded: its run may take more than that of the stage before.
            if self._max_memory is not None:
                self._release_down_to(self._max_memory - self._memory[stage].peak)
            if session is None:
                graph = self._bundle.manifest.graphs[stage]
                path = self._bundle.path(graph.file)
                started = time.perf_counter()
                every_step = graph.role in EVERY_STEP
                session = Session(path, graph, self._options, dimensions, every_step=every_step)
                self.load_seconds[stage] = time.perf_counter() - started
            self._sessions[key] = session
            return session

    def sessions(self) -> list[tuple[str, Session]]:
        """Each stage's sessions that are in memory now."""
        with self._lock:
            return [(stage, session) for (stage, _), session in self._sessions.items()]

    def caches(self) -> dict[str, dict[str, Outcome]]:
        """Stage → kind of cache → what became of it, for the stages that are in memory now and keep
        what they compile; "miss" where any set of shapes missed."""
        found: dict[str, dict[str, Outcome]] = {}
        for stage, session in self.sessions():
            for kind, outcome in session.cached().items():
                kinds = found.setdefault(stage, {})
                kinds[kind] = "miss" if "miss" in (outcome, kinds.get(kind)) else outcome
        return found

    def notes(self) -> list[str]:
        """A line for each cache that was looked into, and the sessions' own notes."""
        cached = [
            f"{stage}: {', '.join(f'{kind} cache {outcome}' for kind, outcome in kinds.items())}"
            for stage, kinds in self.caches().items()
        ]
        return cached + [note for _, session in self.sessions() for note in session.notes]

    def close(self) -> None:
        """Release all; the next `session` loads again."""
        with self._lock:
            self._release_down_to(0)

    def _release_down_to(self, limit: int) -> None:
        """Release sessions, least recently used first, until the weights of the rest fit."""
        taken = sum(self._memory[stage].weights for stage, _ in self._sessions)
        if taken <= limit:
            return
        while taken > limit:
            key = next(iter(self._sessions))
            del self._sessions[key]
            taken -= self._memory[key[0]].weights
        trim = _malloc_trim()
        if trim is not None:
            trim(ctypes.c_size_t(0))


@functools.cache
def _malloc_trim() -> Callable[[ctypes.c_size_t], int] | None:
    """glibc's malloc_trim: without it, a third of a freed UNet's weights stays with the process.

    None elsewhere: other allocators give back on their own."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library None
        return None
