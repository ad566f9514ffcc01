"""The built-in model, as it ships."""

import numpy as np
import pytest
from PIL import Image

import edgediff
from benchmarks import emoji
from edgediff.image import psnr
from edgediff.pipeline import find_bundle
from edgediff.samplers import SAMPLERS
from edgediff.spacing import Spacing
from tests.golden import make_pictures

# Of 40 concepts, somewhat below what was measured: rounding differs between processors.
LEAST_CONCEPT, LEAST_STYLE = 0.85, 0.8


def test_it_is_small_enough_to_ship() -> None:
    sizes = [f.stat().st_size for f in find_bundle("emoji").iterdir()]
    assert sum(sizes) <= 16_000_000


def test_it_is_what_load_gives_and_it_draws() -> None:
    with edgediff.load(provider="cpu") as pipe:
        assert pipe.name == "emoji"
        result = pipe.generate("a red heart", seed=0)
    pixels = np.asarray(result.images[0]).astype(int)
    assert pixels.shape == (128, 128, 3)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 200, "the background is white"
    red, green, blue = pixels[40:80, 44:84].mean((0, 1))
    assert red > 150
    assert red > max(green, blue) + 60


@pytest.mark.parametrize(
    ("sampler", "steps", "spacing"),
    [
        *[("heun", 4, spacing) for spacing in (None, "karras", "beta")],
        *[
            pytest.param(sampler, steps, None, marks=pytest.mark.slow)
            for sampler in SAMPLERS
            for steps in (1, 2, 4, 8)
        ],
    ],
)
def test_samplers_draw_it_from_zero_terminal_snr(
    sampler: str, steps: int, spacing: Spacing | None
) -> None:
    """There a method's own arithmetic can drown the image."""
    with edgediff.load(provider="cpu") as pipe:
        expected = pipe.generate("a blue car", seed=1).images[0]
        options = edgediff.Options(sampler=sampler, steps=steps, spacing=spacing)
        made = pipe.generate("a blue car", seed=1, **options).images[0]
    a, b = (np.asarray(picture).astype(float) for picture in (made, expected))
    assert abs(a.mean() - b.mean()) < 10
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.6


def test_it_verifies() -> None:
    outcome = edgediff.verify(provider="cpu")
    assert [check for check in outcome.checks if not check.ok] == []


def test_it_says_where_it_is_from() -> None:
    with edgediff.load(provider="cpu") as pipe:
        provenance = pipe.bundle.manifest.provenance
    assert provenance.license == "Apache-2.0"
    credits = " ".join(provenance.attribution)
    for name in ("Noto Emoji", "Fluent Emoji", "Twemoji", "Firefox OS Emoji", "emojilib", "WordNet",
                 "CLDR"):  # fmt: skip
        assert name in credits


@pytest.mark.parametrize("k", range(len(make_pictures.REQUESTS)))
def test_it_draws_what_it_drew(k: int) -> None:
    prompt, seed = make_pictures.REQUESTS[k]
    with edgediff.load(provider="cpu") as pipe:
        picture = np.asarray(pipe.generate(prompt, seed=seed).images[0])
    with Image.open(make_pictures.path(k)) as golden:
        decibels = psnr(picture, np.asarray(golden))
    assert decibels is None or decibels >= 30


@pytest.mark.slow
def test_a_classifier_sees_what_was_asked_for() -> None:
    judge = emoji.Judge()
    named, styled = emoji.by_name(judge, 1, 40), emoji.by_style(judge, 40)
    with edgediff.load(provider="cpu") as pipe:
        by_name = emoji.score(judge, named, emoji.draw(pipe, named))
        by_style = emoji.score(judge, styled, emoji.draw(pipe, styled))
    assert by_name["images"] == by_style["images"] == 40
    assert by_name["concept"] >= LEAST_CONCEPT
    assert by_style["style"] >= LEAST_STYLE
