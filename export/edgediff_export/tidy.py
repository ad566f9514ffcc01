"""What a traced graph needs before anything else: no clutter, and weights with the names they
have in torch."""

import re

import onnx_ir as ir
from onnx_ir.passes import common


def tidy(model: ir.Model) -> ir.Model:
    """Constants become initializers, identities and unused nodes go, and anonymous weights get the
    names of their modules. Changes `model` in place and returns it; values are not touched."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass(size_limit=64)(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    common.ShapeInferencePass()(model)
    _drop_idle_casts(model.graph)
    _name_weights(model.graph)
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


_ROLES = {"MatMul": "weight", "Mul": "weight", "Add": "bias", "LayerNormalization": "weight"}


def _name_weights(graph: ir.Graph) -> None:
    """`onnx::MatMul_1234`, a weight that the exporter transposed or reshaped, becomes
    `down_blocks.0.attentions.0.proj_in.weight`, from the path of the node that uses it."""
    for name in list(graph.initializers):
        value = graph.initializers[name]
        if not name.startswith("onnx::"):
            continue
        uses = list(value.uses())
        if len(uses) != 1:  # shared among modules: no one name fits
            continue
        node = uses[0].node
        path = re.sub(r"/[^/]*$", "", node.name or "").strip("/").replace("/", ".")
        role = _ROLES.get(node.op_type)
        new = f"{path}.{role}" if path and role else ""
        if new and new not in graph.initializers:
            value.name = new
