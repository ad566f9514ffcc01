"""Prompts to token ids, with `tokenizers` alone; what does not fit is reported, never silent."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from edgediff.bundle import TokenizerSpec
from edgediff.errors import BundleError, InputError


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A prompt as a text encoder takes it.

    `ids`: (1, max_length) int64. `tokens`: how many the text has, without begin and end of text;
    `limit`: how many fit. `truncated`: the end of the text that did not fit, "" where all did."""

    text: str
    ids: NDArray[np.int64]
    tokens: int
    limit: int
    truncated: str


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """What became of a prompt. `truncated` and `negative_truncated` are the ends that were cut."""

    text: str
    tokens: int
    limit: int
    truncated: str
    negative_text: str | None = None
    negative_truncated: str = ""


class Tokenizer:
    """A text encoder's tokenizer: `tokenizer.json` and the framing that bundle.json gives."""

    def __init__(self, path: Path, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._vectors = {ids[0]: ids for ids in spec.embeddings.values()}
        try:
            self._tokenizer = RustTokenizer.from_file(str(path))
        except Exception as e:  # tokenizers raises bare Exception
            raise BundleError(f"{path.name}: cannot be read ({e}): export the bundle again") from e
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str) -> EncodedPrompt:
        """Ids of begin of text, as much of `text` as fits, end of text, padding."""
        if not isinstance(text, str):
            raise InputError(f"the prompt is {type(text).__name__}, expected text (str)")
        spec = self._spec
        tokens = self._tokens(text)
        limit = spec.max_length - 2
        kept = [token for token, _ in tokens[:limit]]
        framed = [spec.bos_token_id, *kept, spec.eos_token_id]
        framed += [spec.pad_token_id] * (spec.max_length - len(framed))
        return EncodedPrompt(
            text=text,
            ids=np.array([framed], dtype=np.int64),
            tokens=len(tokens),
            limit=limit,
            truncated=text[tokens[limit][1] :] if len(tokens) > limit else "",
        )

    def _tokens(self, text: str) -> list[tuple[int, int]]:
        """The ids of a text, each with where it begins; a token of textual inversion stands for as
        many as it has vectors (Gal et al. 2022, arXiv:2208.01618)."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [
            (vector, start)
            for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
            for vector in self._vectors.get(token, (token,))
        ]
