"""A UNet that takes the residuals of control networks (Zhang et al. 2023, arXiv:2302.05543,
section 3.2): a second graph over the weights file of the first, which stays as it is.

It is made of the finished graph, in whatever precision that is: a control network's residuals are
added to the skip connections and to the middle block's output, which all meet in the joins, the
Concats of the decoding half. So the two differ only in these additions, weights and calibration
are the same, and without control it costs nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from edgediff.bundle.manifest import GraphSpec, TensorSpec
from edgediff.errors import ExportError
from edgediff_export.graph.build import Builder, dims
from edgediff_export.graph.observe import load_typed
from edgediff_export.graph.write import shorten
from edgediff_export.source.families import CONTROLLED_UNET, UNET

_CHANNELS_LAST = (0, 2, 3, 1)


def find_joins(floats: Path) -> list[str]:
    """The names of the nodes of the float32 UNet in a folder that join a skip connection, in order:
    Concats of two values (b, c, h, w) along the channels, the skip connection second."""
    return [
        node.name or ""
        for node in load_typed(floats / f"{UNET}.onnx").graph
        if node.op_type == "Concat"
        and node.attributes.get_int("axis", 0) == 1
        and [len(dims(v) or ()) for v in node.inputs] == [4, 4]
    ]


def write_controlled(
    folder: Path, unet: GraphSpec, joins: Sequence[str], residuals: Sequence[TensorSpec]
) -> GraphSpec:
    """Write unet_controlled.onnx beside a UNet, over its weights, and describe it.

    joins: their names in the float32 graph; a converted graph keeps these as the start of its own.
    residuals: those of the skip connections from the first on, and the middle block's last.
    Raises ExportError if the two do not go together."""
    model = load_typed(folder / unet.file)
    graph = model.graph
    nodes = [node for node in graph if node.op_type == "Concat" and _origin(node) in joins]
    if len(nodes) != len(joins) or len(joins) + 1 != len(residuals):
        raise ExportError(
            f"{unet.file}: has {len(nodes)} skip connections, and a control network gives"
            f" {len(residuals) - 1}: give one that was made for this UNet"
        )
    inputs = [_input(spec) for spec in residuals]
    graph.inputs.extend(inputs)
    *down, mid = inputs
    for node, residual in zip(nodes, reversed(down), strict=True):
        _add(graph, node, 1, residual)
    _add(graph, nodes[0], 0, mid)
    shorten(graph)
    path = folder / f"{CONTROLLED_UNET}.onnx"
    ir.save(model, path)
    return replace(
        unet, role="controlled_denoiser", file=path.name, inputs=(*unet.inputs, *residuals)
    )


def _origin(node: ir.Node) -> str:
    """The name of the traced node that a node was made of: passes name the nodes that they write
    `origin/Operator.3`."""
    name = node.name or ""
    head, _, last = name.rpartition("/")
    return head if last.startswith(f"{node.op_type}.") else name


def _input(spec: TensorSpec) -> ir.Value:
    return ir.Value(
        name=spec.name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(spec.shape)
    )


def _add(graph: ir.Graph, node: ir.Node, index: int, residual: ir.Value) -> None:
    """Add a residual to an input of a join, in its own layout and dtype."""
    builder = Builder(graph, node)
    value = node.inputs[index]
    if value is None:
        raise ExportError(f"{node.name}: reads nothing: the exporter has changed")
    if value.dtype == ir.DataType.FLOAT16:
        residual = builder.op("Cast", [residual], {"to": ir.DataType.FLOAT16})
    if node.attributes.get_int("axis", 0) != 1:
        residual = builder.op("Transpose", [residual], {"perm": _CHANNELS_LAST})
    node.replace_input_with(index, builder.op("Add", [value, residual]))
