"""The kernel that a convolution takes: measured on this machine, or by the kind of processor."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgediff.backend.create import has_int8_dot
from edgediff_export.graph.build import drop_unused_weights, initializer
from edgediff_export.targets.cpu.dense import Kernel, Layer, Range, Writer, read_layer
from edgediff_export.targets.cpu.group_norm import DOMAIN

Profile = Literal["auto", "x86-amx", "x86-vnni", "x86-avx2", "arm-dot"]
"""auto measures on this machine; the others name the processor of another device. A bundle made for
one runs on all of them, and gives the same values, except for "direct" convolutions on x86 without
VNNI, whose sums overflow in 16 bits. A bundle made on such a machine has none of these, and one
made for x86-avx2 has weights of 7 bits, with which nothing overflows."""
_GATHERED = 100e6
"""Bytes of neighbourhoods, beyond which copying them takes longer than matrix tiles save."""
_WORTH_TIMING = 1e8
"""Multiplications, below which a timing is noise, and the choice would differ from run to run."""
_REPEATS = 5
_CLEARLY = 0.9
"""The share of the other kernel's time from which one counts as faster; noise is less."""

_Shape = tuple[tuple[int, ...], tuple[int, int], tuple[int, ...], int]


def choose_kernels(
    layers: Sequence[Layer], rows: Mapping[str, int], profile: Profile
) -> dict[str, Kernel]:
    """Weight → kernel, for the convolutions of more than one pixel.

    rows: pixels that a layer reads, at the size that the bundle is for. On AMX, a matrix product is
    so fast that gathering pays while the copies are small; elsewhere "direct" wins. Without VNNI,
    products of bytes are added up in 16 bits, and those of 8-bit weights overflow in "direct"."""
    measured: dict[_Shape, Kernel] = {}
    chosen: dict[str, Kernel] = {}
    for layer in layers:
        if layer.pointwise:
            continue
        pixels = max(rows.get(layer.name, 1), 1)
        if profile == "auto" and not has_int8_dot():
            chosen[layer.name] = "gather"
            continue
        if profile == "x86-amx":
            gathered = pixels * layer.channels[0] * layer.kernel[0] * layer.kernel[1]
            chosen[layer.name] = "gather" if gathered < _GATHERED else "direct"
        elif profile == "auto" and pixels * layer.weight.size >= _WORTH_TIMING:
            shape = (layer.weight.shape, layer.strides, layer.pads, pixels)
            if shape not in measured:
                measured[shape] = faster_kernel(layer, pixels)
            chosen[layer.name] = measured[shape]
        else:
            chosen[layer.name] = "direct"
    return chosen


def faster_kernel(layer: Layer, pixels: int) -> Kernel:
    """The kernel that is faster on this machine for about so many pixels; "direct" if there are too
    many to try both."""
    side = max(2, round(pixels**0.5))
    if side * side * layer.channels[0] * layer.kernel[0] * layer.kernel[1] > 1e9:
        return "direct"
    x = np.random.default_rng(0).standard_normal((1, side, side, layer.channels[0]), np.float32)
    sessions = {kernel: _alone(layer, kernel) for kernel in get_args(Kernel)}
    taken: dict[Kernel, list[float]] = {kernel: [] for kernel in sessions}
    for _ in range(_REPEATS + 1):  # interleaved, the first to warm up
        for kernel, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"x": x})
            taken[kernel].append(time.perf_counter() - started)
    gathered, direct = (statistics.median(taken[k][1:]) for k in ("gather", "direct"))
    return "gather" if gathered < _CLEARLY * direct else "direct"


def _alone(layer: Layer, kernel: Kernel) -> ort.InferenceSession:
    """A session of one layer, x (1, h, w, c) float32 → y."""
    x = ir.Value(
        name="x",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([1, None, None, layer.channels[0]]),
    )
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18, "com.microsoft": 1}, name="layer")
    node = ir.node(
        "Dense",
        [x, initializer(graph, "weight", layer.weight)],
        {"strides": list(layer.strides), "pads": list(layer.pads)},
        domain=DOMAIN,
        name="layer",
    )
    graph.append(node)
    dense = read_layer(node)
    if dense is None:
        raise ValueError(f"{layer.name}: not a layer that can be timed")
    seen = Range(low=-4.0, high=4.0, output=np.full(layer.channels[1], 4, np.float32))
    y = Writer(graph, {dense.name: seen}).write(dense, "int8", kernel)
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(y)
    graph.remove(node)
    drop_unused_weights(graph)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        ir.to_proto(ir.Model(graph, ir_version=9)).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
