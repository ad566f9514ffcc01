"""The tokenizer's file; that its ids are CLIP's is tests/parity/test_tokens_parity.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from edgediff_export.source.tokenizer import write_tokenizer

from edgediff.errors import ExportError


@pytest.fixture
def folder(small_pipeline: Callable[[str], Path], tmp_path: Path) -> Path:
    for path in (small_pipeline("sd1") / "tokenizer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_the_same_vocabulary_gives_the_same_bytes(folder: Path) -> None:
    write_tokenizer(folder, folder)
    first = (folder / "tokenizer.json").read_bytes()
    write_tokenizer(folder, folder)
    assert (folder / "tokenizer.json").read_bytes() == first
    assert json.loads(first)["truncation"] is json.loads(first)["padding"] is None


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ExportError, match=r"not CLIP's vocab\.json and merges\.txt"):
        write_tokenizer(folder, folder)


def test_merges_of_another_vocabulary(folder: Path) -> None:
    (folder / "merges.txt").write_text("#version: 0.2\nqq qq\n")
    with pytest.raises(ExportError, match=r"vocab\.json and merges\.txt do not match"):
        write_tokenizer(folder, folder)


def test_a_folder_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not CLIP's"):
        write_tokenizer(tmp_path / "none", tmp_path)
