"""Int8 weights, for all int8 forms of a graph: which layers have them, and how they are stored.

Weights become signed bytes with one scale for each output channel, symmetric about zero
(Krishnamoorthi 2018, arXiv:1806.08342, section 3.1). `cpu` writes graphs for ONNX Runtime's CPU
provider, `qdq` for providers that fuse pairs of QuantizeLinear and DequantizeLinear.
"""

from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgediff.backend.create import PRECISE
from edgediff_export.graph.build import Builder, drop_unused_weights, initializer, replace

SESSION_CONFIG = {
    # Fold DequantizeLinear of weights at load; else it runs at every step.
    "session.disable_quant_qdq": "1",
    # Processors without VNNI add pairs of products in 16 bits, which overflow; this avoids it.
    PRECISE: "1",
}
SMALL = 4096
"""Weights of fewer elements stay float: they cost next to nothing."""
FULL_RANGE = 127
REDUCED_RANGE = 63
"""The largest weight in 7 bits: two products of such weights and unsigned bytes fit 16 bits."""


def settle(graph: ir.Graph, formats: dict[str, str]) -> None:
    """Drop the weights that were replaced, and enter in `formats` those that stay float."""
    drop_unused_weights(graph)
    for name, value in graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT and _size(value) > 1 and not name.endswith(".scale"):
            formats[name] = "fp32"


def weight_to_quantize(node: ir.Node) -> ir.Value | None:
    """The weight of a linear layer, a convolution or an embedding if it is large, else None."""
    index = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}.get(node.op_type)
    weight = None if index is None else node.inputs[index]
    if not is_weight(weight) or _size(weight) < SMALL:
        return None
    if node.op_type in ("MatMul", "Gemm"):
        return weight if output_axis(node) is not None else None
    if node.op_type == "Gather":
        return weight if len(weight.shape or ()) == 2 else None
    return weight


def quantize_embeddings(graph: ir.Graph) -> list[str]:
    """Turn the rows of every embedding into bytes; returns the names of their weights."""
    changed = []
    for node in list(graph):
        weight = weight_to_quantize(node) if node.op_type == "Gather" else None
        if weight is not None:
            quantize_embedding(graph, node)
            changed.append(weight.name or "")
    drop_unused_weights(graph)
    return changed


def activation_scale(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of the 256 levels from `low` to `high`, zero among them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    return scale, round(min(max(-low / scale, 0.0), 255.0))


def output_axis(node: ir.Node) -> int | None:
    """The axis of a weight's output channels if the node is a linear layer, MatMul or Gemm by a
    constant of rank 2; else None."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    x, weight = node.inputs[:2]
    if x is None or not is_weight(weight) or len(weight.shape or ()) != 2:
        return None
    if node.op_type == "MatMul":
        return 1
    plain = (
        node.attributes.get_float("alpha", 1.0) == 1.0
        and node.attributes.get_float("beta", 1.0) == 1.0
        and node.attributes.get_int("transA", 0) == 0
    )
    return (0 if node.attributes.get_int("transB", 0) == 1 else 1) if plain else None


def is_weight(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is a float32 initializer."""
    return value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT


def array(value: ir.Value) -> npt.NDArray[np.float32]:
    """A float32 weight's values."""
    if value.const_value is None:
        raise ValueError(f"{value.name} is not a constant")
    values: npt.NDArray[np.float32] = np.asarray(value.const_value.numpy(), np.float32)
    return values


def quantize_weight(
    w: npt.NDArray[np.float32], axis: int, levels: int = FULL_RANGE
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """w → q int8 in [-levels, levels], scale (channels along `axis`) float32; w ≈ q · scale."""
    others = tuple(i for i in range(w.ndim) if i != axis)
    largest = np.abs(w).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(levels), np.float32(1)).astype(np.float32)
    q = np.rint(w / scale).astype(np.int8)
    return q, scale.reshape(-1)


def dequantize_weight(graph: ir.Graph, node: ir.Node, index: int, *, axis: int) -> None:
    """A node's weight comes out of DequantizeLinear, a constant that is folded when loaded.

    axis: of the weight, its output channels."""
    weight = node.inputs[index]
    if weight is None:
        return
    q, scale = quantize_weight(array(weight), axis=axis)
    dequantize = ir.node(
        "DequantizeLinear",
        [
            initializer(graph, f"{weight.name}.int8", q),
            initializer(graph, f"{weight.name}.scale", scale),
            # Zeros, which are also the default; but ONNX Runtime replaces the default by a single
            # one when it makes signed bytes unsigned, and then refuses it beside many scales.
            initializer(graph, f"{weight.name}.zero", np.zeros(len(scale), np.int8)),
        ],
        {"axis": axis},
        name=f"{node.name}/dequantize",
    )
    graph.insert_before(node, dequantize)
    node.replace_input_with(index, dequantize.outputs[0])


def quantize_embedding(graph: ir.Graph, node: ir.Node) -> None:
    """Rows of bytes with a scale each; only the rows that are looked up are ever turned float."""
    weight, ids = node.inputs[0], node.inputs[1]
    if weight is None or ids is None:
        return
    q, scale = quantize_weight(array(weight), axis=0)
    builder = Builder(graph, node)
    rows = builder.op("Gather", [initializer(graph, f"{weight.name}.int8", q), ids])
    scales = initializer(graph, f"{weight.name}.scale", scale[:, None])
    as_float = builder.op("Cast", [rows], {"to": ir.DataType.FLOAT})
    replace(node, builder.op("Mul", [as_float, builder.op("Gather", [scales, ids])]))
    graph.remove(node, safe=True)


def first_and_last_conv(graph: ir.Graph) -> list[ir.Node]:
    """The layers that read the input and write the output: few weights, and the most sensitive."""
    convs = [node for node in graph if node.op_type == "Conv"]
    return [convs[0], convs[-1]] if convs else []


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size
