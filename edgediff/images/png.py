"""Image files that carry how they were made, written whole or not at all."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from edgediff.errors import InputError, first_line
from edgediff.files import check_writable, write_whole

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Ending → pillow's name of the format that is written."""
UNICODE_COMMENT = b"UNICODE\0"
"""EXIF 2.32, section 4.6.5: how a UserComment begins whose text is UTF-16, here big-endian."""
_QUALITY = 95
_MAX_EXIF = 65_000
"""Bytes; a segment of a JPEG holds 65,533."""


def check_output(path: Path) -> None:
    """Raise InputError, before any work is done, if an image cannot be written to `path`."""
    _format(path)
    try:
        check_writable(path)
    except IsADirectoryError as e:
        raise InputError(
            f"{path}: is a folder: give a file's path, such as {path / 'image.png'}"
        ) from e
    except (FileNotFoundError, NotADirectoryError) as e:
        raise InputError(_missing_folder(path)) from e
    except PermissionError as e:
        raise InputError(f"{path}: not writable: choose another place") from e
    except OSError as e:
        raise InputError(f"{path}: cannot be written to ({e.strerror})") from e


def _missing_folder(path: Path) -> str:
    """Why there is no folder for the file `path`, or for the one that it links to."""
    link = f"{path} is a link into " if path.is_symlink() else ""
    folder = path.resolve().parent if link else path.parent
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            return f"{link}{place}: is a file, not a folder: choose another place"
    return f"{link}{folder}: no such folder: create it first (mkdir -p {folder})"


def check_metadata(path: Path, text: str | None, record: Mapping[str, Any]) -> None:
    """Raise InputError if the file format of `path` does not hold this metadata."""
    if _format(path) == "JPEG" and len(_exif(text, record)) > _MAX_EXIF:
        raise InputError(
            f"{path}: the prompts are too long for a JPEG's metadata: give a path that ends in .png"
        )


def save_image(
    image: Image.Image, path: Path, *, parameters: str | None, record: Mapping[str, Any]
) -> None:
    """Write an image whole or not at all, in the format of the path's ending; see `encode`.

    Raises InputError."""
    content = encode(image, _format(path), parameters=parameters, record=record)
    try:
        write_whole(path, content)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from e


def encode(
    image: Image.Image,
    file_format: str = "PNG",
    *,
    parameters: str | None,
    record: Mapping[str, Any],
) -> bytes:
    """An image as a PNG, JPEG or WEBP file that says how it was made.

    parameters: if given, the text that other tools read: of a PNG the chunk `parameters`, else the
        EXIF field UserComment, as AUTOMATIC1111's web UI writes it.
    record: goes, as JSON, into the chunk `edgediff` or the EXIF field ImageDescription.

    Raises InputError if memory or disk space runs out."""
    out = io.BytesIO()
    try:
        if file_format == "PNG":
            info = PngInfo()
            if parameters is not None:
                info.add_itxt("parameters", parameters)
            info.add_itxt("edgediff", json.dumps(record, ensure_ascii=False))
            image.save(out, format="PNG", pnginfo=info)
        else:
            # 4:4:4, which WebP does not have: thin lines of one colour keep it.
            more = {"subsampling": 0} if file_format == "JPEG" else {"method": 4}
            exif = _exif(parameters, record)
            image.save(out, format=file_format, quality=_QUALITY, exif=exif, **more)
    except (OSError, ValueError, MemoryError) as e:
        reason = getattr(e, "strerror", None) or first_line(e)
        raise InputError(f"the image cannot be written as {file_format} ({reason})") from e
    return out.getvalue()


def _format(path: Path) -> str:
    """Pillow's name of the format that a path's ending asks for. Raises InputError."""
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise InputError(
            f"{path}: edgediff writes PNG, JPEG and WebP: give a path that ends in .png, .jpg or"
            " .webp"
        )
    return found


def _exif(text: str | None, record: Mapping[str, Any]) -> bytes:
    """EXIF with the record in ImageDescription, which is ASCII, and the text in UserComment."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps({"edgediff": record})
    if text is not None:
        comment = UNICODE_COMMENT + text.encode("utf-16-be")
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: comment}
    return exif.tobytes()
