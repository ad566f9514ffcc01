"""The VAE's encoder, for images as input: equal to diffusers', in each precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import pytest
import torch
from edgediff_export import convert
from edgediff_export.export import Exported, Options, export

import edgediff
from edgediff.verification import verify


@pytest.fixture(scope="module")
def with_encoder(
    small_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Exported]:
    """Shape, precision → its bundle with an encoder, exported once; converted graphs count as
    faster, since it is up to chance whether such small ones are."""

    def seconds(path: Path, *_: Any, **__: Any) -> float:
        return 2.0 if path.parent.name == "float" else 1.0

    done: dict[tuple[str, str], Exported] = {}

    def run(shape: str, precision: str) -> Exported:
        if (shape, precision) not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(convert, "seconds", seconds)
                done[shape, precision] = export(
                    Options(
                        source=str(small_pipeline(shape)),
                        out=tmp_path_factory.mktemp("encoders") / "b",
                        precision=precision,  # type: ignore[arg-type]
                        with_encoder=True,
                        steps=1,
                    )
                )
        return done[shape, precision]

    return run


def image(rows: int, columns: int) -> Any:
    """(1, 3, rows, columns) float32 in [-1, 1]."""
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (1, 3, rows, columns)).astype(np.float32)


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_moments_are_those_of_diffusers(size: tuple[int, int], with_encoder: Any, sd1: Any) -> None:
    made = with_encoder("sd1", "fp32")
    graph = made.manifest.graphs["vae_encoder"]
    assert [(i.name, i.shape) for i in graph.inputs] == [
        ("sample", ("batch", 3, "image_height", "image_width"))
    ]
    assert [(o.name, o.shape) for o in graph.outputs] == [
        ("latent_parameters", ("batch", 8, "height", "width"))
    ]
    vae = diffusers.AutoencoderKL.from_pretrained(sd1.diffusers / "vae")
    with torch.inference_mode():
        expected = vae.encode(torch.from_numpy(image(*size))).latent_dist.parameters.numpy()
    with edgediff.load(made.root, provider="cpu") as pipe:
        found = pipe.run_stage("vae_encoder", {"sample": image(*size)})["latent_parameters"]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
def test_a_tiny_encoder_gives_latents(
    with_encoder: Any, small_pipeline: Callable[[str], Path]
) -> None:
    made = with_encoder("tiny-vae", "fp32")
    (output,) = made.manifest.graphs["vae_encoder"].outputs
    assert (output.name, output.shape) == ("latents", ("batch", 4, "height", "width"))
    vae = diffusers.AutoencoderTiny.from_pretrained(small_pipeline("tiny-vae") / "vae")
    with torch.inference_mode():
        expected = vae.encode(torch.from_numpy(image(64, 48))).latents.numpy()
    with edgediff.load(made.root, provider="cpu") as pipe:
        found = pipe.run_stage("vae_encoder", {"sample": image(64, 48)})["latents"]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["sd1", "tiny-vae"])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_lowered_encoder_verifies(precision: str, shape: str, with_encoder: Any) -> None:
    made = with_encoder(shape, precision)
    assert made.notes == ()
    assert made.manifest.graphs["vae_encoder"].precision == precision
    assert made.manifest.fidelity.stages["vae_encoder"].error < 0.05
    assert verify(made.root, provider="cpu").ok


@pytest.mark.slow
def test_an_int8_encoder_pads_in_its_convolutions(with_encoder: Any) -> None:
    """The one-sided padding before strided convolutions costs no copy in another layout."""
    made = with_encoder("sd1", "int8")
    graph = onnx.load(made.root / "vae_encoder.onnx", load_external_data=False).graph
    assert not [n.name for n in graph.node if n.op_type == "Pad" and "Dense" not in n.name]
    transposed = [n for n in graph.node if n.op_type == "Transpose"]
    # Each convolution that was spared int8 takes its channels first, and gives them so.
    spared = [n for n in graph.node if n.op_type == "Conv"]
    assert len(transposed) <= 6 + 2 * len(spared)  # input, output, and the attention's heads
