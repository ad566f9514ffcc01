"""Prompts to token ids, with `tokenizers`. Text that does not fit is always reported."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from edgediff.bundle.manifest import PROMPT, TokenizerSpec
from edgediff.errors import BundleError, InputError, first_line
from edgediff.files import read_regular
from edgediff.text.emphasis import Fragment, parse_weights, plain

MAX_CHARACTERS = 20_000
"""Of a prompt, before it is tokenized: MAX_CHUNKS of CLIP's hold about half as many in English."""
MAX_FILE = 64_000_000
"""Bytes of a tokenizer.json; one of 256,000 tokens has 34 million."""
MAX_CHUNKS = 32
"""For CLIP, 2400 tokens: more than any use, and few enough for a UNet's attention to stay fast."""


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A prompt, encoded for a text encoder in one or more chunks.

    ids: (chunks, length) int64. weights, mask: of the ids, with the same shape; float32, and bool,
    which is False for padding. tokens: the number of tokens of the text, without its frame; limit:
    the number that fits into a chunk. truncated: the end of the text that did not fit, or ""."""

    text: str
    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    mask: NDArray[np.bool_]
    tokens: int
    limit: int
    truncated: str


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """How a prompt was encoded. truncated, negative_truncated: the ends that were cut off, or "".
    tokens, limit: see `EncodedPrompt`. chunks: the number of chunks of each of the two prompts."""

    text: str
    tokens: int
    limit: int
    truncated: str
    negative_text: str | None = None
    negative_truncated: str = ""
    chunks: int = 1


class _Token(NamedTuple):
    """A token and its weight. `span`: the range of characters in the prompt, as typed, that it
    stands for; tokens that together stand for one piece of text have the same span."""

    id: int
    weight: float
    span: tuple[int, int]


class Tokenizer:
    """A text encoder's tokenizer: `tokenizer.json` and the framing that bundle.json gives."""

    def __init__(self, path: Path, spec: TokenizerSpec, content: bytes | None = None) -> None:
        """path: of `tokenizer.json`; content: its bytes, if they were read before.

        Raises BundleError."""
        self._spec = spec
        self._name = path.name
        self._vectors = {ids[0]: ids for ids in spec.embeddings.values()}
        with self._rust_errors("cannot be read"):
            content = read_regular(path, MAX_FILE) if content is None else content
            self._tokenizer = RustTokenizer.from_str(content.decode())
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        before, after = map(self._plain_ids, spec.template.split(PROMPT))
        self._before = [*_given(spec.bos_token_id), *before]
        self._after = [*after, *_given(spec.eos_token_id)]
        self._limit = spec.max_length - len(self._before) - len(self._after)
        if self._limit < 1:
            raise BundleError(
                f"{path.name}: the template leaves no room for a prompt in {spec.max_length}"
                " tokens: export the bundle again"
            )

    def encode(self, text: str, *, weighted: bool = False, chunked: bool = False) -> EncodedPrompt:
        """The ids of bos, the template's beginning, as much of `text` as fits, the template's end,
        eos, and padding. A tokenizer may lack any of these but the text.

        weighted: brackets in `text` weight its words, see `parse_weights`; the text of each
        fragment is tokenized by itself. chunked: text that does not fit continues in further
        chunks, each with its own frame, and the word BREAK starts a new one. A full chunk ends
        after its last comma if that is near its end, as in AUTOMATIC1111's web UI.

        Raises InputError if `text` is not a str, needs more than MAX_CHUNKS chunks, or has a weight
        out of range."""
        if not isinstance(text, str):
            raise InputError(f"the prompt is {type(text).__name__}, expected text (str)")
        fragments = parse_weights(text) if weighted else [plain(text)]
        limit = self._limit
        truncated = ""
        if chunked:
            sections = self._sections(fragments)
            tokens = sum(map(len, sections))
            comma = self._plain_ids(",")
            chunks = [c for s in sections for c in cut(s, limit, comma)]
            if len(chunks) > 1 and not chunks[-1]:  # BREAK at the end starts no chunk
                chunks.pop()
            if len(chunks) > MAX_CHUNKS:
                raise InputError(
                    f"the prompt has {tokens} tokens in {len(chunks)} chunks: at most {MAX_CHUNKS}"
                )
        else:
            found = [token for f in fragments for token in self._tokens(f)]
            tokens = len(found)
            chunks = [found[:limit]]
            if tokens > limit:
                truncated = text[found[limit].span[0] :]
        framed = [self._frame(chunk) for chunk in chunks]
        # A graph takes at least one token.
        length = max(1, self._spec.min_length, *(len(ids) for ids, _ in framed))
        shape = len(framed), length
        encoded = EncodedPrompt(
            text=text,
            ids=np.full(shape, self._spec.pad_token_id, np.int64),
            weights=np.ones(shape, np.float32),
            mask=np.zeros(shape, np.bool_),
            tokens=tokens,
            limit=limit,
            truncated=truncated,
        )
        for k, (ids, weights) in enumerate(framed):
            encoded.ids[k, : len(ids)] = ids
            encoded.weights[k, : len(ids)] = weights
            encoded.mask[k, : len(ids)] = True
        return encoded

    def extended(self, encoded: EncodedPrompt, chunks: int, length: int) -> EncodedPrompt:
        """The prompt with empty chunks appended, up to `chunks` in all, and each chunk padded to
        `length` ids."""
        empty = self.encode("")
        more = chunks - len(encoded.ids)

        def extend(rows: NDArray[Any], row: NDArray[Any], padding: Any) -> NDArray[Any]:
            padded = [
                np.pad(r, ((0, 0), (0, length - r.shape[1])), constant_values=padding)
                for r in (rows, *[row] * more)
            ]
            return np.concatenate(padded)

        return dataclasses.replace(
            encoded,
            ids=extend(encoded.ids, empty.ids, self._spec.pad_token_id),
            weights=extend(encoded.weights, empty.weights, 1),
            mask=extend(encoded.mask, empty.mask, False),
        )

    def _plain_ids(self, text: str) -> list[int]:
        return self._encoded(text)[0] if text else []

    def _encoded(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(ids, offsets in the text)."""
        with self._rust_errors("fails on a prompt"):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            offsets = encoding.offsets
            if not all(0 <= start <= end <= len(text) for start, end in offsets):
                raise ValueError("it gives places outside the text")
            return encoding.ids, offsets

    @contextlib.contextmanager
    def _rust_errors(self, problem: str) -> Iterator[None]:
        try:
            yield
        except BaseException as e:
            # tokenizers raises bare Exception, and for a panic a BaseException.
            if not isinstance(e, Exception) and type(e).__module__ != "pyo3_runtime":
                raise
            raise BundleError(
                f"{self._name}: {problem} ({first_line(e)}): export the bundle again"
            ) from e

    def _sections(self, fragments: Sequence[Fragment]) -> list[list[_Token]]:
        """The tokens between one BREAK and the next."""
        sections: list[list[_Token]] = [[]]
        for f in fragments:
            start = 0
            for word in re.finditer(r"\bBREAK\b|\Z", f.text):
                part = slice(start, word.start())
                sections[-1] += self._tokens(
                    Fragment(text=f.text[part], weight=f.weight, at=f.at[part])
                )
                if word[0]:
                    sections.append([])
                start = word.end()
        return sections

    def _tokens(self, fragment: Fragment) -> list[_Token]:
        """The tokens of a text; one of textual inversion stands for as many as it has vectors (Gal
        et al. 2022, arXiv:2208.01618)."""
        if not fragment.text:
            return []
        ids, offsets = self._encoded(fragment.text)
        at = (*fragment.at, fragment.at[-1] + 1)
        return [
            _Token(vector, fragment.weight, (at[start], at[end]))
            for id, (start, end) in zip(ids, offsets, strict=True)
            for vector in self._vectors.get(id, (id,))
        ]

    def _frame(self, tokens: Sequence[_Token]) -> tuple[list[int], list[float]]:
        before, after = self._before, self._after
        weights = [1.0] * len(before) + [t.weight for t in tokens] + [1.0] * len(after)
        return [*before, *(t.id for t in tokens), *after], weights


def _given(id: int | None) -> list[int]:
    return [] if id is None else [id]


def cut(tokens: Sequence[_Token], limit: int, comma: Sequence[int]) -> list[Sequence[_Token]]:
    """Tokens → chunks of at most `limit` tokens; if there are none, one empty chunk.

    A full chunk passes the tokens after its last comma on to the next, unless they are more than 20
    of 75, or the next begins with a comma itself. comma: the ids of a comma. Tokens of one span
    stay together if they fit into a chunk."""
    chunks: list[Sequence[_Token]] = []
    start = 0
    while len(tokens) - start > limit:
        end = start + limit
        while end > start and tokens[end - 1].span == tokens[end].span:
            end -= 1
        if end == start:
            end = start + limit
        if [tokens[end].id] != comma:
            nearest = max(end - limit * 20 // 75, start)
            after = (k + 1 for k in range(end - 1, nearest - 1, -1) if [tokens[k].id] == comma)
            end = next(after, end)
        chunks.append(tokens[start:end])
        start = end
    return [*chunks, tokens[start:]]
