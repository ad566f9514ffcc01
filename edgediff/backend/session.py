"""ONNX Runtime sessions with the guarantees that ONNX Runtime leaves to its caller.

A provider that was asked for runs, or creating the session raises; inputs are checked by name,
dtype and shape before every run.
"""

import ctypes
import functools
import os
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edgediff.arrays import AnyArray
from edgediff.backend.available import why_missing
from edgediff.backend.binding import Binding, Device
from edgediff.backend.cancellation import CancelToken
from edgediff.backend.compile_cache import Cache, Outcome
from edgediff.backend.create import create, placed
from edgediff.backend.options import SessionOptions
from edgediff.backend.providers import PROVIDERS
from edgediff.bundle.graph_files import GraphFiles, graph_files
from edgediff.bundle.manifest import GraphSpec, TensorSpec
from edgediff.errors import (
    BundleError,
    EdgediffError,
    InputError,
    ProviderError,
    first_line,
)

_QUICK = 0.1
"""Seconds; a run that is not known to be quicker has a thread of its own, so that its caller need
not wait for the end of an operator to be cancelled."""
_POLL = 0.02
"""Seconds between checks for cancelling while a run waits for another."""
_MOST_SHAPES = 8
"""The most sets of shapes for which a session keeps buffers. A captured CUDA graph is never
released, so further sets of shapes run without one."""


class Session:
    """One graph, loaded on one provider. May be run from several threads.

    If the provider computes in its own memory, inputs and outputs have buffers there, see
    `Binding`, and runs take turns.

    Raises ProviderError if the provider is absent, refuses the graph, or takes no node of it;
    BundleError if the graph is not the one that the GraphSpec describes."""

    def __init__(
        self,
        source: Path | GraphFiles,
        spec: GraphSpec,
        options: SessionOptions,
        dimensions: Mapping[str, int] | None = None,
        *,
        every_step: bool = False,
    ) -> None:
        """source: the graph's file, or its contents as read.
        dimensions: fixes free dimensions of the graph by name.
        every_step: it runs at every step of an image, which is worth recording as a CUDA graph
            if the provider can."""
        missing = why_missing(options.provider)
        if missing is not None:
            raise ProviderError(f"provider {options.provider!r}: {missing}")
        self.spec = spec
        self.notes: tuple[str, ...] = ()
        """Requests that were not met, although the session runs."""
        self._options = options
        self._provider = PROVIDERS[options.provider]
        self._inputs = {i.name: i for i in spec.inputs}
        self._output_names = [o.name for o in spec.outputs]
        self._cache = _open_cache(spec, options, dimensions or {})
        asked = self._asked_to_capture()
        # The nodes of a replayed graph do not appear in a profile.
        can = self._provider.graph_option is not None and options.observe.profile is None
        self._captures = every_step and can if asked is None else asked
        files = source if isinstance(source, GraphFiles) else graph_files(source, spec)
        self._session = self._load(files, dimensions or {})
        _live.add(self)
        self._quick: set[tuple[tuple[int, ...], ...]] = set()  # shapes whose last run was
        self._lock = threading.Lock()
        self._bindings: dict[tuple[tuple[int, ...], ...], Binding] = {}
        self._captured = 0
        found = {i.name for i in self._session.get_inputs()}
        if found != set(self._inputs):
            raise BundleError(
                f"{spec.file}: takes {sorted(found)}, but bundle.json says {sorted(self._inputs)}:"
                " the files of two bundles were mixed: copy or export the bundle again"
            )
        given = {o.name for o in self._session.get_outputs()}
        if not given >= {*self._output_names}:
            raise BundleError(
                f"{spec.file}: gives {sorted(given)[:8]}, but bundle.json says"
                f" {sorted(self._output_names)[:8]}: the files of two bundles were mixed: copy or"
                " export the bundle again"
            )

    def run(self, token: CancelToken | None = None, /, **inputs: AnyArray) -> dict[str, AnyArray]:
        """Run the graph. Inputs by name, in the dtypes and shapes of the GraphSpec. A read-only
        array must have the same values as when it was last given.

        token: stops the run before its next operator.

        Raises InputError for a wrong name, dtype or shape, ProviderError if the run fails, and
        Cancelled or DeadlineExceeded if the token stops it."""
        self._check(inputs)
        may_end, token = token is not None, token or CancelToken()
        try:
            if self._provider.device is not None:
                return self._run_bound(inputs, token)
            options = self._run_options()
            run = functools.partial(self._session.run, self._output_names, inputs, options)
            shapes = self._shapes(inputs)
            started = time.perf_counter()
            with token.terminates(options):
                outputs = token.wait(run) if may_end and shapes not in self._quick else run()
            if time.perf_counter() - started < _QUICK:
                self._quick.add(shapes)
            else:
                self._quick.discard(shapes)
        except EdgediffError:
            raise
        except Exception as e:  # onnxruntime raises a dozen unrelated classes
            token.check()  # a run that the token stopped fails, too
            option = self._provider.graph_option
            remedy = f": try the provider option {option}=0" if self._captures else ""
            raise ProviderError(f"{self.spec.file}: the run failed: {first_line(e)}{remedy}") from e
        # Copied: an output of onnxruntime's own keeps the work space of the run alive with it.
        return {n: np.array(o) for n, o in zip(self._output_names, outputs, strict=True)}

    def cached(self) -> dict[str, Outcome]:
        """Kind of cache → its outcome; complete after the first run, because some engines are built
        then. Empty if the provider keeps nothing."""
        return {} if self._cache is None else self._cache.outcomes()

    def _load(self, files: GraphFiles, dimensions: Mapping[str, int]) -> ort.InferenceSession:
        """Load the graph; if a provider cannot capture it, load it without that and note it."""
        captures, asked = self._captures, self._asked_to_capture()
        start = functools.partial(create, files, self.spec, self._options, dimensions, self._cache)
        if not captures or asked is not None:
            return start(captures=captures)
        try:
            return start(captures=True)
        except ProviderError as e:
            self._captures = False
            found = start(captures=False)
            self.notes = (f"{self.spec.file}: runs without a CUDA graph ({first_line(e)})",)
            return found

    def _asked_to_capture(self) -> bool | None:
        """Whether the caller's provider options turn CUDA graphs on or off; None = neither."""
        asked = self._options.provider_options.get(self._provider.graph_option or "")
        return None if asked is None else asked.lower() in ("1", "true")

    def _run_options(self, graph: int | None = None) -> ort.RunOptions:
        """New options for one run, so that stopping it stops no other run.

        graph: the number of the CUDA graph to capture or replay; None = neither."""
        options = ort.RunOptions()
        if self._options.provider == "cpu" and self._options.shrink_arena:
            # Between runs a stage then keeps only its weights; otherwise each keeps the work space
            # of its largest run while the others run.
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        if self._captures:
            options.add_run_config_entry("gpu_graph_id", "-1" if graph is None else str(graph))
        return options

    def _run_bound(self, inputs: Mapping[str, AnyArray], token: CancelToken) -> dict[str, AnyArray]:
        shapes = self._shapes(inputs)
        while not self._lock.acquire(timeout=_POLL):  # the buffers are shared
            token.check()
        try:
            # Put back only after it has run: a binding that failed is not used again.
            binding = self._bindings.pop(shapes, None) or self._bind(inputs)
            options = self._run_options(binding.graph)
            with token.terminates(options):
                found = binding.run(inputs, options)
            self._bindings[shapes] = binding
            if len(self._bindings) > _MOST_SHAPES:
                del self._bindings[next(iter(self._bindings))]
        finally:
            self._lock.release()
        return found

    def _shapes(self, inputs: Mapping[str, AnyArray]) -> tuple[tuple[int, ...], ...]:
        return tuple(inputs[name].shape for name in self._inputs)

    def _bind(self, inputs: Mapping[str, AnyArray]) -> Binding:
        """Buffers for these shapes, with their own CUDA graph."""
        graph = None
        if self._captures and self._captured < _MOST_SHAPES:
            self._captured += 1
            graph = self._captured
        index = int(self._options.provider_options.get("device_id", "0"))
        return Binding(
            self._session,
            ort.OrtValue,
            Device(self._provider.device or "cpu", index),
            inputs,
            self._output_names,
            captures=graph,
        )

    def keep_aside(self) -> None:
        """In a forked process: never free inherited sessions. onnxruntime waits for its
        threads when a session is freed, and a fork does not copy threads."""
        for inherited in (self._session, *self._bindings.values()):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))

    def placement(self) -> dict[str, tuple[int, int]]:
        """onnxruntime's name of a provider → (nodes that it took, pieces that they are in), for a
        session that observes its placement; empty if onnxruntime does not report it."""
        found: dict[str, tuple[int, int]] = {}
        for part in placed(self._session) or []:
            nodes, pieces = found.get(part.ep_name, (0, 0))
            found[part.ep_name] = nodes + len(part.get_nodes()), pieces + 1
        return found

    def end_profiling(self) -> Path:
        """End profiling, for a session that observes it; the path of the profile."""
        return Path(self._session.end_profiling())

    def _check(self, inputs: Mapping[str, AnyArray]) -> None:
        if inputs.keys() != self._inputs.keys():
            raise InputError(
                f"{self.spec.file}: given {sorted(inputs)}, expected {sorted(self._inputs)}"
            )
        for name, array in inputs.items():
            expected = self._inputs[name]
            if array.dtype != expected.dtype or not _fits(array.shape, expected.shape):
                raise InputError(
                    f"{self.spec.file}: {name} is {array.dtype} {array.shape},"
                    f" expected {expected.dtype} {expected.shape}"
                )


_live: "weakref.WeakSet[Session]" = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_live):
        session.keep_aside()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    return len(shape) == len(expected) and all(
        isinstance(e, str) or s == e for s, e in zip(shape, expected, strict=True)
    )


def free_dimensions(spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, int]:
    """Name → size of the free dimensions of an input that will get `shape`."""
    return {e: s for e, s in zip(spec.shape, shape, strict=True) if isinstance(e, str)}


def _open_cache(
    spec: GraphSpec, options: SessionOptions, dimensions: Mapping[str, int]
) -> Cache | None:
    if options.cache_dir is None or not PROVIDERS[options.provider].static_shapes:
        return None
    cache = Cache(options.cache_dir, spec.file, dimensions)
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(
            f"`cache_dir` {options.cache_dir}: cannot be made ({e.strerror}): give a folder"
            " that can be written, or `cache_dir=False` to keep nothing"
        ) from e
    return cache
