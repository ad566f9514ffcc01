"""Clip art: pinned, public domain only, named by its title, drawn like a sticker."""

from pathlib import Path

import numpy as np
import pytest
from demo_model.dataset import DatasetError
from demo_model.scenes import clipart, sprites
from demo_model.scenes.catalogue import Catalogue
from demo_model.scenes.scene import Scenes
from PIL import Image, ImageDraw

PUBLIC = '<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/>'


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("An Apple", "apple"),
        ("apple 01", "apple"),
        ("Cartoon Cat", "cat"),
        ("The Sun Icon", "sun"),
        ("", ""),
    ],
)
def test_a_title_becomes_a_plain_name(title: str, name: str) -> None:
    assert clipart.title_of(f"<dc:title>{title}</dc:title>") == name


def test_only_the_public_domain_is_taken() -> None:
    assert clipart.is_public_domain(PUBLIC)
    assert not clipart.is_public_domain("<svg/>")
    gpl = '<cc:license rdf:resource="http://creativecommons.org/licenses/GPL/2.0/"/>'
    assert not clipart.is_public_domain(gpl)
    assert not clipart.is_public_domain(PUBLIC + gpl)


def test_another_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / clipart.FILE).write_bytes(b"not the package")
    with pytest.raises(DatasetError, match="pinned"):
        clipart.fetch(tmp_path)


def test_sketches_are_not_stickers() -> None:
    ball = Image.new("RGBA", (sprites.SIDE,) * 2)
    ImageDraw.Draw(ball).ellipse([20, 20, 140, 140], fill=(220, 40, 40, 255))
    sketch = Image.new("RGBA", (sprites.SIDE,) * 2)
    ImageDraw.Draw(sketch).ellipse([20, 20, 140, 140], outline=(0, 0, 0, 255), width=3)
    assert sprites._is_painted(ball)
    assert not sprites._is_painted(sketch)
    assert not sprites._is_painted(ball.resize((20, 20)))


def test_packed_drawings_come_back_cut_to_their_box(scenes: Scenes) -> None:
    sprite = scenes.sprites.sprites[0]
    picture = scenes.sprites.image(sprite)
    left, top, right, bottom = sprite.box
    assert picture.size == (right - left, bottom - top)
    alpha = np.asarray(picture.getchannel("A"))
    assert alpha[0].any()
    assert alpha[:, -1].any()


def test_kinds_and_lists_follow_the_tables(scenes: Scenes) -> None:
    catalogue: Catalogue = scenes.catalogue
    kinds = {s.name: s.kind for s in catalogue.subjects}
    assert kinds["fox"] == "animal"
    assert kinds["skateboard"] == "vehicle"
    assert kinds["red heart"] == "heart"
    assert {s.name for s in catalogue.living} == {"fox", "cat", "elephant", "bee"}
    assert "grapes" not in {s.name for s in catalogue.countable}
    assert [
        catalogue.subjects[catalogue.index(s)] for s in catalogue.subjects
    ] == catalogue.subjects


def test_packed_drawings_are_restored_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, sprites.SIDE, sprites.SIDE, 4), np.uint8)
    listed = [("🦊", "flat", (0, 0, 9, 9), "fox"), ("🐱", "3d", (1, 2, 3, 4), "cat")]
    (tmp_path / "here").mkdir()
    sprites._write(tmp_path / "here", pixels[:2], listed)
    there = tmp_path / "there"
    there.mkdir()
    sprites.pack(tmp_path / "here").rename(there / sprites.PACKED)
    sprites.build(tmp_path / "no packages", there)
    assert np.array_equal(np.load(there / "sprites.npy"), pixels[:2])
    assert [(s.emoji, s.style, s.box) for s in sprites.Sprites(there).sprites] == [
        entry[:3] for entry in listed
    ]
