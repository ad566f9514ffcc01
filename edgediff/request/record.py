"""How an image was made, read back from its file."""

import contextlib
import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

from PIL import ExifTags, Image

from edgediff._version import __version__
from edgediff.bundle.schema import describe, load_json, parse
from edgediff.errors import InputError, first_line
from edgediff.files import open_regular
from edgediff.images.png import UNICODE_COMMENT
from edgediff.images.source import IN_MEMORY, identify, pillow_errors
from edgediff.request.a1111 import parse_parameters
from edgediff.request.options import Options
from edgediff.request.request import check_text, resolve_seeds
from edgediff.request.settings import Settings

MAX_RECORD = 1_000_000
"""Characters of what a file says; a sheet of a thousand seeds has under 30,000."""
_OPENED = ("control", "init_image", "mask")
"""The options that name files."""
READ = ("PNG", "JPEG", "WEBP")
"""Formats whose metadata are read, by pillow's names."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """How an image was made, as recorded in its file.

        made = edgediff.recorded("fox.png")
        again = edgediff.load().generate(made.prompt, **made.options)

    options: the options of that call, with its seed (for a contact sheet, all its seeds).
    given: option → the record of its images, such as init_image. The images themselves are not in
        the file and have to be given again.
    model, bundle, provider: what made it: names, and the bundle's id; None where it does not say.
    version: of edgediff; None where another tool made it.
    ignored: its other settings, which have no counterpart here.
    """

    prompt: str
    options: Options
    given: Mapping[str, Any]
    model: str | None
    bundle: str | None
    provider: str | None
    version: str | None
    onnxruntime: str | None
    ignored: tuple[str, ...]

    def differences(self, settings: Settings) -> list[str]:
        """The reasons, other than prompt and options, why a call with these settings may give
        another image, a clause each: another tool, edgediff, bundle, provider or input image."""
        if self.version is None:
            by = f" with {self.model}" if self.model else ""
            return [f"another tool made it{by}"]
        found = []
        if self.version != __version__:
            found.append(f"edgediff {self.version} made it, this is {__version__}")
        if self.bundle != settings.bundle:
            names = f"{self.model} made it, this is {settings.model}"
            if self.model == settings.model:
                names = f"another bundle of {self.model} made it"
            found.append(f"{names} ({(self.bundle or '?')[:12]}, {settings.bundle[:12]})")
        if self.provider not in (settings.provider, None) and settings.provider != "auto":
            found.append(f"{self.provider} made it, this is {settings.provider}")
        if None not in (self.onnxruntime, settings.onnxruntime) and (
            self.onnxruntime != settings.onnxruntime
        ):
            found.append(
                f"onnxruntime {self.onnxruntime} ran it, this is onnxruntime {settings.onnxruntime}"
            )
        now = asdict(settings)
        for name, then in self.given.items():
            if list(_hashes(now.get(name))) != list(_hashes(then)):
                found.append(f"what is given is not {describe_given(then)}, which it was made from")
        return found


def recorded(path: str | PathLike[str]) -> Recorded:
    """Read how an image was made: everything if edgediff made it; if a tool that writes in the form
    of AUTOMATIC1111's web UI made it, the fields that have a counterpart here.

    Raises InputError if the file is not an image, is damaged, or has no such record."""
    path = Path(path)
    texts = _texts(path)
    if "parameters" in texts and "edgediff" not in texts:
        return _from_parameters(str(texts["parameters"]), path)
    return _from_record(_record(texts, path), path)


def read_record(path: Path) -> dict[str, Any]:
    """The record in an image made by edgediff: its version, `seed` or `seeds`, and the fields of
    Settings, as JSON values.

    Raises InputError if the file is not an image, is damaged, or has no record."""
    return _record(_texts(path), path)


def describe_given(record: Any) -> str:
    """The names of a call's input images, as text."""
    return " and ".join(_names(record))


def without_defaults(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the settings that are off, which an older edgediff would not have."""
    off = {f.name: f.default for f in dataclasses.fields(Settings) if f.default is not MISSING}
    off = json.loads(json.dumps(off))
    return {name: v for name, v in record.items() if name not in off or v != off[name]}


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image of a format that edgediff writes, not yet decoded. Whatever pillow raises, also in
    the block, becomes InputError."""
    with (
        pillow_errors(str(path), formats=READ),
        open_regular(path) as file,
        identify(file, READ) as image,
    ):
        yield image


def check_whole(path: Path) -> None:
    """Raise InputError if an image is cut off or damaged."""
    with open_image(path) as image:
        if image.format == "PNG":
            image.verify()  # by checksums, which the other formats do not have
        else:
            image.load()


def _texts(path: Path) -> dict[Any, Any]:
    """The texts of an image file by keyword, `edgediff` and `parameters` among them; pixels are not
    read."""
    with open_image(path) as image:
        if image.format != "PNG":
            return _texts_of_exif(image.getexif())
        texts = dict(image.info)
        if not texts.keys() & {"edgediff", "parameters"}:
            image.verify()  # its metadata may be lost
        return texts


def _texts_of_exif(exif: Image.Exif) -> dict[Any, Any]:
    """What `edgediff.images.png.encode` and AUTOMATIC1111's web UI put into EXIF, by its name in a
    PNG. Another form is of another tool."""
    texts: dict[Any, Any] = {}
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment.startswith(UNICODE_COMMENT):
        units = comment.removeprefix(UNICODE_COMMENT)
        # Big-endian by the standard, but some write the other; in most text, high bytes are 0.
        order = "be" if units[::2].count(0) >= units[1::2].count(0) else "le"
        texts["parameters"] = units.decode(f"utf-16-{order}", errors="replace")
    try:
        made = json.loads(exif.get(ExifTags.Base.ImageDescription) or "")
    except (ValueError, TypeError, RecursionError):
        return texts
    if isinstance(made, dict) and "edgediff" in made:
        texts["edgediff"] = json.dumps(made["edgediff"])
    return texts


def _record(texts: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    if "edgediff" not in texts:
        raise InputError(
            f"{path}: does not say how it was made: a file as edgediff wrote it does (editing or"
            " sending an image often drops that)"
        )
    try:
        text = texts["edgediff"]
        if not isinstance(text, str) or len(text) > MAX_RECORD:
            raise ValueError(f"more than {MAX_RECORD} characters")
        record = load_json(text)
    except ValueError as e:
        raise InputError(f"{path}: its `edgediff` text is not JSON ({first_line(e)})") from e
    if not isinstance(record, dict):
        raise InputError(f"{path}: its `edgediff` text is not a record of an image")
    return record


def _from_record(record: dict[str, Any], path: Path) -> Recorded:
    """The record, each value of it of the type that its setting has."""
    where = f"{path}: its `edgediff` text"
    if isinstance(record.get("images"), list):
        raise InputError(f"{path}: is a sheet of several prompts: give one of its images")
    if not isinstance(record.get("prompt"), str):
        raise InputError(f"{where} has no prompt")
    for name in ("edgediff", "model", "bundle", "provider"):
        if not isinstance(record.get(name), str):
            raise InputError(f"{where} has {name} {record.get(name)!r:.60}: expected text")
    seeds = record.pop("seeds", record.pop("seed", None))
    if seeds is not None:
        seeds = _seeds(seeds, where)
    kinds = {**typing.get_type_hints(Settings), "edgediff": str}
    for name, kind in kinds.items():
        if name in record:
            parse(kind, record[name], f"{where}: {name}", InputError, _is_given)
    prompt = record.pop("prompt")
    origin = {name: record.pop(name) for name in ("edgediff", "model", "bundle", "provider")}
    runtime = record.pop("onnxruntime", None)
    if seeds is not None:
        record["seed"] = seeds
    if "width" in record and "height" in record:
        record["size"] = (record.pop("width"), record.pop("height"))
    record = without_defaults(record)
    known = {name: v for name, v in record.items() if name in Options.__annotations__}
    # They are not in the file, and only what the caller gives is opened.
    given = {name: known.pop(name) for name in _OPENED if name in known}
    ignored = (name for name in record if name not in known and name not in given)
    return Recorded(
        prompt=prompt,
        options=cast("Options", known),
        given=given,
        model=origin["model"],
        bundle=origin["bundle"],
        provider=origin["provider"],
        version=origin["edgediff"],
        onnxruntime=runtime,
        ignored=tuple(f"{name}: {describe(record[name])}" for name in ignored),
    )


def _is_given(text: str) -> bool:
    """Whether a call takes this text: each image that a call makes can be made again."""
    try:
        check_text("prompt", text)
    except InputError:
        return False
    return True


def _seeds(seeds: Any, where: str) -> int | list[int]:
    """Raises InputError for seeds that `resolve_seeds` would refuse, or that are not JSON."""
    if not isinstance(seeds, int | list):
        raise InputError(f"{where} has seed {describe(seeds)}: expected whole numbers")
    try:
        found = list(resolve_seeds(seeds))
    except InputError as e:
        raise InputError(f"{where}: {e}") from e
    return found if isinstance(seeds, list) else found[0]


def _from_parameters(text: str, path: Path) -> Recorded:
    try:
        parsed = parse_parameters(text)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e
    return Recorded(
        prompt=parsed.prompt,
        options=parsed.options,
        given={},
        model=parsed.model,
        bundle=None,
        provider=None,
        version=None,
        onnxruntime=None,
        ignored=parsed.ignored,
    )


def _hashes(record: Any) -> Any:
    """Every `sha256` in a part of a record, in order."""
    return (found["sha256"] for found in _images(record))


def _names(record: Any) -> Any:
    names = (str(found.get("name", IN_MEMORY)) for found in _images(record))
    return ("an image without a file" if name == IN_MEMORY else name for name in names)


def _images(record: Any) -> Any:
    """Every {"name": …, "sha256": …} in a part of a record, in order."""
    if isinstance(record, Mapping):
        if "sha256" in record:
            yield record
        for value in record.values():
            yield from _images(value)
    elif isinstance(record, list | tuple):
        for value in record:
            yield from _images(value)
