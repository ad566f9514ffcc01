"""How a picture was made, read back from its PNG."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

from PIL.PngImagePlugin import PngImageFile

from edgediff import __version__
from edgediff.discrete import SPACED
from edgediff.errors import InputError, first_line
from edgediff.image import SAMPLER_LABELS, SPACING_LABELS
from edgediff.picture import IN_MEMORY
from edgediff.settings import Options, Settings


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a PNG says of how it was made.

        made = edgediff.recorded("fox.png")
        again = edgediff.load().generate(made.prompt, **made.options)

    options: of that call, with its seed (a contact sheet: all its seeds).
    given: option → what its PNG says of pictures that the call was given, such as init_image. They
        are not in it, and have to be given again.
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
        """Why a call of these settings may give another picture, a clause each, where it is not by
        prompt or options: another tool, edgediff, bundle, provider or picture that was given."""
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
    """Read how a picture was made: of a PNG by edgediff everything, of one by a tool that writes
    as AUTOMATIC1111's web UI does, what has a counterpart here.

    Raises InputError where the file is no PNG, is damaged, or does not say."""
    path = Path(path)
    texts = _texts(path)
    if "parameters" in texts and "edgediff" not in texts:
        return _from_parameters(str(texts["parameters"]), path)
    return _from_record(_record(texts, path), path)


def read_record(path: Path) -> dict[str, Any]:
    """What a PNG by edgediff says: its version, `seed` or `seeds`, and Settings by field, as JSON.

    Raises InputError where the file is no PNG, is damaged, or does not say."""
    return _record(_texts(path), path)


def describe_given(record: Any) -> str:
    """The names, in text, of the pictures that a call was given."""
    return " and ".join(_names(record))


def without_defaults(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the settings that are off, which an older edgediff did not know."""
    off = {f.name: f.default for f in dataclasses.fields(Settings) if f.default is not MISSING}
    off = json.loads(json.dumps(off))
    return {name: v for name, v in record.items() if name not in off or v != off[name]}


def _texts(path: Path) -> dict[str | tuple[int, int], Any]:
    """A PNG's text chunks by keyword; pixels are not read."""
    try:
        with path.open("rb") as f:
            # Of this class and not by Image.open, which warns of sizes that only decoding feels.
            picture = PngImageFile(f)
            texts = dict(picture.info)
            if not texts.keys() & {"edgediff", "parameters"}:
                picture.verify()  # what it says may be lost
            return texts
    except Exception as e:  # pillow raises almost anything on damaged files
        reason = first_line(e)
        if isinstance(e, OSError) and e.strerror:
            raise InputError(f"{path}: cannot be read ({e.strerror})") from e
        if "not a PNG" in reason:
            raise InputError(f"{path}: is no PNG: give a picture as edgediff wrote it") from e
        raise InputError(f"{path}: is a damaged PNG ({reason})") from e


def _record(texts: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    if "edgediff" not in texts:
        raise InputError(
            f"{path}: does not say how it was made: a PNG as edgediff wrote it does (editing or"
            " sending a picture often drops that)"
        )
    try:
        record = json.loads(texts["edgediff"])
    except (ValueError, TypeError, RecursionError) as e:
        raise InputError(f"{path}: its `edgediff` text is no JSON ({first_line(e)})") from e
    if not isinstance(record, dict):
        raise InputError(f"{path}: its `edgediff` text is no record of a picture")
    return record


def _from_record(record: dict[str, Any], path: Path) -> Recorded:
    if isinstance(record.get("pictures"), list):
        raise InputError(f"{path}: is a sheet of several prompts: give one of its pictures")
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


def _hashes(record: Any) -> Any:
    """Every `sha256` in a part of a record, in order."""
    return (found["sha256"] for found in _pictures(record))


def _names(record: Any) -> Any:
    names = (str(found.get("name", IN_MEMORY)) for found in _pictures(record))
    return ("a picture without a file" if name == IN_MEMORY else name for name in names)


def _pictures(record: Any) -> Any:
    """Every {"name": …, "sha256": …} in a part of a record, in order."""
    if isinstance(record, Mapping):
        if "sha256" in record:
            yield record
        for value in record.values():
            yield from _pictures(value)
    elif isinstance(record, list | tuple):
        for value in record:
            yield from _pictures(value)


_FIELD = re.compile(r'\s*([^:,]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_NETWORK = re.compile(r" *(<(?:lora|lyco|hypernet):[^>]*>)")
_AUTOMATIC = {"DPM++ 2M": "Karras", "DPM++ SDE": "Karras", "DPM++ 2M SDE": "Exponential"}
"""What "Schedule type: Automatic" is for these samplers; for others, none of its own."""
_NEGATIVE = "Negative prompt:"


def _from_parameters(text: str, path: Path) -> Recorded:
    """AUTOMATIC1111's form: the prompt, `Negative prompt: …`, a line of `Key: value, …`."""
    lines = text.strip().splitlines()
    last = next((k for k in range(len(lines) - 1, -1, -1) if lines[k].startswith("Steps:")), None)
    if last is None:
        raise InputError(
            f"{path}: its `parameters` text is not in the form of AUTOMATIC1111's web UI: expected"
            " a line of `Steps: …, Sampler: …, Seed: …`"
        )
    start = next((k for k in range(last) if lines[k].startswith(_NEGATIVE)), last)
    prompt = "\n".join(lines[:start]).strip()
    negative = "\n".join(lines[start:last]).removeprefix(_NEGATIVE).strip()
    fields = {key.strip(): _unquote(value) for key, value in _FIELD.findall(lines[last])}
    ignored = _NETWORK.findall(prompt)
    prompt = _NETWORK.sub("", prompt).strip()
    model = fields.pop("Model", None)
    for who in ("Model hash", "Version"):  # they say who made it, not how
        fields.pop(who, None)
    options: dict[str, Any] = {"negative_prompt": negative} if negative else {}
    if fields.get("Emphasis") == "None":
        del fields["Emphasis"]
    elif {*"(["} & {*prompt, *negative}:  # there, brackets weigh words unless it says otherwise
        options["prompt_weights"] = True
    if fields.get("Clip skip") == "1":  # none
        del fields["Clip skip"]
    for name, value in (
        ("steps", _take(fields, "Steps", r"\d+", int)),
        *_take_sampling(fields),
        ("guidance_scale", _take(fields, "CFG scale", r"[-+.\deE]+", float)),
        ("seed", _take(fields, "Seed", r"-?\d+", int)),
        *_take_variation(fields),
        ("size", _take(fields, "Size", r"\d+x\d+", lambda v: tuple(map(int, v.split("x"))))),
    ):
        if value is not None:
            options[name] = value
    ignored += [f"{key}: {value}" for key, value in fields.items()]
    ignored += [line for line in lines[last + 1 :] if line.strip()]
    return Recorded(
        prompt=prompt,
        options=cast("Options", options),
        given={},
        model=model,
        bundle=None,
        provider=None,
        version=None,
        ignored=tuple(ignored),
    )


def _unquote(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value


def _take(fields: dict[str, str], key: str, pattern: str, convert: Any) -> Any:
    """A field's value, which then is no longer among the fields; None where it cannot be read."""
    value = fields.get(key)
    if value is None or not re.fullmatch(pattern, value, re.ASCII):
        return None
    try:
        converted = convert(value)
    except ValueError:
        return None
    del fields[key]
    return converted


def _take_sampling(fields: dict[str, str]) -> list[tuple[str, Any]]:
    """Our sampler and spacing of those names. Newer versions write the spacing of the steps in a
    field of its own, older ones behind the sampler's name."""
    samplers = {label: name for name, label in SAMPLER_LABELS.items()}
    spacings = {label: name for name, label in SPACING_LABELS.items()}
    label, spacing = fields.get("Sampler", ""), fields.get("Schedule type")
    if spacing == "Automatic":
        spacing = _AUTOMATIC.get(label)
    if f"{label} {spacing}" in samplers:
        label, spacing = f"{label} {spacing}", None
    elif label not in samplers and label.rpartition(" ")[2] in spacings:
        label, _, spacing = label.rpartition(" ")
    if label not in samplers:
        return []
    sampler = samplers[label]
    del fields["Sampler"]
    fields.pop("Schedule type", None)
    if spacing in spacings and sampler in SPACED:
        return [("sampler", sampler), ("spacing", spacings[spacing])]
    if spacing is not None:
        fields["Schedule type"] = spacing
    return [("sampler", sampler)]


def _take_variation(fields: dict[str, str]) -> list[tuple[str, Any]]:
    """Both or neither."""
    names = ("Variation seed", "Variation seed strength")
    if not {*names} <= {*fields}:
        return []
    return [
        ("variation_seed", _take(fields, names[0], r"-?\d+", int)),
        ("variation_strength", _take(fields, names[1], r"[.\d]+", float)),
    ]
