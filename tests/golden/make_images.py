"""Draw the golden images of the built-in model: `python -m tests.golden.make_images`.

They are redrawn when the model is, and only then.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import edgediff

FOLDER = Path(__file__).parent / "emoji"
REQUESTS = (
    ("a red apple", 1), ("a fox", 2), ("a red heart", 3), ("the sun", 4), ("a house", 5),
    ("a fish, flat", 6), ("a tree", 7), ("a blue car", 8), ("a cat, 3d", 9), ("a star", 10),
)  # fmt: skip


def path(k: int) -> Path:
    """The file of the k-th request."""
    return FOLDER / f"{k}.png"


def main() -> None:
    """Draw and write all of them."""
    FOLDER.mkdir(exist_ok=True)
    with edgediff.load(provider="cpu") as pipe:
        for k, (prompt, seed) in enumerate(REQUESTS):
            image = pipe.generate(prompt, seed=seed).images[0]
            # Without the metadata: it names the version, which changes when images do not.
            Image.fromarray(np.asarray(image)).save(path(k), optimize=True)


if __name__ == "__main__":
    main()
