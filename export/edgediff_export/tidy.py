"""What a traced graph needs before anything else: no clutter."""

import onnx_ir as ir
from onnx_ir.passes import common


def tidy(model: ir.Model) -> ir.Model:
    """Constants become initializers, identities and unused nodes go. Changes `model` in place and
    returns it; values are not touched."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass(size_limit=64)(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    common.ShapeInferencePass()(model)
    _drop_idle_casts(model.graph)
    model.graph.name = "graph"
    return model


def _drop_idle_casts(graph: ir.Graph) -> None:
    """A Cast to the type that a value has already, left over from mixed precision in torch."""
    for node in list(graph):
        if node.op_type != "Cast" or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source.dtype == node.attributes.get_int("to") and not result.is_graph_output():
            result.replace_all_uses_with(source)
            graph.remove(node, safe=True)
