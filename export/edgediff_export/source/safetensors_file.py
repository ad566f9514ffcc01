"""Safetensors files that the command line names beside the pipeline, as FILE or FILE:VALUE."""

from pathlib import Path
from typing import Any

from edgediff.errors import ExportError, first_line

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


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


def open_tensors(path: Path, *, flag: str) -> Any:
    """A safetensors file, opened: `keys()`, `get_tensor(key)`, `metadata()`; tensors are torch's.

    Raises ExportError where there is no such file, or one of another kind."""
    if path.is_dir():
        raise ExportError(f"{flag} {path}: is a folder: give the .safetensors file in it")
    if not path.is_file():
        raise ExportError(f"{flag} {path}: no such file: check the path")
    if path.suffix in PICKLES:
        raise ExportError(
            f"{flag} {path}: a pickle, which can run any code when it is read; edgediff reads"
            " safetensors only: look for it in that form, or convert it where you trust it"
        )
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as e:
        raise ExportError(
            f"{flag} {path}: not a safetensors file ({first_line(e)}): download it again"
        ) from e


def tensor_names(path: Path) -> set[str]:
    """The names of the tensors in a .safetensors file; none where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            return set(tensors.keys())
    except (OSError, SafetensorError):
        return set()
