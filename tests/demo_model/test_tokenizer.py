"""The trained tokenizer is a CLIP tokenizer: both of transformers' classes read it alike."""

from pathlib import Path

import pytest
from demo_model import tokenizer

TEXTS = ["a red apple", "the red fox", "an apple, flat", "a fox, flat", "red", "apple", "fox"] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(TEXTS, path)
    return path


def test_known_words_are_one_token_each_and_come_back(folder: Path) -> None:
    tokens = tokenizer.load(folder)
    assert tokens.tokenize("A red  Apple") == ["a</w>", "red</w>", "apple</w>"]
    ids = tokens("A red apple").input_ids
    assert ids[0] == tokens.bos_token_id
    assert ids[-1] == tokens.eos_token_id == tokens.pad_token_id
    assert tokens.decode(ids, skip_special_tokens=True).strip() == "a red apple"


@pytest.mark.parametrize(
    "text", ["", "a zebra", "Zürich 東 🦊", "it's 3d!", "<>&\t\n", "fox " * 40]
)
def test_anything_can_be_said_and_both_readers_agree(folder: Path, text: str) -> None:
    # One ideograph only: between two, transformers' own classes disagree, whatever the files say.
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    slow, fast = CLIPTokenizer.from_pretrained(folder), CLIPTokenizerFast.from_pretrained(folder)
    settings = {"padding": "max_length", "truncation": True}
    ids = slow(text, **settings).input_ids
    assert ids == fast(text, **settings).input_ids
    assert len(ids) == tokenizer.MAX_LENGTH
    assert max(ids) == len(slow) - 1
