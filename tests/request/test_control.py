"""Control networks at run time, with a bundle of random weights and without torch."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

import edgediff
from edgediff import Control
from edgediff.backend.memory import estimate
from edgediff.backend.run_stage import RunStage
from edgediff.bundle.folder import Bundle
from edgediff.cli.control import parse_controls
from edgediff.errors import InputError
from edgediff.images.canny import edges, invert
from edgediff.images.source import open_image
from edgediff.pipeline import Pipeline
from edgediff.verification import verify

CONTROLLED_UNET = "unet_controlled"


@pytest.fixture(scope="module")
def bundle() -> Path:
    """Made by tests/golden/make_control.py."""
    return Path(__file__).parents[1] / "golden" / "tiny_control"


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Pipeline:
    return edgediff.load(bundle, threads=1)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((120, 90), Image.Resampling.BICUBIC)


def latents(pipe: Pipeline, **options: Any) -> np.ndarray:
    settings: dict[str, Any] = {"seed": 3, "steps": 4, **options}
    return list(pipe.stream("a fox", **settings))[-1].latents


def stages_run(pipe: Pipeline, **options: Any) -> list[list[str]]:
    """The stages that each step ran."""
    seen: list[list[str]] = []

    def recording(run_stage: RunStage) -> RunStage:
        def recorded(stage: str, inputs: dict[str, Any]) -> Any:
            seen[-1].append(stage)
            return run_stage(stage, inputs)

        return recorded

    seen.append([])
    for _ in pipe.run(pipe.resolve("a fox", seed=0, **options), wrap=recording):
        seen.append([])
    return seen[:-1]


def test_its_scale_changes_the_image(pipe: Pipeline, photo: Image.Image) -> None:
    plain = latents(pipe)
    distances = [
        np.abs(latents(pipe, control={"canny": Control(photo, scale=s)}) - plain).max()
        for s in (0.0, 0.1, 1.0)
    ]
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2]


def test_the_image_and_the_network_both_matter(pipe: Pipeline, photo: Image.Image) -> None:
    black = Image.new("RGB", (64, 64))
    made = [
        latents(pipe, control={"canny": Control(photo)}),
        latents(pipe, control={"canny": Control(black)}),
        latents(pipe, control={"depth": Control(photo)}),
    ]
    for k, a in enumerate(made):
        for b in made[k + 1 :]:
            assert np.abs(a - b).max() > 1e-3


def test_none_and_an_empty_mapping_mean_no_control(pipe: Pipeline) -> None:
    plain = latents(pipe)
    for nothing in (None, {}):
        assert (latents(pipe, control=nothing) == plain).all()
        assert pipe.generate("a fox", steps=1, control=nothing).settings.control is None


def test_images_in_a_batch_equal_single_images(pipe: Pipeline, photo: Image.Image) -> None:
    control = {"canny": Control(photo), "depth": Control(photo, end=0.5)}
    together = latents(pipe, seed=[0, 5], control=control)
    for k, seed in enumerate((0, 5)):
        assert (latents(pipe, seed=seed, control=control)[0] == together[k]).all()


def test_a_network_runs_only_on_its_steps(pipe: Pipeline, photo: Image.Image) -> None:
    control = {"canny": Control(photo, end=0.5), "depth": Control(photo, start=0.25, end=0.75)}
    steps = stages_run(pipe, steps=4, control=control)
    steps[0] = [s for s in steps[0] if s != "text_encoder"]
    canny, depth = "controlnet.canny", "controlnet.depth"
    assert steps == [
        [canny, CONTROLLED_UNET],
        [canny, depth, CONTROLLED_UNET],
        [depth, CONTROLLED_UNET],
        [CONTROLLED_UNET],
    ]
    first = {"canny": Control(photo, end=0.5)}
    twice, once = stages_run(pipe, steps=2, sampler="dpmpp_sde", control=first)
    assert twice[-4:] == [canny, CONTROLLED_UNET] * 2  # both evaluations of the first step
    assert once == [CONTROLLED_UNET]
    off = {"canny": Control(photo, scale=0)}
    assert {s for step in stages_run(pipe, steps=2, control=off) for s in step} == {
        "text_encoder",
        "unet",
    }


def test_only_stages_in_use_are_loaded(bundle: Path, photo: Image.Image) -> None:
    with edgediff.load(bundle) as pipe:
        assert set(pipe.loaded_stages) == {"text_encoder", "vae_decoder"}
        pipe.generate("a fox", steps=1)
        assert set(pipe.loaded_stages) == {"text_encoder", "vae_decoder", "unet"}
    with edgediff.load(bundle) as pipe:
        pipe.generate("a fox", steps=1, control={"depth": Control(photo)})
        assert set(pipe.loaded_stages) == {
            "text_encoder",
            "vae_decoder",
            CONTROLLED_UNET,
            "controlnet.depth",
        }


def test_the_two_unets_share_their_weights(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    plain, steered = manifest.graphs["unet"], manifest.graphs[CONTROLLED_UNET]
    assert plain.data == steered.data
    assert manifest.own_files(CONTROLLED_UNET) == [steered.file]
    assert manifest.files[steered.file].size < 1.02 * manifest.files[plain.file].size
    assert tuple(manifest.controlnets) == ("canny", "depth")
    memory = estimate(manifest)
    assert memory[CONTROLLED_UNET].work == memory["unet"].work == memory["controlnet.canny"].work
    assert memory[CONTROLLED_UNET].weights >= memory["unet"].weights


def test_under_a_memory_limit_the_image_is_the_same(bundle: Path, photo: Image.Image) -> None:
    control = {"canny": Control(photo)}
    with edgediff.load(bundle, max_memory="45MB") as small, edgediff.load(bundle) as large:
        assert (latents(small, control=control) == latents(large, control=control)).all()


def test_it_verifies(bundle: Path) -> None:
    outcome = verify(bundle, provider="cpu")
    assert [c for c in outcome.checks if not c.ok] == []
    assert {"controlnet.canny", "controlnet.depth", CONTROLLED_UNET} <= {
        c.name for c in outcome.checks
    }


def test_changes_to_images_are_noted(pipe: Pipeline, tmp_path: Path) -> None:
    Image.new("RGBA", (32, 48)).save(tmp_path / "a.png")
    control = {"canny": Control(tmp_path / "a.png"), "depth": Control(Image.new("L", (99, 99)))}
    assert pipe.generate("a fox", seed=0, steps=1, control=control).notes == (
        f"{tmp_path / 'a.png'}: transparent parts were laid on white",
        f"{tmp_path / 'a.png'}: was stretched from 32x48 to 64x64 pixels",
    )


def test_the_image_is_prepared_at_the_size_of_the_result(photo: Image.Image) -> None:
    resized = photo.resize((64, 48), Image.Resampling.LANCZOS)
    for process, expected in (
        (None, resized),
        ("edges", edges(resized)),
        ("invert", invert(resized)),
    ):
        pixels = Control(photo, process=process).pixels(64, 48)
        assert (pixels.dtype, pixels.shape) == (np.float32, (1, 3, 48, 64))
        scaled = np.asarray(expected).transpose(2, 0, 1)[None].astype(np.float32) / 255
        np.testing.assert_array_equal(pixels, scaled)


def test_an_image_records_its_control(pipe: Pipeline, photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo.save(path)
    control = {"canny": Control(path, scale=0.5, end=0.75, process="edges")}
    result = pipe.generate("a fox", seed=0, steps=4, control=control)
    (saved,) = result.save(tmp_path / "fox.png")
    with Image.open(saved) as made:
        record = json.loads(made.info["edgediff"])
    (said,) = record["control"]
    image = said.pop("image")
    assert said == {"name": "canny", "scale": 0.5, "start": 0.0, "end": 0.75, "process": "edges"}
    assert image["name"] == "photo.png"
    assert image["sha256"] == open_image(photo, "").sha256
    made_before = edgediff.recorded(saved)
    assert "control" in made_before.given
    assert "control" not in made_before.options
    assert (
        edgediff.recorded(
            pipe.generate("a fox", seed=0, steps=1).save(tmp_path / "plain.png")[0]
        ).options.get("control")
        is None
    )


NAN = float("nan")


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (["canny"], "`control` is list: expected names with a Control each"),
        ({"pose": Control(Image.new("L", (8, 8)))}, "has none of that name; it has canny, depth"),
        ({1: Control(Image.new("L", (8, 8)))}, "`control` 1: tiny_control has none of that name"),
        ({"canny": "a.png"}, r"`control` 'canny' is str: .* such as edgediff.Control\('a.png'\)"),
        ({"canny": Control("absent.png")}, r"absent.png: cannot be read \(No such file"),
        ({"canny": Control(__file__)}, "is not an image that can be read"),
        ({"canny": Control(np.zeros((0, 4, 3), np.uint8))}, "0 pixels"),
        ({"canny": Control(7)}, "`control` 'canny' is int: expected a path"),
    ],
)
def test_arguments_that_are_not_controls(pipe: Pipeline, control: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.stream("a fox", control=control)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": NAN}, "scale is nan: expected a number from -100 to 100"),
        ({"scale": 1e6}, "scale is 1000000.0: expected"),
        ({"scale": -1e6}, "scale is -1000000.0: expected"),
        ({"scale": "1"}, "scale is '1': expected a number"),
        ({"scale": True}, "scale is True: expected a number"),
        ({"start": 0.5, "end": 0.5}, "from 0.5 to 0.5 of the steps: expected 0 ≤ start < end ≤ 1"),
        ({"start": 0.8, "end": 0.2}, "expected 0 ≤ start < end ≤ 1"),
        ({"start": -0.1}, "from -0.1 to 1.0 of the steps"),
        ({"end": 1.1}, "from 0.0 to 1.1 of the steps"),
        ({"end": NAN}, "from 0.0 to nan of the steps"),
        ({"process": "depth"}, "process is 'depth': expected 'edges' or 'invert', or None"),
        ({"start": 0.3, "end": 0.7}, "from 0.3 to 0.7 of 2 steps is less than a whole step"),
    ],
)
def test_control_values_out_of_range(pipe: Pipeline, fields: Any, message: str) -> None:
    control = {"canny": Control(Image.new("L", (8, 8)), **fields)}
    with pytest.raises(InputError, match=message):
        pipe.stream("a fox", steps=2, control=control)


def test_a_bundle_without_control_networks_names_the_remedy(tiny_bundle: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"`control` 'canny': tiny has none of that name; it has no control networks:"
        r" edgediff export … --controlnet canny=SOURCE adds one",
    ):
        edgediff.load(tiny_bundle).generate("a fox", control={"canny": Control("a.png")})


def parsed(*values: str) -> dict[str, Control]:
    command = click.Command("generate")
    return parse_controls(click.Context(command), click.Option(["--control"]), values)


@pytest.mark.parametrize(
    ("value", "image", "fields"),
    [
        ("canny=a.png", "a.png", {}),
        ("canny=a.png:0.5", "a.png", {"scale": 0.5}),
        ("canny=a.png:-1", "a.png", {"scale": -1.0}),
        ("canny=a.png:.5:0-.75", "a.png", {"scale": 0.5, "end": 0.75}),
        ("canny=a.png:1:0.25-1.", "a.png", {"start": 0.25}),
        ("canny=edges:a.png:2", "a.png", {"scale": 2.0, "process": "edges"}),
        ("canny=invert:a.png", "a.png", {"process": "invert"}),
        (r"canny=C:\a.png", r"C:\a.png", {}),
        (r"canny=edges:C:\a.png:0.5:0-1", r"C:\a.png", {"scale": 0.5, "process": "edges"}),
        ("canny=a=b.png", "a=b.png", {}),
        ("canny=blur:a.png", "blur:a.png", {}),
        ("canny=a:b:0.5", "a:b", {"scale": 0.5}),
        ("canny=a.png:0.5:1", "a.png:0.5", {}),
    ],
)
def test_flags(value: str, image: str, fields: dict[str, Any]) -> None:
    assert parsed(value) == {"canny": dataclasses.replace(Control(image), **fields)}


def test_nan_is_read_as_a_scale() -> None:
    assert np.isnan(parsed("canny=a.png:nan")["canny"].scale)


@pytest.mark.parametrize("value", ["", "canny", "canny=", "=a.png", "canny=edges:"])
def test_malformed_flags(value: str) -> None:
    with pytest.raises(click.BadParameter, match="give NAME=IMAGE"):
        parsed(value)


def test_a_network_given_twice() -> None:
    with pytest.raises(click.BadParameter, match="'canny' is given twice"):
        parsed("canny=a.png", "depth=b.png", "canny=c.png")


def test_the_command_line(bundle: Path, photo: Image.Image, tmp_path: Path) -> None:
    def run_command(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgediff", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    photo.save(tmp_path / "photo.png")
    common = ["generate", "a fox", "-m", bundle, "--seed", 0, "--steps", 2]
    flags = ["--control", "canny=edges:photo.png:0.8:0-0.5", "--control", "depth=photo.png"]
    made = run_command(*common, "-o", "a.png", *flags)
    assert made.returncode == 0, made.stderr
    with Image.open(tmp_path / "a.png") as image:
        record = json.loads(image.info["edgediff"])["control"]
    assert [(c["name"], c["scale"], c["end"]) for c in record] == [
        ("canny", 0.8, 0.5),
        ("depth", 1.0, 1.0),
    ]
    told = run_command("info", bundle)
    assert "--control canny=IMAGE; from canny" in told.stdout
    wrong = run_command(*common, "-o", "b.png", "--control", "pose=photo.png")
    assert wrong.returncode == 2
    assert "it has canny, depth" in wrong.stderr
    assert not (tmp_path / "b.png").exists()
