"""The tokenizer's file; that its ids are CLIP's is tests/parity/test_tokens_parity.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from edgediff_export.source.tokenizer import write_tokenizer
from transformers import CLIPTokenizerFast

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


def test_one_that_newer_versions_of_transformers_saved(folder: Path, tmp_path: Path) -> None:
    """It has tokenizer.json, without vocab.json and merges.txt."""
    (tmp_path / "out").mkdir()
    write_tokenizer(folder, tmp_path / "out", file="expected.json")
    fast = CLIPTokenizerFast.from_pretrained(folder)
    for path in [p for p in folder.iterdir() if p.is_file()]:
        path.unlink()
    fast.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    assert (folder / "tokenizer.json").is_file()
    spec = write_tokenizer(folder, tmp_path / "out", file="found.json")
    assert spec.max_length == 77
    expected = (tmp_path / "out" / "expected.json").read_bytes()
    assert (tmp_path / "out" / "found.json").read_bytes() == expected


def test_another_kind_of_tokenizer(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(ExportError, match=r"not CLIP's .*tokenizer\.json is of another kind"):
        write_tokenizer(folder, folder)


def test_one_without_a_length(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ExportError, match=r"says no length \(model_max_length\): write 77 there"):
        write_tokenizer(folder, folder)
