"""Convolutions and linear layers on channels-last activations, written out in a storage format.

Weights are signed bytes with one scale for each output channel (Krishnamoorthi 2018,
arXiv:1806.08342, section 3.1); processors are fast at multiplying unsigned activations by
signed weights. Two kernels do that, and which one is faster depends on the processor:

* "gather": the activations' neighbourhoods are gathered into rows, and one MatMulIntegerToFloat
  multiplies them. Activations are quantized as they come; the result is float32.
* "direct": QLinearConv on channels-last bytes, which gathers nothing and writes bytes. Each output
  channel has a range of its own, from calibration; activations are quantized as they come, about a
  zero point that is fixed, as the kernel wants.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgediff_export.graph.build import Builder, constant_of, initializer
from edgediff_export.targets.cpu.group_norm import Affine
from edgediff_export.targets.weights import FULL_RANGE, quantize_weight

Format = Literal["int8", "int8-weights", "int4", "fp16", "fp32"]
"""How a layer is stored and computed. "int8": bytes times bytes. "int8-weights", "int4" and "fp16"
store the weights so and compute in float32."""
Kernel = Literal["gather", "direct"]

BLOCK = 32
"""Weights that share a scale in int4."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A Dense node, read. matrix: weights (kh·kw·c, n) float32, rows in the order kh, kw, c."""

    node: ir.Node
    name: str
    x: ir.Value
    weight: npt.NDArray[np.float32]
    bias: ir.Value | None
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw), (1, 1) for a linear layer."""
        return (1, 1) if self.weight.ndim == 2 else (self.weight.shape[2], self.weight.shape[3])

    @property
    def channels(self) -> tuple[int, int]:
        """(in, out)."""
        shape = self.weight.shape
        return (shape[0], shape[1]) if self.weight.ndim == 2 else (shape[1], shape[0])

    @property
    def pointwise(self) -> bool:
        """Whether each token is multiplied by itself: a linear layer, or a convolution like one."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads)

    @property
    def takes_int4(self) -> bool:
        """Whether the layer can be stored in int4, which is in blocks of input channels."""
        return self.pointwise and self.channels[0] % BLOCK == 0

    def matrix(self) -> npt.NDArray[np.float32]:
        """Weights (kh·kw·c, n)."""
        if self.weight.ndim == 2:
            return self.weight
        n = self.weight.shape[0]
        return np.ascontiguousarray(self.weight.transpose(2, 3, 1, 0).reshape(-1, n))


def read_layer(node: ir.Node) -> Layer | None:
    """A Dense node as a Layer; None for any other."""
    if node.op_type != "Dense":
        return None
    x, weight = node.inputs[0], constant_of(node.inputs[1])
    if x is None or weight is None:
        return None
    top, left, bottom, right = node.attributes.get_ints("pads") or (0, 0, 0, 0)
    down, across = node.attributes.get_ints("strides") or (1, 1)
    return Layer(
        node=node,
        name=(node.inputs[1].name if node.inputs[1] is not None else None) or "",
        x=x,
        weight=weight.astype(np.float32, copy=False),
        bias=node.inputs[2] if len(node.inputs) > 2 else None,
        strides=(down, across),
        pads=(top, left, bottom, right),
    )


@dataclass(frozen=True, kw_only=True)
class Range:
    """The ranges of a layer in calibration: its input's extremes, and max |y − bias| of each
    output channel, (n) float32, for an input that large."""

    low: float
    high: float
    output: npt.NDArray[np.float32]


MARGIN = 1.3
"""How much wider than in calibration an output channel's range is; values beyond it are clipped."""


class Writer:
    """Writes layers of one graph out; layers that read one value share its quantization."""

    def __init__(
        self, graph: ir.Graph, ranges: Mapping[str, Range], levels: int = FULL_RANGE
    ) -> None:
        """levels: the largest weight of products of bytes."""
        self._graph = graph
        self._ranges = ranges
        self._levels = levels
        self._quantized: dict[tuple[ir.Value, int | None], tuple[ir.Value, ir.Value, ir.Value]] = {}
        self.affine: dict[ir.Value, tuple[ir.Value, Affine]] = {}
        """Result of a direct layer → the same before its scale and shift, and these."""

    def write(self, layer: Layer, form: Format, kernel: Kernel) -> ir.Value:
        """Add the nodes of a layer before its own node; return the result."""
        builder = Builder(self._graph, layer.node)
        if form == "int8":
            rank = len(layer.x.shape or ())
            if kernel == "direct" and layer.name in self._ranges and rank in (3, 4):
                return self._direct(builder, layer)
            return self._gather(builder, layer)
        return self._float(builder, layer, form)

    def _constant(self, name: str, values: npt.NDArray[Any]) -> ir.Value:
        """A constant, which layers of one weight share."""
        found = self._graph.initializers.get(name)
        return initializer(self._graph, name, values) if found is None else found

    def _gather(self, builder: Builder, layer: Layer) -> ir.Value:
        q, scale = quantize_weight(layer.matrix(), axis=1, levels=self._levels)
        x, x_scale, x_zero = self._quantize(builder, layer.x, None)
        if not layer.pointwise:
            x = gather_neighbourhoods(builder, x, x_zero, layer)
        # Not shared: onnxruntime converts the weight of each node and refuses to do so twice.
        name = f"{layer.name}.int8"
        while name in self._graph.initializers:
            name += ".again"
        inputs = [
            x,
            initializer(self._graph, name, q),
            x_scale,
            self._constant(f"{layer.name}.scale", scale),
            x_zero,
            None,
            layer.bias,
        ]
        return builder.op(
            "MatMulIntegerToFloat",
            inputs if layer.bias is not None else inputs[:5],
            domain="com.microsoft",
        )

    def _direct(self, builder: Builder, layer: Layer) -> ir.Value:
        seen = self._ranges[layer.name]
        zero = _zero_point(seen.low, seen.high)
        weight = layer.weight
        if weight.ndim == 2:
            weight = np.ascontiguousarray(weight.T)[:, :, None, None]
        q, scale = quantize_weight(weight, axis=0, levels=self._levels)
        # The size of a step of the output, by channel.
        step = np.maximum(seen.output * MARGIN / 127, np.float32(1e-12)).astype(np.float32)
        x, x_scale, x_zero = self._quantize(builder, layer.x, zero)
        tokens = len(layer.x.shape or ()) == 3
        if tokens:
            x = builder.op("Unsqueeze", [x, builder.constant([1], np.int64)])
        # The output's range scales with the input's: calibration gives their ratio.
        known = max(seen.high / (255 - zero), -seen.low / zero, 1e-12)
        y_scale = builder.op("Mul", [x_scale, builder.constant(1 / known, np.float32)])
        half = builder.constant(128, np.uint8)
        y = builder.op(
            "QLinearConv",
            [
                x,
                x_scale,
                x_zero,
                self._constant(f"{layer.name}.filters", q),
                self._constant(f"{layer.name}.filters.scale", scale / step),
                builder.constant(np.zeros(len(step)), np.int8, f"zeros.{len(step)}"),
                y_scale,
                half,
            ],
            {
                "channels_last": 1,
                "kernel_shape": list(layer.kernel),
                "strides": list(layer.strides),
                "pads": list(layer.pads),
            },
            domain="com.microsoft",
        )
        if tokens:
            y = builder.op("Squeeze", [y, builder.constant([1], np.int64)])
        raw = builder.op("DequantizeLinear", [y, y_scale, half])
        steps = self._constant(f"{layer.name}.step", step)
        shift = layer.bias
        result = builder.op("Mul", [raw, steps])
        if shift is None:
            shift = builder.constant(0.0, np.float32)
        else:
            result = builder.op("Add", [result, shift])
        self.affine[result] = (raw, Affine(scale=steps, shift=shift))
        return result

    def _quantize(
        self, builder: Builder, x: ir.Value, zero: int | None
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """x as bytes, its scale, its zero point; about a fixed zero point unless that is None."""
        key = (x, zero)
        if key not in self._quantized:
            if zero is None:
                q, scale, zero_point = builder.ops("DynamicQuantizeLinear", [x], outputs=3)
            else:
                over = builder.constant(1 / (255 - zero), np.float32)
                under = builder.constant(-1 / zero, np.float32)
                high = builder.op("ReduceMax", [x], {"keepdims": 0})
                low = builder.op("ReduceMin", [x], {"keepdims": 0})
                scale = builder.op(
                    "Max",
                    [
                        builder.op("Mul", [high, over]),
                        builder.op("Mul", [low, under]),
                        builder.constant(1e-12, np.float32),
                    ],
                )
                zero_point = builder.constant(zero, np.uint8)
                q = builder.op("QuantizeLinear", [x, scale, zero_point])
            self._quantized[key] = (q, scale, zero_point)
        return self._quantized[key]

    def _float(self, builder: Builder, layer: Layer, form: Format) -> ir.Value:
        if layer.pointwise:
            y = self._product(builder, layer.x, layer, form)
        else:
            weight = layer.weight
            stored = self._stored(builder, layer, weight, form)
            x = builder.op("Transpose", [layer.x], {"perm": [0, 3, 1, 2]})
            y = builder.op(
                "Conv",
                [x, stored, *([layer.bias] if layer.bias is not None else [])],
                {
                    "kernel_shape": list(layer.kernel),
                    "strides": list(layer.strides),
                    "pads": list(layer.pads),
                },
            )
            return builder.op("Transpose", [y], {"perm": [0, 2, 3, 1]})
        return y if layer.bias is None else builder.op("Add", [y, layer.bias])

    def _product(self, builder: Builder, x: ir.Value, layer: Layer, form: Format) -> ir.Value:
        matrix = layer.matrix()
        k, n = matrix.shape
        if form == "int4" and k % BLOCK == 0:
            packed, scales = quantize_blocks(matrix)
            return builder.op(
                "MatMulNBits",
                [
                    x,
                    self._constant(f"{layer.name}.int4", packed),
                    self._constant(f"{layer.name}.scale", scales),
                ],
                {"K": k, "N": n, "bits": 4, "block_size": BLOCK},
                domain="com.microsoft",
            )
        return builder.op("MatMul", [x, self._stored(builder, layer, matrix, form)])

    def _stored(
        self, builder: Builder, layer: Layer, weight: npt.NDArray[np.float32], form: Format
    ) -> ir.Value:
        """A weight that is turned into float32 when the graph is loaded."""
        original = layer.node.inputs[1]
        if form == "fp32" and original is not None and original.dtype == ir.DataType.FLOAT:
            if weight.shape == layer.weight.shape:
                return original
            return self._constant(f"{layer.name}.fp32", weight)
        if form == "fp16":
            half = self._constant(f"{layer.name}.fp16", weight.astype(np.float16))
            return builder.op("Cast", [half], {"to": ir.DataType.FLOAT})
        axis = 0 if weight.ndim == 4 else 1
        q, scale = quantize_weight(weight, axis=axis)
        return builder.op(
            "DequantizeLinear",
            [
                self._constant(f"{layer.name}.int8", q),
                self._constant(f"{layer.name}.scale", scale),
            ],
            {"axis": axis},
        )


def gather_neighbourhoods(
    builder: Builder, x: ir.Value, pad: ir.Value | None, layer: Layer
) -> ir.Value:
    """x (b, h, w, c) → (b, h', w', kh·kw·c): the inputs of each output pixel of a convolution.

    Neighbours in a row first, then whole rows, so that the copies are few and long."""
    top, left, bottom, right = layer.pads
    if any(layer.pads):
        pads = builder.constant([0, top, left, 0, 0, bottom, right, 0], np.int64)
        x = builder.op("Pad", [x, pads] if pad is None else [x, pads, pad])
    for axis, size, stride in (
        (2, layer.kernel[1], layer.strides[1]),
        (1, layer.kernel[0], layer.strides[0]),
    ):
        if size == 1 and stride == 1:
            continue
        pieces = []
        for i in range(size):
            stop = i - (size - 1)
            bounds = ([i], [stop if stop < 0 else np.iinfo(np.int64).max], [axis], [stride])
            pieces.append(
                builder.op("Slice", [x, *(builder.constant(b, np.int64) for b in bounds)])
            )
        x = pieces[0] if size == 1 else builder.op("Concat", pieces, {"axis": 3})
    return x


def quantize_blocks(
    w: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """w (k, n) → MatMulNBits' packing: bytes (n, k / BLOCK, BLOCK / 2) and scales (n·k / BLOCK),
    with w ≈ (nibble - 8) · scale. The scale's sign is that of the block's largest weight, so that
    the lowest of the 16 levels is used."""
    k, n = w.shape
    blocks = np.ascontiguousarray(w.T).reshape(n, k // BLOCK, BLOCK)
    at = np.abs(blocks).argmax(axis=2)[..., None]
    extreme = np.take_along_axis(blocks, at, axis=2)
    scale = np.where(extreme == 0, np.float32(1), extreme / np.float32(-8))
    q = np.clip(np.rint(blocks / scale) + 8, 0, 15).astype(np.uint8)
    packed = q[..., 0::2] | (q[..., 1::2] << 4)
    return packed, scale.reshape(-1).astype(np.float32)


def _zero_point(low: float, high: float) -> int:
    """The zero point of a range, so far from the ends that either side may grow."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return 128
    return int(np.clip(round(255 * -low / (high - low)), 8, 247))
