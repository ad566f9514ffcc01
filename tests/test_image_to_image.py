"""Images made from images, with a bundle of random weights: torch-free."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgediff
from edgediff.backend.run_stage import RunStage
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import InputError, ProviderError
from edgediff.pipeline import Pipeline
from edgediff.sampling.samplers import SAMPLERS


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> Pipeline:
    return edgediff.load(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def without_encoder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("bundles") / "plain"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    graph = manifest["graphs"].pop("vae_encoder")
    for name in (graph["file"], *graph["data"]):
        del manifest["files"][name]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return edgediff.load(folder, threads=1)


def photograph(width: int = 64, height: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def left_half(width: int = 64, height: int = 64) -> np.ndarray:
    """A mask: the left half is white."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


def last(pipe: Pipeline, **options: Any) -> np.ndarray:
    return list(pipe.stream("a fox", **{"seed": 0, "steps": 4, **options}))[-1].latents


def test_strength_is_the_part_of_the_steps_that_are_taken(pipe: Pipeline) -> None:
    for strength, steps in ((1.0, 4), (0.99, 3), (0.5, 2), (0.25, 1)):
        result = pipe.generate("a fox", seed=0, steps=4, init_image=photograph(), strength=strength)
        assert len(result.timings.steps) == steps
        assert (result.settings.steps, result.settings.strength) == (4, strength)
        assert result.timings.stages["encoder"] > 0
    assert "encoder" not in pipe.generate("a fox", seed=0, steps=4).timings.stages


def test_defaults_are_those_of_diffusers(pipe: Pipeline) -> None:
    changed = pipe.generate("a fox", seed=0, steps=5, init_image=photograph())
    assert changed.settings.strength == 0.8
    repainted = pipe.generate("a fox", seed=0, init_image=photograph(), mask=left_half())
    assert repainted.settings.strength == 1.0


def test_little_strength_stays_near_the_image(pipe: Pipeline) -> None:
    def away(strength: float) -> float:
        latents = last(pipe, init_image=photograph(), strength=strength, steps=20)
        return float(
            np.abs(latents - last(pipe, init_image=photograph(), steps=20, strength=0.05)).mean()
        )

    assert away(0.1) < away(0.5) < away(1.0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_equals_single_runs(pipe: Pipeline, sampler: str, masked: bool) -> None:
    options: dict[str, Any] = {"init_image": photograph(), "sampler": sampler, "strength": 0.8}
    if masked:
        options["mask"] = left_half()
    batch = last(pipe, seed=[3, 2**40], **options)
    for latents, seed in zip(batch, (3, 2**40), strict=True):
        assert (last(pipe, seed=seed, **options)[0] == latents).all()


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m"])
def test_a_mask_all_white_at_full_strength_is_a_image_from_noise(
    pipe: Pipeline, sampler: str
) -> None:
    mask = np.full((64, 64), 255, np.uint8)
    repainted = last(pipe, init_image=photograph(), mask=mask, sampler=sampler)
    assert np.abs(repainted - last(pipe, sampler=sampler)).max() < 1e-6


def test_what_the_mask_keeps_is_kept_in_every_step(pipe: Pipeline) -> None:
    options: dict[str, Any] = {"init_image": photograph(), "mask": left_half()}
    steps = list(pipe.stream("a fox", seed=0, **options))
    of_another_prompt = list(pipe.stream("a house", seed=0, **options))
    for a, b in zip(steps, of_another_prompt, strict=True):
        assert (a.latents[..., 4:] == b.latents[..., 4:]).all()
        assert (a.latents[..., :4] != b.latents[..., :4]).any()
    of_another_seed = list(pipe.stream("a fox", seed=1, **options))[-1].latents
    assert (steps[-1].latents[..., 4:] == of_another_seed[..., 4:]).all()


def test_pixels_outside_the_mask_come_back_if_asked_for(pipe: Pipeline, tmp_path: Path) -> None:
    mask = Image.fromarray(left_half())
    options: dict[str, Any] = {"seed": [0, 1], "init_image": photograph(), "mask": mask}
    kept = pipe.generate("a fox", **options, keep_unmasked=True)
    plain = pipe.generate("a fox", **options)
    for mine, other in zip(kept.images, plain.images, strict=True):
        assert (np.asarray(mine)[:, 32:] == photograph()[:, 32:]).all()
        assert (np.asarray(mine)[:, :32] == np.asarray(other)[:, :32]).all()
        assert (np.asarray(other)[:, 32:] != photograph()[:, 32:]).any()
    with Image.open(kept.save(tmp_path / "a.png")[0]) as saved:
        assert json.loads(saved.info["edgediff"])["keep_unmasked"] is True


def test_pixels_outside_the_mask_at_another_size(pipe: Pipeline) -> None:
    image, mask = Image.fromarray(photograph(100, 80)), Image.fromarray(left_half(100, 80))
    made = pipe.generate(
        "a fox", seed=0, init_image=image, mask=mask, size=(64, 72), keep_unmasked=True
    ).images[0]
    expected = np.asarray(image.resize((64, 72), Image.Resampling.LANCZOS))
    assert (np.asarray(made)[:, 32:] == expected[:, 32:]).all()


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ((64, 64), (64, 64)),
        ((70, 95), (64, 88)),
        ((32, 128), (32, 128)),
        ((128, 128), (128, 128)),
        ((640, 480), (72, 48)),
        ((20, 10), (88, 40)),
        ((3000, 3), (3000, 8)),
        ((1, 1), (64, 64)),
    ],
)
def test_a_image_gives_its_own_size_or_its_proportions(
    pipe: Pipeline, given: tuple[int, int], size: tuple[int, int]
) -> None:
    settings = pipe.resolve("a fox", init_image=photograph(*given)).settings
    assert (settings.width, settings.height) == size
    asked = pipe.resolve("a fox", init_image=photograph(*given), size=(64, 96)).settings
    assert (asked.width, asked.height) == (64, 96)


def test_the_encoder_is_loaded_when_a_image_first_comes(tiny_bundle: Path) -> None:
    with edgediff.load(tiny_bundle, threads=1) as pipe:
        pipe.generate("a fox", seed=0, steps=1)
        assert "vae_encoder" not in pipe.loaded_stages
        pipe.generate("a fox", seed=0, steps=1, init_image=photograph(), strength=1)
        assert "vae_encoder" in pipe.loaded_stages


@pytest.mark.parametrize(
    "options", [{"init_image": photograph()}, {"hires": 2, "hires_mode": "pixel"}]
)
def test_a_bundle_without_an_encoder_says_how_to_get_one(
    without_encoder: Pipeline, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"tiny has no encoder .* --with-encoder"):
        without_encoder.stream("a fox", **options)
    assert last(without_encoder, hires=2).shape == (1, 4, 16, 16)


def test_values_that_are_not_finite_are_an_error(pipe: Pipeline) -> None:
    def spoil(run_stage: RunStage) -> RunStage:
        def spoilt(stage: str, inputs: dict[str, Any]) -> Any:
            found = run_stage(stage, inputs)
            return {k: v * np.nan for k, v in found.items()} if stage == "vae_encoder" else found

        return spoilt

    run = pipe.run(pipe.resolve("a fox", init_image=photograph()), wrap=spoil)
    with pytest.raises(ProviderError, match=r"vae_encoder\.onnx: gave values that are not finite"):
        next(run)


def test_what_was_done_to_images_is_told(pipe: Pipeline, tmp_path: Path) -> None:
    rgba = np.dstack([photograph(), np.full((64, 64), 128, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    result = pipe.generate("a fox", seed=0, init_image=tmp_path / "a.png")
    assert result.notes == (f"{tmp_path / 'a.png'}: transparent parts were laid on white",)
    assert pipe.generate("a fox", seed=0).notes == ()


@pytest.mark.parametrize(
    ("given", "size", "note"),
    [
        ((64, 64), None, None),
        ((64, 72), None, None),
        ((65, 66), None, "was resized from 65x66 to 64x64"),
        ((1, 1), None, "was resized from 1x1 to 64x64"),
        ((1500, 10), None, "was stretched from 1500x10 to 1496x8 pixels"),
        ((640, 640), None, "was resized from 640x640 to 64x64"),
        ((640, 640), 72, None),
        ((64, 72), (64, 64), "was stretched from 64x72 to 64x64 pixels"),
    ],
)
def test_what_became_of_its_size_is_told(
    pipe: Pipeline, given: tuple[int, int], size: Any, note: str | None
) -> None:
    image = photograph(*given)
    result = pipe.generate("a fox", seed=0, steps=2, size=size, init_image=image)
    assert result.notes == (() if note is None else (f"`init_image`: {note}",))
    width, height = result.images[0].size
    assert note is None or f"to {width}x{height}" in note


SMALL_WHITE = np.zeros((64, 64), np.uint8)
SMALL_WHITE[1:4, 1:4] = 255
GREY = np.full((64, 64), 127, np.uint8)
SEE_THROUGH = Image.new("RGBA", (64, 64), (255, 255, 255, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_image": 7}, "`init_image` is int"),
        ({"init_image": photograph(), "strength": 0}, "`strength` is 0"),
        ({"init_image": photograph(), "strength": -0.5}, "`strength` is -0.5"),
        ({"init_image": photograph(), "strength": 1.01}, "`strength` is 1.01"),
        ({"init_image": photograph(), "strength": 0.2}, "`strength` is 0.2.* 4 steps"),
        ({"init_image": photograph(), "strength": float("nan")}, "`strength` is nan"),
        ({"init_image": photograph(), "strength": "1"}, "`strength` is '1': expected a number"),
        ({"init_image": photograph(), "strength": True}, "`strength` is True"),
        ({"strength": 0.5}, "`strength` is 0.5, but there is no `init_image`"),
        ({"mask": left_half()}, "`mask` is given, but `init_image` is not"),
        ({"init_image": photograph(), "mask": left_half(64, 56)}, "is 64x56, .* 64x64"),
        ({"init_image": photograph(), "mask": GREY * 0}, "nothing in it is white"),
        ({"init_image": photograph(), "mask": GREY}, "nothing in it is white"),
        ({"init_image": photograph(), "mask": SMALL_WHITE}, "too fine for latents of 8 pixels"),
        ({"init_image": photograph(), "mask": SEE_THROUGH}, "has transparent parts"),
        ({"init_image": photograph(), "mask": "none.png"}, "none.png: cannot be read"),
        ({"init_image": photograph(), "keep_unmasked": True}, "there is no `mask`"),
        ({"keep_unmasked": "yes"}, "`keep_unmasked` is 'yes': expected True or False"),
        ({"init_image": photograph(), "mask": left_half(), "hires": 2}, "`hires` with `mask`"),
        (
            {"init_image": photograph(9000, 1)},
            "9000x1 pixels, but a side of the result has at most 4096",
        ),
    ],
)
def test_bad_input(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.stream("a fox", **{"steps": 4, **options})


def test_a_record_says_what_a_image_was_made_from(pipe: Pipeline, tmp_path: Path) -> None:
    Image.fromarray(photograph()).save(tmp_path / "photo.png")
    Image.fromarray(left_half()).save(tmp_path / "mask.png")
    options: dict[str, Any] = {
        "init_image": tmp_path / "photo.png",
        "mask": tmp_path / "mask.png",
        "strength": 0.75,
        "seed": 9,
        "steps": 4,
    }
    result = pipe.generate("a fox", **options)
    (path,) = result.save(tmp_path / "made.png")
    with Image.open(path) as saved:
        assert "Denoising strength: 0.75" in saved.info["parameters"]
    made = edgediff.recorded(path)
    assert made.given.keys() == {"init_image", "mask"}
    assert made.given["init_image"]["name"] == "photo.png"
    again = {**made.options, "init_image": photograph(), "mask": left_half()}
    assert made.differences(pipe.generate(made.prompt, **again).settings) == []
    assert (
        np.asarray(pipe.generate(made.prompt, **again).images[0]) == np.asarray(result.images[0])
    ).all()
    other = {**again, "init_image": photograph() // 2}
    (difference,) = made.differences(pipe.generate(made.prompt, **other).settings)
    assert "not photo.png" in difference


def test_the_second_pass_in_the_words_of_other_tools(pipe: Pipeline, tmp_path: Path) -> None:
    (path,) = pipe.generate("a fox", seed=0, steps=4, hires=2).save(tmp_path / "a.png")
    with Image.open(path) as saved:
        text = saved.info["parameters"]
    assert "Denoising strength: 0.25, Hires upscale: 2, Hires steps: 4" in text
    made = edgediff.recorded(path)
    assert made.options["hires"] == 2
    assert made.options["hires_mode"] == "pixel"
