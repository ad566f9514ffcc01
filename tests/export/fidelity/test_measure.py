"""The error that an export may have, and what follows from too large a one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgediff_export import convert
from edgediff_export.export import Options, export
from edgediff_export.fidelity.cases import Case
from edgediff_export.fidelity.measure import judge, measure
from edgediff_export.source.open import open_source
from edgediff_export.trace import tracer
from edgediff_export.trace.reference import run_torch
from edgediff_export.trace.stage import VAE_DECODER

from edgediff.bundle.folder import Bundle
from edgediff.errors import ExportError
from edgediff.verification import verify


def test_the_tolerance_is_twice_the_error_or_the_precisions_own() -> None:
    assert judge(0.1, 1.0, "int8").tolerance == 0.2
    assert judge(1e-6, 1.0, "fp32").tolerance == 1e-3
    assert judge(0.0, 0.0, "fp16").tolerance == 1e-2


def test_measure_takes_the_worst_case(sd1: Any) -> None:
    spec = Bundle.open(sd1.bundle).manifest.graphs["vae_decoder"]
    path = sd1.bundle / spec.file
    latents = np.ones((1, 4, 4, 4), np.float32)
    zeros = np.zeros((1, 3, 32, 32), np.float32)
    case = Case(name="a", inputs={"latent_sample": latents}, outputs={"sample": zeros})
    _, largest = measure(path, spec, [case])
    right = replace(case, outputs={"sample": zeros + largest})
    error, max_abs_error = measure(path, spec, [case, right])
    assert max_abs_error >= largest
    assert error > 0
    bad = replace(case, inputs={"latent_sample": np.full_like(latents, np.inf)})
    assert measure(path, spec, [bad]) == (np.inf, np.inf)


def test_a_model_that_gives_nan(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    vae = open_source(str(small_pipeline("sd1")), work=tmp_path).load("vae")
    vae.decoder.conv_in.weight.data[:] = np.nan
    with pytest.raises(ExportError, match="the torch model itself gives values that are not fini"):
        run_torch(vae, VAE_DECODER, {"a": {"latent_sample": np.ones((1, 4, 4, 4), np.float32)}})


def test_a_graph_unlike_torch_is_not_written(
    small_pipeline: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer, "FLOAT_LIMIT", 1e-12)
    with pytest.raises(ExportError, match="text_encoder: the exported graph differs from torch by"):
        export(Options(source=str(small_pipeline("sd1")), out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_stage_that_suffers_too_much_stays_float(
    precision: Any,
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(convert._LIMITS, precision, 0.0)
    source = str(small_pipeline("sd1"))
    made = export(Options(source=source, out=tmp_path / "out", precision=precision, steps=1))
    assert {g.precision for g in made.manifest.graphs.values()} == {"fp32"}
    assert made.manifest.quantization.precision == precision
    for plan in made.manifest.quantization.tensors.values():
        assert set(plan.values()) == {"fp32"}
    assert verify(made.root, provider="cpu").ok


def test_weights_have_the_names_of_torch_and_there_is_no_clutter(sd1: Any) -> None:
    model = onnx.load(sd1.bundle / "unet.onnx", load_external_data=False)
    assert not {n.op_type for n in model.graph.node} & {"Constant", "Identity", "Dropout"}
    names = {t.name for t in model.graph.initializer if np.prod(t.dims) > 1000}
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight" in names
    assert all(name.endswith((".weight", ".bias")) for name in names)
