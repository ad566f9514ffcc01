"""The README's sheet of images: labelled, at fixed seeds.

    python benchmarks/contact_sheet.py -o docs/contact_sheet.png [-m BUNDLE] [PROMPT[@SEED] ...]
    python benchmarks/contact_sheet.py -o docs/steps.png --strip PROMPT[@SEED]

Images use the bundle's defaults. A prompt may end in @SEED; its seed is 1 otherwise. --strip: one
prompt at 1, 2, 4 and 8 steps.
"""

import argparse
from pathlib import Path

from PIL import Image

import edgediff
from edgediff.sheet import contact_sheet

PROMPTS = (
    "a red apple", "a fox", "a red heart", "the sun", "a house", "a fish", "a tree", "a car",
    "a cat", "a star", "a banana", "a strawberry", "a carrot", "a pizza", "an ice cream",
    "a penguin", "a frog", "a butterfly", "a tulip", "a cactus", "a rocket", "a sailboat",
    "a bus", "a guitar", "a balloon", "a key", "a light bulb", "a snowman", "a robot", "a ghost",
    "an owl, flat", "an owl, 3d", "a blue car", "a purple apple", "two cats", "a tiny house",
)  # fmt: skip
COLUMNS = 9
STRIP_STEPS = (1, 2, 4, 8)


def sheet(pipe: edgediff.Pipeline, requests: list[tuple[str, int]], columns: int) -> Image.Image:
    """One RGB image of all `requests`, (prompt, seed), row by row, each with its label."""
    images = [pipe.generate(prompt, seed=seed).images[0] for prompt, seed in requests]
    labels = [f"{prompt}, seed {seed}" for prompt, seed in requests]
    return contact_sheet(images, labels, columns=columns)


def strip(pipe: edgediff.Pipeline, request: tuple[str, int]) -> Image.Image:
    """One (prompt, seed) at 1, 2, 4 and 8 steps, side by side, each with its number of steps."""
    prompt, seed = request
    images = [pipe.generate(prompt, seed=seed, steps=n).images[0] for n in STRIP_STEPS]
    labels = [f"{n} step{'s' if n > 1 else ''}" for n in STRIP_STEPS]
    return contact_sheet(images, labels, columns=len(images))


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
            image = strip(pipe, arguments.strip)
        else:
            image = sheet(pipe, requests, arguments.columns)
        image.save(arguments.output, optimize=True)
    print(arguments.output)


if __name__ == "__main__":
    main()
