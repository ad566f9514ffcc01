"""Presets: what each chooses, what takes precedence, and that the bundle spells it out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from click.testing import CliRunner
from edgediff_export.cli import export as command
from edgediff_export.defaults import choose_defaults, latent_space, record_preset
from edgediff_export.export import export
from edgediff_export.options import Options, check_options
from edgediff_export.presets import PRESETS, PresetName
from edgediff_export.source.open import open_source
from edgediff_export.source.pipeline import Source
from edgediff_export.source.scheduler import read_schedule
from edgediff_export.source.tiny_vae import TINY_VAES

from edgediff.bundle.manifest import Defaults, Preset
from edgediff.cli import edgediff
from edgediff.errors import InputError


@pytest.fixture
def tiny_hub(hub: Any, tmp_path: Path) -> Any:
    """A hub on which each tiny autoencoder is the same random one."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4
    )
    vae.save_pretrained(tmp_path / "saved")
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    for tiny_vae in TINY_VAES.values():
        hub.add(tiny_vae.repository, files)
    return hub


def chosen(source: Source, **given: Any) -> tuple[Defaults, Preset | None]:
    options = Options(source="", out=Path(), **given)
    schedule = read_schedule(source.scheduler)
    defaults = choose_defaults(options, source, schedule, latent_space(source))
    return defaults, record_preset(options, source, defaults)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("fp32", "cpu", False)),
        ({"preset": "fast"}, ("int8", "cpu", True)),
        ({"preset": "balanced"}, ("int8", "cpu", False)),
        ({"preset": "quality"}, ("int8", "cpu", False)),
        ({"preset": "fast", "target": "openvino"}, ("int8", "openvino", False)),
        ({"preset": "fast", "target": "gpu"}, ("fp16", "gpu", False)),
        ({"preset": "fast", "precision": "fp32"}, ("fp32", "cpu", False)),
        ({"preset": "fast", "precision": "fp16"}, ("fp16", "gpu", False)),
        ({"preset": "fast", "average_attention": False}, ("int8", "cpu", False)),
        ({"preset": "quality", "average_attention": True}, ("int8", "cpu", True)),
    ],
)
def test_precision_and_attention(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    options = Options(source="", out=Path(), **given)
    check_options(options)
    found = (options.resolved_precision, options.resolved_target, options.averages_attention)
    assert found == expected


def test_averaged_attention_that_was_asked_for_still_needs_int8() -> None:
    options = Options(
        source="", out=Path(), preset="fast", precision="fp32", average_attention=True
    )
    with pytest.raises(InputError, match="--average-attention needs --precision int8"):
        check_options(options)


@pytest.mark.parametrize("name", PRESETS)
def test_steps_and_sampler(
    name: PresetName, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    source = open_source(str(small_pipeline("sd1")), work=tmp_path)
    defaults, record = chosen(source, preset=name)
    preset = PRESETS[name]
    assert (defaults.steps, defaults.sampler) == (preset.steps, preset.sampler)
    assert record == Preset(
        name=name,
        steps=preset.steps,
        sampler=preset.sampler,
        precision="int8",
        averaged_attention=preset.average_attention,
    )


def test_flags_take_precedence(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_source(str(small_pipeline("sd1")), work=tmp_path)
    defaults, record = chosen(
        source, preset="fast", steps=30, sampler="euler", precision="fp32", guidance_scale=3.0
    )
    assert (defaults.steps, defaults.sampler, defaults.guidance_scale) == (30, "euler", 3.0)
    assert record == Preset(name="fast")
    defaults, record = chosen(source, preset="fast", sampler="euler")
    assert (defaults.steps, defaults.sampler) == (8, "euler")
    assert record is not None
    assert (record.steps, record.sampler) == (8, None)
    assert chosen(source, preset="fast", sampler="lcm")[0].steps == 4
    assert chosen(source)[1] is None


@pytest.mark.parametrize(("shape", "steps"), [("lcm", 4), ("turbo", 4)])
def test_weights_of_few_steps_keep_theirs(
    shape: str, steps: int, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    source = open_source(str(small_pipeline(shape)), work=tmp_path)
    plain, _ = chosen(source)
    defaults, record = chosen(source, preset="quality")
    assert defaults == plain
    assert defaults.steps == steps
    assert record is not None
    assert (record.steps, record.sampler) == (None, None)


@pytest.mark.parametrize(("shape", "name"), [("sd1", "taesd"), ("xl", "taesdxl")])
def test_the_tiny_vae_that_fits(
    shape: str, name: str, small_pipeline: Callable[[str], Path], tiny_hub: Any, tmp_path: Path
) -> None:
    source = open_source(str(small_pipeline(shape)), work=tmp_path, tiny_vae=True)
    assert tiny_hub.asked() == [f"madebyollin/{name}"]
    assert source.description == f"{shape} with the VAE madebyollin/{name}"
    _, record = chosen(source, preset="balanced")
    assert record is not None
    assert record.vae == f"madebyollin/{name}"


def test_the_pipelines_own_vae_is_kept(
    small_pipeline: Callable[[str], Path],
    change_config: Callable[..., Path],
    tiny_hub: Any,
    tmp_path: Path,
) -> None:
    own = open_source(str(small_pipeline("sd1")), work=tmp_path, vae=Path("own"), tiny_vae=True)
    tiny = open_source(str(small_pipeline("tiny-vae")), work=tmp_path, tiny_vae=True)
    assert (own.description, own.notes, tiny.notes) == ("sd1", (), ())
    two_levels = change_config(
        small_pipeline("sd1"), tmp_path / "two", "vae", block_out_channels=[16, 16]
    )
    other = open_source(str(two_levels), work=tmp_path, tiny_vae=True)
    assert other.notes == ("the pipeline's own VAE is kept: there is no tiny one for its latents",)
    given = open_source(
        str(small_pipeline("sd1")), work=tmp_path, vae=small_pipeline("sd2"), tiny_vae=True
    )
    assert given.description == "sd1 with the VAE sd2"
    assert tiny_hub.asked() == []


def test_the_command_offers_each() -> None:
    shown = CliRunner().invoke(command, ["--help"]).output
    assert "--preset [fast|balanced|quality]" in shown
    assert "--no-average-attention" in shown


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_hub")
def test_the_bundle_spells_it_out(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(
        command,
        [str(small_pipeline("sd1")), str(out), "--preset", "fast", "--steps", "2"],
        catch_exceptions=False,
    )
    line = "fast: dpmpp_2m_karras, VAE madebyollin/taesd, int8, averaged attention"
    assert f"preset {line}" in done.stdout.splitlines()
    assert "VAE: madebyollin/taesd by Ollin Boer Bohan, MIT" in done.stdout.splitlines()
    shown = CliRunner().invoke(edgediff, ["info", str(out)])
    assert line in shown.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_hub")
def test_an_export_by_a_preset(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    made = export(
        Options(source=str(small_pipeline("lcm")), out=tmp_path / "out", preset="balanced")
    )
    assert made.manifest.quantization.precision == "int8"
    assert made.manifest.latent.scaling_factor == 1.0
    assert made.manifest.defaults.sampler == "lcm"
    assert made.manifest.preset == Preset(
        name="balanced",
        vae="madebyollin/taesd",
        precision="int8",
    )
