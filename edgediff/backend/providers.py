"""The execution providers, and the options that edgediff gives each, in its own names."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from edgediff.bundle.manifest import Precision
from edgediff.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider: ONNX Runtime's name for it and how a user gets it.

    `plugin` is the package of a provider that installs next to the stock onnxruntime, and `upgrade`
    what brings the two to versions that fit; `static_shapes` says that it compiles the graph and
    needs every dimension fixed for that. `device`: onnxruntime's name of the memory that it
    computes in, if that is not the processor's. `graph_option`: the provider option that records
    a run as a CUDA graph. `fallback`: the provider that takes what this one leaves, before the CPU.
    `packages`: whose versions matter besides onnxruntime's."""

    onnxruntime_name: str
    install: str
    plugin: str | None = None
    upgrade: str = ""
    static_shapes: bool = False
    device: str | None = None
    graph_option: str | None = None
    fallback: str | None = None
    packages: tuple[str, ...] = ()


PROVIDERS = {
    "cpu": Provider(
        onnxruntime_name="CPUExecutionProvider",
        install="pip install onnxruntime",
    ),
    "cuda": Provider(
        onnxruntime_name="CUDAExecutionProvider",
        install='pip uninstall onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]"',
        device="cuda",
        graph_option="enable_cuda_graph",
        packages=("onnxruntime-gpu", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    ),
    "tensorrt": Provider(
        onnxruntime_name="TensorrtExecutionProvider",
        install='pip uninstall onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]" tensorrt',
        static_shapes=True,
        device="cuda",
        graph_option="trt_cuda_graph_enable",
        fallback="CUDAExecutionProvider",
        packages=("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
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
        packages=("onnxruntime-ep-openvino",),
    ),
}


def check_provider_name(name: str) -> None:
    """Raise InputError, with the valid names, unless `name` is a provider's."""
    if name not in PROVIDERS:
        raise InputError(f"`provider` is {name!r}: expected auto or one of {', '.join(PROVIDERS)}")


def default_options(
    provider: str,
    *,
    precision: Precision,
    cache: Path | None = None,
    timing: Path | None = None,
    threads: int | None = None,
    device: str = "CPU",
    captures: bool = False,
) -> dict[str, str]:
    """What a provider needs to compute in the graph's precision, to keep what it compiles between
    runs, and to keep to `threads` where ONNX Runtime's own setting does not reach it.

    cache, timing: folders for what it compiles and for TensorRT's timings, None = keep nothing.
    device: the kind that a plug-in runs on, "CPU", "GPU" or "NPU".
    records: record the first run as a CUDA graph, and replay that."""
    if provider == "openvino":
        return _openvino(cache, threads, device)
    if provider == "cuda":
        return {"enable_cuda_graph": "1"} if captures else {}
    if provider == "tensorrt":
        return _tensorrt(precision, cache, timing, captures=captures)
    if provider == "coreml" and cache is not None:
        return {"ModelFormat": "MLProgram", "ModelCacheDirectory": os.fspath(cache)}
    return {}


def _tensorrt(
    precision: Precision, cache: Path | None, timing: Path | None, *, captures: bool
) -> dict[str, str]:
    options: dict[str, str] = {}
    if precision == "fp16":
        options["trt_fp16_enable"] = "1"  # without it half-precision graphs are computed in float32
    if cache is not None:
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": os.fspath(cache)}
    if timing is not None:
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": os.fspath(timing)}
    if captures:
        options["trt_cuda_graph_enable"] = "1"
    return options


def _openvino(cache: Path | None, threads: int | None, device: str) -> dict[str, str]:
    """OpenVINO's own properties of a device, as JSON: the plug-in ignores `cache_dir` and
    `num_of_threads`, which the provider took before it was a plug-in.

    INFERENCE_PRECISION_HINT stays unset: OpenVINO computes in bfloat16 by itself where the
    processor has instructions for it, and in float32 elsewhere."""
    properties: dict[str, str] = {}
    if cache is not None:
        properties["CACHE_DIR"] = os.fspath(cache)
    if threads is not None and device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    return {"load_config": json.dumps({device: properties})} if properties else {}
