"""`--fidelity full|quick|none`: the images that each level makes, and what the report says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from edgediff_export.cli import export as command
from edgediff_export.export import Options, export
from edgediff_export.fidelity import images
from edgediff_export.fidelity.shots import Shot, choose_shots, evaluations, trial_shots
from edgediff_export.options import check_options
from edgediff_export.search.budget import Budget

from edgediff import cli
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import Fidelity, FidelityLevel, Manifest, parse_manifest
from edgediff.cli.report import describe_fidelity
from edgediff.errors import BundleError, InputError
from edgediff.verification import verify

SMALL, LARGE = int(3e6), int(860e6)


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    """Of a model that makes images of 768x512 in 20 steps."""
    found = Bundle.open(tiny_bundle).manifest
    return replace(found, defaults=replace(found.defaults, width=768, height=512, steps=20))


@pytest.mark.parametrize("parameters", [SMALL, LARGE])
def test_full_is_as_the_bundle_makes_images(manifest: Manifest, parameters: int) -> None:
    shots = choose_shots(manifest, parameters, "full")
    assert {(s.width, s.height, s.steps) for s in shots} == {(768, 512, 20)}
    assert [s.seed for s in shots] == [0, 1, 2, 3]
    assert len({s.prompt for s in shots}) == 4


@pytest.mark.parametrize(("parameters", "count"), [(SMALL, 2), (LARGE, 1)])
def test_quick_is_small(manifest: Manifest, parameters: int, count: int) -> None:
    shots = choose_shots(manifest, parameters, "quick")
    assert [(s.width, s.height, s.steps) for s in shots] == [(256, 256, 4)] * count
    full = choose_shots(manifest, parameters, "full")
    assert evaluations(shots) < evaluations(full) / 8
    defaults = replace(manifest.defaults, width=64, height=96, steps=2)
    (first, *_) = choose_shots(replace(manifest, defaults=defaults), parameters, "quick")
    assert (first.width, first.height, first.steps) == (64, 96, 2)


def test_none_makes_no_image(manifest: Manifest) -> None:
    assert choose_shots(manifest, SMALL, "none") == []


def test_a_search_measures_the_same_images_at_every_level(manifest: Manifest) -> None:
    """A budget of quality is of images as the bundle makes them."""
    used, unseen = trial_shots(manifest, SMALL)
    assert (len(used), len(unseen)) == (4, 8)
    assert {(s.width, s.height, s.steps) for s in (*used, *unseen)} == {(768, 512, 20)}
    assert not {s.seed for s in used} & {s.seed for s in unseen}


@pytest.mark.parametrize("budget", [Budget(min_psnr=30.0), Budget(max_size=10**9)])
def test_a_budget_needs_images(budget: Budget, tmp_path: Path) -> None:
    how: dict[str, Any] = {"source": "x", "out": tmp_path / "b", "precision": "int8"}
    check_options(Options(**how, budget=budget))
    with pytest.raises(InputError, match="--fidelity none compares no images, which --m"):
        check_options(Options(**how, budget=budget, fidelity="none"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Shot]:
    """All images that an export makes, as it makes them."""
    made: list[Shot] = []
    draw = images.draw_images

    def drawing(bundle: Path, shots: Any, *advance: Any) -> Any:
        made.extend(shots)
        return draw(bundle, shots, *advance)

    monkeypatch.setattr(images, "draw_images", drawing)
    return made


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_none_says_that_nothing_was_measured(
    small_pipeline: Callable[[str], Path], tmp_path: Path, drawn: list[Shot], precision: str
) -> None:
    out = tmp_path / "b"
    source = str(small_pipeline("sd1"))
    arguments = [source, str(out), "--fidelity", "none", "--precision", precision]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert drawn == []
    said = "none: nothing was measured on images: how close they are to the float model's is not"
    assert any(line.startswith(f"fidelity {said}") for line in done.stdout.splitlines())
    assert " dB" not in done.stdout
    fidelity = json.loads((out / "bundle.json").read_text())["fidelity"]
    assert (fidelity["level"], fidelity["images"]) == ("none", [])
    assert set(fidelity["stages"]) == {"text_encoder", "unet", "vae_decoder"}
    shown = CliRunner().invoke(cli.edgediff, ["info", str(out)])
    assert f"fidelity       {said}" in shown.stdout
    outcome = verify(out, provider="cpu")
    assert [c for c in outcome.checks if not c.ok] == []
    assert not any(check.name.startswith("image") for check in outcome.checks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "count", "side", "said"),
    [
        ("full", 4, 320, "full: 4 images of 320x320, 6 steps of pndm, compared with the float mo"),
        ("quick", 2, 256, "quick: 2 images of 256x256, 4 steps of pndm, compared with the float m"),
    ],
)
def test_levels_of_an_export(
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
    drawn: list[Shot],
    level: FidelityLevel,
    count: int,
    side: int,
    said: str,
) -> None:
    made = export(
        Options(
            source=str(small_pipeline("sd1")),
            out=tmp_path / "b",
            precision="int8",
            size=(320, 320),
            steps=6,
            fidelity=level,
        )
    )
    assert len(drawn) == 2 * count  # in float and in int8
    assert {s.width for s in drawn} == {side}
    assert made.manifest.fidelity.level == level
    assert [i.width for i in made.manifest.fidelity.images] == [side] * count
    assert describe_fidelity(made.manifest).startswith(said)
    assert verify(made.root, provider="cpu").ok


@pytest.mark.slow
def test_quick_says_what_it_does_not_prove(sd1: Any, manifest: Manifest) -> None:
    of_sd1 = Bundle.open(sd1.bundle).manifest
    assert of_sd1.fidelity.level == "quick"
    assert describe_fidelity(of_sd1) == (
        "quick: 2 images of 64x64, 2 steps of pndm, for edgediff verify; this is the float model"
        " itself"
    )
    quantization = replace(of_sd1.quantization, precision="int8")
    lowered = replace(of_sd1, quantization=quantization)
    assert describe_fidelity(lowered).endswith("the float model's, as the bundle makes them")
    larger = replace(lowered, defaults=manifest.defaults)
    assert describe_fidelity(larger).endswith(
        "compared with the float model's; 768x512 and 20 steps, as the bundle makes them, only with"
        " --fidelity full"
    )


def test_the_level_in_a_bundle(manifest: Manifest) -> None:
    assert '"level"' not in manifest.to_json()  # of an earlier version, which knows none
    quick = replace(manifest, fidelity=replace(manifest.fidelity, level="quick"))
    assert parse_manifest(quick.to_json()) == quick
    with pytest.raises(BundleError, match="no image at the level 'none'"):
        Fidelity(stages={}, images=manifest.fidelity.images, level="none")
