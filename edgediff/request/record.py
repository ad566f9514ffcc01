"""How an image was made, read back from its PNG."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

from PIL.PngImagePlugin import PngImageFile

from edgediff import __version__
from edgediff.errors import InputError, first_line
from edgediff.images.source import IN_MEMORY
from edgediff.request.a1111 import parse_parameters
from edgediff.request.options import Options
from edgediff.request.settings import Settings


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
    ignored: what it says beside that, and has no counterpart here.
    """

    prompt: str
    options: Options
    given: Mapping[str, Any]
    model: str | None
    bundle: str | None
    provider: str | None
    version: str | None
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


def _texts(path: Path) -> dict[str | tuple[int, int], Any]:
    """A PNG's text chunks by keyword; pixels are not read."""
    try:
        with path.open("rb") as f:
            # Of this class and not by Image.open, which warns of sizes that only decoding feels.
            image = PngImageFile(f)
            texts = dict(image.info)
            if not texts.keys() & {"edgediff", "parameters"}:
                image.verify()  # what it says may be lost
            return texts
    except Exception as e:  # pillow raises almost anything on damaged files
        reason = first_line(e)
        if isinstance(e, OSError) and e.strerror:
            raise InputError(f"{path}: cannot be read ({e.strerror})") from e
        if "not a PNG" in reason:
            raise InputError(f"{path}: is no PNG: give an image as edgediff wrote it") from e
        raise InputError(f"{path}: is a damaged PNG ({reason})") from e


def _record(texts: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    if "edgediff" not in texts:
        raise InputError(
            f"{path}: does not say how it was made: a PNG as edgediff wrote it does (editing or"
            " sending an image often drops that)"
        )
    try:
        record = json.loads(texts["edgediff"])
    except (ValueError, TypeError, RecursionError) as e:
        raise InputError(f"{path}: its `edgediff` text is no JSON ({first_line(e)})") from e
    if not isinstance(record, dict):
        raise InputError(f"{path}: its `edgediff` text is no record of an image")
    return record


def _from_record(record: dict[str, Any], path: Path) -> Recorded:
    if isinstance(record.get("images"), list):
        raise InputError(f"{path}: is a sheet of several prompts: give one of its images")
    prompt = record.pop("prompt", None)
    if not isinstance(prompt, str):
        raise InputError(f"{path}: its `edgediff` text has no prompt")
    origin = {name: record.pop(name, None) for name in ("edgediff", "model", "bundle", "provider")}
    for name, value in origin.items():
        if not isinstance(value, str):
            raise InputError(f"{path}: its `edgediff` text has {name} {value!r}: expected text")
    if "seeds" in record:
        record["seed"] = record.pop("seeds")
    if "width" in record and "height" in record:
        record["size"] = (record.pop("width"), record.pop("height"))
    record = without_defaults(record)
    known = {name: v for name, v in record.items() if name in Options.__annotations__}
    given = {name: v for name, v in known.items() if any(_hashes(v))}
    return Recorded(
        prompt=prompt,
        options=cast("Options", {n: v for n, v in known.items() if n not in given}),
        given=given,
        model=origin["model"],
        bundle=origin["bundle"],
        provider=origin["provider"],
        version=origin["edgediff"],
        ignored=tuple(f"{name}: {value}" for name, value in record.items() if name not in known),
    )


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
