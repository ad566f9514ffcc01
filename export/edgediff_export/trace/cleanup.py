"""Removes the clutter of a traced graph."""

import onnx_ir as ir
from onnx_ir.passes import common

from edgediff_export.graph.folding import fold_constants


def clean_up(model: ir.Model) -> ir.Model:
    """Constants become initializers, computed ones as well; identities and unused nodes go. Changes
    `model` in place and returns it; weights are not touched."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    _infer_shapes(model)
    fold_constants(model)
    common.CommonSubexpressionEliminationPass(size_limit=64)(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    common.ShapeInferencePass()(model)
    _drop_idle_casts(model.graph)
    model.graph.name = "graph"
    return model


def _infer_shapes(model: ir.Model) -> None:
    """Shapes of intermediate values, without those that the exporter took from the example."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    common.ShapeInferencePass()(model)


def _drop_idle_casts(graph: ir.Graph) -> None:
    """A Cast to the type that a value has already, left over from mixed precision in torch."""
    for node in list(graph):
        if node.op_type != "Cast" or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source.dtype == node.attributes.get_int("to") and not result.is_graph_output():
            result.replace_all_uses_with(source)
            graph.remove(node, safe=True)
