"""A file of prompts: JSON Lines or plain text, read into jobs."""

import copy
import dataclasses
import difflib
import functools
import itertools
import json
import os
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self, cast

from edgediff.bundle.schema import describe, repeated_key
from edgediff.errors import InputError, first_line
from edgediff.files import is_file_name, read_to_end
from edgediff.images.png import FORMATS
from edgediff.images.source import OpenedImage
from edgediff.request.options import Options
from edgediff.request.request import Request, check_prompt, resolve_seeds
from edgediff.result import output_paths

MAX_BYTES = 64_000_000
"""Of a file of prompts; a million short lines have fewer."""
_SHOWN = 10
"""If no line can be used, this many are listed."""
_NO_JSON = "is not JSON"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A line of a file of prompts.

    line: its number, from 1. file: the file of prompts.
    output: the PNG of its image; for several seeds, see `paths`.
    inherited: names of the options that come from the defaults of all lines.
    error: why the line cannot be used; it counts as failed.
    request: the call, as resolved by `prepare_jobs` for its bundle.
    """

    line: int
    prompt: str
    options: Options
    output: Path
    file: Path | None = field(default=None, compare=False)
    inherited: frozenset[str] = field(default=frozenset(), compare=False)
    error: InputError | None = field(default=None, compare=False)
    request: Request | None = field(default=None, compare=False, repr=False)

    @property
    def where(self) -> str:
        """The name of the line in messages."""
        return f"line {self.line}" if self.file is None else f"{self.file}, line {self.line}"

    @functools.cached_property
    def paths(self) -> list[Path]:
        """The paths of its images: `output`, or NAME-SEED.png for each of several seeds."""
        seed = self.options.get("seed")
        return [self.output] if seed is None else output_paths(self.output, resolve_seeds(seed))

    def with_request(self, request: Request | None) -> Self:
        """The job with its resolved call. dataclasses.replace takes several times as long, which
        counts in a file of many lines."""
        found = copy.copy(self)
        object.__setattr__(found, "request", request)
        return found


def read_jobs(
    path: str | PathLike[str], out_dir: str | PathLike[str], defaults: Options | None = None
) -> list[Job]:
    """Read a file of prompts: JSON Lines, or only prompts if its name ends in .txt.

    A line is a prompt as a JSON string, or an object with `prompt`, any of `Options` by name, and
    `output`, the name of its PNG in `out_dir` (default: the line's number, as in 0007.png).
    Paths of images in options are relative to the file's folder. Empty lines are skipped.
    defaults: options for lines that do not set them.

    A pipe is read to its end. A line that cannot be used is a job with an `error`. Raises
    InputError if no line can be used, or if the file is empty, larger than MAX_BYTES, cannot be
    read, or is not text."""
    path, out_dir = Path(path), Path(out_dir)
    try:
        raw = read_to_end(path, MAX_BYTES).removeprefix(b"\xef\xbb\xbf")
    except OSError as e:
        reason = e.strerror or first_line(e)
        raise InputError(f"{path}: cannot be read ({reason}): give a file of prompts") from e
    if b"\0" in raw:
        raise InputError(f"{path}: is not UTF-8 text, it has zero bytes: give one prompt per line")
    plain = path.suffix.lower() == ".txt"
    jobs: list[Job] = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        output = out_dir / f"{number:04}.png"
        job = Job(line=number, prompt="", options={}, output=output, file=path)
        try:
            text = line.decode().strip()
            if text:
                fields = {"prompt": text} if plain else _parse(text)
                jobs.append(_filled(job, fields, defaults or {}))
        except UnicodeDecodeError:
            jobs.append(refused(job, InputError("is not UTF-8")))
        except InputError as e:
            jobs.append(refused(job, e))
    if not jobs:
        raise InputError(f"{path}: has no prompts: give one per line")
    if all(job.error is not None for job in jobs) and not _is_text(raw):
        raise InputError(f"{path}: is not UTF-8 text: give one prompt per line")
    if not plain and _is_array(raw):
        raise InputError(f"{path}: is a JSON array: put each item on its own line, without commas")
    return some_usable(_without_clashes(jobs))


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_array(raw: bytes) -> bool:
    if not raw.lstrip().startswith(b"["):
        return False
    try:
        return isinstance(json.loads(raw), list)
    except (ValueError, RecursionError):
        return False


def _parse(text: str) -> dict[str, Any]:
    """Parse a line of JSON into its fields. Raises InputError."""
    try:
        value = _DECODER.decode(text)
    except InputError:
        raise
    except (ValueError, RecursionError) as e:
        reason = first_line(e)
        if isinstance(e, json.JSONDecodeError):
            reason = f"{e.msg} at character {e.colno}"
        remedy = 'give {"prompt": "a red apple"} or "a red apple"'
        raise InputError(f"{_NO_JSON} ({reason}): {remedy}") from e
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise InputError(f"is {describe(value)}: give an object with a prompt, or a prompt")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = repeated_key(pairs)
    if twice is not None:
        raise InputError(f"has {twice!r} twice")
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_FIELDS = ("prompt", "output", *Options.__annotations__)


def _filled(job: Job, fields: dict[str, Any], defaults: Options) -> Job:
    """The job with the fields of its line. Raises InputError."""
    for name in fields:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(_FIELDS)}"
            raise InputError(f"has {name!r}: {remedy}")
    if "prompt" not in fields:
        raise InputError('has no prompt: give {"prompt": "a red apple"}')
    prompt = fields.pop("prompt")
    check_prompt("prompt", prompt)
    name = fields.pop("output", None)
    output = job.output if name is None else job.output.with_name(_file_name(name))
    kinds = _kinds()
    folder = Path() if job.file is None else job.file.parent
    own = {
        name: _option(kinds[name], value, folder)
        for name, value in fields.items()
        if value is not None
    }
    filled = Job(
        line=job.line,
        prompt=prompt,
        options=cast("Options", {**defaults, **own}),
        output=output,
        file=job.file,
        inherited=frozenset(defaults.keys() - own.keys()),
    )
    return checked(filled, lambda j: j.paths)  # paths need valid seeds


def _file_name(value: object) -> str:
    if not isinstance(value, str) or (value not in (".", "..") and not is_file_name(value)):
        raise InputError(
            f"output is {value!r}: expected a file's name that every system takes, such as fox.png"
        )
    if not value.lower().endswith(tuple(FORMATS)) or value.startswith("."):
        raise InputError(f"output is {value!r}: expected a name that ends in .png, .jpg or .webp")
    return value


@functools.cache
def _kinds() -> dict[str, Any]:
    """Option → its type."""
    return typing.get_type_hints(Options)


def checked(job: Job, check: Callable[[Job], object]) -> Job:
    """The job, with an error if `check` raises one."""
    if job.error is None:
        try:
            check(job)
        except InputError as e:
            return refused(job, e)
    return job


def refused(job: Job, error: InputError) -> Job:
    """The job with an error that spells the line's own options as the line does: by their Python
    names, with values in JSON."""

    def spell(option: str, value: object) -> str | None:
        if option in job.inherited:
            return None  # from the command line, which spells it as a flag
        return option if value is None else f"{option} {json.dumps(value)}"

    return dataclasses.replace(job, error=error.spelled(spell))


def _option(kind: Any, value: Any, folder: Path) -> Any:
    """Convert an option from JSON to the type in `Options`: resolve paths relative to `folder`, and
    build dataclasses from an object of their fields or from only their first field. Values that do
    not fit stay as they are; the checks of the call refuse them."""
    if not isinstance(value, str | dict):
        return value
    if isinstance(value, str) and _takes_path(kind):
        return str(folder / value)
    for member in typing.get_args(kind) if _is_union(kind) else (kind,):
        # Images are only ever given by their paths.
        if dataclasses.is_dataclass(member) and member is not OpenedImage:
            return _dataclass(cast("type[Any]", member), value, folder)
        if typing.get_origin(member) is Mapping and isinstance(value, dict):
            inner = typing.get_args(member)[1]
            return {name: _option(inner, item, folder) for name, item in value.items()}
    return value


def _dataclass(kind: type[Any], value: str | dict[str, Any], folder: Path) -> Any:
    first, *_ = hints = typing.get_type_hints(kind)
    raw = {first: value} if isinstance(value, str) else value
    given = {name: _option(hints.get(name), item, folder) for name, item in raw.items()}
    try:
        return kind(**given)
    except TypeError as e:
        names = ", ".join(field.name for field in dataclasses.fields(kind))
        raise InputError(f"has {describe(value)}: expected an object of {names}") from e


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


@functools.cache
def _takes_path(kind: Any) -> bool:
    """Whether the type allows a path."""
    if _is_union(kind):
        return any(map(_takes_path, typing.get_args(kind)))
    return typing.get_origin(kind) is os.PathLike


def _without_clashes(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, with an error if an image would overwrite that of an earlier line."""
    first: dict[str, int] = {}

    def check(job: Job) -> None:
        for path in job.paths:
            # Some file systems do not distinguish A from a.
            earlier = first.setdefault(path.name.casefold(), job.line)
            if earlier != job.line:
                raise InputError(f"{path.name} is already the output of line {earlier}")

    return [checked(job, check) for job in jobs]


def some_usable(jobs: list[Job]) -> list[Job]:
    """The jobs. Raises InputError if all have errors; equal errors become one message."""
    errors = [job.error for job in jobs if job.error is not None]
    if len(errors) < len(jobs) or not jobs:
        return jobs
    first = jobs[0]
    if len(jobs) == 1:
        raise InputError(f"{first.where}: {errors[0]}")
    head = (f"{first.file}: " if first.file else "") + f"none of {len(jobs)} lines can be used"
    texts = [str(error) for error in errors]
    if all(text.startswith(_NO_JSON) for text in texts):
        raise InputError(f"{head}, the first {errors[0]}; put prompts without options in a .txt")
    if len({*texts}) == 1:
        raise InputError(f"{head}: {errors[0]}")
    raise InputError("".join(_listed(head, jobs)))


def _listed(head: str, jobs: Collection[Job]) -> Iterator[str]:
    yield f"{head}:"
    for job in itertools.islice(jobs, _SHOWN):
        if job.error is not None:
            yield f"\n  line {job.line}: {job.error}"
    if len(jobs) > _SHOWN:
        yield f"\n  and {len(jobs) - _SHOWN} more"
