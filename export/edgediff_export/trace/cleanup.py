"""What a traced graph needs before anything else: no clutter."""

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from edgediff_export.graph.build import constant_of, initializer, replace

_SMALL = 64
"""Elements of a constant that may be a shape, an axis or a padding, and is no weight."""


def tidy(model: ir.Model) -> ir.Model:
    """Constants become initializers, and so does what is computed of whole numbers alone;
    identities and unused nodes go. Changes `model` in place and
    returns it; weights are not touched."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    _fold_whole_numbers(model)
    common.CommonSubexpressionEliminationPass(size_limit=64)(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    common.ShapeInferencePass()(model)
    _drop_idle_casts(model.graph)
    model.graph.name = "graph"
    return model


def _fold_whole_numbers(model: ir.Model) -> None:
    """Nodes that compute a few whole numbers of constants, such as the pads of a Pad, become
    constants: the exporter is not asked to, as it would fold weights as well."""
    graph, opsets = model.graph, dict(model.opset_imports)
    for node in list(graph):
        if len(node.outputs) != 1 or node.domain or node.outputs[0].is_graph_output():
            continue
        constants = {v.name or "": constant_of(v) for v in node.inputs if v is not None}
        if not constants or any(
            c is None or c.size > _SMALL or c.dtype.kind != "i" for c in constants.values()
        ):
            continue
        proto = ir.serde.serialize_node(node)
        (found,) = ReferenceEvaluator(proto, opsets=opsets).run(None, constants)
        found = np.asarray(found)
        if found.size <= _SMALL and found.dtype.kind == "i":
            replace(node, initializer(graph, f"{node.name}.folded", found))


def _drop_idle_casts(graph: ir.Graph) -> None:
    """A Cast to the type that a value has already, left over from mixed precision in torch."""
    for node in list(graph):
        if node.op_type != "Cast" or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source.dtype == node.attributes.get_int("to") and not result.is_graph_output():
            result.replace_all_uses_with(source)
            graph.remove(node, safe=True)
