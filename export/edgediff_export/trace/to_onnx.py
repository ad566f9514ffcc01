"""Torch modules to float32 graphs, one stage at a time, without a second copy of the weights.

The exporter sees weights that repeat one number and take no memory; the graph that it writes then
gets the real ones, which are read as it is written.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgediff.errors import ExportError, first_line
from edgediff_export.quiet import quiet
from edgediff_export.trace.cleanup import clean_up
from edgediff_export.trace.stage import Stage

OPSET = 18


def trace(
    module: Any,
    stage: Stage,
    example: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    work: Path,
) -> ir.Model:
    """A stage's torch module → its float32 graph, whose weights are the module's, read when asked
    for; the module cannot be used afterwards.

    example: the stage's inputs by name, torch tensors; the shapes and dtypes that are not free.
    shapes: output → the dimensions that are not free.
    work: an existing folder, for a file that may go afterwards.

    Raises ExportError if the module cannot be traced."""
    weights = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    path = work / f"{stage.name}.onnx"
    with quiet():
        import torch

        hollow(module)
        stage.bind(module, list(example))
        try:
            with torch.no_grad():
                torch.onnx.export(
                    module,
                    tuple(example.values()),
                    path,
                    input_names=list(example),
                    output_names=list(stage.outputs),
                    dynamic_axes={n: dict(stage.axes(n)) for n in (*example, *stage.outputs)},
                    opset_version=OPSET,
                    dynamo=False,
                    export_params=False,
                    do_constant_folding=False,
                )
        except OSError:
            raise
        except Exception as e:  # the exporter and torch raise anything
            raise ExportError(f"{stage.name}: cannot be traced ({first_line(e)})") from e
    model = ir.load(path)
    _attach(model.graph, weights)
    unknown = [v.name for v in model.graph.inputs if v.name not in example]
    if unknown:
        raise ExportError(f"{stage.name}: reads {unknown[0]}, which is neither input nor weight")
    known = {**{k: v.shape for k, v in example.items()}, **shapes}
    _name_dimensions(model.graph, stage, known)
    clean_up(model)
    # An output that is also an intermediate value has that one's inferred shape now.
    _name_dimensions(model.graph, stage, known)
    return model


def hollow(module: Any) -> None:
    """Let every weight of a module be one number, repeated without taking memory; the numbers
    differ, since the exporter looks for weights that are equal."""
    import torch

    for k, weight in enumerate(module.parameters(), 1):
        number = torch.full((1,) * weight.ndim, k * 1e-6)
        weight.data = number.expand(weight.shape)


def _attach(graph: ir.Graph, weights: Mapping[str, Any]) -> None:
    """Turn the inputs that are weights into initializers with the values of these."""
    for value in [v for v in graph.inputs if v.name in weights]:
        graph.inputs.remove(value)
        value.const_value = _lazy(value.name or "", weights[value.name or ""])
        graph.register_initializer(value)
    for value in list(graph.initializers.values()):
        _fold_layout(graph, value)


def _lazy(name: str, weight: Any) -> ir.LazyTensor:
    """A torch tensor that is turned to numpy, floats to float32, each time it is asked for."""
    import torch

    dtype = ir.DataType.FLOAT if weight.is_floating_point() else ir.DataType.INT64

    def read() -> ir.Tensor[Any]:
        array = weight.to(torch.float32 if weight.is_floating_point() else torch.int64).numpy()
        return ir.Tensor(np.ascontiguousarray(array), name=name)

    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(weight.shape), name=name)


_Change = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def _fold_layout(graph: ir.Graph, value: ir.Value) -> None:
    """Transposed weights, and those with further dimensions of 1, become weights themselves, under
    the name of the original unless something else reads that."""
    users = list(dict.fromkeys(use.node for use in value.uses()))
    twins: dict[str, ir.Value] = {}
    for node in users:
        found = _relayout(value, node)
        if found is None:
            continue
        how, shape, change = found
        if how not in twins:
            twins[how] = _changed(value, f"{value.name}.{how}", shape, change)
            graph.register_initializer(twins[how])
        node.outputs[0].replace_all_uses_with(twins[how])
        graph.remove(node, safe=True)
    if twins and not value.uses():
        del graph.initializers[value.name or ""]
        if len(twins) == 1:
            (twin,) = twins.values()
            twin.name = value.name


def _relayout(value: ir.Value, node: ir.Node) -> tuple[str, Sequence[int], _Change] | None:
    """(name, shape, change) of a node that changes a weight's layout; None for another node."""
    if node.inputs[0] is not value or value.shape is None:
        return None
    shape = [int(d) for d in value.shape.numpy()]
    if node.op_type == "Transpose":
        order = list(node.attributes.get_ints("perm") or range(len(shape))[::-1])
        return "transposed", [shape[i] for i in order], lambda x: x.transpose(order)
    if node.op_type == "Unsqueeze" and node.inputs[1] is not None:
        axes = _constant(node.inputs[1])
        if axes is None:
            return None
        longer = list(np.expand_dims(np.empty(shape, np.bool_), tuple(axes)).shape)
        return f"unsqueezed{axes}", longer, lambda x: x.reshape(longer)
    return None


def _constant(value: ir.Value) -> list[int] | None:
    tensor = value.const_value
    if tensor is None:
        producer = value.producer()
        attribute = None if producer is None else producer.attributes.get("value")
        tensor = None if attribute is None else attribute.as_tensor()
    return None if tensor is None else tensor.numpy().reshape(-1).tolist()


def _changed(value: ir.Value, name: str, shape: Sequence[int], change: _Change) -> ir.Value:
    of = value.const_value
    if of is None:
        raise ValueError(f"{value.name} is not a weight")

    def read() -> ir.Tensor[Any]:
        return ir.Tensor(np.ascontiguousarray(change(of.numpy())), name=name)

    lazy = ir.LazyTensor(read, dtype=of.dtype, shape=ir.Shape(shape), name=name)
    return ir.Value(
        name=name, type=ir.TensorType(of.dtype), shape=ir.Shape(shape), const_value=lazy
    )


def _name_dimensions(graph: ir.Graph, stage: Stage, known: Mapping[str, Sequence[int]]) -> None:
    """Give inputs and outputs their shapes; dimensions that the exporter could not infer are named
    after its own nodes."""
    for value in (*graph.inputs, *graph.outputs):
        name = value.name or ""
        value.shape = ir.Shape([stage.axes(name).get(i, d) for i, d in enumerate(known[name])])
