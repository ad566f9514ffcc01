"""Each benchmark runs on a small model, prints its table and writes its measurements."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import models, quality, taesd

Benchmark = Callable[..., Any]


def test_unet_step(benchmark: Benchmark, tiny_bundle: Path) -> None:
    stdout, found = benchmark(
        "unet_step", tiny_bundle, "--reference", tiny_bundle, "--size", 64, "--repeats", 2
    )
    (stage,) = found["stages"]
    reference, bundle = stage["graphs"]
    assert stage["stage"] == "unet"
    assert stage["shapes"]["sample"] == [1, 4, 8, 8]
    assert stage["shapes"]["encoder_hidden_states"][:2] == [1, 77]
    assert len(bundle["seconds"]) == len(reference["seconds"]) == 2
    assert bundle["median_ratio"] == bundle["median"] / reference["median"]
    assert bundle["bytes_ratio"] == 1
    assert bundle["error"] == 0
    assert bundle["bundle"] is not None
    assert found["checks"] == []  # the bar is for int8
    assert found["reference"] in stdout


def test_vae_decode(benchmark: Benchmark, tiny_bundle: Path) -> None:
    _, found = benchmark(
        "vae_decode", tiny_bundle, "--reference", tiny_bundle, "--size", 64, "--repeats", 1
    )
    assert {s["stage"]: s["shapes"] for s in found["stages"]} == {
        "vae_decoder": {"latent_sample": [1, 4, 8, 8]},
        "text_encoder": {"input_ids": [1, 77]},
    }


@pytest.mark.slow
def test_memory(benchmark: Benchmark, tiny_bundle: Path) -> None:
    stdout, found = benchmark("memory", tiny_bundle, "--size", 64, "--repeats", 1, "--steps", 1)
    (bundle,) = found["bundles"]
    assert 10 < bundle["peak_mb"] < 1e4
    assert 0 < bundle["median_load"] < 60
    assert len(bundle["loads"]) == len(bundle["loads_with_hashes"]) == 1
    if Path("/proc/self/status").exists():
        assert 0 < bundle["peak_anonymous_mb"] <= bundle["peak_mb"]
    assert "max_memory unset" in stdout


def test_quality_of_a_bundle_against_itself(benchmark: Benchmark, tiny_bundle: Path) -> None:
    stdout, found = benchmark(
        "quality", "--float", tiny_bundle, "--int8", tiny_bundle, "--pairs", 2
    )
    model = found["model"]
    assert [p["psnr_db"] for p in model["images"]] == [None, None]
    assert len({p["seed"] for p in model["images"]}) == 2
    stages = {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert model["stages"].keys() == stages
    assert all(check["met"] for check in found["checks"])
    assert "inf dB" in stdout


def test_stages(benchmark: Benchmark, tiny_bundle: Path) -> None:
    _, found = benchmark("stages", tiny_bundle, "--repeats", 1)
    assert found["peak_mb"] > 10
    assert found["machine"]["cores"] >= 1
    assert len(found["pictures"]) == 1


def test_summary_of_psnrs() -> None:
    psnrs = [float(i) for i in range(30, 130)]
    assert quality.summary([*psnrs[:-1], None]) == {
        "median": 79.5,
        "minimum": 30.0,
        "percentile_5": 34.0,
    }


def test_prompts_are_none_that_the_export_looks_at() -> None:
    from edgediff_export.fidelity import shots

    assert len(set(quality.PROMPTS)) == len(quality.PROMPTS) == 64
    assert not set(quality.PROMPTS) & set(shots.PROMPTS)


@pytest.mark.parametrize(
    ("size", "read"),
    [((300, 260), (296, 256)), ((1600, 1024), (512, 512)), ((512, 900), (512,) * 2)],
)
def test_images_are_cropped_to_whole_latents(
    tmp_path: Path, size: tuple[int, int], read: tuple[int, int]
) -> None:
    path = tmp_path / "grey.png"
    Image.new("L", size, 128).save(path)
    pixels = quality.read_image(path)
    assert pixels.shape == (read[1], read[0], 3)
    assert np.all(pixels == 128)


def test_small_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side in (128, 256):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert [p.name for p in quality.find_images(tmp_path)] == ["256.png"]
    assert "1 images are few" in capsys.readouterr().err


def test_what_a_benchmark_needs_is_made_once_and_in_one_piece(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        if len(made) == 1:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        models.once(tmp_path / "sd1", make)
    assert not (tmp_path / "sd1").exists()
    assert models.once(tmp_path / "sd1", make) == tmp_path / "sd1"
    assert models.once(tmp_path / "sd1", make) == tmp_path / "sd1"
    assert len(made) == 2


def test_a_bundle_older_than_the_exports_code_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*arguments: str) -> None:
        out = Path(arguments[4])
        out.mkdir()
        (out / "bundle.json").write_text(" ".join(arguments))

    monkeypatch.setattr(models, "run_python", export)
    folder = models.bundle(tmp_path, tmp_path / "sd1", "int8", "--steps", "2")
    assert folder == tmp_path / "sd1-int8"
    assert (folder / "bundle.json").read_text().endswith("--precision int8 --steps 2")
    (folder / "bundle.json").write_text("as it was")
    assert (models.bundle(tmp_path, tmp_path / "sd1", "int8") / "bundle.json").read_text() == (
        "as it was"
    )
    os.utime(folder / "bundle.json", (0, 0))
    models.bundle(tmp_path, tmp_path / "sd1", "int8")
    assert (folder / "bundle.json").read_text() != "as it was"


@pytest.mark.slow
def test_unet_step_and_vae_decode_against_optimum(
    benchmark: Benchmark, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments = ("--source", small_pipeline("sd1"), "--work", tmp_path, "--size", 64)
    _, unet = benchmark("unet_step", *arguments, "--repeats", 1)
    _, vae = benchmark("vae_decode", *arguments, "--repeats", 1)
    assert unet["reference"] == "optimum's main_export (sd1-optimum)"
    stages = [*unet["stages"], *vae["stages"]]
    assert [s["stage"] for s in stages] == ["unet", "vae_decoder", "text_encoder"]
    for stage in stages:
        reference, bundle = stage["graphs"]
        assert (reference["precision"], bundle["precision"]) == ("fp32", "int8")
        assert 0 < bundle["error"] < 0.2
        assert bundle["bytes_ratio"] < 1
    assert [c["bar"] for c in vae["checks"]] == [0.45, 0.26, 0.4, 0.26]


@pytest.mark.slow
def test_quality_of_taesds_decoder(benchmark: Benchmark, tiny_bundle: Path, tmp_path: Path) -> None:
    original, images = tmp_path / "original", tmp_path / "images"
    weights = write_taesd(original)
    images.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (256, 264, 3), np.uint8)).save(images / "noise.png")
    _, found = benchmark(
        "quality",
        *("--float", tiny_bundle, "--int8", tiny_bundle, "--pairs", 1),
        *("--taesd", original, "--images", images, "--work", tmp_path),
    )
    (image,) = found["taesd"]["images"]
    assert image["size"] == [264, 256]
    assert image["psnr_db"] > 20
    assert image["tiled_db"] is None or image["tiled_db"] > 30  # None: equal
    assert found["taesd"]["precision"] == "int8"

    from diffusers import AutoencoderTiny

    written = AutoencoderTiny.from_pretrained(tmp_path / "taesd").state_dict()
    assert written.keys() == weights.keys()
    assert all((written[k] == weights[k]).all() for k in weights)


def write_taesd(folder: Path) -> dict[str, Any]:
    """Random weights in the layout of TAESD's own repository; and as diffusers names them."""
    import torch
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = AutoencoderTiny().state_dict()
    halves: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {}}
    for name, weight in weights.items():
        half, _, layer, rest = name.split(".", 3)
        halves[half][f"{int(layer) + (half == 'decoder')}.{rest}"] = weight
    folder.mkdir()
    save_file(halves["encoder"], folder / taesd.ENCODER)
    save_file(halves["decoder"], folder / taesd.DECODER)
    return weights


@pytest.mark.slow
def test_quality_of_the_built_in_model(benchmark: Benchmark, tmp_path: Path) -> None:
    _, found = benchmark("quality", "--pairs", 2, "--work", tmp_path)
    assert found["model"]["size"] == [128, 128]
    assert all(20 < p["psnr_db"] < 80 for p in found["model"]["images"])
