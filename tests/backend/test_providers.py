"""The options that each provider gets for the arguments of `default_options`."""

from pathlib import Path
from typing import Any

import pytest

from edgediff.backend.providers import default_options

CACHE, TIMING = Path("cache") / "unet-2-64-64", Path("cache")
KEPT = {
    "trt_engine_cache_enable": "1",
    "trt_engine_cache_path": str(CACHE),
    "trt_timing_cache_enable": "1",
    "trt_timing_cache_path": str(TIMING),
}


@pytest.mark.parametrize(
    ("provider", "asked", "expected"),
    [
        ("cpu", {"cache": CACHE, "threads": 2}, {}),
        ("cuda", {"cache": CACHE, "precision": "fp16"}, {}),
        ("cuda", {"captures": True}, {"enable_cuda_graph": "1"}),
        ("tensorrt", {}, {}),
        ("tensorrt", {"precision": "fp16"}, {"trt_fp16_enable": "1"}),
        ("tensorrt", {"precision": "int8"}, {}),
        ("tensorrt", {"captures": True}, {"trt_cuda_graph_enable": "1"}),
        ("tensorrt", {"cache": CACHE, "timing": TIMING}, KEPT),
        (
            "tensorrt",
            {"precision": "fp16", "cache": CACHE, "timing": TIMING, "captures": True},
            {**KEPT, "trt_fp16_enable": "1", "trt_cuda_graph_enable": "1"},
        ),
        ("coreml", {}, {}),
        (
            "coreml",
            {"cache": CACHE},
            {"ModelFormat": "MLProgram", "ModelCacheDirectory": str(CACHE)},
        ),
        ("openvino", {"timing": TIMING}, {}),
        (
            "openvino",
            {"threads": 2, "device": "CPU"},
            {"load_config": '{"CPU": {"INFERENCE_NUM_THREADS": "2"}}'},
        ),
        ("openvino", {"threads": 2, "device": "GPU"}, {}),
    ],
)
def test_options(provider: str, asked: dict[str, Any], expected: dict[str, str]) -> None:
    assert default_options(provider, **{"precision": "fp32", **asked}) == expected
