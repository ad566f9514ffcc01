"""Forms of textual inversions, and files that are refused; that ids and images are diffusers' is
tests/parity/test_embedding_parity.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgediff_export.source.open import open_source
from edgediff_export.source.textual_inversion import Embedding, learn, parse_embedding
from edgediff_export.source.tokenizer import write_tokenizer
from safetensors.torch import save_file

from edgediff.errors import ExportError, InputError

SD1 = {"text_encoder": 4}
SDXL = {"text_encoder": 4, "text_encoder_2": 6}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def save(tensors: dict[str, Any]) -> Path:
        path = tmp_path / "some-name.safetensors"
        save_file(tensors, path)
        return path

    return save


@pytest.mark.parametrize(
    ("tensors", "token", "expected"),
    [
        ({"<x>": torch.ones(4)}, None, ("<x>",)),
        ({"<x>": torch.ones(1, 4)}, None, ("<x>",)),
        ({"<x>": torch.ones(1, 4)}, "y", ("y",)),
        ({"<x>": torch.ones(3, 4)}, None, ("<x>", "<x>_1", "<x>_2")),
        ({"emb_params": torch.ones(2, 4)}, None, ("some-name", "some-name_1")),
        ({"emb_params": torch.ones(2, 4)}, "z z", ("z z", "z z_1")),
    ],
)
def test_forms(
    tensors: dict[str, Any],
    token: str | None,
    expected: tuple[str, ...],
    write: Callable[[dict[str, Any]], Path],
) -> None:
    learned = learn(Embedding(path=write(tensors), token=token), SD1)
    assert learned.tokens == expected
    assert learned.vectors["text_encoder"].shape == (len(expected), 4)


def test_vectors_for_two_text_encoders(write: Callable[[dict[str, Any]], Path]) -> None:
    path = write({"clip_l": torch.ones(2, 4), "clip_g": torch.ones(2, 6)})
    learned = learn(Embedding(path=path), SDXL)
    assert learned.tokens == ("some-name", "some-name_1")
    assert {c: v.shape for c, v in learned.vectors.items()} == {
        "text_encoder": (2, 4),
        "text_encoder_2": (2, 6),
    }


def test_a_flag() -> None:
    path = Path("a.safetensors")
    assert parse_embedding("a.safetensors") == Embedding(path=path)
    assert parse_embedding("a.safetensors:<b:c>") == Embedding(path=path, token="<b:c>")


@pytest.mark.parametrize("token", ["", " ", " a", "a\n"])
def test_no_token(token: str) -> None:
    with pytest.raises(InputError, match=r"TOKEN is .*: give a word"):
        parse_embedding(f"a.safetensors:{token}")


@pytest.mark.parametrize(
    ("tensors", "widths", "message"),
    [
        ({"<x>": torch.ones(2, 8)}, SD1, "vectors have 8 values, this text encoder's 4"),
        ({"<x>": torch.ones(2, 2, 4)}, SD1, r"shape \(2, 2, 4\), expected vectors \(n, 4\)"),
        ({"<x>": torch.ones(0, 4)}, SD1, r"shape \(0, 4\)"),
        ({"<x>": torch.full((4,), torch.nan)}, SD1, "not finite"),
        ({"<x>": torch.ones(4), "<y>": torch.ones(4)}, SD1, "2 tensors, such as <x> and <y>"),
        ({}, SD1, "has vectors for nothing, this pipeline has text_encoder"),
        (
            {"clip_l": torch.ones(4), "clip_g": torch.ones(6)},
            SD1,
            "for text_encoder and text_encoder_2, this pipeline has text_encoder: give",
        ),
        ({"<x>": torch.ones(4)}, SDXL, "for text_encoder, this pipeline has text_encoder and"),
        ({"clip_g": torch.ones(6)}, SDXL, "for text_encoder_2, this pipeline has"),
        (
            {"clip_l": torch.ones(2, 4), "clip_g": torch.ones(1, 6)},
            SDXL,
            "1 and 2 vectors",
        ),
    ],
)
def test_what_does_not_fit(
    tensors: dict[str, Any],
    widths: dict[str, int],
    message: str,
    write: Callable[[dict[str, Any]], Path],
) -> None:
    with pytest.raises(ExportError, match=message):
        learn(Embedding(path=write(tensors)), widths)


@pytest.mark.parametrize("name", ["some-name.pt", "some-name.bin"])
def test_pickles(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(ExportError, match="a pickle"):
        learn(Embedding(path=tmp_path / name), SD1)


@pytest.mark.parametrize("token", ["<|endoftext|>", "the</w>", "a", "a_1"])
def test_a_token_that_is_there_already(
    token: str,
    small_pipeline: Callable[[str], Path],
    write: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    path = write({"x": torch.ones(2, 32)})
    first = Embedding(path=path, token="a_1" if token == "a_1" else "unheard of")
    source = open_source(str(small_pipeline("sd1")), work=tmp_path)
    source = source.merged((), [first, Embedding(path=path, token=token)])
    with pytest.raises(ExportError, match=r"is in the vocabulary already: give another"):
        write_tokenizer(
            source.folder / "tokenizer", tmp_path, [e.tokens for e in source.embeddings]
        )
