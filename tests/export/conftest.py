"""Copies of pipelines, and small graphs, built as the exporter writes the layers of a UNet."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from edgediff_export.targets.cpu.dense import MARGIN, Layer, Range
from edgediff_export.targets.cpu.passes import Choices, layers, restructure, write_out
from edgediff_export.targets.weights import SESSION_CONFIG
from onnx_ir.passes import common

from edgediff.backend.create import has_int8_dot

Arrays = Mapping[str, npt.NDArray[Any]]
Dims = tuple[int | str, ...]
FREE = {"b": 2, "h": 8, "w": 6, "s": 5, "t": 7}
"""The sizes of free dimensions unless a test gives others."""


class Net:
    """A graph in the making. Values are onnx_ir's; constants are random with a fixed seed."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def input(self, name: str, dims: Dims, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        self.inputs.append(ir.val(name, dtype, list(dims)))
        return self.inputs[-1]

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> ir.Value:
        name = f"constant_{len(self.constants)}"
        tensor = ir.tensor(np.asarray(values, dtype), name=name)
        self.constants.append(ir.val(name, tensor.dtype, tensor.shape, const_value=tensor))
        return self.constants[-1]

    def weight(self, *dims: int) -> ir.Value:
        inside = int(np.prod(dims[1:] if len(dims) == 4 else dims[:-1])) or 1
        return self.constant(self.rng.standard_normal(dims) / inside**0.5)

    def op(self, op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A node of ONNX's own; arrays and numbers among `inputs` become constants."""
        values = [v if v is None or isinstance(v, ir.Value) else self._literal(v) for v in inputs]
        name = f"/net/{op_type}_{len(self.nodes)}"
        self.nodes.append(ir.node(op_type, values, attributes, num_outputs=outputs, name=name))
        for i, value in enumerate(self.nodes[-1].outputs):
            value.name = f"{name}_output_{i}"
        return self.nodes[-1].outputs[0] if outputs == 1 else self.nodes[-1].outputs

    def _literal(self, values: Any) -> ir.Value:
        whole = np.issubdtype(np.asarray(values).dtype, np.integer)
        return self.constant(values, np.int64 if whole else np.float32)

    def model(self, *outputs: ir.Value) -> ir.Model:
        """The model that computes `outputs`, with every shape that can be inferred."""
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": 18},
            name="net",
        )
        model = ir.Model(graph, ir_version=9)
        common.ShapeInferencePass()(model)
        return model

    def conv(self, x: ir.Value, channels: tuple[int, int], kernel: int = 3, **how: Any) -> ir.Value:
        pads = how.pop("pads", [kernel // 2] * 4)
        weight = self.weight(channels[1], channels[0], kernel, kernel)
        bias = self.weight(channels[1])
        return self.op(
            "Conv", x, weight, bias, kernel_shape=[kernel, kernel], pads=pads, **how
        )  # fmt: skip

    def linear(self, x: ir.Value, k: int, n: int) -> ir.Value:
        return self.op("Add", self.weight(n), self.op("MatMul", x, self.weight(k, n)))

    def group_norm(self, x: ir.Value, channels: int, groups: int, rank: int = 4) -> ir.Value:
        cut = self.op("Reshape", x, [0, groups, -1])
        normal = self.op("InstanceNormalization", cut, np.ones(groups), np.zeros(groups))
        whole = self.op("Reshape", normal, self.op("Shape", x))
        weight = self.weight(1, *([1] * (rank - 2))).const_value.numpy() + self.rng.random(
            (channels, *[1] * (rank - 2))
        )
        shift = self.rng.random((channels, *[1] * (rank - 2)))
        return self.op("Add", self.op("Mul", whole, weight), shift)

    def attention(
        self, q: ir.Value, k: ir.Value, v: ir.Value, heads: int, size: int, *, scale: float = 0.5
    ) -> ir.Value:
        """As diffusers' attention is traced: (b, s, heads·size) of each → the same of q."""
        shape = [0, -1, heads, size]
        root = float(np.sqrt(scale))
        q4 = self.op("Transpose", self.op("Reshape", q, shape), perm=[0, 2, 1, 3])
        k4 = self.op("Transpose", self.op("Reshape", k, shape), perm=[0, 2, 3, 1])
        v4 = self.op("Transpose", self.op("Reshape", v, shape), perm=[0, 2, 1, 3])
        scores = self.op("MatMul", self.op("Mul", q4, root), self.op("Mul", k4, root))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v4)
        swapped = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.op("Reshape", swapped, [0, -1, heads * size])

    def silu(self, x: ir.Value) -> ir.Value:
        return self.op("Mul", x, self.op("Sigmoid", x))


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture(scope="session")
def new_net() -> type[Net]:
    return Net


def example(model: ir.Model, seed: int = 1, **sizes: int) -> dict[str, npt.NDArray[Any]]:
    """Random inputs for a graph; free dimensions are `sizes`, or FREE."""
    rng = np.random.default_rng(seed)
    found: dict[str, npt.NDArray[Any]] = {}
    for value in model.graph.inputs:
        dims = [d if isinstance(d, int) else {**FREE, **sizes}[d.value] for d in value.shape]
        if value.dtype == ir.DataType.FLOAT:
            found[value.name] = np.asarray(rng.standard_normal(dims), np.float32)
        else:
            found[value.name] = rng.integers(0, 100, dims).astype(value.dtype.numpy())
    return found


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in SESSION_CONFIG.items():
        options.add_session_config_entry(key, value)
    proto = ir.to_proto(model)
    if not has_int8_dot():
        _shift_filters(proto)
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _shift_filters(proto: onnx.ModelProto) -> None:
    """Give "direct" convolutions unsigned weights of the same values.

    x86 without VNNI adds up products of signed weights in 16 bits, which overflow; exports for it
    choose another kernel. Here it is the graph that is tested, not the processor."""
    weights = {t.name: t for t in proto.graph.initializer}
    shifted = set()
    for node in proto.graph.node:
        if node.op_type == "QLinearConv":
            for name in (node.input[3], node.input[5]):  # weights and their zero points
                values = onnx.numpy_helper.to_array(weights[name])
                if name not in shifted and values.dtype == np.int8:
                    new = (values.astype(np.int16) + 128).astype(np.uint8)
                    weights[name].CopyFrom(onnx.numpy_helper.from_array(new, name))
                    shifted.add(name)


def run(model: ir.Model, inputs: Arrays) -> list[npt.NDArray[Any]]:
    """The outputs of a graph in onnxruntime."""
    return session(model).run(None, dict(inputs))


def assert_close(
    found: list[npt.NDArray[Any]], expected: list[npt.NDArray[Any]], tolerance: float = 1e-4
) -> None:
    """Relative to the norm of each output."""
    assert [y.shape for y in found] == [y.shape for y in expected]
    assert [y.dtype for y in found] == [y.dtype for y in expected]
    for y, e in zip(found, expected, strict=True):
        if y.size:
            difference = np.linalg.norm(np.float64(y).ravel() - np.float64(e).ravel())
            assert difference <= tolerance * max(np.linalg.norm(np.float64(e).ravel()), 1e-9)


def assert_unchanged(
    model: ir.Model,
    change: Callable[[ir.Model], Any],
    tolerance: float = 1e-4,
    inputs: Arrays | None = None,
    **sizes: int,
) -> None:
    """`change` alters `model` in place, but not its results."""
    inputs = example(model, **sizes) if inputs is None else inputs
    signature = [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]
    expected = run(model, inputs)
    change(model)
    after = [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]
    assert after == signature
    assert_close(run(model, inputs), expected, tolerance)


def lower(model: ir.Model, form: str = "fp32", **choices: Any) -> None:
    """All passes, every layer in one format."""
    restructure(model)
    formats = {layer.name: form for layer in layers(model)}
    write_out(model, Choices(formats=formats, **choices))


def ops(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


@pytest.fixture(scope="session", name="example")
def _example() -> Callable[..., dict[str, npt.NDArray[Any]]]:
    return example


@pytest.fixture(scope="session", name="run")
def _run() -> Callable[..., list[npt.NDArray[Any]]]:
    return run


@pytest.fixture(scope="session", name="assert_close")
def _assert_close() -> Callable[..., None]:
    return assert_close


@pytest.fixture(scope="session", name="assert_unchanged")
def _assert_unchanged() -> Callable[..., None]:
    return assert_unchanged


@pytest.fixture(scope="session", name="lower")
def _lower() -> Callable[..., None]:
    return lower


@pytest.fixture(scope="session", name="ops")
def _ops() -> Callable[..., list[ir.Node]]:
    return ops


def apply(layer: Layer, x: npt.NDArray[Any], weight: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """A layer without its bias, in float64; x and the result with channels last."""
    x64, w64 = (torch.from_numpy(np.asarray(a, np.float64)) for a in (x, weight))
    if weight.ndim == 2:
        return (x64 @ w64).numpy()
    top, left, bottom, right = layer.pads
    padded = torch.nn.functional.pad(x64.permute(0, 3, 1, 2), (left, right, top, bottom))
    y = torch.nn.functional.conv2d(padded, w64, stride=layer.strides)
    return y.permute(0, 2, 3, 1).numpy()


def error_bound(
    layer: Layer, x: npt.NDArray[Any], seen: Range | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The expected output of an int8 layer, and how far off each element may be.

    Rounding x and w to steps of x_scale and w_scale makes each product x·w wrong by at most
    x_scale/2·|w| + w_scale/2·|x| + x_scale·w_scale/4. `seen` is None for the gather kernel; the
    direct one then rounds, and clips, to a step of its own."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    x_scale = (high - low) / 255
    if seen is not None:
        bottom, top = min(seen.low, 0.0), max(seen.high, 0.0)
        zero = 128 if top == bottom else np.clip(round(255 * -bottom / (top - bottom)), 8, 247)
        x_scale = max(high / (255 - zero), -low / zero)
    matrix, absolute = layer.matrix().astype(np.float64), np.abs(layer.weight)
    w_scale = np.abs(matrix).max(axis=0) / 127
    allowed = x_scale / 2 * np.abs(matrix).sum(axis=0) + x_scale * w_scale / 4 * len(matrix)
    allowed = allowed + w_scale / 2 * apply(layer, np.abs(x), np.ones_like(layer.weight))
    allowed += 1e-5 * apply(layer, np.abs(x), absolute) + 1e-7  # float32 itself
    bias = 0.0 if layer.bias is None else layer.bias.const_value.numpy().astype(np.float64)
    expected = apply(layer, x, layer.weight)
    if seen is not None:
        known = max(seen.high / (255 - zero), -seen.low / zero, 1e-12)
        step = seen.output.astype(np.float64) * MARGIN / 127 * max(1, x_scale / known)
        expected = np.clip(expected, -128 * step, 127 * step)
        allowed += step / 2 * (1 + 1e-4)
    return expected + bias, allowed + 1e-6 * np.abs(expected + bias)


@pytest.fixture(scope="session", name="apply")
def _apply() -> Callable[..., npt.NDArray[np.float64]]:
    return apply


@pytest.fixture(scope="session", name="error_bound")
def _error_bound() -> Callable[..., Any]:
    return error_bound


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """These models are small: a second thread costs more than it saves."""
    torch.set_num_threads(1)


@pytest.fixture
def change_config() -> Callable[..., Path]:
    """(folder, copy, component, **changes) → the copy of a pipeline, a config changed."""

    def copy(folder: Path, to: Path, component: str, **changes: Any) -> Path:
        shutil.copytree(folder, to)
        path = to / component / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return to

    return copy
