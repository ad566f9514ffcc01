"""Small tools that every pass needs: build nodes in place, read constants, know dimensions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Known = list[float | int | None]
"""A small tensor flattened; elements that depend on the inputs are None."""


class Builder:
    """Adds nodes before `node`, under its name.

    The nodes that one layer becomes then share the layer's path in the pipeline."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self._node = graph, node
        self._path = node.name or node.outputs[0].name or node.op_type

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
    ) -> ir.Value:
        """Add a node of one output and return that."""
        return self.ops(op_type, inputs, attributes, domain=domain)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        outputs: int = 1,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Add a node and return its outputs."""
        count = self._graph.meta["nodes built"] = self._graph.meta.get("nodes built", 0) + 1
        node = ir.node(
            op_type,
            inputs,
            attributes or {},
            domain=domain,
            num_outputs=outputs,
            name=f"{self._path}/{op_type}.{count}",
        )
        self._graph.insert_before(self._node, node)
        return node.outputs

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike, name: str = "") -> ir.Value:
        """A constant; without a name, one that equal constants share."""
        array = np.array(values, dtype, order="C")  # ascontiguousarray makes scalars vectors
        if not name:
            text = ",".join(map(str, array.reshape(-1).tolist()))
            name = f"constant.{array.dtype}{list(array.shape)}:{text}"
        found = self._graph.initializers.get(name)
        return initializer(self._graph, name, array) if found is None else found


def initializer(graph: ir.Graph, name: str, values: npt.NDArray[Any]) -> ir.Value:
    """Register a constant under `name`."""
    tensor = ir.tensor(values, name=name)
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(values.shape),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def replace(node: ir.Node, new: ir.Value, output: int = 0) -> None:
    """Let whatever reads an output of `node` read `new`; the node is left for `sweep`.

    A graph's output gives its name to `new`, or to a copy if `new` has one to keep."""
    old = node.outputs[output]
    if new.type is None:
        new.type = old.type
    if new.shape is None:
        new.shape = old.shape
    was_output, name = old.is_graph_output(), old.name
    taken = new.is_graph_input() or new.is_initializer() or new.is_graph_output()
    if was_output and taken and node.graph is not None:
        copy = ir.node("Identity", [new], name=f"{node.name}/Identity")
        copy.outputs[0].type, copy.outputs[0].shape = new.type, new.shape
        node.graph.insert_before(node, copy)
        new = copy.outputs[0]
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if was_output:
        old.name, new.name = None, name


def sweep(graph: ir.Graph) -> None:
    """Remove the nodes whose results nothing reads, and the weights that nothing reads then."""
    for node in reversed(list(graph)):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
    drop_unused_weights(graph)


def drop_unused_weights(graph: ir.Graph) -> None:
    """Remove the weights that no node reads."""
    for name in [k for k, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]


def constant_of(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The values of an initializer, or None."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The one number that a value is whatever the inputs, or None."""
    known = elements(value)
    return known[0] if known is not None and len(known) == 1 else None


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes `value` if it is an `op_type`, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """The only node that reads `value` if it is an `op_type`, else None."""
    users = {use.node for use in value.uses()}
    if len(users) != 1 or value.is_graph_output():
        return None
    (node,) = users
    return node if node.op_type == op_type else None


def dims(value: ir.Value | None) -> list[int | None] | None:
    """The dimensions of a value as far as they are known whatever the inputs; None without a
    rank."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "Transpose":
        of = dims(node.inputs[0])
        perm = node.attributes.get_ints("perm")
        if of is not None and perm is not None:
            return [of[p] for p in perm]
    inferred = None
    if value.shape is not None:
        inferred = [d if isinstance(d, int) else None for d in value.shape]
    if node is not None and node.op_type == "Reshape":
        shape = elements(node.inputs[1])
        if shape is not None:
            found = [int(d) if d is not None and d > 0 else None for d in shape]
            if inferred is None:
                return found
            return [a if a is not None else b for a, b in zip(inferred, found, strict=True)]
    return inferred


def keeps_batch(reshape: ir.Node) -> bool:
    """Whether a Reshape leaves the first dimension as it was, by all that is known."""
    before, after = dims(reshape.inputs[0]), dims(reshape.outputs[0])
    if not before or not after:
        return False
    if after[0] is not None:
        return before[0] == after[0]
    a, b = (math.prod(d or 0 for d in rest) for rest in (before[1:], after[1:]))
    return a == b if a and b else (elements(reshape.inputs[1]) or [None])[0] != -1


def elements(value: ir.Value | None) -> Known | None:
    """The elements of a small tensor that is computed only from shapes and constants, else None."""
    if value is None:
        return None
    constant = constant_of(value)
    if constant is not None:
        return constant.reshape(-1).tolist() if constant.size <= 64 else None
    node = value.producer()
    if node is None or node.op_type not in _EVALUATED:
        return None
    return _EVALUATED[node.op_type](node)


def _rank(value: ir.Value | None) -> int | None:
    found = dims(value)
    return None if found is None else len(found)


def _of_shape(node: ir.Node) -> Known | None:
    found = dims(node.inputs[0])
    if found is None:
        return None
    return [*found[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]]


def _same(node: ir.Node) -> Known | None:
    return elements(node.inputs[0])


def _cast(node: ir.Node) -> Known | None:
    found = elements(node.inputs[0])
    to = {ir.DataType.INT64: int, ir.DataType.INT32: int, ir.DataType.FLOAT: float}.get(
        ir.DataType(node.attributes.get_int("to", 0))
    )
    if found is None or to is None or not all(e is None or math.isfinite(e) for e in found):
        return None
    return [None if e is None else to(e) for e in found]


def _gather(node: ir.Node) -> Known | None:
    data, index = elements(node.inputs[0]), elements(node.inputs[1])
    if data is None or index is None or any(i is None for i in index):
        return None
    if node.attributes.get_int("axis", 0) != 0 or _rank(node.inputs[0]) != 1:
        return None
    return [data[int(i or 0)] for i in index]


def _slice(node: ir.Node) -> Known | None:
    data = elements(node.inputs[0])
    bounds = [elements(v) for v in node.inputs[1:]]
    if data is None or any(b is None or len(b) != 1 or b[0] is None for b in bounds):
        return None
    if _rank(node.inputs[0]) != 1:
        return None
    start, stop = (int((b or [0])[0] or 0) for b in bounds[:2])
    step = int((bounds[3] or [1])[0] or 1) if len(bounds) > 3 else 1
    return data[start:stop:step]


def _concat(node: ir.Node) -> Known | None:
    parts = [elements(v) for v in node.inputs]
    if any(p is None for p in parts) or any(_rank(v) != 1 for v in node.inputs):
        return None
    return [e for p in parts for e in p or []]


def _sqrt(node: ir.Node) -> Known | None:
    found = elements(node.inputs[0])
    if found is None or any(e is not None and e < 0 for e in found):
        return None
    return [None if e is None else math.sqrt(e) for e in found]


def _arithmetic(node: ir.Node) -> Known | None:
    a, b = elements(node.inputs[0]), elements(node.inputs[1])
    if a is None or b is None:
        return None
    size = max(len(a), len(b))
    if len(a) not in (1, size) or len(b) not in (1, size):
        return None
    if len(a) > 1 and len(b) > 1 and dims(node.inputs[0]) != dims(node.inputs[1]):
        return None
    return [_combine(node.op_type, a[i % len(a)], b[i % len(b)]) for i in range(size)]


def _combine(op_type: str, a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    if op_type == "Div":
        whole = isinstance(a, int) and isinstance(b, int)
        return None if b == 0 else int(a / b) if whole else a / b  # towards zero, as ONNX does
    return {"Add": a + b, "Sub": a - b, "Mul": a * b}[op_type]


_EVALUATED = {
    "Shape": _of_shape,
    "Unsqueeze": _same,
    "Squeeze": _same,
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Sqrt": _sqrt,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
}
