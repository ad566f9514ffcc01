"""The execution providers, and the options that edgediff gives to each."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from edgediff.bundle.manifest import Precision
from edgediff.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider: ONNX Runtime's name for it and how a user gets it.

    plugin: the package of a provider that installs next to the stock onnxruntime.
    upgrade: the command that brings the two to matching versions.
    static_shapes: whether it compiles the graph, for which every dimension must be fixed.
    device: onnxruntime's name for the memory that it computes in; None = the processor's.
    graph_option: the provider option that captures a run as a CUDA graph.
    fallback: the provider that takes the nodes that this one leaves, before the CPU.
    packages: the packages, besides onnxruntime, whose versions matter."""

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
    """Raise InputError, listing the valid names, unless `name` is the name of a provider."""
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
    """The provider options with which a provider computes in the graph's precision, keeps its
    compiled graphs between runs, and uses `threads` if it ignores ONNX Runtime's own setting.

    cache, timing: folders for compiled graphs and for TensorRT's timings; None = keep nothing.
    threads: None = one per core.
    device: the kind of device that a plug-in runs on, "CPU", "GPU" or "NPU".
    captures: capture a run as a CUDA graph, and replay it."""
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
        options["trt_fp16_enable"] = "1"  # without it, half-precision graphs run in float32
    if cache is not None:
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": os.fspath(cache)}
    if timing is not None:
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": os.fspath(timing)}
    if captures:
        options["trt_cuda_graph_enable"] = "1"
    return options


def _openvino(cache: Path | None, threads: int | None, device: str) -> dict[str, str]:
    """OpenVINO's own device properties, as JSON. The plug-in ignores `cache_dir` and
    `num_of_threads`, which the provider took before it was a plug-in.

    INFERENCE_PRECISION_HINT stays unset: OpenVINO then computes in bfloat16 if the processor has
    instructions for it, and otherwise in float32."""
    properties: dict[str, str] = {}
    if cache is not None:
        properties["CACHE_DIR"] = os.fspath(cache)
    if threads is not None and device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    return {"load_config": json.dumps({device: properties})} if properties else {}
