"""The strips of images in README and docs/, one per task, from the built-in model.

    python -m benchmarks.task_strips [-m BUNDLE] [--out docs]

It writes scribble.png (image to image from a drawing), inpainting.png, variations.png (between two
seeds) and weights.png (prompt weights).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import edgediff
from edgediff.sheet import contact_sheet

SIDE = 128


def scribble() -> Image.Image:
    """A child's drawing of a car: (128, 128) RGB, thick strokes on white."""
    image = Image.new("RGB", (4 * SIDE, 4 * SIDE), "white")
    draw = ImageDraw.Draw(image)
    red, blue, black = "#e03a2f", "#9fd3ee", "#333333"
    body = [(46, 300), (60, 232), (138, 222), (182, 146), (330, 140), (384, 226), (462, 240)]
    draw.polygon([*body, (474, 318), (300, 326), (46, 320)], fill=red, outline=black, width=9)
    draw.polygon(
        [(178, 224), (206, 168), (252, 164), (250, 226)], fill=blue, outline=black, width=7
    )
    draw.polygon(
        [(270, 226), (272, 164), (322, 166), (356, 224)], fill=blue, outline=black, width=7
    )
    for x, y in ((146, 322), (372, 326)):
        draw.ellipse((x - 46, y - 44, x + 44, y + 46), fill=black)
        draw.ellipse((x - 18, y - 16, x + 18, y + 18), fill="#cccccc")
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def from_scribble(draw: "Draw") -> Image.Image:
    """The drawing, and images made from it at increasing strengths."""
    drawn = scribble()
    strengths = (0.25, 0.5, 0.75, 1.0)
    images = [draw("a red car, 3d", seed=3, init_image=drawn, strength=s) for s in strengths]
    labels = ["drawn by hand", *(f"strength {s:g}" for s in strengths)]
    return contact_sheet([drawn, *images], labels, columns=len(labels))


def inpainting(draw: "Draw") -> Image.Image:
    """An image, a mask, and three images with the masked part repainted."""
    before = draw("a house", seed=2)
    mask = Image.new("L", before.size, 0)
    ImageDraw.Draw(mask).rectangle((0, 0, SIDE, 62), fill=255)
    prompts = ("a blue house", "a castle", "a church")
    after = [draw(prompt, seed=5, init_image=before, mask=mask, strength=0.8) for prompt in prompts]
    labels = ["a house, seed 2", "mask: white is repainted", *(f"{p}, seed 5" for p in prompts)]
    return contact_sheet([before, mask.convert("RGB"), *after], labels, columns=len(labels))


def variations(draw: "Draw") -> Image.Image:
    """From one seed to another, by interpolated noise."""
    strengths = (0.0, 0.25, 0.5, 0.75, 1.0)
    images = [
        draw("a butterfly", seed=1, variation_seed=4, variation_strength=s) for s in strengths
    ]
    labels = [f"seed 1, variation of 4 at {s:g}" for s in strengths]
    return contact_sheet(images, labels, columns=len(labels))


def weights(draw: "Draw") -> Image.Image:
    """One prompt with four weights of its colour."""
    prompts = ("a [[[blue]]] car", "a blue car", "a (blue:1.3) car", "a (blue:1.6) car")
    images = [draw(prompt, seed=1, prompt_weights=True) for prompt in prompts]
    return contact_sheet(images, prompts, columns=len(prompts))


STRIPS = {
    "scribble": from_scribble,
    "inpainting": inpainting,
    "variations": variations,
    "weights": weights,
}


class Draw:
    """Generates one image; options that are not given take the bundle's defaults."""

    def __init__(self, pipe: edgediff.Pipeline) -> None:
        self._generate: Callable[..., edgediff.Result] = pipe.generate

    def __call__(self, prompt: str, **options: Any) -> Image.Image:
        return self._generate(prompt, **options).images[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", default="emoji")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    with edgediff.load(arguments.model) as pipe:
        for name, strip in STRIPS.items():
            path = arguments.out / f"{name}.png"
            strip(Draw(pipe)).save(path, optimize=True)
            print(path)


if __name__ == "__main__":
    main()
