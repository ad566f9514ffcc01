"""Generate the images of a file of prompts; images that already exist are kept."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from edgediff._version import __version__
from edgediff.bundle.folder import Bundle
from edgediff.errors import Cancelled, EdgediffError, InputError
from edgediff.images.contact_sheet import MAX_SIDE, contact_sheet
from edgediff.images.png import check_output, save_image
from edgediff.pipeline import Pipeline
from edgediff.prompt_file import Job, checked, refused, some_usable
from edgediff.request.options import Options
from edgediff.request.record import check_whole, open_image, read_record, without_defaults
from edgediff.request.request import Request, resolve, with_prompt
from edgediff.result import Result
from edgediff.run import Run
from edgediff.sampling.samplers import Step

_KEPT_PIXELS = 30_000_000
"""Pixels of input images that stay in memory between checking and running the jobs; the images of
further jobs are read again."""


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


def prepare_jobs(jobs: Sequence[Job], bundle: Bundle) -> list[Job]:
    """Check every job against a bundle, and create the folder of its images. Returns the jobs;
    those that cannot run have an `error`.

    Raises InputError if no job can run, before any folder is created, and if a folder cannot be
    created."""
    ready = some_usable(_resolved(jobs, bundle))
    for folder in dict.fromkeys(job.output.parent for job in ready if job.error is None):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"{folder}: the folder cannot be created ({e.strerror})") from e
    return some_usable(_writable(ready))


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
                job = refused(job, e)
            else:
                spare -= request.pixels
                job = job.with_request(request if spare >= 0 or not request.pixels else None)
        found.append(job)
    return found


def _likeness(options: Options) -> object | None:
    """The options that two lines share if they differ only in prompt and seed; None if there are
    images or values of a wrong type."""
    parts = []
    for name, value in options.items():
        if name == "seed":
            continue
        if isinstance(value, list) and all(type(item) in (int, float) for item in value):
            value = tuple(value)  # a size, or an interval
        elif not isinstance(value, str | bool | int | float | None):
            return None
        parts.append((name, type(value), value))
    return tuple(parts)


def _request(job: Job, bundle: Bundle) -> Request:
    """The job's call, resolved for a bundle. Raises InputError."""
    if job.request is not None and job.request.settings.bundle == bundle.id:
        return job.request
    return resolve(bundle, job.prompt, job.options)


def _writable(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, with an error if an image cannot be written. In a folder that can be written, only
    names that are taken are looked at."""
    taken: dict[Path, set[str]] = {}

    def check(job: Job) -> None:
        for path in job.paths:
            folder = path.parent
            if folder not in taken or path.name.casefold() in taken[folder]:
                check_output(path)
            if folder not in taken:
                with contextlib.suppress(OSError):
                    taken[folder] = {p.name.casefold() for p in folder.iterdir()}

    return [checked(job, check) for job in jobs]
