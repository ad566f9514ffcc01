"""A bundle in version 1 of the format, as it was exported then, still loads, draws and verifies."""

import json

import numpy as np

import edgediff
from edgediff.bundle.manifest import MANIFEST
from tests.golden import make_format1


def test_it_is_of_version_1() -> None:
    raw = json.loads((make_format1.OUT / MANIFEST).read_text(encoding="utf-8"))
    assert raw["format_version"] == 1


def test_it_draws_the_image_that_it_drew() -> None:
    with edgediff.load(make_format1.OUT, provider="cpu") as pipe:
        image = pipe.generate(make_format1.PROMPT, seed=make_format1.SEED).images[0]
    expected = np.load(make_format1.IMAGE)
    assert expected.std() > 10
    # Processors round differently, which can show in the last bit.
    assert np.abs(np.asarray(image).astype(int) - expected.astype(int)).max() <= 1


def test_it_verifies() -> None:
    outcome = edgediff.verify(make_format1.OUT, provider="cpu")
    assert [check for check in outcome.checks if not check.ok] == []
    assert {check.name for check in outcome.checks} >= {
        "text_encoder",
        "unet",
        "unet_controlled",
        "vae_decoder",
        "vae_encoder",
        "controlnet.canny",
    }


def test_it_follows_a_control_network() -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    with edgediff.load(make_format1.OUT, provider="cpu") as pipe:
        options = edgediff.Options(seed=make_format1.SEED, init_image=white, strength=0.5)
        plain, steered = (
            np.asarray(pipe.generate(make_format1.PROMPT, **options, control=control).images[0])
            for control in (None, {"canny": edgediff.Control(white, scale=50.0)})
        )
    assert (plain != steered).any()
