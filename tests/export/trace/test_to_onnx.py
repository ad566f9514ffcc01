"""Tracing takes no second copy of the weights, and half precision ones give a float32 graph."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from edgediff_export.fidelity.measure import measure
from edgediff_export.graph.write import graph_spec, write_graph
from edgediff_export.source import weights
from edgediff_export.source.open import open_source
from edgediff_export.trace.half_weights import in_float32
from edgediff_export.trace.reference import run_torch
from edgediff_export.trace.stage import VAE_DECODER
from edgediff_export.trace.to_onnx import trace

LATENTS = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)


def decoder(folder: Path, work: Path) -> Any:
    return open_source(str(folder), work=work).load("vae")


def test_weights_are_read_when_asked_for(
    small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    vae = decoder(small_pipeline("sd1"), tmp_path)
    weight = vae.decoder.conv_in.weight.detach()
    example = {"latent_sample": torch.from_numpy(np.concatenate([LATENTS, LATENTS]))}
    graph = trace(vae, VAE_DECODER, example, {"sample": (1, 3, 64, 64)}, tmp_path).graph
    held = graph.initializers["decoder.conv_in.weight"].const_value
    assert isinstance(held, ir.LazyTensor)
    weight[:] = 3.0
    assert held.numpy().min() == held.numpy().max() == 3.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_with_in_float32(
    dtype: Any, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    half = decoder(small_pipeline("sd1"), tmp_path).to(dtype)
    whole = decoder(small_pipeline("sd1"), tmp_path)
    whole.load_state_dict({k: v.float() for k, v in half.state_dict().items()})
    inputs = {"a": {"latent_sample": LATENTS}}
    (case,) = run_torch(half, VAE_DECODER, inputs)
    (expected,) = run_torch(whole, VAE_DECODER, inputs)
    np.testing.assert_array_equal(case.outputs["sample"], expected.outputs["sample"])
    assert {p.dtype for p in half.parameters()} == {dtype}
    example = {"latent_sample": torch.from_numpy(np.concatenate([LATENTS, LATENTS]))}
    model = trace(half, VAE_DECODER, example, {"sample": (1, 3, 64, 64)}, tmp_path)
    path = tmp_path / "decoder.onnx"
    data = write_graph(model, path)
    error, _ = measure(path, graph_spec(model, path, data, "fp32", "decoder"), [case])
    assert error < 1e-5


def test_a_layer_that_fails_keeps_its_halves() -> None:
    layer = torch.nn.Linear(4, 4).half()
    with in_float32(layer), pytest.raises(RuntimeError):
        layer(torch.zeros(1, 5))
    assert layer.weight.dtype is torch.float16


def test_only_large_half_weights_stay_half(
    sd15_shape: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sd15_shape.write_pipeline(tmp_path / "half", "sd1", half=True)
    source = open_source(str(folder), work=tmp_path)
    assert source.load("unet").dtype is torch.float32
    monkeypatch.setattr(weights, "LARGE", 1e5)
    assert source.load("unet").dtype is torch.float16
    assert source.load("text_encoder").dtype is torch.float32  # fewer than that
