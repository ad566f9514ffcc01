"""Framing and the report of what was cut; ids are compared with CLIPTokenizer in parity/."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgediff.bundle import Bundle, TokenizerSpec
from edgediff.errors import BundleError, InputError
from edgediff.prompt import Tokenizer


@pytest.fixture(scope="module")
def spec(tiny_bundle: Path) -> TokenizerSpec:
    return Bundle.open(tiny_bundle).manifest.tokenizers["text_encoder"]


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Path, spec: TokenizerSpec) -> Tokenizer:
    return Tokenizer(tiny_bundle / spec.file, spec)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_nothing_is_begin_end_and_padding(
    tokenizer: Tokenizer, spec: TokenizerSpec, text: str
) -> None:
    encoded = tokenizer.encode(text)
    padding = [spec.pad_token_id] * (spec.max_length - 2)
    assert encoded.ids.tolist() == [[spec.bos_token_id, spec.eos_token_id, *padding]]
    assert (encoded.tokens, encoded.truncated) == (0, "")


def test_ids_are_one_row_of_int64(tokenizer: Tokenizer, spec: TokenizerSpec) -> None:
    ids = tokenizer.encode("a fox").ids
    assert ids.dtype == "int64"
    assert ids.shape == (1, spec.max_length)


def test_padding_is_what_the_bundle_says(tiny_bundle: Path, spec: TokenizerSpec) -> None:
    other = Tokenizer(tiny_bundle / spec.file, replace(spec, pad_token_id=0))
    assert other.encode("a").ids[0, -1] == 0


def test_exactly_the_limit_is_not_cut(tokenizer: Tokenizer) -> None:
    limit = tokenizer.encode("").limit
    words = " ".join(["a"] * limit)
    assert tokenizer.encode(words).tokens == limit
    assert tokenizer.encode(words).truncated == ""
    longer = tokenizer.encode(words + " b")
    assert longer.truncated == "b"
    assert longer.tokens == limit + 1
    assert (longer.ids == tokenizer.encode(words).ids).all()


def test_what_was_cut_is_given_as_it_was_written(tokenizer: Tokenizer) -> None:
    limit = tokenizer.encode("").limit
    text = "a " * limit + " Über 日本  ☀️, the End"
    assert tokenizer.encode(text).truncated == "Über 日本  ☀️, the End"


@pytest.mark.parametrize("value", [None, 7, b"fox", ["a"]])
def test_what_is_not_text(tokenizer: Tokenizer, value: object) -> None:
    with pytest.raises(InputError, match="expected text"):
        tokenizer.encode(value)  # type: ignore[arg-type]


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, spec: TokenizerSpec) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer(tmp_path / "tokenizer.json", spec)
