"""The passes in their order: a traced float32 graph → one that is fast on a CPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common

from edgediff_export.graph.build import Builder, dims, replace, sweep
from edgediff_export.graph.folding import fold_constants
from edgediff_export.targets.cpu.attention import fuse_attention
from edgediff_export.targets.cpu.dense import Format, Kernel, Layer, Range, Writer, read_layer
from edgediff_export.targets.cpu.group_norm import (
    DOMAIN,
    Affine,
    fuse_group_norms,
    write_group_norm,
)
from edgediff_export.targets.cpu.layout import attach_biases, channels_last
from edgediff_export.targets.cpu.simplify import absorb_padding, simplify, split_products
from edgediff_export.targets.weights import FULL_RANGE


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How each layer is written. `formats`: weight → format, "fp32" if it is not named;
    `kernel`: which kernel an int8 layer takes; `ranges`: calibration, by weight; `levels`: the
    largest weight of products of bytes."""

    formats: Mapping[str, Format] = field(default_factory=dict)
    kernel: Callable[[Layer], Kernel] = lambda _: "gather"
    ranges: Mapping[str, Range] = field(default_factory=dict)
    levels: int = FULL_RANGE


def restructure(model: ir.Model) -> None:
    """Fuse, fold and move to channels last, in place. Dense and GroupNorm nodes are left, which
    `write_out` turns into operators."""
    common.ShapeInferencePass()(model)
    fold_constants(model)
    simplify(model)
    common.ShapeInferencePass()(model)
    absorb_padding(model)
    fuse_attention(model)
    split_products(model)
    fuse_group_norms(model)
    channels_last(model)
    attach_biases(model)


def layers(model: ir.Model) -> list[Layer]:
    """The Dense layers of a restructured graph, in order."""
    return [layer for node in model.graph if (layer := read_layer(node)) is not None]


def write_out(model: ir.Model, choices: Choices) -> None:
    """Write every Dense and GroupNorm of a restructured graph out, in place."""
    graph = model.graph
    writer = Writer(graph, choices.ranges, choices.levels)
    for node in list(graph):
        layer = read_layer(node)
        if layer is not None:
            form = choices.formats.get(layer.name, "fp32")
            result = writer.write(layer, form, choices.kernel(layer))
            _describe(result, node.outputs[0])
            replace(node, result)
        elif node.op_type == "GroupNorm" and node.domain == DOMAIN:
            x = node.inputs[0]
            if x is None:
                continue
            raw, affine = _before_scale(graph, node, x, writer)
            result = write_group_norm(Builder(graph, node), node, raw, affine)
            _describe(result, node.outputs[0])
            replace(node, result)
    graph.opset_imports["com.microsoft"] = 1
    sweep(graph)


def _describe(new: ir.Value, old: ir.Value) -> None:
    new.type, new.shape = old.type, old.shape


def _before_scale(
    graph: ir.Graph, node: ir.Node, x: ir.Value, writer: Writer
) -> tuple[ir.Value, Affine | None]:
    """The input of a norm before the scale and shift by channel that the norm can do itself: those
    of a direct layer, and the time embedding (b, 1, 1, c) added after it."""
    if x in writer.affine:
        raw, affine = writer.affine[x]
        return raw, affine
    add = x.producer()
    if add is None or add.op_type != "Add":
        return x, None
    for value, other in (add.inputs, tuple(reversed(add.inputs))):
        known = dims(other)
        if value in writer.affine and other is not None and known is not None:
            if len(known) != 4 or known[1:3] != [1, 1]:
                continue
            raw, affine = writer.affine[value]
            builder = Builder(graph, node)
            flat = builder.op("Squeeze", [other, builder.constant([1], "int64")])
            shift = builder.op("Add", [flat, affine.shift])
            return raw, Affine(scale=affine.scale, shift=shift)
    return x, None
