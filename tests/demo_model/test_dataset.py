"""The sources are what was checked, and every kept emoji is called what it shows."""

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from demo_model import dataset
from demo_model.dataset import Archive, DatasetError, Package


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
