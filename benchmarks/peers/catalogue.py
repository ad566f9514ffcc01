"""The peers, and edgediff itself among them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import conversion
from benchmarks.peers.conversion import Place


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A way to run the model. `environment`: in requirements/; `worker`: in workers/.

    model: makes the model that the worker loads, unless it exists. options: passed to the worker.
    compiles: it caches compiled models; the cache is filled before anything is timed. differs: the
    reason that its image differs and is not compared with diffusers'. needs: CPU flags, of which it
    requires one; `lacks` says why."""

    environment: str
    worker: str
    model: Callable[[Place], Path]
    options: dict[str, Any] = field(default_factory=dict)
    compiles: bool = False
    differs: str = ""
    needs: tuple[str, ...] = ()
    lacks: str = ""


_NOISE = "its noise for a seed is different"
_TOKENS = "it has CLIP's own vocabulary built in, not the model's"

PEERS: dict[str, Peer] = {
    "diffusers float32": Peer(
        environment="diffusers",
        worker="with_diffusers",
        model=conversion.source,
        options={"dtype": "float32"},
    ),
    "diffusers bfloat16": Peer(
        environment="diffusers",
        worker="with_diffusers",
        model=conversion.source,
        options={"dtype": "bfloat16"},
        needs=("avx512f", "bf16"),
        lacks="torch has no kernels in bfloat16 for this processor, and its fallback is far slower"
        " than float32",
    ),
    "optimum-onnx float32": Peer(
        environment="optimum-onnx", worker="with_optimum", model=conversion.optimum_fp32
    ),
    "optimum-onnx int8": Peer(
        environment="optimum-onnx", worker="with_optimum", model=conversion.optimum_int8
    ),
    "OpenVINO GenAI fp16": Peer(
        environment="openvino-genai",
        worker="with_openvino",
        model=conversion.openvino_fp16,
        compiles=True,
        differs=_NOISE,
    ),
    "OpenVINO GenAI int8 UNet": Peer(
        environment="openvino-genai",
        worker="with_openvino",
        model=conversion.openvino_int8,
        compiles=True,
        differs=_NOISE,
    ),
    "stable-diffusion.cpp f16": Peer(
        environment="stable-diffusion-cpp",
        worker="with_sdcpp",
        model=conversion.gguf_f16,
        differs=_TOKENS,
    ),
    "stable-diffusion.cpp q8_0": Peer(
        environment="stable-diffusion-cpp",
        worker="with_sdcpp",
        model=conversion.gguf_q8_0,
        differs=_TOKENS,
    ),
    "edgediff float32": Peer(
        environment="edgediff",
        worker="with_edgediff",
        model=conversion.edgediff_fp32,
        options={"provider": "cpu"},
    ),
    "edgediff int8": Peer(
        environment="edgediff",
        worker="with_edgediff",
        model=conversion.edgediff_int8,
        options={"provider": "cpu"},
    ),
    "edgediff int8 x86-avx2": Peer(
        environment="edgediff",
        worker="with_edgediff",
        model=conversion.edgediff_int8_avx2,
        options={"provider": "cpu"},
    ),
    "edgediff int8, OpenVINO": Peer(
        environment="edgediff-openvino",
        worker="with_edgediff",
        model=conversion.edgediff_int8_openvino,
        options={"provider": "openvino"},
        compiles=True,
    ),
}

OURS = "edgediff"
"""The prefix of edgediff's own names."""
LEAN = "stable-diffusion.cpp"
"""A single C++ library: edgediff's installed size is not compared with it."""
