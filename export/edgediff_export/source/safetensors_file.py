"""Safetensors files that the command line names, as FILE or FILE:VALUE, and their headers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediff.errors import ExportError, first_line

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file holds, without the numbers. shapes: tensor → its shape."""

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

    Raises ExportError where there is no such file, or one of another kind."""
    where = f"{flag} {path}" if flag else str(path)
    if path.is_dir():
        raise ExportError(f"{where}: is a folder: give the .safetensors file in it")
    if not path.is_file():
        raise ExportError(f"{where}: no such file: check the path")
    if path.suffix in PICKLES:
        raise ExportError(
            f"{where}: a pickle, which can run any code when it is read; edgediff reads"
            " safetensors only: look for it in that form, or convert it where you trust it"
        )
    check_pointer(path, where)
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as e:
        raise ExportError(
            f"{where}: not a safetensors file ({first_line(e)}): download it again"
        ) from e


def check_pointer(path: Path, where: str) -> None:
    """Refuse the text that Git LFS keeps in the place of a file."""
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        raise ExportError(
            f"{where}: a Git LFS pointer, not the weights: run `git lfs pull` in the folder that it"
            " was cloned to, or download the file itself"
        )


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
