"""Upsampling by two and a convolution after it, without the larger copy in between.

Every pixel that is repeated 2×2 meets several of the nine weights at once; their sums make four
2×2 convolutions of the small image, one for each phase of the large one, with 16 products instead
of 36 (sub-pixel convolution, Shi et al. 2016, arXiv:1609.05158, run backwards)."""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgediff_export.graph.build import (
    Builder,
    constant_of,
    dims,
    initializer,
    only_user,
    replace,
    sweep,
)
from edgediff_export.targets.cpu.dense import Layer, read_layer
from edgediff_export.targets.cpu.group_norm import DOMAIN


def merge_upsampling(model: ir.Model) -> int:
    """Replace nearest-neighbour upsampling by exactly two and the 3×3 convolution after it, in a
    restructured graph, in place. Returns how many there were.

    Weights grow by 16/9: this pays if they are few and the image is large, as in a decoder."""
    count = 0
    for node in list(model.graph):
        if not _doubles(node):
            continue
        after = only_user(node.outputs[0], "Dense")
        layer = None if after is None else read_layer(after)
        x = node.inputs[0]
        if layer is None or x is None or layer.x is not node.outputs[0]:
            continue
        if layer.kernel != (3, 3) or layer.strides != (1, 1) or layer.pads != (1, 1, 1, 1):
            continue
        result = _phases(model.graph, layer, x)
        replace(layer.node, result)
        count += 1
    sweep(model.graph)
    return count


def _doubles(node: ir.Node) -> bool:
    """Whether a node repeats every pixel of (b, h, w, c) 2×2."""
    if node.op_type != "Resize" or len(node.inputs) < 3:
        return False
    scales = constant_of(node.inputs[2])
    attributes = node.attributes
    return (
        scales is not None
        and scales.tolist() == [1.0, 2.0, 2.0, 1.0]
        and attributes.get_string("mode", "nearest") == "nearest"
        and attributes.get_string("coordinate_transformation_mode", "half_pixel") == "asymmetric"
        and attributes.get_string("nearest_mode", "round_prefer_floor") == "floor"
    )


def _phases(graph: ir.Graph, layer: Layer, x: ir.Value) -> ir.Value:
    """Four convolutions of x (b, h, w, c), interleaved: (b, 2h, 2w, n)."""
    builder = Builder(graph, layer.node)
    known = dims(x) or [None] * 4
    rows = []
    for a in (0, 1):
        columns = []
        for b in (0, 1):
            name = f"{layer.name}.phase{a}{b}"
            weight = graph.initializers.get(name)  # layers may share one
            if weight is None:
                folded = _folded(_folded(layer.weight, a, 2), b, 3)
                weight = initializer(graph, name, folded)
            part = builder.op(
                "Dense",
                [x, weight, layer.bias],
                {"strides": [1, 1], "pads": [1 - a, 1 - b, a, b]},
                domain=DOMAIN,
            )
            part.type = layer.node.outputs[0].type
            part.shape = ir.Shape([known[0], known[1], known[2], layer.channels[1]])
            columns.append(part)
        # (b, h, w, 2·n) is (b, h, 2·w, n) in the same order.
        rows.append(builder.op("Concat", columns, {"axis": 3}))
    zero, two = builder.constant([0], np.int64), builder.constant([2], np.int64)
    stacked = builder.op(
        "Concat", [builder.op("Unsqueeze", [row, two]) for row in rows], {"axis": 2}
    )
    shape = builder.op("Shape", [x])
    height, width = (
        builder.op("Mul", [builder.op("Gather", [shape, builder.constant([i], np.int64)]), two])
        for i in (1, 2)
    )
    channels = builder.constant([layer.channels[1]], np.int64)
    whole = builder.op("Concat", [zero, height, width, channels], {"axis": 0})
    return builder.op("Reshape", [stacked, whole])


def _folded(weight: npt.NDArray[np.float32], phase: int, axis: int) -> npt.NDArray[np.float32]:
    """Three weights along an axis → the two that a phase needs: the even one reads the pixel before
    and its own twice, the odd one its own twice and the pixel after."""
    first, middle, last = np.split(weight, 3, axis)
    pair = (first, middle + last) if phase == 0 else (first + middle, last)
    return np.ascontiguousarray(np.concatenate(pair, axis))
