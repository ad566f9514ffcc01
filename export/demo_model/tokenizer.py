"""A byte-pair tokenizer in CLIP's format, trained on the captions (Sennrich et al. 2016)."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

MAX_LENGTH = 24
VOCABULARY = 4000
START, END = "<|startoftext|>", "<|endoftext|>"
# How CLIP cuts a text into words before merging.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _merges(texts: Iterable[str], size: int) -> list[tuple[str, str]]:
    """The merges of a byte-level BPE with "</w>" on a word's last symbol."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, end_of_word_suffix="</w>", show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def _bytes() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, in CLIP's order."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + k) for k in range(len(moved))]


def train(texts: Iterable[str], folder: Path, size: int = VOCABULARY) -> None:
    """Write a CLIPTokenizer's files (vocab.json, merges.txt, …) of at most `size` entries."""
    alphabet = _bytes()
    symbols = [*alphabet, *(symbol + "</w>" for symbol in alphabet)]
    known = set(symbols)
    merges = []
    for left, right in _merges(texts, size):
        if len(symbols) + 2 == size:
            break
        merges.append(f"{left} {right}")
        if left + right not in known:
            known.add(left + right)
            symbols.append(left + right)
    symbols += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {symbol: k for k, symbol in enumerate(symbols)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    # The first line is a header, which readers skip.
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    load(folder).save_pretrained(os.fspath(folder))


def load(folder: Path, length: int = MAX_LENGTH) -> CLIPTokenizer:
    """The tokenizer, for texts of at most `length` tokens; padding is the end token, as in SD 1."""
    return CLIPTokenizer(
        os.fspath(folder / "vocab.json"),
        os.fspath(folder / "merges.txt"),
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=length,
    )
