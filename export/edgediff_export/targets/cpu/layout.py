"""Channels last throughout: values (b, c, h, w) of the UNet and the VAE become (b, h, w, c).

A convolution is then one matrix product of tokens, the transformer blocks in between read the same
memory, and no transposes are left but at the inputs and outputs. Every channels-first value gets a
channels-last twin, in the order of the graph; a node that no rule knows reads a transposed copy."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgediff_export.graph.build import (
    Builder,
    constant_of,
    dims,
    initializer,
    keeps_batch,
    replace,
    sweep,
)
from edgediff_export.targets.cpu.group_norm import DOMAIN

_LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1)}
_FIRST = {3: (0, 2, 1), 4: (0, 3, 1, 2)}
_ELEMENTWISE = {"Sigmoid", "Relu", "Tanh", "Erf", "Neg", "Abs", "Exp", "Sqrt", "Clip", "LeakyRelu"}
_BROADCAST = {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"}


def channels_last(model: ir.Model) -> None:
    """Rewrite `model` in place. Convolutions and products by a constant become Dense(x, weight
    (n, c, kh, kw) or (k, n), bias) with `strides` and `pads`, GroupNorms keep their name; `dense`
    and `group_norm` write these out."""
    _Layout(model.graph).run()
    sweep(model.graph)


class _Layout:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._last: dict[ir.Value, ir.Value] = {}
        self._native: set[ir.Value] = set()  # values whose twin was made from themselves
        self._first: dict[ir.Value, ir.Value] = {}  # transposed copies for nodes no rule knows
        self._rules: dict[str, Callable[[ir.Node, Builder], ir.Value | None]] = {
            "Conv": self._conv,
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "GroupNorm": self._group_norm,
            "Concat": self._concat,
            "Resize": self._resize,
            "Transpose": self._transpose,
            "Reshape": self._reshape,
            **dict.fromkeys(_ELEMENTWISE, self._elementwise),
            **dict.fromkeys(_BROADCAST, self._broadcast),
        }

    def run(self) -> None:
        for node in list(self._graph):
            rule = self._rules.get(node.op_type)
            builder = Builder(self._graph, node)
            twin = None if rule is None else rule(node, builder)
            if twin is not None:
                self._register(node.outputs[0], twin)
            elif rule is None or node.op_type not in ("MatMul", "Gemm"):
                self._keep(node, builder)
        for value in list(self._graph.outputs):
            source = value.producer()
            if source is not None and self._is_moved(value):
                self._restore(source, value)

    def _is_moved(self, value: ir.Value | None) -> bool:
        return value is not None and value in self._last and value not in self._native

    def twin(self, value: ir.Value, builder: Builder) -> ir.Value | None:
        """The channels-last twin of a value of rank 3 or 4."""
        if value not in self._last:
            rank = len(dims(value) or ())
            if rank not in _LAST:
                return None
            self._register(value, builder.op("Transpose", [value], {"perm": _LAST[rank]}))
            self._native.add(value)
        return self._last[value]

    def _register(self, value: ir.Value, twin: ir.Value) -> None:
        """Remember a twin, with its type and shape as far as they are known."""
        self._last[value] = twin
        if twin.type is None:
            twin.type = value.type
        if twin.shape is None and value.shape is not None:
            twin.shape = ir.Shape([value.shape[i] for i in _LAST[len(value.shape)]])

    def _keep(self, node: ir.Node, builder: Builder) -> None:
        """A node that stays as it is reads channels-first copies of moved values."""
        for i, value in enumerate(node.inputs):
            if value is None or not self._is_moved(value):
                continue
            rank = len(dims(value) or ())
            if node.op_type == "Shape":
                shape = builder.op("Shape", [self._last[value]])
                start = node.attributes.get_int("start", 0)
                end = node.attributes.get_int("end", rank)
                order = builder.constant(_FIRST[rank][start:end], np.int64)
                replace(node, builder.op("Gather", [shape, order], {"axis": 0}))
                return
            if value not in self._first:
                copy = builder.op("Transpose", [self._last[value]], {"perm": _FIRST[rank]})
                copy.type, copy.shape = value.type, value.shape
                self._first[value] = copy
            node.replace_input_with(i, self._first[value])

    def _restore(self, node: ir.Node, value: ir.Value) -> None:
        """A graph's output in the layout that it had."""
        rank = len(dims(value) or ())
        back = Builder(self._graph, node).op(
            "Transpose", [self._last[value]], {"perm": _FIRST[rank]}
        )
        replace(node, back)

    def _conv(self, node: ir.Node, builder: Builder) -> ir.Value | None:
        x, weight = node.inputs[0], constant_of(node.inputs[1])
        attributes = node.attributes
        plain = (
            weight is not None
            and weight.ndim == 4
            and weight.dtype == np.float32
            and attributes.get_int("group", 1) == 1
            and set(attributes.get_ints("dilations", [1])) == {1}
            and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
            and (len(node.inputs) < 3 or constant_of(node.inputs[2]) is not None)
        )
        twin = self.twin(x, builder) if plain and x is not None else None
        if twin is None:
            return None
        return builder.op(
            "Dense",
            [twin, *node.inputs[1:]],
            {
                "strides": list(attributes.get_ints("strides", [1, 1])),
                "pads": list(attributes.get_ints("pads", [0, 0, 0, 0])),
            },
            domain=DOMAIN,
        )

    def _matmul(self, node: ir.Node, builder: Builder) -> ir.Value | None:
        """A product by a constant, with the bias that is added to it."""
        weight = constant_of(node.inputs[1])
        self._keep(node, builder)
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
            return None
        out = builder.op("Dense", [node.inputs[0], node.inputs[1]], domain=DOMAIN)
        replace(node, out)
        return None

    def _gemm(self, node: ir.Node, builder: Builder) -> ir.Value | None:
        weight = constant_of(node.inputs[1])
        plain = (
            weight is not None
            and node.attributes.get_float("alpha", 1.0) == 1.0
            and node.attributes.get_float("beta", 1.0) == 1.0
            and node.attributes.get_int("transA", 0) == 0
            and weight.dtype == np.float32
        )
        if weight is not None and len(node.inputs) > 2:
            bias = constant_of(node.inputs[2])
            width = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
            plain = plain and bias is not None and bias.shape == (width,)
        self._keep(node, builder)
        if not plain or weight is None or node.inputs[1] is None:
            return None
        value = node.inputs[1]
        if node.attributes.get_int("transB", 0):
            name = f"{value.name}.transposed"
            found = self._graph.initializers.get(name)
            value = found or initializer(self._graph, name, np.ascontiguousarray(weight.T))
        out = builder.op("Dense", [node.inputs[0], value, *node.inputs[2:]], domain=DOMAIN)
        replace(node, out)
        return None

    def _group_norm(self, node: ir.Node, builder: Builder) -> ir.Value | None:
        x = node.inputs[0]
        twin = None if x is None else self.twin(x, builder)
        if twin is None:
            return None
        attributes = {
            "groups": node.attributes.get_int("groups", 1),
            "epsilon": node.attributes.get_float("epsilon", 1e-5),
        }
        return builder.op("GroupNorm", [twin, *node.inputs[1:]], attributes, domain=DOMAIN)

    def _elementwise(self, node: ir.Node, builder: Builder) -> ir.Value | None:
        x = node.inputs[0]
        if x is None or not self._is_moved(x):
            return None
        return builder.op(node.op_type, [self._last[x], *node.inputs[1:]], dict(node.attributes))

    def _broadcast(self, node: ir.Node, builder: Builder) -> ir.Value | None:
        if not any(self._is_moved(v) for v in node.inputs):
            return None
        rank = max(len(dims(v) or ()) for v in node.inputs)
        twins = [self._operand(v, rank, builder) for v in node.inputs]
        if any(t is None for t in twins):
            return None
        return builder.op(node.op_type, twins, dict(node.attributes))

    def _operand(self, value: ir.Value | None, rank: int, builder: Builder) -> ir.Value | None:
        """A value that broadcasts over channels-last values as `value` over channels-first ones."""
        if value is None or rank not in _LAST:
            return None
        constant = constant_of(value)
        if constant is not None and constant.size == 1:
            return (
                value
                if not value.shape or len(value.shape) <= 1
                else builder.constant(constant.reshape(()), constant.dtype)
            )
        if constant is not None:  # (c, 1, 1), or with a leading 1
            full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
            name = f"{value.name}.channels_last{rank}"
            found = self._graph.initializers.get(name)
            moved = np.ascontiguousarray(full.transpose(_LAST[rank]))
            return found or initializer(self._graph, name, moved)
        if len(dims(value) or ()) != rank:
            return None
        return self.twin(value, builder)

    def _concat(self, node: ir.Node, builder: Builder) -> ir.Value | None:
        if node.attributes.get_int("axis", 0) != 1 or not any(map(self._is_moved, node.inputs)):
            return None
        twins = [None if v is None else self.twin(v, builder) for v in node.inputs]
        if any(t is None for t in twins):
            return None
        return builder.op("Concat", twins, {"axis": len(dims(node.inputs[0]) or ()) - 1})

    def _resize(self, node: ir.Node, builder: Builder) -> ir.Value | None:
        x = node.inputs[0]
        if x is None or not self._is_moved(x) or len(dims(x) or ()) != 4:
            return None
        how = node.attributes.get_string("coordinate_transformation_mode", "")
        if node.attributes.get_ints("axes") is not None or how == "tf_crop_and_resize":
            return None
        order = builder.constant(_LAST[4], np.int64)
        inputs: list[ir.Value | None] = [self._last[x], None]
        for value in node.inputs[2:]:
            constant = constant_of(value)
            if value is None or (constant is not None and constant.size == 0):
                inputs.append(None)
            elif constant is not None:
                inputs.append(builder.constant(constant[list(_LAST[4])], constant.dtype))
            else:
                inputs.append(builder.op("Gather", [value, order], {"axis": 0}))
        return builder.op("Resize", inputs, dict(node.attributes))

    def _transpose(self, node: ir.Node, _: Builder) -> ir.Value | None:
        x, perm = node.inputs[0], tuple(node.attributes.get_ints("perm") or ())
        rank = len(perm)
        if x is None or rank not in _LAST:
            return None
        if perm == _LAST[rank] and self._is_moved(x):
            replace(node, self._last[x])
            return None
        if perm == _FIRST[rank] and not self._is_moved(x) and not node.outputs[0].is_graph_output():
            return x
        return None

    def _reshape(self, node: ir.Node, builder: Builder) -> ir.Value | None:
        """(b, c, h, w) ↔ (b, c, h·w), whose twins are (b, h, w, c) and (b, h·w, c)."""
        x, out = node.inputs[0], node.outputs[0]
        if x is None or not self._is_moved(x):
            return None
        before, after = dims(x), dims(out)
        if before is None or after is None or before[1] is None or after[1:2] != [before[1]]:
            return None
        if not keeps_batch(node):
            return None
        channels = before[1]
        if (len(before), len(after)) == (4, 3):
            shape = builder.constant([0, -1, channels], np.int64)
            return builder.op("Reshape", [self._last[x], shape])
        if (len(before), len(after)) == (3, 4):
            order = builder.constant(_LAST[4][:3], np.int64)
            size = builder.op("Gather", [node.inputs[1], order], {"axis": 0})
            last = builder.constant([channels], np.int64)
            shape = builder.op("Concat", [size, last], {"axis": 0})
            return builder.op("Reshape", [self._last[x], shape])
        return None


def attach_biases(model: ir.Model) -> None:
    """Dense → + bias (n) becomes Dense with a bias."""
    for node in list(model.graph):
        if node.op_type != "Add":
            continue
        for i, value in enumerate(node.inputs):
            dense = None if value is None else value.producer()
            bias = node.inputs[1 - i]
            constant = constant_of(bias)
            if dense is None or constant is None or dense.op_type != "Dense" or bias is None:
                continue
            (out,) = dense.outputs
            weight = constant_of(dense.inputs[1])
            if weight is None or len(dense.inputs) > 2 or len(list(out.uses())) != 1:
                continue
            if constant.ndim != 1 or constant.shape != weight.shape[1:] or out.is_graph_output():
                continue
            fused = Builder(model.graph, node).op(
                "Dense",
                [dense.inputs[0], dense.inputs[1], bias],
                dict(dense.attributes),
                domain=DOMAIN,
            )
            replace(node, fused)
            break
    sweep(model.graph)
