"""The frame of a prompt, chunks, and the report of cut text. Tests in parity/ compare the ids with
CLIPTokenizer's."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import TokenizerSpec
from edgediff.errors import BundleError, InputError
from edgediff.text.tokenizer import MAX_CHUNKS, Tokenizer


@pytest.fixture(scope="module")
def spec(tiny_bundle: Path) -> TokenizerSpec:
    return Bundle.open(tiny_bundle).manifest.tokenizers["text_encoder"]


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Path, spec: TokenizerSpec) -> Tokenizer:
    return Tokenizer(tiny_bundle / spec.file, spec)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_prompt_is_begin_end_and_padding(
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


def test_the_bundle_gives_the_padding(tiny_bundle: Path, spec: TokenizerSpec) -> None:
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


def test_the_cut_text_is_reported_as_written(tokenizer: Tokenizer) -> None:
    limit = tokenizer.encode("").limit
    text = "a " * limit + " Über 日本  ☀️, the End"
    assert tokenizer.encode(text).truncated == "Über 日本  ☀️, the End"


def test_a_token_of_several_vectors(tiny_bundle: Path, spec: TokenizerSpec) -> None:
    """Each vector takes a place; a token whose last vectors do not fit is reported as cut."""
    plain = Tokenizer(tiny_bundle / spec.file, spec)
    (token,) = plain.encode("a").ids[0, 1:2].tolist()
    tokenizer = Tokenizer(
        tiny_bundle / spec.file, replace(spec, embeddings={"a": (token, 7, 8), "other": (9,)})
    )
    once = tokenizer.encode("b a")
    assert once.tokens == 4
    assert once.ids[0, 2:5].tolist() == [token, 7, 8]
    words = " ".join(["b"] * (once.limit - 3))
    assert tokenizer.encode(words + " a").truncated == ""
    longer = tokenizer.encode(words + " b a, and more")
    rest = plain.encode(", and more").tokens
    assert longer.tokens == once.limit - 2 + 3 + rest
    assert longer.truncated == "a, and more"
    assert longer.ids[0, -3:-1].tolist() == [token, 7]


@pytest.mark.parametrize("value", [None, 7, b"fox", ["a"]])
def test_prompts_that_are_not_text(tokenizer: Tokenizer, value: object) -> None:
    with pytest.raises(InputError, match="expected text"):
        tokenizer.encode(value)  # type: ignore[arg-type]


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, spec: TokenizerSpec) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer(tmp_path / "tokenizer.json", spec)


def test_a_prompt_of_one_chunk_is_encoded_as_without_chunks(tokenizer: Tokenizer) -> None:
    for text in ("", "a fox, a (dog)", " ".join(["a"] * tokenizer.encode("").limit)):
        plain, chunked = tokenizer.encode(text), tokenizer.encode(text, chunked=True)
        assert (chunked.ids == plain.ids).all()
        assert (chunked.weights == 1).all()
        assert chunked.tokens == plain.tokens


def words(tokenizer: Tokenizer, text: str, **options: bool) -> list[list[int]]:
    """The ids of each chunk, without begin, end and padding."""
    spec = tokenizer._spec
    encoded = tokenizer.encode(text, chunked=True, **options)
    assert encoded.ids.shape == encoded.weights.shape == (len(encoded.ids), spec.max_length)
    assert encoded.truncated == ""
    for row in encoded.ids.tolist():
        end = row.index(spec.eos_token_id)
        assert row[0] == spec.bos_token_id
        assert set(row[end + 1 :]) <= {spec.pad_token_id}
    return [row[1 : row.index(spec.eos_token_id)] for row in encoded.ids.tolist()]


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    encoded = tokenizer.encode(text)
    return encoded.ids[0, 1 : 1 + encoded.tokens].tolist()


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("a " * 75, ["a " * 75]),
        ("a " * 76, ["a " * 75, "a"]),
        ("a " * 150 + "b", ["a " * 75, "a " * 75, "b"]),
        # The last comma is the 55th, the 56th and the last of 75 tokens; then the one after them.
        ("a " * 54 + ", " + "b " * 30, ["a " * 54 + ", " + "b " * 20, "b " * 10]),
        ("a " * 55 + ", " + "b " * 30, ["a " * 55 + ",", "b " * 30]),
        ("a " * 74 + ", " + "b " * 30, ["a " * 74 + ",", "b " * 30]),
        ("a " * 75 + ", " + "b " * 30, ["a " * 75, ", " + "b " * 30]),
        ("a " * 60 + ", " + "a " * 14 + ", b", ["a " * 60 + ", " + "a " * 14, ", b"]),
        ("a , a " + "b " * 80, ["a , a " + "b " * 72, "b " * 8]),
        ("a BREAK b", ["a", "b"]),
        ("a\nBREAK\nb BREAK", ["a", "b"]),
        ("BREAK a BREAK BREAK b", ["", "a", "", "b"]),
        ("BREAK", [""]),
        ("a break b, BREAKFAST", ["a break b, BREAKFAST"]),
        ("a BREAK " + "b " * 76, ["a", "b " * 75, "b"]),
    ],
)
def test_chunks(tokenizer: Tokenizer, text: str, chunks: list[str]) -> None:
    assert words(tokenizer, text) == [ids(tokenizer, chunk) for chunk in chunks]
    assert tokenizer.encode(text, chunked=True).tokens == sum(
        len(ids(tokenizer, chunk)) for chunk in chunks
    )


def test_break_is_text_without_chunks(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("a BREAK b")
    assert (plain.ids == tokenizer.encode("a break b").ids).all()


def test_the_pieces_of_one_character_stay_together(tokenizer: Tokenizer) -> None:
    pieces = ids(tokenizer, "😀")
    assert len(pieces) == 4
    assert words(tokenizer, "a " * 73 + "😀 b") == [
        ids(tokenizer, "a " * 73),
        ids(tokenizer, "😀 b"),
    ]
    # Pieces longer than a chunk cannot.
    assert words(tokenizer, "a\u0301\u0302 " * 100) != []


def test_the_vectors_of_a_textual_inversion_stay_together(
    tiny_bundle: Path, spec: TokenizerSpec, tokenizer: Tokenizer
) -> None:
    letter, b = ids(tokenizer, "x b")
    vectors = (letter, 1, 2, 3)
    taught = Tokenizer(tiny_bundle / spec.file, replace(spec, embeddings={"x": vectors}))
    a = ids(tokenizer, "a")
    assert words(taught, "a " * 71 + "x b") == [[*a * 71, *vectors], [b]]
    for before in (72, 73, 74):
        assert words(taught, "a " * before + "x b") == [a * before, [*vectors, b]]
    assert words(taught, "a " * 69 + ", a a (x:2)", weighted=True)[1] == [*a * 2, *vectors]
    weights = taught.encode("(x:2) b", weighted=True).weights
    assert weights[0, :7].tolist() == [1, 2, 2, 2, 2, 1, 1]
    many = Tokenizer(tiny_bundle / spec.file, replace(spec, embeddings={"x": (letter, *range(99))}))
    assert [len(chunk) for chunk in words(many, "x")] == [75, 25]


def test_tokens_have_the_weights_of_their_text(tokenizer: Tokenizer, spec: TokenizerSpec) -> None:
    encoded = tokenizer.encode("a (b:1.5), [c]", weighted=True)
    assert (encoded.ids == tokenizer.encode("a b, c").ids).all()
    assert encoded.weights.dtype == "float32"
    expected = [1, 1, 1.5, 1, 1 / 1.1, *[1] * (spec.max_length - 5)]
    assert encoded.weights[0] == pytest.approx(expected)


def test_weights_continue_in_the_next_chunk(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode("a " * 74 + "(b b BREAK b:2) c", weighted=True, chunked=True)
    assert [row[row != 1].tolist() for row in encoded.weights] == [[2], [2], [2]]
    assert encoded.weights[:, 1].tolist() == [1, 2, 2]


def test_the_cut_text_of_a_weighted_prompt_is_reported_as_written(
    tokenizer: Tokenizer,
) -> None:
    encoded = tokenizer.encode("a " * 74 + r"\(\(( Über: [b]:1.3)", weighted=True)
    assert encoded.truncated == "(( Über: [b]:1.3)"


def test_the_number_of_chunks_is_limited(tokenizer: Tokenizer) -> None:
    most = "BREAK ".join(["a "] * MAX_CHUNKS)
    assert len(tokenizer.encode(most, chunked=True).ids) == MAX_CHUNKS
    with pytest.raises(InputError, match=f"in {MAX_CHUNKS + 1} chunks: at most {MAX_CHUNKS}"):
        tokenizer.encode(most + "BREAK b", chunked=True)
