"""A small catalogue of real subjects, with drawings made here, so that no package is needed."""

import json
from pathlib import Path

import numpy as np
import pytest
from demo_model.dataset import Concept
from demo_model.scenes.catalogue import Catalogue
from demo_model.scenes.scene import Scenes
from demo_model.scenes.sprites import SIDE, Sprites
from PIL import Image, ImageDraw

SUBJECTS = {
    "🦊": ("fox", "Animals & Nature", (240, 120, 30)),
    "🐱": ("cat", "Animals & Nature", (250, 200, 60)),
    "🐘": ("elephant", "Animals & Nature", (150, 160, 175)),
    "🐝": ("bee", "Animals & Nature", (250, 200, 40)),
    "🛹": ("skateboard", "Travel & Places", (200, 60, 60)),
    "🚗": ("car", "Travel & Places", (220, 40, 40)),
    "🧺": ("basket", "Objects", (190, 140, 80)),
    "☂️": ("umbrella", "Travel & Places", (140, 80, 200)),
    "🍎": ("apple", "Food & Drink", (220, 30, 40)),
    "🎈": ("balloon", "Activities", (230, 40, 60)),
    "🍇": ("grapes", "Food & Drink", (140, 60, 190)),
    "❤️": ("red heart", "Smileys & Emotion", (220, 20, 40)),
}
STYLES = ("flat", "3d")


def _drawing(k: int, colour: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    pen.ellipse([20, 30 + 4 * (k % 5), 140, 150], fill=(*colour, 255))
    pen.ellipse([50, 60, 70, 80], fill=(20, 20, 20, 255))
    return picture


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Scenes of twelve subjects in two styles."""
    folder: Path = tmp_path_factory.mktemp("sprites")
    pixels, listed = [], []
    for style in STYLES:
        for k, (emoji, (name, _, colour)) in enumerate(SUBJECTS.items()):
            picture = _drawing(k, colour)
            pixels.append(np.asarray(picture))
            listed.append((emoji, style, picture.getbbox(), name))
    np.save(folder / "sprites.npy", np.stack(pixels))
    (folder / "sprites.json").write_text(json.dumps(listed))
    concepts = [
        Concept(emoji=emoji, names=(name,), synonyms=(), weight=1.0, pictures=())
        for emoji, (name, _, _) in SUBJECTS.items()
    ]
    groups = {emoji: group for emoji, (_, group, _) in SUBJECTS.items()}
    sprites = Sprites(folder)
    return Scenes(Catalogue(concepts, groups, sprites), sprites)
