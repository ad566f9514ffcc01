"""int8: the arithmetic, the form that ONNX Runtime fuses, and layers left in float."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from edgediff_export.fidelity.cases import Case
from edgediff_export.graph.write import write_graph
from edgediff_export.targets.conversion import Converted, FloatStage
from edgediff_export.targets.cpu.prepare import Prepared, prepare
from edgediff_export.targets.weights import quantize_weight

Floats = npt.NDArray[np.float32]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Floats:
    return RNG.standard_normal(shape, dtype=np.float32)


def save(module: torch.nn.Module, x: torch.Tensor, path: Path) -> Path:
    torch.onnx.export(
        module.eval(), (x,), path, input_names=["x"], output_names=["y"], dynamo=False,
        opset_version=18, dynamic_axes={"x": {0: "batch"}},
    )  # fmt: skip
    return path


def run(
    lowered: Converted, x: npt.NDArray[np.generic], folder: Path
) -> tuple[npt.NDArray[np.float32], Counter[str]]:
    """The output, and the operators of ONNX Runtime's optimized graph."""
    path = folder / "lowered.onnx"
    write_graph(lowered.model, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    for key, value in lowered.session_config.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(folder / "optimized.onnx")
    return session.run(None, {"x": x})[0], Counter(n.op_type for n in optimized.graph.node)


def case(x: npt.NDArray[np.generic]) -> Sequence[Case]:
    return [Case(name="one", inputs={"x": x}, outputs={})]


def prepared(path: Path, cases: Sequence[Case]) -> Prepared:
    return prepare(FloatStage(source=path, cases=cases))


def error(q: Floats, f: Floats) -> float:
    return float(np.linalg.norm(q - f) / np.linalg.norm(f))


def test_weights_have_a_scale_for_each_channel() -> None:
    w = normal(8, 5) * np.array([1, 10, 100, 0.001, 0], np.float32)
    q, scale = quantize_weight(w, axis=1)
    assert (q.dtype, q.shape, scale.shape) == (np.int8, (8, 5), (5,))
    assert np.abs(q).max(axis=0).tolist() == [127, 127, 127, 127, 0]
    assert np.all(np.abs(q * scale - w) <= scale / 2 * (1 + 1e-5))
    assert np.isfinite(scale).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [(6, 96), (2, 6, 96)], ids=["gemm", "matmul"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_linear_layer_is_fused(bias: bool, dims: tuple[int, ...], tmp_path: Path) -> None:
    layer = torch.nn.Linear(96, 80, bias=bias)
    x = normal(*dims)
    path = save(layer, torch.from_numpy(x), tmp_path / "f.onnx")
    lowered = prepared(path, case(x)).write()
    y, ops = run(lowered, x, tmp_path)
    assert error(y, layer(torch.from_numpy(x)).detach().numpy()) < 0.02
    assert ops["DynamicQuantizeMatMul"] == 1
    assert not ops.keys() & {"MatMul", "Gemm", "MatMulInteger", "DequantizeLinear", "Add"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_layers_of_one_input_share_its_quantization(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(96, 80), torch.nn.Linear(96, 80)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    x = normal(2, 6, 96)
    path = save(Two(), torch.from_numpy(x), tmp_path / "f.onnx")
    lowered = prepared(path, case(x)).write()
    _, ops = run(lowered, x, tmp_path)
    assert ops["DynamicQuantizeLinear"] == 1
    assert ops["MatMulIntegerToFloat"] == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_activations_with_outliers_stay_float(tmp_path: Path) -> None:
    torch.manual_seed(5)  # the error of some weights is just below the bound
    x = np.random.default_rng(0).standard_normal((2, 64, 96), np.float32)
    path = save(
        torch.nn.Sequential(torch.nn.Linear(96, 80), torch.nn.ReLU()),
        torch.from_numpy(x),
        tmp_path / "f.onnx",
    )
    (even,) = prepared(path, case(x)).seen.values()
    x[0, 0, 0] = 1000.0
    ((name, odd),) = prepared(path, case(x)).seen.items()
    assert even.error < 0.012
    assert odd.error > 0.1
    lowered = prepared(path, case(x)).write()
    assert lowered.formats[name] == "int8-weights"
    _, ops = run(lowered, x, tmp_path)
    assert "DynamicQuantizeMatMul" not in ops
    assert "DequantizeLinear" not in ops  # folded
    assert "MatMulInteger" not in ops


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_embeddings_are_looked_up_as_bytes(tmp_path: Path) -> None:
    table = torch.nn.Embedding(500, 32)
    ids = np.array([[3, 499, 0]], np.int64)
    path = save(table, torch.from_numpy(ids), tmp_path / "f.onnx")
    lowered = prepared(path, [Case(name="one", inputs={"x": ids}, outputs={})]).write()
    y, ops = run(lowered, ids, tmp_path)
    assert error(y, table(torch.from_numpy(ids)).detach().numpy()) < 0.01
    assert ops["Gather"] == 2
    assert lowered.formats == {"weight": "int8"}
    assert (tmp_path / "lowered.onnx.data").stat().st_size < 500 * 32 * 1.2


def test_no_weight_is_unsigned(sd1: Any) -> None:
    """Processors multiply unsigned activations by signed weights fast, and no other pair."""
    lowered = prepared(sd1.bundle / "vae_decoder.onnx", _latents()).write()
    weights = [v for v in lowered.model.graph.initializers.values() if v.const_value.size > 1]
    dtypes = {v.dtype for v in weights}
    assert ir.DataType.INT8 in dtypes
    assert ir.DataType.UINT8 not in dtypes


def _latents() -> Sequence[Case]:
    return [Case(name="one", inputs={"latent_sample": normal(1, 4, 8, 8)}, outputs={})]
