"""CLIP's vocabulary and merges → a tokenizer.json with the ids of transformers' CLIPTokenizer.

That is the slow, Python one without ftfy, which diffusers' pipelines load: BERT's text cleaning,
then byte-level BPE (Radford et al. 2021, arXiv:2103.00020, section 2.4; Sennrich et al. 2015,
arXiv:1508.07909). Framing (begin, end, padding, truncation) is left to the runtime.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from edgediff.bundle.manifest import TokenizerSpec
from edgediff.errors import ExportError
from edgediff_export.quiet import quiet

FILE = "tokenizer.json"
_FAST = "tokenizer.json"
_FILES = ("vocab.json", "merges.txt")
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

# The ranges that BERT calls CJK; each such character is a word of its own.
_CJK = (
    r"\u4E00-\u9FFF\u3400-\u4DBF\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B820}-\x{2CEAF}\uF900-\uFAFF\x{2F800}-\x{2FA1F}"
)
# Control, format, private and unassigned characters and the replacement character vanish; tab,
# newline and carriage return are spaces.
_REMOVED = r"[\p{C}\x{FFFD}&&[^\t\n\r]]"
# Unicode 3.13, Final_Sigma: after a cased letter and not before one, other signs between them.
_LETTER = r"[\p{Cased}&&[^\p{Case_Ignorable}]]"
_FINAL_SIGMA = rf"{_LETTER}\p{{Case_Ignorable}}*\KΣ(?!\p{{Case_Ignorable}}*{_LETTER})"
# U+0345 is a sign that folds to a letter; matched without regard to case, it is neither.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d"
    rf"|[{_CJK}]|[\p{{L}}&&[^{_CJK}]]+|\p{{N}}|[^\s\p{{L}}\p{{N}}\u0345]+"
)


def write_tokenizers(
    folders: Mapping[str, Path], out: Path, embeddings: Sequence[Sequence[str]] = ()
) -> dict[str, TokenizerSpec]:
    """Text encoder → its tokenizer's folder, to text encoder → how its ids are framed. Those that
    differ in nothing else share a file. Otherwise as `write_tokenizer`."""
    specs: dict[str, TokenizerSpec] = {}
    for encoder, folder in folders.items():
        spec = write_tokenizer(folder, out, embeddings, file=f"{folder.name}.json")
        text = (out / spec.file).read_bytes()
        for other in {s.file for s in specs.values()}:
            if (out / other).read_bytes() == text:
                (out / spec.file).unlink()
                spec = replace(spec, file=other)
        specs[encoder] = spec
    return specs


def write_tokenizer(
    folder: Path, out: Path, embeddings: Iterable[Sequence[str]] = (), *, file: str = FILE
) -> TokenizerSpec:
    """folder with vocab.json and merges.txt → `out`/`file`, and how ids are framed.

    embeddings: tokens to add, those of each textual inversion together.

    Raises ExportError if the vocabulary is missing or damaged, or has such a token already."""
    slow = open_tokenizer(folder, embeddings)
    merges = sorted(slow.bpe_ranks, key=slow.bpe_ranks.__getitem__)
    try:
        text = build(slow.get_vocab(), merges, slow.added_tokens_decoder)
    except Exception as e:  # tokenizers raises bare Exception
        raise ExportError(
            f"{folder}: vocab.json and merges.txt do not match ({e}): download the pipeline again"
        ) from e
    (out / file).write_text(text, encoding="utf-8")
    return TokenizerSpec(
        file=file,
        max_length=slow.model_max_length,
        min_length=slow.model_max_length,
        bos_token_id=slow.bos_token_id,
        eos_token_id=slow.eos_token_id,
        pad_token_id=slow.pad_token_id,
        embeddings=_vectors(slow.added_tokens_encoder, special=set(slow.all_special_tokens)),
    )


def open_tokenizer(folder: Path, embeddings: Iterable[Sequence[str]] = ()) -> Any:
    """transformers' CLIPTokenizer of a folder, to which the tokens of `embeddings` were added; ids
    are given to them in order. Raises ExportError as `write_tokenizer`."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing and not (folder / _FAST).is_file():
        raise ExportError(
            f"{folder}: not CLIP's vocab.json and merges.txt ({' and '.join(missing)} missing):"
            " download the pipeline again"
        )
    with quiet(), contextlib.ExitStack() as held:
        from transformers import CLIPTokenizer

        try:
            where = folder
            if missing:
                where = Path(held.enter_context(tempfile.TemporaryDirectory()))
                _unpack(folder, where)
            slow = CLIPTokenizer.from_pretrained(where, local_files_only=True)
        except Exception as e:  # transformers raises anything
            line = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise ExportError(f"{folder}: not CLIP's vocab.json and merges.txt ({line})") from e
    if None in (slow.bos_token, slow.eos_token, slow.pad_token):
        raise ExportError(
            f"{folder}: has no begin, end or padding token: not CLIP's: download the pipeline again"
        )
    if slow.model_max_length > 10_000:
        raise ExportError(
            f"{folder}: its tokenizer_config.json says no length (model_max_length): write 77"
            " there, as CLIP has it, or download the pipeline again"
        )
    for tokens in embeddings:
        known = next((token for token in tokens if token in slow.get_vocab()), None)
        if known is not None:
            raise ExportError(
                f"--embedding: the token {known!r} is in the vocabulary already: give another, as"
                " FILE:TOKEN"
            )
        slow.add_tokens(list(tokens))
    return slow


def _unpack(folder: Path, out: Path) -> None:
    """Write vocab.json and merges.txt from a tokenizer.json, which is all that newer versions of
    transformers save. Raises ValueError or KeyError for one of another kind."""
    model = json.loads((folder / _FAST).read_text(encoding="utf-8"))["model"]
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") != "</w>":
        raise ValueError(f"{_FAST} is of another kind")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (out / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *merges, ""])
    (out / "merges.txt").write_text(lines, encoding="utf-8")
    for name in _CONFIGS:
        if (folder / name).is_file():
            shutil.copy(folder / name, out / name)


def _vectors(added: Mapping[str, int], *, special: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Token of textual inversion → its ids; those of several vectors are numbered, as diffusers
    does: "token", "token_1", "token_2"…"""
    found: dict[str, tuple[int, ...]] = {}
    for token, first in added.items():
        if token in special:
            continue
        ids = [first]
        while (following := added.get(f"{token}_{len(ids)}")) is not None:
            ids.append(following)
        found[token] = tuple(ids)
    return found


def build(vocabulary: dict[str, int], merges: list[tuple[str, str]], added: dict[int, Any]) -> str:
    """The JSON of a tokenizer with this vocabulary (token → id) and merges, by priority.

    added: id → text that is found as it was typed, before all else."""
    vocabulary, merges = _with_special_words(vocabulary, merges)
    tokenizer = Tokenizer(_bpe(vocabulary, merges))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_REMOVED), ""),
            normalizers.NFC(),
            # Lowercase looks at one letter at a time.
            normalizers.Replace(Regex(_FINAL_SIGMA), "ς"),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=False,
            )
            for _, token in sorted(added.items())
        ]
    )
    raw = json.loads(tokenizer.to_str())
    raw["model"]["vocab"] = vocabulary  # to_str writes one token an id, and two have the same
    return json.dumps(raw, ensure_ascii=False)


def _with_special_words(
    vocabulary: dict[str, int], merges: list[tuple[str, str]]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """ "<|ENDOFTEXT|>" is not a special token as typed, but CLIPTokenizer lowers it to one.

    Merges of the lowest priority put the word together. Each joins a sign to letters, which share
    a word nowhere else, so no other text is affected."""
    plain = _bpe(vocabulary, merges)
    vocabulary, merges = dict(vocabulary), list(merges)
    for word in ("<|startoftext|>", "<|endoftext|>"):
        parts = [token.value for token in plain.tokenize(word)]
        letters = next(i for i, part in enumerate(parts) if part[0].isalpha())
        whole = parts[letters]
        steps = [(part, False) for part in reversed(parts[:letters])]
        steps += [(part, True) for part in parts[letters + 1 :]]
        for part, after in steps:
            merges.append((whole, part) if after else (part, whole))
            whole = whole + part if after else part + whole
            vocabulary[whole] = max(vocabulary.values()) + 1
        vocabulary[whole] = vocabulary[word]
    return vocabulary, merges


def _bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> models.BPE:
    return models.BPE(
        vocab=vocabulary,
        merges=merges,
        unk_token="<|endoftext|>",
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        fuse_unk=False,
    )
