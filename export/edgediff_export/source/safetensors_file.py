"""Safetensors files that the command line names, as FILE or FILE:VALUE, and their headers."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediff.errors import ExportError, first_line

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_METADATA = "__metadata__"
_SNIFFED = 64
_LONGEST_HEADER = 100_000_000
"""As safetensors has it."""
_OTHER_CONTENT: Sequence[tuple[bytes | tuple[bytes, ...], str]] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights: run `git lfs pull` in the folder that it was cloned"
        " to, or download the file itself",
    ),
    (
        (b"<!doctype", b"<html", b"<?xml", b"<head"),
        "a web page, not the weights: the download needs a login, or its address is that of the"
        " page: download the file itself",
    ),
    (
        (b'{"error', b'{"message', b'{"detail', b"invalid username", b"access to model", b"entry "),
        "a server's message, not the weights: open it in an editor, and download the file again",
    ),
    (
        b"gguf",
        "a GGUF file under another name, whose weights are quantized already: give the"
        " .safetensors file that it was made from",
    ),
    (
        (b"pk\x03\x04", b"\x80\x02", b"\x80\x04"),
        "a pickle under another name, which can run any code when it is read; edgediff reads"
        " safetensors only: look for it in that form, or convert it if you trust it",
    ),
)
"""The beginning of a file, in lower case → its real kind."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The contents of a file, without the numbers. shapes: tensor → its shape."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def split_argument(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:VALUE → the file, and the value where there is one.

    FILE may hold colons, as a Windows drive does: the longest FILE that exists counts. Where none
    does, VALUE is what follows the file's suffix."""
    ends = [i for i, c in enumerate(text) if c == ":"]
    for end in reversed([*ends, len(text)]):
        if end and Path(text[:end]).is_file():
            return Path(text[:end]), text[end + 1 :] if end < len(text) else None
    for end in reversed(ends):
        if Path(text[:end]).suffix in (".safetensors", *PICKLES):
            return Path(text[:end]), text[end + 1 :]
    return Path(text), None


def open_tensors(path: Path, *, flag: str = "") -> Any:
    """A safetensors file, opened: `keys()`, `get_tensor(key)`, `metadata()`; tensors are torch's.

    flag: the option that names the file, for messages; "" for none.

    Raises ExportError if there is no such file, or if it is of another kind."""
    where = f"{flag} {path}" if flag else str(path)
    if path.is_dir():
        raise ExportError(f"{where}: is a folder: give the .safetensors file in it")
    if not path.is_file():
        raise ExportError(f"{where}: no such file: check the path")
    if path.suffix in PICKLES:
        raise ExportError(
            f"{where}: a pickle, which can run any code when it is read; edgediff reads"
            " safetensors only: look for it in that form, or convert it if you trust it"
        )
    check_content(path, where)
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as e:
        raise ExportError(
            f"{where}: not a safetensors file ({first_line(e)}): download it again"
        ) from e


def check_content(path: Path, where: str) -> None:
    """Refuse a file that is another one by its first bytes, or shorter than its header says.

    Raises ExportError, with the reason."""
    size = path.stat().st_size
    if size == 0:
        raise ExportError(f"{where}: is empty (0 bytes): download it again")
    with path.open("rb") as file:
        start = file.read(_SNIFFED)
        (length,) = struct.unpack("<Q", start[:8].ljust(8, b"\0"))
        if start[8:9] == b"{" and length <= _LONGEST_HEADER:
            file.seek(8)
            whole = 8 + length + _data_size(file.read(length))
            if size < whole:
                raise ExportError(
                    f"{where}: is cut off: it has {size} of {whole} bytes: download it again"
                )
            return
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for begins, reason in _OTHER_CONTENT:
        if text.startswith(begins):
            raise ExportError(f"{where}: {reason}")


def _data_size(header: bytes) -> int:
    """Bytes of all tensors, as a file's header has it; 0 for one that is none."""
    try:
        entries = json.loads(header)
        return max((e["data_offsets"][1] for k, e in entries.items() if k != _METADATA), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return 0


def read_header(path: Path, *, flag: str = "") -> Header:
    """The names and shapes of a file's tensors, and its metadata. Raises as `open_tensors`."""
    with open_tensors(path, flag=flag) as tensors:
        return Header(
            path=path,
            shapes={
                key: tuple(tensors.get_slice(key).get_shape())
                for key in tensors.keys()  # noqa: SIM118
            },
            metadata=dict(tensors.metadata() or {}),
        )
