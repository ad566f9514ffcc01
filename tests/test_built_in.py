"""The built-in model, as it ships."""

import numpy as np

import edgediff
from edgediff.pipeline import find_bundle


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


def test_it_verifies() -> None:
    outcome = edgediff.verify(provider="cpu")
    assert [check for check in outcome.checks if not check.ok] == []


def test_it_says_where_it_is_from() -> None:
    with edgediff.load(provider="cpu") as pipe:
        provenance = pipe.bundle.manifest.provenance
    assert provenance.license == "Apache-2.0"
    credits = " ".join(provenance.attribution)
    for name in ("Noto Emoji", "Fluent Emoji", "Twemoji", "Firefox OS Emoji", "emojilib"):
        assert name in credits
