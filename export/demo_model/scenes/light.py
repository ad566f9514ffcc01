"""The light of a scene as tint and shading, and the words for it."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo_model.scenes.painting import SIZE, glow

Pixels = NDArray[np.float32]

WORDS: dict[str, tuple[str, ...]] = {
    "morning": ("in the morning", "soft morning light", "in morning light", "at sunrise",
                "early morning light", "in warm morning light"),
    "sunset": ("at sunset", "in the evening light", "sunset light", "at dusk",
               "golden evening light", "in warm evening light"),
    "night": ("at night", "by night", "in moonlight", "in the dark of night", "night time"),
    "fog": ("in the fog", "in fog", "in the mist", "on a foggy day", "foggy weather"),
    "spotlight": ("in a spotlight", "in the spotlight", "lit by a spotlight"),
}  # fmt: skip


@cache
def _ramp(direction: str) -> Pixels:
    """(128, 128, 1), from 1 at one side to 0 at the other."""
    x = np.linspace(0, 1, SIZE, dtype=np.float32)
    by = {
        "left": (1 - x)[None] * 0.7 + (1 - x)[:, None] * 0.3,
        "right": x[None] * 0.7 + (1 - x)[:, None] * 0.3,
        "top": np.repeat((1 - x)[:, None], SIZE, 1),
        "middle": np.clip(1.25 - np.hypot(x[None] - 0.5, x[:, None] - 0.52) * 2, 0, 1),
    }
    return by[direction][..., None].astype(np.float32)


def before(
    back: Image.Image, light: str, rng: np.random.Generator, *, outdoors: bool
) -> Image.Image:
    """The background in that light, which things are then drawn on: a low sun, mist far off."""
    if light in ("morning", "sunset") and outdoors:
        back = back.copy()
        x, y = rng.uniform(16, SIZE - 16), rng.uniform(14, 54)
        colour = (255, 240, 190) if light == "morning" else (255, 170, 80)
        glow(back, x, y, rng.uniform(46, 70), colour, 0.9)
        glow(back, x, y, 15, (255, 252, 232), 1.0)
    if light == "fog":
        return _mixed(back, (214, 219, 224), 0.62)
    return back


def after(scene: Image.Image, light: str, rng: np.random.Generator) -> Image.Image:
    """The whole scene in that light."""
    x = np.asarray(scene).astype(np.float32)
    side = "left" if rng.random() < 0.5 else "right"
    if light == "morning":
        x = _tinted(x, (1.02, 0.96, 0.84)) + _ramp(side) * np.float32([46, 34, 8])
    elif light == "sunset":
        x = (
            _tinted(x, (1.0, 0.72, 0.66))
            + _ramp(side) * np.float32([66, 22, -6])
            + np.float32([14, 0, 10])
        )
    elif light == "night":
        x = _tinted(x, (0.42, 0.5, 0.76)) * (0.8 + 0.3 * _ramp("top")) + np.float32([5, 10, 28])
    elif light == "fog":
        x = x + (np.float32([222, 226, 230]) - x) * (0.2 + 0.26 * _ramp("top"))
    elif light == "spotlight":
        x = x * (0.28 + 0.86 * _ramp("middle"))
    return Image.fromarray(np.clip(x, 0, 255).astype(np.uint8))


def _tinted(x: Pixels, factors: Sequence[float]) -> Pixels:
    return x * np.array(factors, np.float32)


def _mixed(picture: Image.Image, colour: tuple[int, int, int], share: float) -> Image.Image:
    return Image.blend(picture, Image.new("RGB", picture.size, colour), share)
