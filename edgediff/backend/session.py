"""ONNX Runtime sessions with the guarantees that ONNX Runtime leaves to its caller.

The only importer of onnxruntime. A provider that was asked for runs, or creating the session
raises; inputs are checked by name, dtype and shape before every run.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import io
import os
import platform
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.arrays import AnyArray
from edgediff.backend.binding import Binding, Device
from edgediff.backend.cancellation import CancelToken
from edgediff.backend.compile_cache import Cache, Outcome
from edgediff.backend.providers import PROVIDERS, Provider, check_provider_name, default_options
from edgediff.bundle.graph_files import GraphFiles, graph_files
from edgediff.bundle.manifest import GraphSpec, TensorSpec
from edgediff.checks import check_whole
from edgediff.errors import (
    BundleError,
    EdgediffError,
    InputError,
    ProviderError,
    first_line,
)

# Since 1.29 onnxruntime reports models and devices to its maker unless this is set before it is
# imported. edgediff turns that off by default; an app may set the variable otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort


@dataclass(frozen=True, kw_only=True)
class Observe:
    """What sessions record while they run, for benchmarks; it costs time.

    placement: which provider each node got. profile: a folder for onnxruntime's own profiles."""

    placement: bool = False
    profile: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How sessions run. `threads`: intra-op CPU threads, None = one per core; at most
    `most_threads` run.

    `cache_dir`: folder for the results of a provider that compiles, made with the first session;
    None = nowhere. `provider_options` are handed to the provider as they are, and override what
    edgediff would set. `shrink_arena`: give the work space back after every run, on the CPU; the
    next run then takes a third longer for large images."""

    provider: str = "cpu"
    threads: int | None = None
    cache_dir: Path | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    shrink_arena: bool = False
    observe: Observe = Observe()

    def __post_init__(self) -> None:
        check_provider_name(self.provider)
        if self.provider == "cpu" and self.provider_options:
            names = ", ".join(self.provider_options)
            raise InputError(f"`provider_options` {names}: the provider cpu takes none")
        if self.threads is not None:
            object.__setattr__(self, "threads", check_whole("threads", self.threads))


def most_threads() -> int:
    """As many threads as this machine has logical processors: more only wait for each other."""
    return os.cpu_count() or 1


def silence_log() -> None:
    """Keep onnxruntime's log off stderr, in a process that is edgediff's own. Errors come back as
    exceptions; an app's log is as the app set it."""
    ort.set_default_logger_severity(4)


def version() -> str:
    """onnxruntime's version."""
    return str(ort.__version__)


def is_installed(name: str) -> bool:
    """Whether the provider's package is installed; `why_missing` says whether it also works."""
    provider = PROVIDERS[name]
    return _built_in(provider) or (
        provider.plugin is not None and importlib.util.find_spec(provider.plugin) is not None
    )


def why_missing(name: str) -> str | None:
    """Why the provider `name` cannot be used here, and the remedy; None if it can be used."""
    provider = PROVIDERS[name]
    if _built_in(provider):
        return None
    if provider.plugin is None:
        return f"this onnxruntime ({ort.__version__}) was built without it: {provider.install}"
    if not is_installed(name):
        return f"not installed: {provider.install}"
    try:
        devices = _plugin_devices(provider)
    except Exception as e:  # the plug-in's own loader may raise anything
        return (
            f"its plug-in {_version(provider.plugin)} does not load in onnxruntime"
            f" {ort.__version__} ({first_line(e)}): {provider.upgrade}"
        )
    return None if devices else "installed, but it finds no device here that it supports"


def _version(package: str) -> str:
    """A package's name on the index and its version."""
    import importlib.metadata  # slow to import, and seldom needed

    name = package.replace("_", "-")
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:  # on the path without having been installed
        return f"{name} (of unknown version)"


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
        """source: the graph's file, or what was read of it.
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
        create = functools.partial(
            _create, files, self.spec, self._options, dimensions, self._cache
        )
        if not captures or asked is not None:
            return create(captures=captures)
        try:
            return create(captures=True)
        except ProviderError as e:
            self._captures = False
            found = create(captures=False)
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
        """In a process that was forked: never free what was inherited. onnxruntime waits for its
        threads when a session is freed, and a fork does not copy threads."""
        for inherited in (self._session, *self._bindings.values()):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))

    def placement(self) -> dict[str, tuple[int, int]]:
        """onnxruntime's name of a provider → (nodes that it took, pieces that they are in), for a
        session that observes its placement; empty if onnxruntime does not report it."""
        found: dict[str, tuple[int, int]] = {}
        for part in _placed(self._session) or []:
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


WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
PRECISE = "session.x64quantprecision"
"""A session option for x86 without an instruction that sums products of bytes in 32 bits. There,
pairs of products are summed in 16 bits, which overflows; with this option, onnxruntime turns signed
weights into unsigned ones, which is slower."""


@functools.cache
def has_int8_dot() -> bool:
    """Whether this processor is known to sum products of bytes in 32 bits (VNNI, or ARM)."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # another system: the slower way is correct everywhere
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    return len(shape) == len(expected) and all(
        isinstance(e, str) or s == e for s, e in zip(shape, expected, strict=True)
    )


def free_dimensions(spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, int]:
    """Name → size of the free dimensions of an input that will get `shape`."""
    return {e: s for e, s in zip(spec.shape, shape, strict=True) if isinstance(e, str)}


def _create(
    files: GraphFiles,
    spec: GraphSpec,
    options: SessionOptions,
    dimensions: Mapping[str, int],
    cache: Cache | None,
    *,
    captures: bool,
) -> ort.InferenceSession:
    provider = PROVIDERS[options.provider]
    session_options = _session_options(spec, options, dimensions)
    # Not as it looks: a file may be a graph in onnxruntime's own format as well, unseen.
    session_options.add_session_config_entry("session.load_model_format", "ONNX")
    session_options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(files.folder))
    devices = [] if _built_in(provider) else _plugin_devices(provider)
    provider_options = default_options(
        options.provider,
        precision=spec.precision,
        cache=None if cache is None else cache.folder,
        timing=None if cache is None else cache.root,
        threads=options.threads,
        device=devices[0].device.type.name if devices else "CPU",
        captures=captures,
    ) | dict(options.provider_options)
    try:
        with files.mapped() as linked:
            if linked:
                session_options.add_external_initializers_from_files_in_memory(
                    list(linked), list(linked.values()), [len(view) for view in linked.values()]
                )
            if devices:
                session_options.add_provider_for_devices(devices, provider_options)
                session = ort.InferenceSession(files.model, session_options)
            else:
                if provider.device == "cuda":
                    _load_cuda()
                session = ort.InferenceSession(
                    files.model,
                    session_options,
                    providers=_providers(provider, provider_options),
                    enable_fallback=0,  # it would print, and hide why
                )
    except Exception as e:  # onnxruntime raises a dozen unrelated classes
        raise ProviderError(
            f"{spec.file}: provider {options.provider!r} refused it: {first_line(e)}"
        ) from e
    # ONNX Runtime falls back to the CPU without a word.
    if provider.onnxruntime_name not in session.get_providers():
        raise ProviderError(
            f"{spec.file}: provider {options.provider!r} did not start (onnxruntime fell back to"
            f" {', '.join(session.get_providers())}): check its driver, or {provider.install}"
        )
    if options.provider != "cpu":
        placed = _placed(session)
        if placed is not None and all(part.ep_name != provider.onnxruntime_name for part in placed):
            raise ProviderError(
                f"{spec.file}: provider {options.provider!r} takes no node of this graph: use"
                " another provider, or a bundle that was made for it"
            )
    return session


def _session_options(
    spec: GraphSpec, options: SessionOptions, dimensions: Mapping[str, int]
) -> ort.SessionOptions:
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4  # errors come back as exceptions
    session_options.intra_op_num_threads = min(options.threads or 0, most_threads())
    if options.provider == "cpu":
        # A memory pattern keeps a second work space next to the first run's, and is not faster.
        session_options.enable_mem_pattern = False
    for key, value in spec.session_config.items():
        if key == PRECISE and has_int8_dot():
            continue
        session_options.add_session_config_entry(key, value)
    for name, size in dimensions.items():
        session_options.add_free_dimension_override_by_name(name, size)
    if options.observe.profile is not None:
        session_options.enable_profiling = True
        prefix = options.observe.profile / Path(spec.file).stem
        session_options.profile_file_prefix = os.fspath(prefix)
    asks_placement = options.provider != "cpu" or options.observe.placement
    if asks_placement and hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return session_options


def _providers(provider: Provider, options: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """The provider, and on the same device the one that takes the nodes that it leaves."""
    found = [(provider.onnxruntime_name, options)]
    if provider.fallback in ort.get_available_providers():
        device = {k: v for k, v in options.items() if k == "device_id"}
        found.append((provider.fallback or "", device))
    return found


@functools.cache
def _load_cuda() -> None:
    """Load CUDA and cuDNN if they were installed as Python packages, which onnxruntime does not do
    by itself. It prints the libraries that it cannot load; if the provider then does not start,
    `_create` raises."""
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def _placed(session: ort.InferenceSession) -> list[Any] | None:
    """The partitions that onnxruntime cut the graph into; None if it does not report them."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before 1.24
        return None
    return list(session.get_provider_graph_assignment_info())


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


def _built_in(provider: Provider) -> bool:
    return provider.onnxruntime_name in ort.get_available_providers()


@functools.cache  # a library may be registered once a process
def _register(provider: Provider) -> None:
    plugin = importlib.import_module(provider.plugin or "")
    ort.register_execution_provider_library(provider.onnxruntime_name, plugin.get_library_path())


def _plugin_devices(provider: Provider) -> list[Any]:
    """The plug-in's CPU device, or else its first; empty if it supports no device here."""
    _register(provider)
    devices = [d for d in ort.get_ep_devices() if d.ep_name == provider.onnxruntime_name]
    cpus = [d for d in devices if d.device.type == ort.OrtHardwareDeviceType.CPU]
    return (cpus or devices)[:1]
