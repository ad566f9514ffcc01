"""float16: nodes that are converted or kept, and casts only between the two."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from edgediff_export.fidelity.cases import Case
from edgediff_export.graph.observe import magnitudes
from edgediff_export.graph.write import write_graph
from edgediff_export.targets.conversion import FloatStage
from edgediff_export.targets.float16 import to_float16
from edgediff_export.trace.cleanup import clean_up

RNG = np.random.default_rng(0)


class Scaled(torch.nn.Module):
    """Multiplies by `factor` between two layers, and divides again after the second."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.a, self.b, self.c = (torch.nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x) * self.factor) / self.factor)


def lower(module: torch.nn.Module, x: np.ndarray, folder: Path) -> tuple[Any, np.ndarray]:
    import onnx_ir as ir

    path = folder / "traced.onnx"
    torch.onnx.export(
        module, (torch.from_numpy(x),), path, input_names=["x"], output_names=["y"], dynamo=False
    )
    write_graph(clean_up(ir.load(path)), folder / "f.onnx")
    cases = [Case(name="one", inputs={"x": x}, outputs={})]
    lowered = to_float16(FloatStage(source=folder / "f.onnx", cases=cases))
    write_graph(lowered.model, folder / "h.onnx")
    session = ort.InferenceSession(folder / "h.onnx", providers=["CPUExecutionProvider"])
    return lowered, session.run(None, {"x": x})[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_everything_is_converted_where_nothing_is_large(tmp_path: Path) -> None:
    module, x = Scaled(2.0), RNG.standard_normal((2, 16)).astype(np.float32)
    lowered, y = lower(module, x, tmp_path)
    assert set(lowered.formats.values()) == {"fp16"}
    assert Counter(n.op_type for n in lowered.model.graph)["Cast"] == 2
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, module(torch.from_numpy(x)).detach().numpy(), atol=5e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_would_overflow_stays_float32(tmp_path: Path) -> None:
    module, x = Scaled(1e6), RNG.standard_normal((2, 16)).astype(np.float32)
    lowered, y = lower(module, x, tmp_path)
    assert lowered.formats["b.weight"] == "fp32"
    assert lowered.formats["a.weight"] == lowered.formats["c.weight"] == "fp16"
    assert Counter(n.op_type for n in lowered.model.graph)["Cast"] == 4
    np.testing.assert_allclose(y, module(torch.from_numpy(x)).detach().numpy(), atol=5e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_angles_stay_float32(tmp_path: Path) -> None:
    class Angles(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x * 0.9) * 2.0

    x = np.array([999.25, 981.5, 3.1], np.float32)
    _, y = lower(Angles(), x, tmp_path)
    np.testing.assert_allclose(y, 2 * np.sin(x * np.float32(0.9)), atol=5e-3)


def test_magnitudes_are_the_largest_over_the_cases(sd1: Any) -> None:
    path = sd1.bundle / "vae_decoder.onnx"
    latents = RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)
    small = [{"latent_sample": latents}]
    large = [{"latent_sample": 10 * latents}]
    one, two = magnitudes(path, small), magnitudes(path, large)
    both = magnitudes(path, [*small, *large])
    assert len(both) > 100
    assert both == {k: max(one[k], two[k]) for k in one}
    assert not list(sd1.bundle.glob("*observed*"))
