"""Colours of drawings: dye them, and name the colour that they have."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SATURATED = 64  # of 255
_LEAST_SHARE = 0.35  # of a drawing that has a colour to change
_LEAST_BRIGHTNESS = 0.75  # mean of what is dyed; yellow would otherwise turn brown
_CLEAR = 0.6  # of a drawing in one colour, so that people would name it


@dataclass(frozen=True, kw_only=True)
class Dye:
    """Hue in turns, or None to keep it; factors of saturation and brightness; a floor of it."""

    hue: float | None = None
    saturation: float = 1.0
    brightness: float = 1.0
    lightest: bool = False  # lift what is dark to the least brightness


DYES: dict[str, Dye] = {
    "red": Dye(hue=0.0),
    "orange": Dye(hue=0.08, lightest=True),
    "yellow": Dye(hue=0.145, lightest=True),
    "green": Dye(hue=0.35),
    "blue": Dye(hue=0.6),
    "purple": Dye(hue=0.76),
    "pink": Dye(hue=0.91, saturation=0.65, lightest=True),
    "brown": Dye(hue=0.07, brightness=0.6),
    "black": Dye(saturation=0.25, brightness=0.3),
    "white": Dye(saturation=0.1, brightness=1.25, lightest=True),
}


def dyed(picture: Image.Image, word: str) -> Image.Image | None:
    """The RGBA drawing in that colour, or None if too little of it has a colour to change."""
    dye = DYES[word]
    alpha = picture.getchannel("A")
    drawn = np.asarray(alpha) > 128
    hsv = np.array(picture.convert("RGB").convert("HSV"))
    coloured = (hsv[..., 1] > _SATURATED) & drawn
    if coloured.sum() < _LEAST_SHARE * max(1, drawn.sum()):
        return None
    if dye.hue is not None:
        hsv[..., 0][coloured] = round(dye.hue * 255)
    saturation = hsv[..., 1][coloured] * np.float32(dye.saturation)
    brightness = hsv[..., 2][coloured] * np.float32(dye.brightness)
    if dye.lightest:
        brightness *= max(1.0, _LEAST_BRIGHTNESS * 255 / max(1.0, float(brightness.mean())))
    hsv[..., 1][coloured] = np.clip(saturation, 0, 255).astype(np.uint8)
    hsv[..., 2][coloured] = np.clip(brightness, 0, 255).astype(np.uint8)
    result = Image.fromarray(hsv, "HSV").convert("RGB")
    result.putalpha(alpha)
    return result


def colour_of(picture: Image.Image) -> str:
    """The word for the colour of most of an RGBA drawing, or "" if it has no single one."""
    drawn = np.asarray(picture.getchannel("A")) > 128
    hsv = np.asarray(picture.convert("RGB").convert("HSV"))[drawn]
    if not len(hsv):
        return ""
    counts = _counts(hsv[:, 0] / 255, hsv[:, 1], hsv[:, 2])
    word = max(counts, key=lambda w: counts[w])
    return word if counts[word] > _CLEAR * len(hsv) else ""


def _counts(
    hue: NDArray[np.floating], saturation: NDArray[np.uint8], brightness: NDArray[np.uint8]
) -> dict[str, int]:
    """How many pixels have each colour; those between two colours count for none."""
    vivid = (saturation > 90) & (brightness > 90)
    bright = brightness > 165
    bands = {
        "red": vivid & ((hue < 0.025) | (hue > 0.96)) & (saturation > 130),
        "orange": vivid & (hue > 0.05) & (hue < 0.105) & bright & (saturation > 120),
        "yellow": vivid & (hue > 0.12) & (hue < 0.17) & bright,
        "green": vivid & (hue > 0.22) & (hue < 0.45),
        "blue": vivid & (hue > 0.52) & (hue < 0.68),
        "purple": vivid & (hue > 0.71) & (hue < 0.82),
        "brown": (saturation > 70) & (hue < 0.1) & (brightness > 50) & (brightness < 150),
        "black": (brightness < 60) | ((brightness < 76) & (saturation < 80)),
        "white": (saturation < 25) & (brightness > 225),
        "grey": (saturation < 40) & (brightness > 90) & (brightness < 210),
    }
    return {word: int(found.sum()) for word, found in bands.items()}
