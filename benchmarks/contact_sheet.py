"""One labelled sheet of pictures, at fixed seeds, as the README shows it.

    python benchmarks/contact_sheet.py -o docs/contact_sheet.png [-m BUNDLE] [PROMPT[@SEED] ...]
    python benchmarks/contact_sheet.py -o docs/steps.png --strip PROMPT[@SEED]

Pictures are at the bundle's own size and defaults. A prompt may end in @SEED; without one its seed
is 1. The seeds are printed below the pictures. --strip: one prompt at 1, 2, 4 and 8 steps.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import edgediff

PROMPTS = (
    "a red apple", "a fox", "a red heart", "the sun", "a house", "a fish", "a tree", "a car",
    "a cat", "a star", "a banana", "a strawberry", "a carrot", "a pizza", "an ice cream",
    "a penguin", "a frog", "a butterfly", "a tulip", "a cactus", "a rocket", "a sailboat",
    "a bus", "a guitar", "a balloon", "a key", "a light bulb", "a snowman", "a robot", "a ghost",
    "an owl, flat", "an owl, 3d", "a blue car", "a purple apple", "two cats", "a tiny house",
)  # fmt: skip
COLUMNS = 9
STRIP_STEPS = (1, 2, 4, 8)
LABEL = 22
MARGIN = 8


def sheet(pipe: edgediff.Pipeline, requests: list[tuple[str, int]], columns: int) -> Image.Image:
    """One RGB picture of all `requests`, (prompt, seed), row by row, each with its label."""
    width, height = pipe.defaults.width, pipe.defaults.height
    rows = -(-len(requests) // columns)
    cell = (width + MARGIN, height + LABEL + MARGIN)
    canvas = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=11)
    for k, (prompt, seed) in enumerate(requests):
        left = MARGIN + (k % columns) * cell[0]
        top = MARGIN + (k // columns) * cell[1]
        canvas.paste(pipe.generate(prompt, seed=seed).images[0], (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline="#dddddd")
        label = f"{prompt}, seed {seed}"
        draw.text((left + width / 2, top + height + 4), label, "#444444", font, anchor="ma")
    return canvas


def strip(pipe: edgediff.Pipeline, request: tuple[str, int]) -> Image.Image:
    """One (prompt, seed) at 1, 2, 4 and 8 steps, side by side, each with its number of steps."""
    prompt, seed = request
    pictures = [pipe.generate(prompt, seed=seed, steps=n).images[0] for n in STRIP_STEPS]
    width, height = pictures[0].size
    size = (len(pictures) * (width + MARGIN) + MARGIN, height + LABEL + MARGIN)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=11)
    for k, (n, picture) in enumerate(zip(STRIP_STEPS, pictures, strict=True)):
        left = MARGIN + k * (width + MARGIN)
        canvas.paste(picture, (left, MARGIN))
        label = f"{n} step{'s' if n > 1 else ''}"
        draw.text((left + width / 2, height + MARGIN + 4), label, "#444444", font, anchor="ma")
    return canvas


def parse(request: str) -> tuple[str, int]:
    """PROMPT or PROMPT@SEED → (prompt, seed)."""
    prompt, at, seed = request.rpartition("@")
    return (prompt, int(seed)) if at else (request, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requests", nargs="*", metavar="PROMPT[@SEED]", default=list(PROMPTS))
    parser.add_argument("-m", "--model", default="emoji")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--strip", metavar="PROMPT[@SEED]", type=parse)
    parser.add_argument("--columns", type=int, default=COLUMNS)
    arguments = parser.parse_args()
    requests = [parse(request) for request in arguments.requests]
    with edgediff.load(arguments.model) as pipe:
        if arguments.strip:
            picture = strip(pipe, arguments.strip)
        else:
            picture = sheet(pipe, requests, arguments.columns)
        picture.save(arguments.output, optimize=True)
    print(arguments.output)


if __name__ == "__main__":
    main()
