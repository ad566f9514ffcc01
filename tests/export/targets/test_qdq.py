"""int8 in QDQ form: the arithmetic, layers left in float, and a run on the CPU provider."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from edgediff_export.fidelity.cases import Case
from edgediff_export.fidelity.measure import measure
from edgediff_export.graph.write import write_graph
from edgediff_export.targets.conversion import Converted, FloatStage
from edgediff_export.targets.qdq import activation_errors, activation_ranges, as_layer, to_qdq
from edgediff_export.targets.weights import activation_scale

from edgediff.backend.options import SessionOptions
from edgediff.backend.session import Session
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import GraphSpec, TensorSpec

Floats = npt.NDArray[np.float32]
Small = tuple[torch.nn.Module, tuple[int, ...]]
RNG = np.random.default_rng(0)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def normal(*shape: int) -> Floats:
    return RNG.standard_normal(shape, dtype=np.float32)


def save(module: torch.nn.Module, x: npt.NDArray[np.generic], path: Path) -> Path:
    torch.onnx.export(
        module.eval(), (torch.from_numpy(x),), path, input_names=["x"], output_names=["y"],
        dynamo=False, opset_version=18, dynamic_axes={"x": {0: "batch"}},
    )  # fmt: skip
    return path


def case(*inputs: npt.NDArray[np.generic]) -> Sequence[Case]:
    return [Case(name=str(k), inputs={"x": x}, outputs={}) for k, x in enumerate(inputs)]


def quantized(source: Path, cases: Sequence[Case]) -> Converted:
    return to_qdq(FloatStage(source=source, cases=cases))


def run(lowered: Converted, x: npt.NDArray[np.generic], folder: Path) -> Floats:
    """The output on the CPU, with the session's entries in bundle.json."""
    path = folder / "lowered.onnx"
    data = write_graph(lowered.model, path)
    spec = GraphSpec(
        role="denoiser",
        file=path.name,
        data=data,
        precision="int8",
        inputs=(TensorSpec(name="x", dtype=str(x.dtype), shape=x.shape),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=()),),
        session_config=lowered.session_config,
    )
    return Session(path, spec, SessionOptions(threads=1)).run(x=x)["y"]


def ops(lowered: Converted) -> Counter[str]:
    return Counter(node.op_type for node in lowered.model.graph)


def float_output(module: torch.nn.Module, x: npt.NDArray[np.generic]) -> Floats:
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


class Middle(torch.nn.Module):
    """A convolution between two that only widen and narrow, since first and last stay float."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 24, 1)
        self.middle = torch.nn.Conv2d(24, 48, 3, padding=1, **options)
        self.last = torch.nn.Conv2d(48, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))


def bound(layer: torch.nn.Module, x: Floats, y: Callable[..., torch.Tensor]) -> Floats:
    """The error that a layer's output may have: |Q(x) − x|·|Q(w)| + |x|·|Q(w) − w|; rounding to
    levels a scale apart is off by half a scale."""
    w = layer.weight.detach()  # type: ignore[union-attr, operator]
    step = w.abs().amax(dim=tuple(range(1, w.ndim)), keepdim=True) / 127
    x_scale, _ = activation_scale(float(x.min()), float(x.max()))
    ones = torch.full(x.shape, x_scale / 2)
    of_x = y(ones, w.abs() + step / 2)
    of_w = y(torch.from_numpy(np.abs(x)), (step / 2).expand(w.shape))
    return (of_x + of_w).numpy()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [(6, 96), (2, 6, 96)], ids=["gemm", "matmul"])
def test_a_linear_layer_is_off_by_no_more_than_its_scales(
    bias: bool, dims: tuple[int, ...], tmp_path: Path
) -> None:
    layer = torch.nn.Linear(96, 80, bias=bias)
    x = normal(*dims)
    lowered = quantized(save(layer, x, tmp_path / "f.onnx"), case(x))
    assert ops(lowered)["QuantizeLinear"] == 1
    assert ops(lowered)["DequantizeLinear"] == 2
    off = np.abs(run(lowered, x, tmp_path) - float_output(layer, x))
    assert (off <= bound(layer, x, torch.nn.functional.linear) * 1.001 + 1e-5).all()
    assert off.max() > 0


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"stride": 2}, {"groups": 2}, {"dilation": 2}],
    ids=["plain", "no bias", "strided", "grouped", "dilated"],
)
def test_a_convolution_is_off_by_no_more_than_its_scales(
    options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = Middle(**options)
    net.last = torch.nn.Conv2d(48, 48, 1, bias=False)
    net.last.weight.data = torch.eye(48)[:, :, None, None]  # so that the middle's output shows
    x = normal(1, 3, 12, 12)
    lowered = quantized(save(net, x, tmp_path / "f.onnx"), case(x))
    assert lowered.formats["middle.weight"] == "int8"
    assert lowered.formats["first.weight"] == lowered.formats["last.weight"] == "fp32"
    assert ops(lowered)["QuantizeLinear"] == 1
    seen = float_output(net.first, x)
    without = {k: v for k, v in options.items() if k != "bias"}
    limit = bound(
        net.middle,
        seen,
        lambda x, w: torch.nn.functional.conv2d(x, w, padding=1, **without),
    )
    off = np.abs(run(lowered, x, tmp_path) - float_output(net, x))
    assert (off <= limit * 1.001 + 1e-5).all()
    assert off.max() > 0


def test_weights_are_signed_and_activations_unsigned(tmp_path: Path) -> None:
    """The pair that processors multiply fast; and per tensor and per channel, which fuses."""
    x = normal(2, 6, 96)
    lowered = quantized(save(torch.nn.Linear(96, 80), x, tmp_path / "f.onnx"), case(x))
    (quantize,) = (n for n in lowered.model.graph if n.op_type == "QuantizeLinear")
    assert [v.dtype for v in quantize.inputs[1:]] == [ir.DataType.FLOAT, ir.DataType.UINT8]
    assert [tuple(v.shape) for v in quantize.inputs[1:]] == [(), ()]
    (weight,) = (
        n
        for n in lowered.model.graph
        if n.op_type == "DequantizeLinear" and n.inputs[0].is_initializer()
    )
    assert weight.inputs[0].dtype == ir.DataType.INT8
    assert tuple(weight.inputs[1].shape) == (80,)
    assert weight.attributes.get_int("axis") == 1


def test_the_range_is_that_of_all_cases(tmp_path: Path) -> None:
    x = normal(2, 6, 96)
    path = save(torch.nn.Linear(96, 80), x, tmp_path / "f.onnx")
    (extremes,) = activation_ranges(path, case(x, 3 * x, -2 * x)).values()
    low, high = min((-2 * x).min(), (3 * x).min()), max((-2 * x).max(), (3 * x).max())
    np.testing.assert_allclose(extremes, (low, high))


def test_layers_of_one_input_share_its_quantization(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(96, 80), torch.nn.Linear(96, 80)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    x = normal(2, 6, 96)
    net = Two()
    lowered = quantized(save(net, x, tmp_path / "f.onnx"), case(x))
    assert ops(lowered)["QuantizeLinear"] == 1
    y, reference = run(lowered, x, tmp_path), float_output(net, x)
    assert np.linalg.norm(y - reference) < 0.02 * np.linalg.norm(reference)


def test_a_linear_layer_behind_a_join_of_tokens_keeps_float_activations(tmp_path: Path) -> None:
    """OpenVINO cannot compile it otherwise."""

    class Joined(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(96, 80)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.cat([x.mean(dim=1, keepdim=True), x], dim=1))

    x = normal(2, 6, 96)
    net = Joined()
    lowered = quantized(save(net, x, tmp_path / "f.onnx"), case(x))
    assert ops(lowered)["QuantizeLinear"] == 0
    assert ops(lowered)["DequantizeLinear"] == 1
    y, reference = run(lowered, x, tmp_path), float_output(net, x)
    assert np.linalg.norm(y - reference) < 0.02 * np.linalg.norm(reference)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_activations_with_outliers_stay_float(kind: str, tmp_path: Path) -> None:
    net, x, spot = (
        (torch.nn.Linear(96, 80), normal(2, 64, 96), (0, 0, 0))
        if kind == "linear"
        else (Middle(), normal(1, 3, 32, 32), (0, 0, 5, 5))
    )
    path = save(net, x, tmp_path / "f.onnx")
    (even,) = activation_errors(path, case(x), activation_ranges(path, case(x))).values()
    x[spot] = 300.0
    ranges = activation_ranges(path, case(x))
    # On the case that the outlier is not in, its range costs most.
    cases = case(x, normal(*x.shape))
    ((name, odd),) = activation_errors(path, cases, ranges).items()
    assert even < 0.015
    assert odd > 0.05
    lowered = quantized(path, cases)
    assert lowered.formats[name] == "int8"
    assert ops(lowered)["QuantizeLinear"] == 0
    assert ops(lowered)["DequantizeLinear"] == 1
    y, reference = run(lowered, x, tmp_path), float_output(net, x)
    assert np.linalg.norm(y - reference) < 0.02 * np.linalg.norm(reference)


def test_the_error_is_that_of_the_activations_alone(tmp_path: Path) -> None:
    layer = torch.nn.Linear(96, 80)
    layer.bias.data += 100  # which must not hide it
    x = normal(2, 6, 96)
    path = save(layer, x, tmp_path / "f.onnx")
    ranges = activation_ranges(path, case(x))
    (error,) = activation_errors(path, case(x), ranges).values()
    scale, zero = activation_scale(float(x.min()), float(x.max()))
    rounded = (np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255) - zero) * scale
    w = layer.weight.detach().numpy().T
    expected = np.linalg.norm((rounded - x) @ w) / np.linalg.norm(x @ w)
    assert error == pytest.approx(expected, rel=1e-3)


def test_activations_of_zeros(tmp_path: Path) -> None:
    layer, x = torch.nn.Linear(96, 80), np.zeros((2, 6, 96), np.float32)
    lowered = quantized(save(layer, x, tmp_path / "f.onnx"), case(x))
    np.testing.assert_allclose(run(lowered, x, tmp_path), float_output(layer, x), atol=1e-6)


def test_embeddings_are_looked_up_as_bytes(tmp_path: Path) -> None:
    table = torch.nn.Embedding(500, 32)
    ids = np.array([[3, 499, 0]], np.int64)
    lowered = quantized(save(table, ids, tmp_path / "f.onnx"), case(ids))
    y, reference = run(lowered, ids, tmp_path), float_output(table, ids)
    assert np.linalg.norm(y - reference) < 0.01 * np.linalg.norm(reference)
    assert lowered.formats == {"weight": "int8"}


def test_a_graph_without_layers(tmp_path: Path) -> None:
    x = normal(2, 6)
    lowered = quantized(save(torch.nn.SiLU(), x, tmp_path / "f.onnx"), case(x))
    np.testing.assert_allclose(
        run(lowered, x, tmp_path), float_output(torch.nn.SiLU(), x), atol=1e-6
    )
    assert lowered.formats == {}


@pytest.mark.parametrize("shape", ["sd1", "sd2"])
@pytest.mark.parametrize("stage", ["text_encoder", "unet", "vae_decoder"])
def test_the_stages_of_a_pipeline(
    shape: str, stage: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = Bundle.open(request.getfixturevalue(shape).bundle)
    spec = bundle.manifest.graphs[stage]
    source = bundle.path(spec.file)
    cases = stage_cases(bundle, stage)
    lowered = quantized(source, cases)
    path = tmp_path / spec.file
    data = write_graph(lowered.model, path)
    spec = replace(spec, data=data, precision="int8", session_config=lowered.session_config)
    error, _ = measure(path, spec, cases)
    assert 0 < error < 0.1
    assert "int8" in lowered.formats.values()
    layers = [node for node in ir.load(source).graph if as_layer(node) is not None]
    if stage == "text_encoder":  # so narrow that nothing but the embeddings is worth it
        assert not layers
    else:
        assert ops(lowered)["QuantizeLinear"] > 0
        assert ops(lowered)["DequantizeLinear"] >= len(layers) - 2  # first and last convolution


def stage_cases(bundle: Bundle, stage: str) -> list[Case]:
    """The cases that the export compared with torch, from the bundle's fixtures."""
    with np.load(bundle.path(bundle.manifest.fixtures or "")) as arrays:
        found: dict[str, dict[str, dict[str, npt.NDArray[Any]]]] = {}
        for key in arrays:
            if key.startswith(f"{stage}/"):
                _, name, side, tensor = key.split("/")
                found.setdefault(name, {"in": {}, "out": {}})[side][tensor] = arrays[key]
    return [Case(name=k, inputs=v["in"], outputs=v["out"]) for k, v in found.items()]
