"""Making onnxruntime's own session: options, weights, provider, and whether it started."""

import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgediff.backend.available import built_in, load_cuda, plugin_devices
from edgediff.backend.compile_cache import Cache
from edgediff.backend.options import SessionOptions
from edgediff.backend.providers import PROVIDERS, Provider, default_options
from edgediff.bundle.graph_files import GraphFiles
from edgediff.bundle.manifest import GraphSpec
from edgediff.cores import usable_cores
from edgediff.errors import ProviderError, first_line

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


def create(
    files: GraphFiles,
    spec: GraphSpec,
    options: SessionOptions,
    dimensions: Mapping[str, int],
    cache: Cache | None,
    *,
    captures: bool,
) -> ort.InferenceSession:
    """onnxruntime's session of a graph.

    dimensions: fixes free dimensions by name. captures: record CUDA graphs.
    Raises ProviderError if the provider refuses the graph, does not start, or takes no node."""
    provider = PROVIDERS[options.provider]
    session_options = _session_options(spec, options, dimensions)
    # Not as it looks: a file may be a graph in onnxruntime's own format as well, unseen.
    session_options.add_session_config_entry("session.load_model_format", "ONNX")
    session_options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(files.folder))
    devices = [] if built_in(provider) else plugin_devices(provider)
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
                    load_cuda()
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
        parts = placed(session)
        if parts is not None and all(p.ep_name != provider.onnxruntime_name for p in parts):
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
    session_options.intra_op_num_threads = min(options.threads or 0, usable_cores())
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


def placed(session: ort.InferenceSession) -> list[Any] | None:
    """The partitions that onnxruntime cut the graph into; None if it does not report them."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before 1.24
        return None
    return list(session.get_provider_graph_assignment_info())
