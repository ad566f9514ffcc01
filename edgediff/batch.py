"""Many prompts: a file with one a line, whose pictures are made once, however often it is run."""

import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from edgediff import __version__
from edgediff.bundle import Bundle
from edgediff.errors import EdgediffError, InputError, first_line
from edgediff.image import check_output, save_png
from edgediff.pipeline import Pipeline
from edgediff.record import read_record, without_defaults
from edgediff.result import Result, output_paths
from edgediff.samplers import Step
from edgediff.schema import describe
from edgediff.settings import Options, check_text, resolve, resolve_seeds
from edgediff.sheet import MAX_SIDE, contact_sheet

_SHOWN = 10
"""Of the lines that cannot be used, as many are named."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A line of a file of prompts.

    line: its number, from 1.
    output: the PNG of its picture; of several seeds, see `paths`.
    """

    line: int
    prompt: str
    options: Options
    output: Path

    @property
    def paths(self) -> list[Path]:
        """Where its pictures go: `output`, or NAME-SEED.png for each of several seeds."""
        return output_paths(self.output, resolve_seeds(self.options.get("seed")))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job.

    status: "made"; "kept", where its pictures were there already; or "failed".
    paths, seeds: of its pictures. result: of the call that made them, else None.
    error: why it failed, in text.
    """

    job: Job
    status: Literal["made", "kept", "failed"]
    paths: list[Path]
    seeds: list[int]
    result: Result | None = None
    error: str | None = None


def read_jobs(
    path: str | PathLike[str], out_dir: str | PathLike[str], defaults: Options | None = None
) -> list[Job]:
    """Read a file of prompts: JSON Lines, or, where its name ends in .txt, prompts alone.

    A line is a prompt as a JSON string, or an object with `prompt`, any of `Options` by name, and
    `output`, the name of its PNG in `out_dir`, which is the line's number if unset (0007.png).
    Pictures that an option names are looked for beside the file. Empty lines are left out.
    defaults: options for lines that do not have them.

    Raises InputError where the file cannot be read, has no prompt, or has lines that cannot be
    used: each is named with its number and what is wrong."""
    path, out_dir = Path(path), Path(out_dir)
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or first_line(e)
        raise InputError(f"{path}: cannot be read ({reason})") from e
    plain = path.suffix.lower() == ".txt"
    jobs: list[Job] = []
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(raw, 1):
        try:
            text = line.decode().strip()
            if text:
                fields = {"prompt": text} if plain else _parse(text)
                jobs.append(_job(number, fields, path.parent, out_dir, defaults or {}))
        except UnicodeDecodeError:
            problems.append((number, "is not UTF-8"))
        except InputError as e:
            problems.append((number, str(e)))
    problems += _clashes(jobs)
    if problems:
        raise InputError(_tell(path, problems))
    if not jobs:
        raise InputError(f"{path}: has no prompts: give one a line")
    return jobs


def prepare_jobs(jobs: Sequence[Job], bundle: Bundle) -> None:
    """Check every job against a bundle, and make the folder of its pictures.

    Raises InputError with what is wrong, by line; no folder is made then."""
    problems: list[tuple[int, str]] = []
    for job in jobs:
        try:
            resolve(bundle, job.prompt, job.options)
        except InputError as e:
            problems.append((job.line, str(e)))
    if problems:
        raise InputError(_tell(None, problems))
    for folder in dict.fromkeys(job.output.parent for job in jobs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"{folder}: cannot be made a folder ({e.strerror})") from e
    for job in jobs:
        for path in job.paths:
            check_output(path)


def kept(job: Job, bundle: Bundle) -> Outcome | None:
    """The job as done, where whole PNGs are there whose records say what it asks for; else None.

    By another provider or version of edgediff counts too. Raises InputError where the job cannot be
    done with this bundle."""
    seeds = resolve_seeds(job.options.get("seed"))
    drawn = job.options.get("seed") is None
    wanted = _comparable(json.loads(json.dumps(asdict(resolve(bundle, job.prompt, job.options)))))
    paths = job.paths
    for k, path in enumerate(paths):
        if not path.is_file():
            return None
        try:
            record = read_record(path)
            with path.open("rb") as f:
                PngImageFile(f).verify()
        except Exception:  # pillow raises almost anything on damaged files
            return None
        seed = record.get("seed")
        if drawn and isinstance(seed, int):
            seeds[k] = seed
        if _comparable(record) != wanted or seed != seeds[k]:
            return None
    return Outcome(job=job, status="kept", paths=paths, seeds=seeds)


def run_jobs(
    pipe: Pipeline, jobs: Sequence[Job], *, on_step: Callable[[Step], None] | None = None
) -> Iterator[Outcome]:
    """Do jobs in order, those alone whose pictures are not there, and yield what became of each.

    One that fails does not stop the others. Pictures are written whole or not at all: who stops
    half-way goes on by running the same jobs again. on_step: as in `Pipeline.generate`."""
    for job in jobs:
        try:
            done = kept(job, pipe.bundle)
            if done is None:
                result = pipe.generate(job.prompt, on_step=on_step, **job.options)
                paths = result.save(job.output)
                done = Outcome(
                    job=job, status="made", paths=paths, seeds=result.seeds, result=result
                )
        except EdgediffError as e:
            done = Outcome(job=job, status="failed", paths=[], seeds=[], error=str(e))
        yield done


def save_sheet(outcomes: Sequence[Outcome], path: str | PathLike[str]) -> Path:
    """Write one labelled sheet of the pictures of jobs to a PNG that carries what all of theirs
    say. Returns the path.

    Raises InputError where there is none, one cannot be read, or the sheet cannot be written."""
    path = Path(path)
    check_output(path)
    one_prompt = len({outcome.job.prompt for outcome in outcomes}) == 1
    paths, labels = [], []
    for outcome in outcomes:
        for picture_path, seed in zip(outcome.paths, outcome.seeds, strict=True):
            paths.append(picture_path)
            # The seed first: of a long prompt, the end does not fit.
            labels.append(f"seed {seed}" if one_prompt else f"seed {seed}: {outcome.job.prompt}")
    # No larger than they will be on the sheet: there may be thousands.
    side = math.ceil(MAX_SIDE / math.sqrt(max(1, len(paths))))
    pictures = []
    for picture_path in paths:
        try:
            with PngImageFile(picture_path) as picture:
                picture.thumbnail((side, side), Image.Resampling.LANCZOS)
                pictures.append(picture.convert("RGB"))
        except (OSError, SyntaxError) as e:
            raise InputError(f"{picture_path}: cannot be read ({first_line(e)})") from e
    title = outcomes[0].job.prompt if one_prompt else ""
    record = {"edgediff": __version__, "pictures": [read_record(p) for p in paths]}
    sheet = contact_sheet(pictures, labels, title=title)
    save_png(sheet, path, parameters=None, record=record)
    return path


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what need not be alike."""
    unlike = ("edgediff", "provider", "seed")
    return {k: v for k, v in without_defaults(record).items() if k not in unlike}


def _parse(text: str) -> dict[str, Any]:
    """A line of JSON → its fields. Raises InputError."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as e:
        reason = first_line(e)
        if isinstance(e, json.JSONDecodeError):
            reason = f"{e.msg} at character {e.colno}"
        remedy = 'give {"prompt": "a red apple"} or "a red apple"'
        raise InputError(f"is no JSON ({reason}): {remedy}") from e
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise InputError(f"is {describe(value)}: give an object with a prompt, or a prompt")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"has {twice!r} twice")
    return fields


def _job(line: int, fields: dict[str, Any], folder: Path, out_dir: Path, defaults: Options) -> Job:
    names = ("prompt", "output", *Options.__annotations__)
    for name in fields:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(names)}"
            raise InputError(f"has {name!r}: {remedy}")
    if "prompt" not in fields:
        raise InputError('has no prompt: give {"prompt": "a red apple"}')
    prompt = fields.pop("prompt")
    check_text("prompt", prompt)
    output = fields.pop("output", None)
    if output is None:
        output = f"{line:04}.png"
    if not isinstance(output, str) or not output or {*"/\\\0"} & {*output}:
        raise InputError(f"output is {output!r}: expected a file's name, such as fox.png")
    if not output.lower().endswith(".png") or output.startswith("."):
        raise InputError(f"output is {output!r}: expected a name that ends in .png")
    kinds = typing.get_type_hints(Options)
    own = {name: _option(kinds[name], value, folder) for name, value in fields.items()}
    options = cast("Options", {**defaults, **{n: v for n, v in own.items() if v is not None}})
    resolve_seeds(options.get("seed"))
    return Job(line=line, prompt=prompt, options=options, output=out_dir / output)


def _option(kind: Any, value: Any, folder: Path) -> Any:
    """An option as JSON has it → as `Options` has it: paths from `folder` on, and dataclasses, for
    an object of their fields or their first field alone. What does not fit is left as it is, for
    the checks of every call."""
    if isinstance(value, str) and _takes_path(kind):
        return str(folder / value)
    for member in typing.get_args(kind) if _is_union(kind) else (kind,):
        if dataclasses.is_dataclass(member) and isinstance(value, str | dict):
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


def _takes_path(kind: Any) -> bool:
    """Whether a path is among the types of which a value may be."""
    if _is_union(kind):
        return any(map(_takes_path, typing.get_args(kind)))
    return typing.get_origin(kind) is os.PathLike


def _clashes(jobs: Sequence[Job]) -> list[tuple[int, str]]:
    """The lines whose pictures would have the name of an earlier line's, by line."""
    first: dict[str, int] = {}
    problems = []
    for job in jobs:
        for path in job.paths:
            # As file systems compare them that take A and a for one.
            earlier = first.setdefault(path.name.casefold(), job.line)
            if earlier != job.line:
                problems.append((job.line, f"{path.name} is what line {earlier} writes"))
    return problems


def _tell(path: Path | None, problems: list[tuple[int, str]]) -> str:
    lines = [f"line {number}: {problem}" for number, problem in sorted(problems)]
    where = f"{path}, " if path else ""
    if len(lines) == 1:
        return f"{where}{lines[0]}"
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    head = f"{path}: " if path else ""
    return "\n  ".join([f"{head}{len(lines)} lines cannot be used:", *lines[:_SHOWN], *more])
