"""ONNX Runtime sessions with the guarantees that ONNX Runtime leaves to its caller.

The only importer of onnxruntime. A provider that was asked for runs, or creating the session
raises; inputs are checked by name, dtype and shape before every run.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.bundle import GraphSpec, TensorSpec
from edgediff.errors import BundleError, InputError, Name, ProviderError, first_line

# Since 1.29 onnxruntime reports models and devices to its maker unless told not to before it is
# imported. What an app's user draws is nobody's business; an app may set the variable otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

ort.set_default_logger_severity(4)  # what loading reports comes back as exceptions

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider: ONNX Runtime's name for it and how a user gets it.

    `plugin` is the package of a provider that installs beside the stock onnxruntime, and `upgrade`
    what brings the two to versions that fit; `static_shapes` says that it compiles the graph and
    needs every dimension fixed for that."""

    onnxruntime_name: str
    install: str
    plugin: str | None = None
    upgrade: str = ""
    static_shapes: bool = False


PROVIDERS = {
    "cpu": Provider(
        onnxruntime_name="CPUExecutionProvider",
        install="pip install onnxruntime",
    ),
    "cuda": Provider(
        onnxruntime_name="CUDAExecutionProvider",
        install="pip uninstall onnxruntime && pip install onnxruntime-gpu",
    ),
    "tensorrt": Provider(
        onnxruntime_name="TensorrtExecutionProvider",
        install="pip uninstall onnxruntime && pip install onnxruntime-gpu tensorrt",
        static_shapes=True,
    ),
    "coreml": Provider(
        onnxruntime_name="CoreMLExecutionProvider",
        install="pip install onnxruntime, on a Mac: its wheel for macOS includes CoreML",
        static_shapes=True,
    ),
    "openvino": Provider(
        onnxruntime_name="OpenVINOExecutionProvider",
        install='pip install "edgediff[openvino]"',
        plugin="onnxruntime_ep_openvino",
        upgrade="pip install --upgrade onnxruntime onnxruntime-ep-openvino",
        static_shapes=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Observe:
    """What sessions note down beside running, for benchmarks; it costs time.

    placement: which provider each node got. profile: a folder for onnxruntime's own profiles."""

    placement: bool = False
    profile: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How sessions run. `threads`: intra-op CPU threads, None = one per core.

    `cache_dir`: where a provider that compiles keeps its result, made when the first session is;
    None = nowhere. `provider_options` are handed to the provider as they are, and override what
    edgediff would set. `frugal`: give the work space back after every run, on the CPU; the next run
    then takes a third longer for large pictures."""

    provider: str = "cpu"
    threads: int | None = None
    cache_dir: Path | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    frugal: bool = False
    observe: Observe = Observe()

    def __post_init__(self) -> None:
        check_provider_name(self.provider)
        if self.provider == "cpu" and self.provider_options:
            names = ", ".join(self.provider_options)
            raise InputError(Name("provider_options"), f" {names}: the provider cpu takes none")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise InputError(
                Name("threads"), f" is {self.threads!r}: expected a whole number from 1 up"
            )


def check_provider_name(name: str) -> None:
    """Raise InputError, with the valid names, unless `name` is a provider's."""
    if name not in PROVIDERS:
        raise InputError(
            Name("provider"), f" is {name!r}: expected auto or one of {', '.join(PROVIDERS)}"
        )


def version() -> str:
    """onnxruntime's version."""
    return str(ort.__version__)


def is_installed(name: str) -> bool:
    """Whether the provider's package is there; `why_missing` says whether it also works."""
    provider = PROVIDERS[name]
    return _built_in(provider) or (
        provider.plugin is not None and importlib.util.find_spec(provider.plugin) is not None
    )


def why_missing(name: str) -> str | None:
    """Why the provider `name` cannot be used here and what to install; None where it can."""
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
    name = package.replace("_", "-")
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:  # on the path without having been installed
        return f"{name} (of unknown version)"


def default_cache_dir(bundle_id: str) -> Path | None:
    """Where what a provider compiles of a bundle is kept unless told otherwise: a folder of the
    bundle's own in the user's cache. None where that could not be written. Creates nothing."""
    try:
        folder = _user_cache() / "edgediff" / bundle_id[:16]
        existing = next(f for f in (folder, *folder.parents) if f.exists())
    except (RuntimeError, OSError):  # a user without a home, or one that may not be looked into
        return None
    return folder if existing.is_dir() and os.access(existing, os.W_OK) else None


def _user_cache() -> Path:
    """The platform's folder for what can be made again."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    # The XDG base directory specification: a relative path is to be ignored.
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return xdg if xdg.is_absolute() else Path.home() / ".cache"


class Session:
    """One graph, loaded on one provider.

    Raises ProviderError where the provider is absent, refuses the graph, or takes no node of it;
    BundleError where the graph is not the one that the GraphSpec describes."""

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        options: SessionOptions,
        dimensions: Mapping[str, int] | None = None,
    ) -> None:
        """`dimensions` fixes free dimensions of the graph by name."""
        missing = why_missing(options.provider)
        if missing is not None:
            raise ProviderError(f"provider {options.provider!r}: {missing}")
        self.spec = spec
        self._inputs = {i.name: i for i in spec.inputs}
        self._output_names = [o.name for o in spec.outputs]
        self._session = _create(path, spec, options, dimensions or {})
        self._run_options = ort.RunOptions()
        if options.provider == "cpu" and options.frugal:
            # Between runs a stage then keeps its weights alone; else each keeps its largest run's
            # work space while the others run.
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        found = {i.name for i in self._session.get_inputs()}
        if found != set(self._inputs):
            raise BundleError(
                f"{spec.file}: takes {sorted(found)}, but bundle.json says {sorted(self._inputs)}:"
                " the files of two bundles were mixed: copy or export the bundle again"
            )

    def run(self, **inputs: Array) -> dict[str, Array]:
        """Run the graph. Inputs by name, in the dtypes and shapes of the GraphSpec.

        Raises InputError for a wrong name, dtype or shape, ProviderError where the run fails."""
        self._check(inputs)
        try:
            outputs = self._session.run(self._output_names, inputs, self._run_options)
        except Exception as e:  # onnxruntime raises a dozen unrelated classes
            raise ProviderError(f"{self.spec.file}: the run failed: {first_line(e)}") from e
        # Copied: an output of onnxruntime's own keeps the work space of the run alive with it.
        return {n: np.array(o) for n, o in zip(self._output_names, outputs, strict=True)}

    def placement(self) -> dict[str, tuple[int, int]]:
        """onnxruntime's name of a provider → the nodes that it took and in how many pieces, for a
        session that observes its placement; empty where onnxruntime does not tell."""
        found: dict[str, tuple[int, int]] = {}
        for part in _placed(self._session) or []:
            nodes, pieces = found.get(part.ep_name, (0, 0))
            found[part.ep_name] = nodes + len(part.get_nodes()), pieces + 1
        return found

    def end_profiling(self) -> Path:
        """Where the profile of a session that observes it was written, now that it ends."""
        return Path(self._session.end_profiling())

    def _check(self, inputs: Mapping[str, Array]) -> None:
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


_PRECISE = "session.x64quantprecision"
"""Where x86 has no instruction that adds up products of bytes in 32 bits, products of pairs are
added up in 16, which overflow; onnxruntime then turns signed weights unsigned, which is slower."""


@functools.cache
def multiplies_bytes() -> bool:
    """Whether this processor is known to add up products of bytes in 32 bits (VNNI, or ARM)."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # another system: the slower way is right everywhere
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    return len(shape) == len(expected) and all(
        isinstance(e, str) or s == e for s, e in zip(shape, expected, strict=True)
    )


def free_dimensions(spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, int]:
    """Name -> value of the free dimensions of an input that will get `shape`."""
    return {e: s for e, s in zip(spec.shape, shape, strict=True) if isinstance(e, str)}


def _create(
    path: Path, spec: GraphSpec, options: SessionOptions, dimensions: Mapping[str, int]
) -> ort.InferenceSession:
    provider = PROVIDERS[options.provider]
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4  # errors come back as exceptions
    session_options.intra_op_num_threads = options.threads or 0
    if options.provider == "cpu":
        # A memory pattern is a second work space beside that of the first run, and no faster here.
        session_options.enable_mem_pattern = False
    for key, value in spec.session_config.items():
        if key == _PRECISE and multiplies_bytes():
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
    if options.cache_dir is not None and provider.static_shapes:
        _make_cache_dir(options.cache_dir)
    devices = [] if _built_in(provider) else _plugin_devices(provider)
    device = devices[0].device.type.name if devices else "CPU"
    provider_options = _default_provider_options(options, device) | dict(options.provider_options)
    try:
        if devices:
            session_options.add_provider_for_devices(devices, provider_options)
            session = ort.InferenceSession(path, session_options)
        else:
            session = ort.InferenceSession(
                path, session_options, providers=[(provider.onnxruntime_name, provider_options)]
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


def _placed(session: ort.InferenceSession) -> list[Any] | None:
    """The partitions that onnxruntime cut the graph into, None where it does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before 1.24
        return None
    return list(session.get_provider_graph_assignment_info())


def _make_cache_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(
            Name("cache_dir"),
            f" {folder}: cannot be made ({e.strerror}): give a folder that can be written, or ",
            Name("no_cache", "cache_dir=False"),
            " to keep nothing",
        ) from e


def _default_provider_options(options: SessionOptions, device: str) -> dict[str, str]:
    """What a provider needs to keep its compiled graphs between runs, and to keep to `threads`
    where ONNX Runtime's own setting does not reach it."""
    if options.provider == "openvino":
        return _openvino_options(options, device)
    if options.cache_dir is None:
        return {}
    cache = os.fspath(options.cache_dir)
    return {
        "tensorrt": {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": cache,
        },
        "coreml": {"ModelFormat": "MLProgram", "ModelCacheDirectory": cache},
    }.get(options.provider, {})


def _openvino_options(options: SessionOptions, device: str) -> dict[str, str]:
    """OpenVINO's own properties of a device ("CPU", "GPU", "NPU"), as JSON: the plug-in ignores
    `cache_dir` and `num_of_threads`, which the provider took before it was a plug-in.

    INFERENCE_PRECISION_HINT stays unset: OpenVINO computes in bfloat16 by itself where the
    processor has instructions for it, and in float32 elsewhere."""
    properties: dict[str, str] = {}
    if options.cache_dir is not None:
        properties["CACHE_DIR"] = os.fspath(options.cache_dir)
    if options.threads is not None and device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = str(options.threads)
    return {"load_config": json.dumps({device: properties})} if properties else {}


def _built_in(provider: Provider) -> bool:
    return provider.onnxruntime_name in ort.get_available_providers()


@functools.cache  # a library may be registered once a process
def _register(provider: Provider) -> None:
    plugin = importlib.import_module(provider.plugin or "")
    ort.register_execution_provider_library(provider.onnxruntime_name, plugin.get_library_path())


def _plugin_devices(provider: Provider) -> list[Any]:
    """The plug-in's CPU device, or else its first; empty where the machine has none for it."""
    _register(provider)
    devices = [d for d in ort.get_ep_devices() if d.ep_name == provider.onnxruntime_name]
    cpus = [d for d in devices if d.device.type == ort.OrtHardwareDeviceType.CPU]
    return (cpus or devices)[:1]
