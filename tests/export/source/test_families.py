"""Whole exports of each family: stages that are quantized, kept float, and swapped in."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgediff_export.export import Options, export
from safetensors.torch import load_file, save_file

import edgediff
from edgediff.verification import verify

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shape", ["xl", "xl-pruned", "xl-lightning", "xl-lcm"])
def test_int8(shape: str, small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    made = export(
        Options(source=str(small_pipeline(shape)), out=tmp_path / "b", precision="int8", steps=2)
    )
    assert made.notes == ()
    assert {g.precision for g in made.manifest.graphs.values()} == {"int8"}
    unet = made.manifest.quantization.tensors["unet"]
    deep = "up_blocks.0.attentions.0.transformer_blocks.1.attn1.to_q.weight"
    assert unet[deep] == "int8"
    for image in made.manifest.fidelity.images:
        assert image.psnr_db is not None
        assert image.psnr_db > 28
    assert verify(made.root, provider="cpu").ok


@pytest.mark.parametrize("shape", ["sd1", "sd2", "lcm"])
def test_int8_of_one_text_encoder(
    shape: str, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    made = export(
        Options(source=str(small_pipeline(shape)), out=tmp_path / "b", precision="int8", steps=2)
    )
    assert {g.precision for g in made.manifest.graphs.values()} == {"int8"}
    assert "int8" in made.manifest.quantization.tensors["unet"].values()
    for image in made.manifest.fidelity.images:
        assert image.psnr_db is not None
        assert image.psnr_db > 28
    assert verify(made.root, provider="cpu").ok


def test_a_vae_that_says_it_overflows_stays_float32(
    small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    made = export(
        Options(
            source=str(small_pipeline("xl")),
            out=tmp_path / "b",
            precision="fp16",
            with_encoder=True,
            steps=1,
        )
    )
    graphs = made.manifest.graphs
    assert {k: g.precision for k, g in graphs.items()} == {
        "text_encoder": "fp16",
        "text_encoder_2": "fp16",
        "unet": "fp16",
        "vae_decoder": "fp32",
        "vae_encoder": "fp32",
    }
    assert made.notes == tuple(
        f"{stage} stays in float32: its config says that float16 overflows (force_upcast)"
        for stage in ("vae_decoder", "vae_encoder")
    )
    assert verify(made.root, provider="cpu").ok


def test_a_vae_that_overflows_and_does_not_say_so_is_never_black(
    small_pipeline: Callable[[str], Path], tmp_path: Path, change_config: Any
) -> None:
    folder = change_config(small_pipeline("xl"), tmp_path / "loud", "vae", force_upcast=False)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    # The first resnet's result is far past the largest float16, 65504; the norms after it undo it.
    tensors["decoder.conv_in.weight"] *= 3e5
    save_file(tensors, path, metadata={"format": "pt"})
    made = export(Options(source=str(folder), out=tmp_path / "b", precision="fp16", steps=1))
    assert made.manifest.fidelity.stages["vae_decoder"].error < 0.02
    (mine,) = edgediff.load(made.root, provider="cpu").generate("a cat", seed=0, steps=1).images
    assert np.asarray(mine).std() > 5
    for image in made.manifest.fidelity.images:
        assert image.psnr_db is None or image.psnr_db > 35


def test_a_tiny_decoder(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    made = export(
        Options(
            source=str(small_pipeline("xl")),
            out=tmp_path / "b",
            vae=small_pipeline("tiny-vae"),
            steps=1,
        )
    )
    assert made.manifest.latent.scaling_factor == 1.0
    assert verify(made.root, provider="cpu").ok


def test_a_lightning_unet_alone(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    """The weights say nothing of how to sample: the file's name does."""
    weights = load_file(small_pipeline("xl-lightning") / "unet/diffusion_pytorch_model.safetensors")
    path = tmp_path / "sdxl_lightning_1step_unet_x0.safetensors"
    save_file({k: v.half() for k, v in weights.items()}, path)
    made = export(Options(source=str(small_pipeline("xl")), out=tmp_path / "b", unet=path))
    manifest = made.manifest
    assert manifest.schedule.timestep_spacing == "trailing"
    assert manifest.schedule.prediction_type == "sample"
    assert (manifest.defaults.steps, manifest.defaults.guidance_scale) == (1, 0.0)
    assert manifest.provenance.source == "xl with the UNet sdxl_lightning_1step_unet_x0.safetensors"


def test_a_unet_of_one_step_starts_at_its_own_timestep(
    small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    unet = small_pipeline("sd1") / "unet" / "diffusion_pytorch_model.safetensors"
    path = Path(shutil.copy(unet, tmp_path / "Hyper-SD15-1step-Unet.safetensors"))
    made = export(Options(source=str(small_pipeline("sd1")), out=tmp_path / "b", unet=path))
    assert made.manifest.schedule.timesteps == (800,)
    defaults = made.manifest.defaults
    assert (defaults.sampler, defaults.steps, defaults.guidance_scale) == ("lcm", 1, 0.0)
    (why,) = made.reasons
    assert "Hyper-SD: 1 step of lcm from timestep 800, guidance 0" in why
    assert verify(made.root, provider="cpu").ok


@pytest.mark.parametrize("shape", ["inpaint", "xl-inpaint"])
def test_an_inpainting_unet_comes_with_the_encoder(
    shape: str, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    """It is compared on images of which half is repainted."""
    made = export(
        Options(source=str(small_pipeline(shape)), out=tmp_path / "b", precision="int8", steps=2)
    )
    sample = made.manifest.graphs["unet"].input("sample")
    assert sample is not None
    assert sample.shape == ("batch", 9, "height", "width")
    assert made.manifest.latent.channels == 4
    assert "vae_encoder" in made.manifest.graphs
    assert len(made.manifest.fidelity.images) == 2
    assert all(p.psnr_db is None or p.psnr_db > 28 for p in made.manifest.fidelity.images)
    outcome = verify(made.root, provider="cpu")
    assert [c for c in outcome.checks if not c.ok] == []
