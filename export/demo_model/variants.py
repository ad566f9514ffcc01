"""Drawings made from the published ones, so that colours and numbers are words of their own."""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo_model import concepts as table

STYLES_EACH = 2  # of a concept's styles, how many are varied
LEAST_SATURATION = 70  # of 255: what is greyer keeps its colour
LEAST_SHARE = 0.35  # of the drawing that has a colour to change
LEAST_BRIGHTNESS = 0.75  # mean of what is recoloured; brown would become dark yellow otherwise
# (side, then left and top of each copy), in pixels of 128
_PLACES = {
    "two": (64, ((0, 32), (64, 32))),
    "three": (60, ((34, 4), (2, 64), (66, 64))),
    "tiny": (48, ((40, 40),)),
}


def digest(text: str) -> int:
    """A number that is the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_held_out(emoji: str, colour: str) -> bool:
    """Whether this emoji is never shown in this colour: a tenth of all, by hash."""
    return digest(f"{emoji.replace(chr(0xFE0F), '')} {colour}") % 10 == 0


def plural(noun: str) -> str:
    """The plural by rule: "cat" -> "cats", "fox" -> "foxes", "cherry" -> "cherries"."""
    if noun.endswith("s") and not noun.endswith("ss") and noun != "bus":
        return noun
    if noun.endswith(("ss", "us", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def name(noun: str, word: str) -> str:
    """What a variant is called: "blue cat", "two cats", "tiny cat"."""
    return f"{word} {plural(noun)}" if word in ("two", "three") else f"{word} {noun}"


def draw(image: NDArray[np.uint8], word: str) -> NDArray[np.uint8] | None:
    """(128, 128, 3) uint8 on white -> the same, varied; None where there is no colour to change."""
    if word in table.COLOURS:
        return _recolour(image, table.COLOURS[word])
    side, places = _PLACES[word]
    small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (image.shape[1], image.shape[0]), "white")
    for place in places:
        canvas.paste(small, place)
    return np.asarray(canvas)


def _recolour(image: NDArray[np.uint8], hue: float) -> NDArray[np.uint8] | None:
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    coloured = hsv[..., 1] > LEAST_SATURATION
    drawn = image.min(axis=-1) < 235
    if coloured.sum() < LEAST_SHARE * drawn.sum():
        return None
    hsv[..., 0][coloured] = round(hue * 255)
    brightness = hsv[..., 2][coloured] / 255
    lift = max(1.0, LEAST_BRIGHTNESS / float(brightness.mean()))
    hsv[..., 2][coloured] = np.clip(brightness * lift * 255, 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
