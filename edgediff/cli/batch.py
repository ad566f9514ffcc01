"""`edgediff generate --prompts`: generate the images of a file of prompts and report progress."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgediff.cli.flags import file_of
from edgediff.cli.report import duration, print_notes, print_path, print_prompt_notes
from edgediff.cli.running import Output, Runtime, finish, is_terminal
from edgediff.errors import InputError, one_line, printable

if TYPE_CHECKING:
    from edgediff.batch import Outcome
    from edgediff.errors import Spell
    from edgediff.prompt_file import Job
    from edgediff.request.options import Options

SHEET = "sheet.png"
"""The file of --grid, next to the images."""


def make_all(
    prompts: Path,
    out_dir: Path,
    defaults: "Options",
    runtime: Runtime,
    form: Output,
    spell: "Spell",
) -> None:
    """Generate the images that do not exist yet. Exit status 1 if a line failed, 130 after Ctrl-C.

    The model is loaded only if there is something to generate. defaults: options for lines that do
    not set them. spell: how options are typed on the command line."""
    from edgediff.batch import Outcome, kept, prepare_jobs, run_jobs, save_sheet
    from edgediff.images.png import check_output
    from edgediff.prompt_file import read_jobs

    bundle = runtime.bundle()
    with file_of("prompts"):
        jobs = read_jobs(prompts, out_dir, defaults)
    sheet = out_dir / SHEET if form.grid else None
    clash = InputError(f"its image would be {SHEET}, which is the sheet of `grid`")
    jobs = [
        dataclasses.replace(job, error=clash) if job.error is None and sheet in job.paths else job
        for job in jobs
    ]
    jobs = prepare_jobs(jobs, bundle)
    if sheet is not None:
        with file_of("grid"):
            check_output(sheet)
    status = _Status(jobs, as_json=form.as_json)
    todo = []
    for job in jobs:
        done = kept(job, bundle)
        if job.error is not None:
            error = str(job.error.spelled(spell))
            done = Outcome(job=job, status="failed", paths=[], seeds=[], error=error)
        if done is None:
            todo.append(job)
        else:
            status.add(done)
    try:
        if todo:
            pipe = runtime.load()
            status.start()
            for outcome in run_jobs(
                pipe,
                todo,
                deadline=runtime.deadline,
                finish=lambda run: finish(run, lambda _: status.show()),
            ):
                status.add(outcome, pipe.load_notes)
    except KeyboardInterrupt:
        status.finish(interrupted=True)
        raise click.exceptions.Exit(130) from None
    if sheet is not None and status.done:
        status.finish(save_sheet(status.done, sheet))
    else:
        status.finish()
    if status.failed:
        raise click.exceptions.Exit(1)


class _Status:
    """Reports the outcomes of the jobs: paths on stdout as they are written, the rest on stderr.

    On a terminal the last line shows the progress; elsewhere each image gets its own line."""

    def __init__(self, jobs: Sequence["Job"], *, as_json: bool) -> None:
        self._total = len(jobs)
        self._as_json = as_json
        self._outcomes: list[Outcome] = []
        self._printed: set[str] = set()
        self._started = self._latest = time.perf_counter()
        self._before = 0
        self._live = is_terminal()

    @property
    def failed(self) -> list["Outcome"]:
        return [outcome for outcome in self._outcomes if outcome.status == "failed"]

    def start(self) -> None:
        """Start generating; jobs that were kept or cannot run have been added before."""
        self._before = len(self._outcomes)
        kept = self._count("kept")
        if kept:
            click.echo(f"{kept} of {self._total} already exist", err=True)
        self._started = self._latest = time.perf_counter()
        self.show()

    def add(self, outcome: "Outcome", notes: Sequence[str] = ()) -> None:
        """Report an outcome. notes: those of the loaded stages; each is printed once."""
        self._clear()
        print_notes(note for note in notes if note not in self._printed)
        self._printed.update(notes)
        self._outcomes.append(outcome)
        self._latest = time.perf_counter()
        if not self._as_json:
            for path in outcome.paths:
                print_path(path)
        if outcome.status == "failed":
            click.echo(f"Failed: {_failure(outcome)}", err=True)
        if outcome.result is not None:
            print_prompt_notes(outcome.result, where=f"{outcome.job.where}: ")
            if not self._live:
                name, seconds = printable(outcome.job.output.name), outcome.result.timings.total
                click.echo(f"{self._text()}: {name}, {seconds:.2f} s", err=True)
        if outcome.status != "kept":
            self.show()

    def show(self) -> None:
        """Show the progress, on a terminal."""
        if self._live:
            click.echo(f"\r\x1b[K{self._text()}", err=True, nl=False)

    @property
    def done(self) -> list["Outcome"]:
        """The outcomes that have images, sorted by line."""
        done = [outcome for outcome in self._outcomes if outcome.status != "failed"]
        return sorted(done, key=lambda outcome: outcome.job.line)

    def finish(self, sheet: Path | None = None, *, interrupted: bool = False) -> None:
        self._clear()
        counts = {s: self._count(s) for s in ("made", "kept", "failed")}
        left = self._total - len(self._outcomes)
        seconds = time.perf_counter() - self._started
        if self._as_json:
            images = [_describe(o) for o in sorted(self._outcomes, key=lambda o: o.job.line)]
            answer = {"images": images, **counts, "left": left, "seconds": seconds}
            if sheet is not None:
                answer["sheet"] = str(sheet)
            click.echo(json.dumps(answer, indent=2))
        elif sheet is not None:
            print_path(sheet)
        if interrupted:
            click.echo(
                f"\nInterrupted: {counts['made'] + counts['kept']} of {self._total} are finished;"
                " run the same command again to continue.",
                err=True,
            )
            return
        if counts["kept"] == self._total:
            click.echo(f"All {self._total} already exist.", err=True)
            return
        took = f" in {duration(seconds)}" if counts["made"] else ""
        failed = f"{counts['failed']} of {self._total} failed:" if self.failed else "0 failed"
        click.echo(
            f"{counts['made']} generated{took}, {counts['kept']} already existed, {failed}",
            err=True,
        )
        for outcome in sorted(self.failed, key=lambda o: o.job.line):
            click.echo(f"  {_failure(outcome)}", err=True)

    def _count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self._outcomes)

    def _text(self) -> str:
        done = len(self._outcomes)
        text = f"{done}/{self._total}"
        if self._count("failed"):
            text += f", {self._count('failed')} failed"
        if done > self._before and done < self._total:
            per_job = (self._latest - self._started) / (done - self._before)
            elapsed = time.perf_counter() - self._latest
            left = max(0.0, per_job * (self._total - done) - elapsed)
            text += f", about {duration(left)} left"
        return text

    def _clear(self) -> None:
        if self._live:
            click.echo("\r\x1b[K", err=True, nl=False)


def _failure(outcome: "Outcome") -> str:
    return printable(f"{outcome.job.where}: {one_line(outcome.error or '')}")


def _describe(outcome: "Outcome") -> dict[str, Any]:
    images = zip(outcome.paths, outcome.seeds, strict=True)
    return {
        "line": outcome.job.line,
        "prompt": outcome.job.prompt,
        "status": outcome.status,
        "images": [{"path": str(path), "seed": seed} for path, seed in images],
        "error": outcome.error,
        "seconds": outcome.result.timings.total if outcome.result else None,
    }
