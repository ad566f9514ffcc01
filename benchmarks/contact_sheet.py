"""One labelled sheet of pictures, at fixed seeds, as the README shows it.

    python benchmarks/contact_sheet.py -o docs/contact_sheet.png [-m BUNDLE] [PROMPT[@SEED] ...]

Pictures are at the bundle's own size and defaults. A prompt may end in @SEED; without one its seed
is 1. The seeds are printed below the pictures.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import edgediff

PROMPTS = (
    "a red apple",
    "a fox",
    "a red heart",
    "the sun",
    "a house",
    "a fish",
    "a tree",
    "a car",
    "a cat",
    "a star",
)
COLUMNS = 5
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


def parse(request: str) -> tuple[str, int]:
    """PROMPT or PROMPT@SEED → (prompt, seed)."""
    prompt, at, seed = request.rpartition("@")
    return (prompt, int(seed)) if at else (request, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requests", nargs="*", metavar="PROMPT[@SEED]", default=list(PROMPTS))
    parser.add_argument("-m", "--model", default="emoji")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=COLUMNS)
    arguments = parser.parse_args()
    requests = [parse(request) for request in arguments.requests]
    with edgediff.load(arguments.model) as pipe:
        sheet(pipe, requests, arguments.columns).save(arguments.output, optimize=True)
    print(arguments.output)


if __name__ == "__main__":
    main()
