"""The sources are what was checked, and every kept emoji is called what it shows."""

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_model import dataset, variants
from demo_model.captions import STYLES
from demo_model.dataset import Archive, Concept, DatasetError, Package

ROOT = Path(__file__).parents[2]


def _tarball(folder: Path, licence: str = "MIT") -> Package:
    """A package of one file, pinned to the hash it has."""
    package = Package(name="@made/up", version="1.0.0", sha512="", licence="MIT")
    with tarfile.open(folder / package.tarball, "w:gz") as tar:
        data = json.dumps({"license": licence}).encode()
        member = tarfile.TarInfo("package/package.json")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    digest = hashlib.sha512((folder / package.tarball).read_bytes()).digest()
    return replace(package, sha512=base64.b64encode(digest).decode())


def test_pinned_tarball_is_accepted_without_fetching(tmp_path: Path) -> None:
    package = _tarball(tmp_path)
    dataset.fetch(tmp_path, [package])
    assert Archive(tmp_path, package).json("package.json") == {"license": "MIT"}


def test_changed_tarball_is_refused(tmp_path: Path) -> None:
    package = _tarball(tmp_path)
    with (tmp_path / package.tarball).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DatasetError, match="pinned"):
        dataset.fetch(tmp_path, [package])
    with pytest.raises(DatasetError, match="pinned"):
        Archive(tmp_path, package)


def test_another_licence_is_refused(tmp_path: Path) -> None:
    package = _tarball(tmp_path, licence="CC-BY-SA-4.0")
    with pytest.raises(DatasetError, match="CC-BY-SA"):
        Archive(tmp_path, package)


def test_every_source_is_pinned_to_a_whole_sha512() -> None:
    for package in dataset.PACKAGES:
        assert len(base64.b64decode(package.sha512, validate=True)) == 64, package.name
        assert package.licence in {"MIT", "Apache-2.0", "CC-BY-4.0"}


BY_EMOJI = {
    "🍎": {"name": "red apple", "group": "Food & Drink"},
    "🦝": {"name": "raccoon", "group": "Animals & Nature"},
    "🐲": {"name": "dragon face", "group": "Animals & Nature"},
    "😐": {"name": "neutral face", "group": "Smileys & Emotion"},
    "🕐": {"name": "one o’clock", "group": "Travel & Places"},
    "🅰️": {"name": "A button (blood type)", "group": "Symbols"},
    "🧑‍⚕️": {"name": "health worker", "group": "People & Body"},
    "🇨🇭": {"name": "flag Switzerland", "group": "Flags"},
}
KEYWORDS = {
    "🍎": ["red_apple", "fruit", "mac", "orchard"],
    "🦝": ["raccoon", "bandit", "fruit", ":o"],
}


def test_names_synonyms_and_weights() -> None:
    concepts = {c.emoji: c for c in dataset.name_concepts(BY_EMOJI, KEYWORDS)}
    assert set(concepts) == {"🍎", "🦝", "🐲", "😐"}
    assert concepts["🍎"].names == ("apple", "red apple")
    # "fruit" is shared and so says nothing; a trade mark is no synonym.
    assert concepts["🍎"].synonyms == ("orchard",)
    assert concepts["🦝"].synonyms == ("bandit",)
    assert concepts["🐲"].names == ("dragon", "dragon face")
    assert concepts["😐"].names == ("neutral face",)
    weights = [concepts[emoji].weight for emoji in "🍎🦝😐"]
    assert weights == sorted(weights, reverse=True)
    assert len(set(weights)) == 3


def _concept(emoji: str, styles: tuple[str, ...], **fields: Any) -> Concept:
    pictures = tuple(enumerate(styles))
    return Concept(
        **{"emoji": emoji, "names": ("x",), "synonyms": (), "weight": 1.0, "pictures": pictures}
        | fields
    )


def test_a_twentieth_of_the_pairs_and_a_quarter_of_the_wordings_are_held_out() -> None:
    emoji = [chr(0x1F300 + k) for k in range(500)]
    pairs = [dataset.is_held_out(e, s) for e in emoji for s in STYLES]
    assert sum(pairs) / len(pairs) == pytest.approx(0.05, abs=0.015)
    wordings = [dataset.is_unseen_wording(e, f"word{k}") for e in emoji for k in range(4)]
    assert sum(wordings) / len(wordings) == pytest.approx(0.25, abs=0.03)
    # With or without the selector of its coloured form, an emoji is the same.
    assert all(dataset.is_held_out("❤", s) == dataset.is_held_out("❤️", s) for s in STYLES)


def test_training_is_shown_nothing_that_is_held_out() -> None:
    synonyms = tuple(f"word{k}" for k in range(12))
    concepts = [
        _concept(chr(0x1F300 + k), STYLES, synonyms=synonyms, variant=variant)
        for k in range(60)
        for variant in ("", "blue")
    ]
    kept = dataset.for_training(concepts)
    assert len(kept) == len(concepts)
    for concept in kept:
        assert not any(dataset.is_held_out(concept.emoji, s) for _, s in concept.pictures)
        assert not any(dataset.is_unseen_wording(concept.emoji, s) for s in concept.synonyms)
    assert sum(len(c.pictures) for c in kept) < len(concepts) * len(STYLES)
    assert sum(len(c.synonyms) for c in kept) < len(concepts) * len(synonyms)


def test_the_list_of_the_benchmark_is_what_the_rule_says() -> None:
    listed = json.loads((ROOT / "benchmarks" / "emoji_concepts.json").read_text())
    assert listed["styles"] == list(STYLES)
    assert sum(c["common"] for c in listed["concepts"]) == 300
    for concept in listed["concepts"]:
        held = [dataset.is_held_out(concept["emoji"], s) for s in concept["held_out_styles"]]
        assert all(held)
        assert not any(dataset.is_held_out(concept["emoji"], s) for s in concept["styles"])


def test_variants_change_colour_and_number() -> None:
    image = np.full((128, 128, 3), 255, np.uint8)
    image[32:96, 32:96] = (200, 30, 30)
    blue = variants.draw(image, "blue")
    assert blue is not None
    r, g, b = blue[64, 64].astype(int)
    assert b > r + 60
    assert b > g + 30
    assert (blue[0, 0] == 255).all()
    grey = np.full((128, 128, 3), 255, np.uint8)
    grey[32:96, 32:96] = 90
    assert variants.draw(grey, "blue") is None
    tiny, two = (variants.draw(image, word) for word in ("tiny", "two"))
    assert tiny is not None
    assert two is not None
    drawn = [(x.min(-1) < 128).sum() for x in (image, tiny, two)]
    assert drawn[1] < 0.2 * drawn[0]
    assert (two[:, :64] == two[:, 64:]).mean() > 0.95


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("cat", "cats"), ("fox", "foxes"), ("cherry", "cherries"), ("bus", "buses"),
        ("glasses", "glasses"), ("donkey", "donkeys"), ("dress", "dresses"),
    ],
)  # fmt: skip
def test_plurals(noun: str, expected: str) -> None:
    assert variants.plural(noun) == expected
    assert variants.name(noun, "two") == f"two {expected}"
    assert variants.name(noun, "blue") == f"blue {noun}"
