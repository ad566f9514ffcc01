"""PNG files that carry how they were made, written whole or not at all."""

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgediff.errors import InputError


def check_output(path: Path) -> None:
    """Raise InputError, before any work is done, where a PNG cannot be written to `path`."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: edgediff writes PNG: give a path that ends in .png")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: is no path for an image ({e})") from e
    if path.is_dir():
        raise InputError(f"{path}: is a folder: give a file's path, such as {path / 'image.png'}")
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: create it first (mkdir -p {folder})")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: not writable: choose another folder")


def save_png(
    image: Image.Image, path: Path, *, parameters: str | None, record: Mapping[str, Any]
) -> None:
    """Write a PNG whole or not at all: to a temporary file beside `path`, then renamed.

    `parameters`, where given, becomes the text chunk that other tools read; `record`, as JSON,
    the chunk `edgediff`."""
    info = PngInfo()
    if parameters is not None:
        info.add_itxt("parameters", parameters)
    info.add_itxt("edgediff", json.dumps(record, ensure_ascii=False))
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with temporary.open("wb") as f:
            image.save(f, format="PNG", pnginfo=info)
        temporary.replace(path)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
