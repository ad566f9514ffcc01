"""Outliers: channels of an activation that are far larger than the others, and so set the scale
that all share, are made smaller if that costs nothing (SmoothQuant, Xiao et al. 2023,
arXiv:2211.10438): the layer norm or linear layer before is divided, channel by channel, and the
weights of the layer after are multiplied by the same factors."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgediff_export.graph.build import constant_of, initializer
from edgediff_export.targets.cpu.calibration import Seen
from edgediff_export.targets.cpu.dense import Layer, read_layer
from edgediff_export.targets.cpu.passes import layers

ALPHA = 0.5
"""How much of an activation's spread moves to the weights (the paper's equation 4)."""

Divide = Callable[[npt.NDArray[np.float32]], None]


def smooth(model: ir.Model, seen: Mapping[str, Seen], names: Collection[str]) -> list[str]:
    """Smooth the inputs of the named layers if their source allows it; in place. Returns the
    layers that changed."""
    changed = []
    done: set[ir.Value] = set()
    for layer in layers(model):
        if layer.name not in names or layer.x in done or layer.node.inputs[1] is None:
            continue
        divide = _source(model.graph, layer.x)
        readers = [read_layer(use.node) for use in layer.x.uses()]
        if divide is None or any(r is None or not _own_weight(r) for r in readers):
            continue
        together = [r for r in readers if r is not None]
        factors = _factors(together, seen[layer.name].channels)
        divide(factors)
        for reader in together:
            _multiply_rows(model.graph, reader, factors)
        done.add(layer.x)
        changed += [r.name for r in together]
    return changed


def _factors(
    readers: Sequence[Layer], activation: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The factors that channels are divided by, (c) float32, of geometric mean 1."""
    weight = np.max([np.abs(_rows(r)).max(axis=1) for r in readers], axis=0)
    tiny = np.float32(1e-5) * max(float(activation.max()), 1e-20)
    s = np.maximum(activation, tiny) ** ALPHA / np.maximum(weight, 1e-8) ** (1 - ALPHA)
    s /= np.exp(np.log(s).mean())
    clipped: npt.NDArray[np.float32] = np.clip(s, 1e-2, 1e2).astype(np.float32)
    return clipped


def _rows(layer: Layer) -> npt.NDArray[np.float32]:
    """Weights by input channel, (c, …)."""
    if layer.weight.ndim == 2:
        return layer.weight
    return layer.weight.transpose(1, 0, 2, 3).reshape(layer.weight.shape[1], -1)


def _multiply_rows(graph: ir.Graph, layer: Layer, factors: npt.NDArray[np.float32]) -> None:
    shape = (-1, 1) if layer.weight.ndim == 2 else (1, -1, 1, 1)
    values: npt.NDArray[np.float32] = (layer.weight * factors.reshape(shape)).astype(np.float32)
    _exchange(graph, layer.node, 1, values)


def _source(graph: ir.Graph, x: ir.Value) -> Divide | None:
    """A function that divides the channels of x by factors at their source, or None."""
    node = x.producer()
    if node is None or x.is_graph_output():
        return None
    if node.op_type == "LayerNormalization":
        return _divide_constants(graph, node, (1, 2))
    if node.op_type == "Mul":  # GEGLU: the half that no GELU was taken of
        for value in node.inputs:
            divide = _dense(graph, value)
            if divide is not None:
                return divide
    if node.op_type == "MultiHeadAttention":  # mixes tokens, never channels
        return _dense(graph, node.inputs[2])
    return None


def _dense(graph: ir.Graph, value: ir.Value | None) -> Divide | None:
    """Divides the output channels of the linear layer that gives `value` and nothing else."""
    node = None if value is None else value.producer()
    layer = None if node is None else read_layer(node)
    if node is None or layer is None or value is None or len(list(value.uses())) != 1:
        return None
    if layer.weight.ndim != 2 or not _own_weight(layer):
        return None
    return _divide_constants(graph, node, (1, 2) if len(node.inputs) > 2 else (1,))


def _divide_constants(graph: ir.Graph, node: ir.Node, indices: tuple[int, ...]) -> Divide | None:
    """Divides constants of a node along their last axis."""
    if any(i >= len(node.inputs) or constant_of(node.inputs[i]) is None for i in indices):
        return None

    def divide(factors: npt.NDArray[np.float32]) -> None:
        for i in indices:
            values = constant_of(node.inputs[i])
            if values is not None:
                _exchange(graph, node, i, (values / factors).astype(np.float32))

    return divide


def _own_weight(layer: Layer) -> bool:
    """Whether a layer's weight is read by nothing else."""
    weight = layer.node.inputs[1]
    return weight is not None and len(list(weight.uses())) == 1


def _exchange(graph: ir.Graph, node: ir.Node, index: int, values: npt.NDArray[np.float32]) -> None:
    """Give a node a constant of its own; a weight keeps its name, by which plans know it."""
    old = node.inputs[index]
    if old is None:
        return
    name = old.name or ""
    shared = len(list(old.uses())) > 1
    if not shared:
        old.name = f"{name}.unsmoothed"
    suffix = f".{node.name}" if shared else ""
    new = initializer(graph, f"{name}{suffix}", np.ascontiguousarray(values, np.float32))
    node.replace_input_with(index, new)
    if not shared:
        graph.initializers.pop(old.name or "", None)
