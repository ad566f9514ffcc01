"""A float32 graph → float16 (Micikevicius et al. 2017, arXiv:1710.03740), with float32 for
nodes that would overflow.

Inputs and outputs stay float32, so that stages of different precisions fit together.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgediff.errors import ExportError
from edgediff_export.graph.build import drop_unused_weights
from edgediff_export.graph.observe import load_typed, magnitudes
from edgediff_export.targets.conversion import Converted, FloatStage

LARGEST = 65504.0
"""The largest float16."""
_MARGIN = 4.0
"""How much larger than on the fixtures a value may become before it overflows."""
# Inputs that are float32 whatever the others are.
_FLOAT32_INPUTS = {"Resize": (1, 2)}


def to_float16(stage: FloatStage) -> Converted:
    """A float32 stage in float16, but for nodes whose values come near its limit on
    the fixtures, and for those that compute the timestep's angles, which need more digits.

    Raises ExportError for a graph with control flow."""
    model = load_typed(stage.source)
    graph = model.graph
    if any(a.type == ir.AttributeType.GRAPH for n in graph for a in n.attributes.values()):
        raise ExportError(
            f"{stage.source.name}: has control flow, which is not converted: export it in fp32"
        )
    largest = magnitudes(stage.source, [case.inputs for case in stage.cases])
    kept = _overflowing(graph, largest) | _angles(graph)
    return Converted(model=model, precision="fp16", formats=_convert(graph, kept))


def _overflowing(graph: ir.Graph, largest: Mapping[str, float]) -> set[ir.Node]:
    """The nodes that read or write a value too large for float16."""
    limit = LARGEST / _MARGIN
    return {
        node
        for node in graph
        if any(
            largest.get(v.name or "", 0.0) > limit
            for v in (*node.inputs, *node.outputs)
            if v is not None
        )
    }


def _angles(graph: ir.Graph) -> set[ir.Node]:
    """The sines and cosines and all that leads to them: an angle of 999 has 0.5 to spare in
    float16, and timesteps lie a fraction apart."""
    found: set[ir.Node] = set()
    pending = [node for node in graph if node.op_type in ("Sin", "Cos")]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += [p for v in node.inputs if v is not None and (p := v.producer())]
    return found


def _convert(graph: ir.Graph, kept: set[ir.Node]) -> dict[str, str]:
    """Turn every node but the kept ones to float16, with casts between the two."""
    half: dict[ir.Value, ir.Value] = {}  # float32 value or weight → its float16 twin
    full: dict[ir.Value, ir.Value] = {}  # float16 value → its float32 twin
    formats: dict[str, str] = {}
    for node in list(graph):
        for i, value in enumerate(node.inputs):
            if value is None:
                continue
            float32 = node in kept or i in _FLOAT32_INPUTS.get(node.op_type, ())
            if value.is_initializer() and value.dtype == ir.DataType.FLOAT:
                formats.setdefault(value.name or "", "fp32")
                if not float32:
                    formats[value.name or ""] = "fp16"
                    if value not in half:
                        half[value] = _half_weight(graph, value)
                    node.replace_input_with(i, half[value])
            elif float32 and value.dtype == ir.DataType.FLOAT16:
                if value not in full:
                    full[value] = _cast(graph, value, ir.DataType.FLOAT, before=node)
                node.replace_input_with(i, full[value])
            elif not float32 and value.dtype == ir.DataType.FLOAT:
                if value not in half:
                    half[value] = _cast(graph, value, ir.DataType.FLOAT16, before=node)
                node.replace_input_with(i, half[value])
        if node not in kept:
            _retype(node)
    for i, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.FLOAT16:
            _cast_output(graph, i)
    drop_unused_weights(graph)
    return formats


def _retype(node: ir.Node) -> None:
    """A node's own mentions of float32 become float16."""
    for name, attribute in list(node.attributes.items()):
        if node.op_type == "Cast" and name == "to" and attribute.as_int() == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrInt64("to", ir.DataType.FLOAT16)
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype == ir.DataType.FLOAT:
                halved = ir.tensor(_clip(tensor.numpy()))
                node.attributes[name] = ir.AttrTensor(name, halved)
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.FLOAT16


def _half_weight(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A weight's twin in float16, computed when it is asked for: all of them would fill memory."""
    weight = value.const_value
    if weight is None:
        raise ExportError(f"{value.name}: a weight without a value")
    name, shape = f"{value.name}.fp16", ir.Shape(weight.shape.numpy())

    def read() -> ir.Tensor[Any]:
        return ir.Tensor(_clip(weight.numpy()), name=name)

    twin = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.FLOAT16),
        shape=shape,
        const_value=ir.LazyTensor(read, dtype=ir.DataType.FLOAT16, shape=shape, name=name),
    )
    graph.register_initializer(twin)
    return twin


def _clip(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """float32 → float16; an attention mask's lowest float32 becomes the lowest float16."""
    clipped: npt.NDArray[np.float16] = np.clip(values, -LARGEST, LARGEST).astype(np.float16)
    return clipped


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, before: ir.Node) -> ir.Value:
    node = ir.node("Cast", [value], {"to": to}, name=f"{value.name}/to_{to.name.lower()}")
    node.outputs[0].type = ir.TensorType(to)
    node.outputs[0].shape = value.shape
    graph.insert_before(before, node)
    return node.outputs[0]


def _cast_output(graph: ir.Graph, index: int) -> None:
    """Give a graph's output, under its old name, in float32."""
    value = graph.outputs[index]
    name = value.name
    value.name = f"{name}/float16"
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}/to_float")
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = value.shape
    graph.append(node)
    graph.outputs[index] = node.outputs[0]
