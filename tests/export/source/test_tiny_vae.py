"""Tiny autoencoders: by name, in every form, and only for the latents that they decode."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from edgediff_export.source.families import PIPELINES
from edgediff_export.source.open import open_source
from edgediff_export.source.pipeline import Source
from edgediff_export.source.tiny_vae import FITTING, TINY_VAES, known_as
from safetensors.torch import save_file

from edgediff.errors import ExportError


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny()


@pytest.fixture
def saved(tiny: Any, tmp_path: Path) -> Path:
    """A folder of a random tiny autoencoder."""
    tiny.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def tiny_hub(hub: Any, saved: Path) -> Any:
    """A hub on which each tiny autoencoder is the same random one."""
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    for tiny_vae in TINY_VAES.values():
        hub.add(tiny_vae.repository, files)
    return hub


def assert_same(source: Source, tiny: Any) -> None:
    ours, expected = source.load("vae").state_dict(), tiny.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())


def test_every_pipeline_has_one() -> None:
    assert FITTING.keys() == PIPELINES.keys()
    assert set(FITTING.values()) <= TINY_VAES.keys()


@pytest.mark.parametrize(
    ("shape", "name"), [("sd1", "taesd"), ("sd2", "taesd"), ("xl", "taesdxl"), ("lcm", "taesd")]
)
def test_by_name(
    shape: str,
    name: str,
    small_pipeline: Callable[[str], Path],
    tiny_hub: Any,
    tiny: Any,
    tmp_path: Path,
) -> None:
    source = open_source(str(small_pipeline(shape)), work=tmp_path, vae=Path(name))
    assert tiny_hub.asked() == [f"madebyollin/{name}"]
    assert source.description == f"{shape} with the VAE madebyollin/{name}"
    assert source.credits == (f"VAE: madebyollin/{name} by Ollin Boer Bohan, MIT",)
    assert_same(source, tiny)


@pytest.mark.parametrize(
    ("shape", "name", "message"),
    [
        ("sd1", "taesdxl", "of SDXL, but .* Stable Diffusion 1 and 2: give --vae taesd"),
        ("xl", "taesd", "of Stable Diffusion 1 and 2, but .* of SDXL: give --vae taesdxl"),
        ("sd1", "taesd3", "of Stable Diffusion 3, but .*: give --vae taesd"),
        ("xl", "taef1", "of FLUX.1, but .*: give --vae taesdxl"),
        ("sd2", "taef2", "of FLUX.2, but .*: give --vae taesd"),
    ],
)
def test_of_other_latents(
    shape: str,
    name: str,
    message: str,
    small_pipeline: Callable[[str], Path],
    tiny_hub: Any,
    tmp_path: Path,
) -> None:
    with pytest.raises(ExportError, match=f"--vae {name}: decodes latents {message}"):
        open_source(str(small_pipeline(shape)), work=tmp_path, vae=Path(name))
    assert tiny_hub.asked() == []  # refused before anything is fetched


def test_of_a_pipeline_with_latents_of_its_own(
    small_pipeline: Callable[[str], Path],
    change_config: Callable[..., Path],
    tiny_hub: Any,
    tmp_path: Path,
) -> None:
    wide = change_config(small_pipeline("sd1"), tmp_path / "wide", "unet", out_channels=16)
    with pytest.raises(ExportError, match=r"of its own kind \(16 channels\), .*: leave --vae out"):
        open_source(str(wide), work=tmp_path, vae=Path("taesd"))
    assert tiny_hub.asked() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        {"scaling_factor": 0.5},
        {"block_out_channels": [16, 16]},
    ],
)
def test_of_sdxl_with_latents_of_another_scale(
    changes: dict[str, Any],
    small_pipeline: Callable[[str], Path],
    change_config: Callable[..., Path],
    tiny_hub: Any,
    tiny: Any,
    tmp_path: Path,
) -> None:
    """As Playground v2.5's are."""
    other = change_config(small_pipeline("xl"), tmp_path / "other", "vae", **changes)
    tiny.save_pretrained(tmp_path / "local" / "taesdxl")
    for given in (Path("taesdxl"), tmp_path / "local" / "taesdxl"):
        with pytest.raises(ExportError, match=r"of its own kind .*: leave --vae out"):
            open_source(str(other), work=tmp_path, vae=given)
    assert tiny_hub.asked() == []


@pytest.mark.parametrize("name", ["taesdxl", "TAESDXL-fp32", "models--madebyollin--taesdxl"])
def test_a_folder_is_known_by_its_name(
    name: str, small_pipeline: Callable[[str], Path], tiny: Any, tmp_path: Path
) -> None:
    folder = tmp_path / name
    if name.startswith("models--"):
        folder = folder / "snapshots" / ("ab" * 20)
    tiny.save_pretrained(folder)
    with pytest.raises(ExportError, match=r"--vae .*: decodes latents of SDXL.*: give --vae taesd"):
        open_source(str(small_pipeline("sd1")), work=tmp_path, vae=folder)
    source = open_source(str(small_pipeline("xl")), work=tmp_path, vae=folder)
    assert source.credits == ("VAE: madebyollin/taesdxl by Ollin Boer Bohan, MIT",)
    assert_same(source, tiny)


def test_a_local_folder_comes_before_the_hub(
    small_pipeline: Callable[[str], Path],
    tiny_hub: Any,
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = small_pipeline("sd1")
    tiny.save_pretrained(tmp_path / "taesd")
    monkeypatch.chdir(tmp_path)
    assert_same(open_source(str(pipeline), work=tmp_path, vae=Path("taesd")), tiny)
    assert tiny_hub.asked() == []


def test_a_folder_without_a_known_name(
    saved: Path, small_pipeline: Callable[[str], Path], tiny: Any, tmp_path: Path
) -> None:
    source = open_source(str(small_pipeline("sd1")), work=tmp_path, vae=saved)
    assert source.credits == ()
    (saved / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    source = open_source(str(small_pipeline("sd1")), work=tmp_path, vae=saved)
    assert source.credits == ("VAE: saved, apache-2.0",)
    assert_same(source, tiny)


def _halves(tiny: Any, folder: Path) -> tuple[Path, Path]:
    """As their author publishes them: layers counted within each half, and a first one that
    clamps."""
    made = []
    for half, shift in (("encoder", 0), ("decoder", 1)):
        weights = {}
        for key, tensor in getattr(tiny, half).layers.state_dict().items():
            number, _, rest = key.partition(".")
            weights[f"{int(number) + shift}.{rest}"] = tensor
        made.append(folder / f"taesd_{half}.safetensors")
        save_file(weights, made[-1])
    return made[0], made[1]


@pytest.mark.parametrize("given", [0, 1])
def test_the_halves_of_its_author(
    given: int, small_pipeline: Callable[[str], Path], tiny: Any, tmp_path: Path
) -> None:
    halves, work = _halves(tiny, tmp_path), tmp_path / "work"
    work.mkdir()
    source = open_source(str(small_pipeline("sd1")), work=work, vae=halves[given])
    assert source.credits == ("VAE: madebyollin/taesd by Ollin Boer Bohan, MIT",)
    assert_same(source, tiny)
    with pytest.raises(ExportError, match="give --vae taesdxl"):
        open_source(str(small_pipeline("xl")), work=work, vae=halves[given])
    halves[1 - given].unlink()
    with pytest.raises(ExportError, match=r"half of a tiny VAE, and no .*coder lies beside it"):
        open_source(str(small_pipeline("sd1")), work=work, vae=halves[given])


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("taesd", "taesd"),
        ("taesd3_decoder", "taesd3"),
        ("my-taef1", "taef1"),
        ("mytaesd", None),
        ("taesd33", None),
        ("vae", None),
    ],
)
def test_names(name: str, known: str | None) -> None:
    assert known_as([name]) == known


def test_every_name_is_offered(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no VAE there: .*taesd, taesdxl, taesd3, taef1, taef2"):
        open_source(str(small_pipeline("sd1")), work=tmp_path, vae=Path("taesdd"))


def test_diffusers_has_no_scale_for_them(saved: Path) -> None:
    """Latents go to a tiny decoder as the denoiser has them: `scale_latents` only stores them as
    images."""
    config = json.loads((saved / "config.json").read_text())
    assert (config["scaling_factor"], config["shift_factor"]) == (1.0, 0.0)
