"""Group normalization (Wu and He 2018, arXiv:1803.08494), recognised and written out cheaply."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgediff_export.graph.build import (
    Builder,
    constant_of,
    dims,
    elements,
    initializer,
    keeps_batch,
    only_user,
    producer,
    replace,
    sweep,
)

DOMAIN = "edgediff.lowering"
"""Of operators that exist between the passes only."""


@dataclass(frozen=True, kw_only=True)
class Affine:
    """A step that a value still needs: · scale + shift, each (c) or (b, 1, c)."""

    scale: ir.Value
    shift: ir.Value


def fuse_group_norms(model: ir.Model) -> int:
    """Reshape → InstanceNormalization → Reshape → · weight → + bias becomes one GroupNorm(x, weight
    (c), bias (c)) with `groups` and `epsilon`, channels still second. Returns how many."""
    graph = model.graph
    count = 0
    for node in list(graph):
        if node.op_type != "InstanceNormalization" or not _is_plain(node):
            continue
        cut = producer(node.inputs[0], "Reshape")
        whole = only_user(node.outputs[0], "Reshape")
        x = None if cut is None else cut.inputs[0]
        if cut is None or whole is None or x is None:
            continue
        groups = (elements(cut.inputs[1]) or [None, None])[1]
        before, after = dims(x), dims(whole.outputs[0])
        scaled = only_user(whole.outputs[0], "Mul")
        shifted = None if scaled is None else only_user(scaled.outputs[0], "Add")
        if not groups or before is None or after is None or before[1:2] != after[1:2]:
            continue
        rank, channels = len(before), before[1]
        if scaled is None or shifted is None or channels is None or len(after) != rank:
            continue
        if rank not in (3, 4) or not keeps_batch(cut):
            continue
        weight, bias = (_per_channel(n, channels, rank) for n in (scaled, shifted))
        if weight is None or bias is None:
            continue
        path = shifted.name or ""
        out = Builder(graph, shifted).op(
            "GroupNorm",
            [
                x,
                initializer(graph, f"{path}.norm_weight", weight),
                initializer(graph, f"{path}.norm_bias", bias),
            ],
            {"groups": int(groups), "epsilon": node.attributes.get_float("epsilon", 1e-5)},
            domain=DOMAIN,
        )
        replace(shifted, out)
        count += 1
    sweep(graph)
    return count


def _is_plain(node: ir.Node) -> bool:
    """Whether an InstanceNormalization has no weights of its own."""
    weight, bias = (constant_of(v) for v in node.inputs[1:3])
    if weight is None or bias is None:
        return False
    return bool((weight == 1).all() and (bias == 0).all())


def _per_channel(node: ir.Node, channels: int, rank: int) -> npt.NDArray[np.float32] | None:
    """The constant (c, 1, 1) that a node multiplies by or adds, as (c)."""
    for value in node.inputs:
        constant = constant_of(value)
        if constant is None or constant.ndim > rank:
            continue
        if (1,) * (rank - constant.ndim) + constant.shape == (1, channels, *(1,) * (rank - 2)):
            return np.ascontiguousarray(constant.reshape(-1))
    return None


def write_group_norm(
    builder: Builder, node: ir.Node, x: ir.Value, affine: Affine | None
) -> ir.Value:
    """GroupNorm of x (b, …, c) with channels last, out of operators that are fast on a CPU.

    Sums over tokens are products with a row of ones: ReduceMean along any but the last axis is slow
    there. Normalization of a channel is then x·a + b, with a and b (b, 1, c) from those sums.

    affine: a scale and a shift by channel that x still needs; they cost nothing here."""
    values = constant_of(node.inputs[1])
    if values is None:
        raise ValueError(f"{node.name}: the norm's weight is not a constant")
    channels = values.size
    tokens = builder.op("Reshape", [x, builder.constant([0, -1, channels], np.int64)])
    mean, square = _moments(builder, tokens)
    if affine is not None:
        mean, square = _moments_after(builder, affine, mean, square)
    scale, shift = _by_channel(builder, node, mean, square, channels)
    if affine is not None:
        shift = builder.op("Add", [shift, builder.op("Mul", [affine.shift, scale])])
        scale = builder.op("Mul", [scale, affine.scale])
    normal = builder.op("Add", [builder.op("Mul", [tokens, scale]), shift])
    return builder.op("Reshape", [normal, builder.op("Shape", [x])])


def _moments(builder: Builder, tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
    """tokens (b, t, c) → E[x] and E[x²] over the tokens, (b, 1, c) each."""
    one = builder.constant([1], np.int64)
    count = builder.op("Gather", [builder.op("Shape", [tokens]), one], {"axis": 0})
    row = builder.op("Concat", [one, one, count], {"axis": 0})
    ones = builder.op("ConstantOfShape", [row], {"value": ir.tensor(np.ones(1, np.float32))})
    float_count = builder.op("Cast", [count], {"to": ir.DataType.FLOAT})
    squares = builder.op("Mul", [tokens, tokens])
    mean = builder.op("Div", [builder.op("MatMul", [ones, tokens]), float_count])
    square = builder.op("Div", [builder.op("MatMul", [ones, squares]), float_count])
    return mean, square


def _moments_after(
    builder: Builder, affine: Affine, mean: ir.Value, square: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """E[rx + t] and E[(rx + t)²] = r²E[x²] + 2rtE[x] + t², of E[x] and E[x²]."""
    r, t = affine.scale, affine.shift
    cross = builder.op("Mul", [builder.op("Mul", [mean, r]), t])
    rest = builder.op(
        "Add",
        [
            builder.op("Mul", [cross, builder.constant(2.0, np.float32)]),
            builder.op("Mul", [t, t]),
        ],
    )
    scaled = builder.op("Mul", [square, builder.op("Mul", [r, r])])
    return (
        builder.op("Add", [builder.op("Mul", [mean, r]), t]),
        builder.op("Add", [scaled, rest]),
    )


def _by_channel(
    builder: Builder, node: ir.Node, mean: ir.Value, square: ir.Value, channels: int
) -> tuple[ir.Value, ir.Value]:
    """The scale and the shift that normalize each channel, (b, 1, c), of its moments."""
    weight, bias = node.inputs[1], node.inputs[2]
    groups = node.attributes.get_int("groups", 1)
    by_group = builder.constant([0, groups, -1], np.int64)
    axis = builder.constant([2], np.int64)

    def pooled(value: ir.Value) -> ir.Value:
        return builder.op("ReduceMean", [builder.op("Reshape", [value, by_group]), axis])

    group_mean, group_square = pooled(mean), pooled(square)
    variance = builder.op("Sub", [group_square, builder.op("Mul", [group_mean, group_mean])])
    variance = builder.op("Max", [variance, builder.constant(0.0, np.float32)])
    epsilon = builder.constant(node.attributes.get_float("epsilon", 1e-5), np.float32)
    deviation = builder.op("Sqrt", [builder.op("Add", [variance, epsilon])])
    # (b, groups, 1) spread over the channels of each group.
    spread = builder.constant([groups, channels // groups], np.int64)
    scale = builder.op("Div", [builder.op("Reshape", [weight, spread]), deviation])
    shift = builder.op(
        "Sub",
        [builder.op("Reshape", [bias, spread]), builder.op("Mul", [group_mean, scale])],
    )
    flat = builder.constant([0, 1, channels], np.int64)
    return builder.op("Reshape", [scale, flat]), builder.op("Reshape", [shift, flat])
