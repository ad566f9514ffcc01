"""Generate the images of a file of prompts; images that already exist are kept."""

import dataclasses
import difflib
import functools
import itertools
import json
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from edgediff._version import __version__
from edgediff.bundle.folder import Bundle
from edgediff.bundle.schema import describe
from edgediff.errors import Cancelled, EdgediffError, InputError, first_line
from edgediff.images.contact_sheet import MAX_SIDE, contact_sheet
from edgediff.images.png import FORMATS, check_output, save_image
from edgediff.pipeline import Pipeline
from edgediff.request.options import Options
from edgediff.request.record import check_whole, open_image, read_record, without_defaults
from edgediff.request.request import Request, check_prompt, resolve, resolve_seeds, with_prompt
from edgediff.result import Result, output_paths
from edgediff.run import Run
from edgediff.sampling.samplers import Step

_SHOWN = 10
"""If no line can be used, this many are listed."""
_NO_JSON = "is not JSON"
_KEPT_PIXELS = 30_000_000
"""Pixels of input images that stay in memory between checking and running the jobs; the images of
further jobs are read again."""


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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a job.

    status: "made"; "kept", if its images already existed; or "failed".
    paths, seeds: of its images. result: of the call that generated them, else None.
    error: why it failed, as text.
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
    """Read a file of prompts: JSON Lines, or only prompts if its name ends in .txt.

    A line is a prompt as a JSON string, or an object with `prompt`, any of `Options` by name, and
    `output`, the name of its PNG in `out_dir` (default: the line's number, as in 0007.png).
    Paths of images in options are relative to the file's folder. Empty lines are skipped.
    defaults: options for lines that do not set them.

    A line that cannot be used is a job with an `error`. Raises InputError if no line can be used,
    or if the file is empty, cannot be read, or is not text."""
    path, out_dir = Path(path), Path(out_dir)
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or first_line(e)
        raise InputError(f"{path}: cannot be read ({reason})") from e
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
            jobs.append(_refused(job, InputError("is not UTF-8")))
        except InputError as e:
            jobs.append(_refused(job, e))
    if not jobs:
        raise InputError(f"{path}: has no prompts: give one per line")
    if all(job.error is not None for job in jobs) and not _is_text(raw):
        raise InputError(f"{path}: is not UTF-8 text: give one prompt per line")
    if not plain and _is_array(raw):
        raise InputError(f"{path}: is a JSON array: put each item on its own line, without commas")
    return _some_usable(_without_clashes(jobs))


def prepare_jobs(jobs: Sequence[Job], bundle: Bundle) -> list[Job]:
    """Check every job against a bundle, and create the folder of its images. Returns the jobs;
    those that cannot run have an `error`.

    Raises InputError if no job can run, before any folder is created, and if a folder cannot be
    created."""
    checked = _some_usable(_resolved(jobs, bundle))
    for folder in dict.fromkeys(job.output.parent for job in checked if job.error is None):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"{folder}: the folder cannot be created ({e.strerror})") from e
    return _some_usable([_checked(job, _check_paths) for job in checked])


def kept(job: Job, bundle: Bundle) -> Outcome | None:
    """The outcome of a job whose images already exist: intact PNGs with the settings of the job in
    their records. None if there are no such images, or the job has an error.

    The provider and the versions of edgediff and onnxruntime may differ. Raises InputError if the
    job cannot run with this bundle."""
    paths = [] if job.error is not None else job.paths
    if not paths or not all(map(os.path.isfile, paths)):
        return None
    request = _request(job, bundle)
    seeds = list(request.seeds)
    drawn = job.options.get("seed") is None
    wanted = _comparable(json.loads(json.dumps(asdict(request.settings))))
    for k, path in enumerate(paths):
        try:
            record = read_record(path)
            check_whole(path)
        except InputError:
            return None
        seed = record.get("seed")
        if drawn and isinstance(seed, int):
            seeds[k] = seed
        if _comparable(record) != wanted or seed != seeds[k]:
            return None
    return Outcome(job=job, status="kept", paths=paths, seeds=seeds)


def run_jobs(
    pipe: Pipeline,
    jobs: Sequence[Job],
    *,
    on_step: Callable[[Step], None] | None = None,
    deadline: float | None = None,
    finish: Callable[[Run], Result] | None = None,
) -> Iterator[Outcome]:
    """Run jobs in order, except those whose images already exist, and yield each outcome.

    A job that fails does not stop the others. Images are written atomically: to resume after an
    interruption, run the same jobs again. on_step: as in `Pipeline.generate`.
    deadline: seconds for each job, which fails after that. finish: replaces `Run.result`, so that
    the caller can cancel a run.

    Raises Cancelled."""
    for job in jobs:
        try:
            if job.error is not None:
                raise job.error
            done = kept(job, pipe.bundle)
            if done is None:
                run = pipe.run(_request(job, pipe.bundle), deadline=deadline)
                result = run.result(on_step) if finish is None else finish(run)
                paths = result.save(job.output)
                done = Outcome(
                    job=job, status="made", paths=paths, seeds=result.seeds, result=result
                )
        except Cancelled:
            raise
        except EdgediffError as e:
            done = Outcome(job=job, status="failed", paths=[], seeds=[], error=str(e))
        yield done


def save_sheet(outcomes: Sequence[Outcome], path: str | PathLike[str]) -> Path:
    """Write one labelled sheet of the images of jobs to a PNG that contains the records of all of
    them. Returns the path.

    Raises InputError if there is no image, one cannot be read, or the sheet cannot be written."""
    path = Path(path)
    check_output(path)
    one_prompt = len({outcome.job.prompt for outcome in outcomes}) == 1
    paths, labels = [], []
    for outcome in outcomes:
        for image_path, seed in zip(outcome.paths, outcome.seeds, strict=True):
            paths.append(image_path)
            # The seed comes first, because a long prompt is cut off.
            labels.append(f"seed {seed}" if one_prompt else f"seed {seed}: {outcome.job.prompt}")
    # There may be thousands: keep them no larger than they are on the sheet.
    side = math.ceil(MAX_SIDE / math.sqrt(max(1, len(paths))))
    images = []
    for image_path in paths:
        with open_image(image_path) as image:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            images.append(image.convert("RGB"))
    title = outcomes[0].job.prompt if one_prompt else ""
    record = {"edgediff": __version__, "images": [read_record(p) for p in paths]}
    sheet = contact_sheet(images, labels, title=title)
    save_image(sheet, path, parameters=None, record=record)
    return path


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the fields that may differ."""
    unlike = ("edgediff", "onnxruntime", "provider", "seed")
    return {k: v for k, v in without_defaults(record).items() if k not in unlike}


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
        value = json.loads(text, object_pairs_hook=_unique)
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
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"has {twice!r} twice")
    return fields


def _filled(job: Job, fields: dict[str, Any], defaults: Options) -> Job:
    """The job with the fields of its line. Raises InputError."""
    names = ("prompt", "output", *Options.__annotations__)
    for name in fields:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(names)}"
            raise InputError(f"has {name!r}: {remedy}")
    if "prompt" not in fields:
        raise InputError('has no prompt: give {"prompt": "a red apple"}')
    prompt = fields.pop("prompt")
    check_prompt("prompt", prompt)
    output = fields.pop("output", None)
    if output is None:
        output = job.output.name
    if not isinstance(output, str) or not output or {*"/\\\0"} & {*output}:
        raise InputError(f"output is {output!r}: expected a file's name, such as fox.png")
    if not output.lower().endswith(tuple(FORMATS)) or output.startswith("."):
        raise InputError(f"output is {output!r}: expected a name that ends in .png, .jpg or .webp")
    kinds = _kinds()
    folder = Path() if job.file is None else job.file.parent
    own = {
        name: _option(kinds[name], value, folder)
        for name, value in fields.items()
        if value is not None
    }
    filled = dataclasses.replace(
        job,
        prompt=prompt,
        options=cast("Options", {**defaults, **own}),
        output=job.output.with_name(output),
        inherited=frozenset({*defaults} - {*own}),
    )
    return _checked(filled, lambda j: j.paths)  # paths need valid seeds


@functools.cache
def _kinds() -> dict[str, Any]:
    """Option → its type."""
    return typing.get_type_hints(Options)


def _checked(job: Job, check: Callable[[Job], object]) -> Job:
    """The job, with an error if `check` raises one."""
    if job.error is None:
        try:
            check(job)
        except InputError as e:
            return _refused(job, e)
    return job


def _resolved(jobs: Sequence[Job], bundle: Bundle) -> list[Job]:
    """The jobs with their requests, or with the errors from resolving them."""
    found, spare = [], _KEPT_PIXELS
    alike: dict[object, Request] = {}
    for job in jobs:
        if job.error is None:
            key = _likeness(job.options)
            try:
                if key in alike:
                    request = with_prompt(alike[key], job.prompt, job.options.get("seed"))
                else:
                    request = resolve(bundle, job.prompt, job.options)
                    if key is not None:
                        alike[key] = request
            except InputError as e:
                job = _refused(job, e)
            else:
                spare -= request.pixels
                job = dataclasses.replace(
                    job, request=request if spare >= 0 or not request.pixels else None
                )
        found.append(job)
    return found


def _likeness(options: Options) -> object | None:
    """What two lines have in common that differ in prompt and seed alone; None if there are images
    or values of a wrong type."""
    parts = []
    for name, value in options.items():
        if name == "seed":
            continue
        if not isinstance(value, str | bool | int | float | None):
            return None
        parts.append((name, type(value), value))
    return tuple(parts)


def _request(job: Job, bundle: Bundle) -> Request:
    """The job's call, resolved for a bundle. Raises InputError."""
    if job.request is not None and job.request.settings.bundle == bundle.id:
        return job.request
    return resolve(bundle, job.prompt, job.options)


def _check_paths(job: Job) -> None:
    for path in job.paths:
        check_output(path)


def _refused(job: Job, error: InputError) -> Job:
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

    return [_checked(job, check) for job in jobs]


def _some_usable(jobs: list[Job]) -> list[Job]:
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
