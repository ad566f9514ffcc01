"""The sessions of a bundle's stages: loaded when needed, and released under a memory limit."""

import ctypes
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping

from edgediff.arrays import AnyArray
from edgediff.backend.cancellation import CancelToken
from edgediff.backend.compile_cache import Outcome
from edgediff.backend.memory import estimate
from edgediff.backend.options import SessionOptions
from edgediff.backend.providers import PROVIDERS
from edgediff.backend.run_stage import RunStage
from edgediff.backend.session import Session, free_dimensions
from edgediff.bundle.folder import Bundle
from edgediff.bundle.graph_files import bundle_graph_files, checked_beside
from edgediff.bundle.manifest import EVERY_STEP
from edgediff.cores import usable_cores


class Stages:
    """A bundle's sessions. Safe to call from several threads.

    max_memory: in bytes; before a stage is loaded or run that would not fit, the least recently
    used stages are released. A session that another thread is running stays until that run ends.
    tile: see `estimate`."""

    def __init__(
        self,
        bundle: Bundle,
        options: SessionOptions,
        max_memory: int | None,
        tile: int | None = None,
        *,
        check_hashes: bool = True,
    ) -> None:
        """check_hashes: whenever a stage is loaded, of the files that it is loaded from."""
        self._bundle = bundle
        self._check_hashes = check_hashes
        self._options = options
        self._max_memory = max_memory
        self._memory = estimate(bundle.manifest, tile)
        self._lock = threading.Lock()
        # Least recently used first. A provider that compiles has one for each set of shapes.
        self._sessions: dict[tuple[str, tuple[tuple[str, int], ...]], Session] = {}
        self.load_seconds: dict[str, float] = {}
        """Stage → how long its last session took to load."""
        _live.add(self)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The stages that are loaded now, least recently used first."""
        with self._lock:
            return tuple(dict.fromkeys(stage for stage, _ in self._sessions))

    def runner(self, token: CancelToken | None = None) -> RunStage:
        """The function with which one run runs its stages; `token` stops it. It raises
        BundleError, ProviderError, InputError, and Cancelled or DeadlineExceeded."""
        static = PROVIDERS[self._options.provider].static_shapes

        def run_stage(stage: str, inputs: dict[str, AnyArray]) -> dict[str, AnyArray]:
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
        """The stage's session, loaded if it is not. dimensions: the sizes of free dimensions to
        fix, by name. Raises BundleError, ProviderError."""
        key = (stage, tuple(sorted(dimensions.items())))
        with self._lock:
            session = self._sessions.pop(key, None)
            # Even if it is loaded: its run may take more than the run of the stage before.
            if self._max_memory is not None:
                self._release_down_to(self._max_memory - self._memory[stage].peak)
            if session is None:
                started = time.perf_counter()
                session = self._load(stage, dimensions)
                self.load_seconds[stage] = time.perf_counter() - started
            self._sessions[key] = session
            return session

    def _load(self, stage: str, dimensions: Mapping[str, int]) -> Session:
        graph = self._bundle.manifest.graphs[stage]
        files = bundle_graph_files(self._bundle, stage, check_hashes=self._check_hashes)
        checked = graph.data if self._check_hashes else ()
        with checked_beside(self._bundle, checked):
            every_step = graph.role in EVERY_STEP
            return Session(files, graph, self._options, dimensions, every_step=every_step)

    def sessions(self) -> list[tuple[str, Session]]:
        """(stage, session) for each session that is loaded now."""
        with self._lock:
            return [(stage, session) for (stage, _), session in self._sessions.items()]

    def caches(self) -> dict[str, dict[str, Outcome]]:
        """Stage → kind of cache → its outcome, for the stages that are loaded now and have a cache;
        "miss" if any set of shapes missed."""
        found: dict[str, dict[str, Outcome]] = {}
        for stage, session in self.sessions():
            for kind, outcome in session.cached().items():
                kinds = found.setdefault(stage, {})
                kinds[kind] = "miss" if "miss" in (outcome, kinds.get(kind)) else outcome
        return found

    def notes(self) -> list[str]:
        """A line for each stage that has caches, and the sessions' own notes."""
        cached = [
            f"{stage}: {', '.join(f'{kind} cache {outcome}' for kind, outcome in kinds.items())}"
            for stage, kinds in self.caches().items()
        ]
        notes = cached + [note for _, session in self.sessions() for note in session.notes]
        asked, most = self._options.threads, usable_cores()
        if asked is not None and asked > most:
            notes.append(f"threads: {asked} were asked for, {most} run, one per processor")
        return notes

    def close(self) -> None:
        """Release all sessions; the next `session` loads again."""
        with self._lock:
            self._release_down_to(0)

    def _release_down_to(self, limit: int) -> None:
        """Release sessions, least recently used first, until the weights of the rest fit."""
        taken = sum(self._memory[stage].weights for stage, _ in self._sessions)
        if taken <= limit:
            return
        while taken > limit and self._sessions:  # one stage alone may exceed the limit
            key = next(iter(self._sessions))
            del self._sessions[key]
            taken -= self._memory[key[0]].weights
        trim = _malloc_trim()
        if trim is not None:
            trim(ctypes.c_size_t(0))

    def start_anew(self) -> None:
        """In a process that was forked: a lock that another thread may have held, and no session.
        The next run loads."""
        self._lock = threading.Lock()
        self._sessions = {}


_live: "weakref.WeakSet[Stages]" = weakref.WeakSet()


def _after_fork() -> None:
    for stages in list(_live):
        stages.start_anew()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    # After what keeps the sessions aside: handlers run in the order of their registration.
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _malloc_trim() -> Callable[[ctypes.c_size_t], int] | None:
    """glibc's malloc_trim: without it, the process keeps a third of a freed UNet's weights.

    None elsewhere: other allocators return memory on their own."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library None
        return None
