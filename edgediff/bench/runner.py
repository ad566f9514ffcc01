"""Measure a grid of configurations in turns, each in its own process.

If a process crashes, or the system kills it for its memory use, that is recorded and the others go
on.
"""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

from edgediff.backend.compile_cache import Outcome
from edgediff.bench import machine, results
from edgediff.bench.intervals import is_narrow, median_interval
from edgediff.bench.quality import compare
from edgediff.bench.results import Cold, Config, Operator, Placement, Result, Run, TimedImage
from edgediff.errors import InputError

_TIMELINE = 400
"""Most points kept of a memory timeline."""
_HEADROOM = 0.8
"""Share of the available memory that the processes of one group may take together."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A configuration and how to run it.

    inputs: the first line for the worker, as JSON. command: starts the worker. bundle: folder whose
    fixtures the image is compared with; None = no comparison."""

    config: Config
    inputs: dict[str, Any]
    command: tuple[str, ...] = (sys.executable, "-m", "edgediff.bench.worker")
    bundle: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop. width: of the median's 95 % interval, relative to the median.

    warm, most: fewest and most images per configuration. seconds: for the whole grid, None = no
    limit; configurations that it cuts short are reported. cold: process starts per configuration.
    answer: seconds to wait for an image before its process counts as hung."""

    width: float = 0.05
    warm: int = 5
    most: int = 50
    cold: int = 3
    seconds: float | None = 600.0
    answer: float = 900.0

    def __post_init__(self) -> None:
        if not 0 < self.width < 1:
            raise InputError(
                f"width is {self.width}: expected a fraction between 0 and 1, such as 0.05"
            )
        if not 1 <= self.warm <= self.most:
            raise InputError(f"runs {self.warm} to {self.most}: expected 1 or more, in that order")
        if self.cold < 0:
            raise InputError(f"cold is {self.cold}: expected 0 or more process starts")
        for name in ("seconds", "answer"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}: expected more than 0")


class WorkerError(Exception):
    """A worker ended, or reported an error; the text says which."""


class Worker:
    """A running worker process; a context manager that ends it.

    command: starts it. inputs: its first line. answer: seconds to wait for a line.
    environment: environment variables, None = those of this process."""

    def __init__(
        self,
        command: Sequence[str],
        inputs: dict[str, Any],
        *,
        answer: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._answer = answer
        # A file, not a pipe: a pipe that nothing reads would block the worker when it is full.
        self._stderr: IO[str] = tempfile.TemporaryFile(  # noqa: SIM115 (closed in __exit__)
            "w+", encoding="utf-8", errors="replace"
        )
        self.started = time.monotonic()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                encoding="utf-8",
                env=environment,
            )
        except OSError as e:
            self._stderr.close()
            raise WorkerError(f"{command[0]}: does not start ({e.strerror})") from e
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._send(inputs)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, request: str, event: str, **more: Any) -> dict[str, Any]:
        """Send `{"do": request}` and wait for `event`. Raises WorkerError."""
        self._send({"do": request, **more})
        return self.wait(event)

    def wait(self, event: str) -> dict[str, Any]:
        """The next line, which must be this event. Raises WorkerError."""
        try:
            line = self._lines.get(timeout=self._answer)
        except queue.Empty:
            raise WorkerError(f"no answer in {self._answer:g} s") from None
        if line is None:
            raise WorkerError(self._ending())
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            raise WorkerError(f"sent a line that is not JSON: {line[:80]!r}") from None
        if found.get("event") == "error":
            raise WorkerError(str(found.get("message")))
        if found.get("event") != event:
            raise WorkerError(f"sent {found.get('event')!r}, expected {event!r}")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._stderr.close()

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the process has ended: `wait` reports how
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()

    def _read(self) -> None:
        if self._process.stdout is not None:
            with self._process.stdout as lines:
                for line in lines:
                    self._lines.put(line)
        self._lines.put(None)

    def _ending(self) -> str:
        """How the process ended, in one line."""
        status = self._process.wait()
        if status < 0:
            name = signal.Signals(-status).name
            hint = ": out of memory?" if -status == 9 else ""
            return f"killed by {name}{hint}"
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().splitlines() if line.strip()]
        return f"ended with status {status}" + (f": {lines[-1][:300]}" if lines else "")


@dataclass
class _State:
    """The state of one configuration during the benchmark."""

    job: Job
    run: Run
    dead: bool = False

    @property
    def totals(self) -> list[float]:
        return [p.total for p in self.run.warm]


@dataclass
class Bench:
    """A benchmark in progress. `progress` is called with the current activity, the fraction done,
    and the estimated seconds left (None if unknown)."""

    jobs: Sequence[Job]
    budget: Budget
    out: Path
    versions: dict[str, str]
    progress: Callable[[str, float, float | None], None]
    operators: int = 0
    _states: list[_State] = field(default_factory=list)
    _interleaved: bool = True

    def run(self) -> Result:
        """Measure all configurations; `out` always holds a valid result.

        Raises InputError if it cannot be written."""
        self._begun, self._utc = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        self._machine = machine.describe()
        self._states = [_State(job, Run(config=job.config)) for job in self.jobs]
        self._done, self._all = 0, len(self.jobs) * (1 + self.budget.cold + self.budget.warm)
        with machine.Watch() as watch:
            self._watch = watch
            self._write(complete=False)
            for state in self._states:
                self._first(state)
            for _ in range(self.budget.cold):
                for state in self._alive():
                    self._cold(state)
            for group in self._groups():
                self._warm(group)
            if self.operators:
                for state in self._alive():
                    self._profile(state)
            return self._write(complete=not self._missing())

    def _alive(self) -> Iterator[_State]:
        return (state for state in self._states if not state.dead)

    def _start(self, job: Job, *, placement: bool = False) -> Worker:
        inputs = {**job.inputs, "placement": placement}
        return Worker(job.command, inputs, answer=self.budget.answer)

    @contextlib.contextmanager
    def _worker(self, state: _State, *, placement: bool = False) -> Iterator[Worker | None]:
        """A worker. If it ends early, its run is marked as failed."""
        try:
            worker = self._start(state.job, placement=placement)
        except WorkerError as e:
            self._fail(state, e)
            yield None
            return
        with worker:
            try:
                yield worker
            except WorkerError as e:
                self._fail(state, e)

    def _fail(self, state: _State, error: WorkerError) -> None:
        state.dead = True
        state.run = replace(state.run, status="failed", error=str(error))
        self._write(complete=False)

    def _first(self, state: _State) -> None:
        """An untimed run, for memory, placement and the image; it also fills the caches."""
        self._report(f"{state.job.config.label}: first run")
        before = machine.gpu_memory()
        with self._worker(state, placement=True) as worker:
            if worker is None:
                return
            self._watch.timeline.clear()
            self._watch.follow(worker.pid)
            started = time.monotonic() - self._begun
            worker.wait("started")
            loaded = worker.wait("loaded")
            worker.ask("image", "image")
            image = worker.ask("image", "image")  # memory may peak in the second one
            self._watch.follow(None)
            gpu = max((m for m in (self._watch.gpu_peak, machine.gpu_memory()) if m), default=None)
            shown = worker.ask("show", "shown")
            caches = shown["caches"]
            run = replace(
                state.run,
                config=replace(state.job.config, provider=loaded["provider"]),
                peak_bytes=image["peak_bytes"],
                gpu_peak_bytes=None if before is None or gpu is None else gpu - before,
                memory=_thin(self._watch.timeline, started),
                placement={
                    stage: {p: Placement(nodes=n, partitions=k) for p, (n, k) in parts.items()}
                    for stage, parts in shown["placement"].items()
                },
                image_png=shown["png"],
                quality=compare(state.job.bundle, state.job.config, shown["png"]),
                cache=_summary(caches),
                caches=caches,
                notes=tuple(shown["notes"]),
            )
            state.run = run
        self._watch.follow(None)
        self._step()

    def _cold(self, state: _State) -> None:
        self._report(f"{state.job.config.label}: process start to first image")
        with self._worker(state) as worker:
            if worker is None:
                return
            begun = worker.wait("started")
            loaded = worker.wait("loaded")
            image = worker.ask("image", "image")
            cold = Cold(
                first_image=image["at"] - worker.started,
                interpreter=begun["at"] - worker.started,
                imports=loaded["imports"],
                load=loaded["load"],
                stages=image["stages"],
            )
            state.run = replace(state.run, cold=(*state.run.cold, cold))
        self._step()

    def _groups(self) -> Iterator[list[_State]]:
        """Groups of runs whose processes fit into memory together, so that they can take turns."""
        free = machine.available_memory()
        limit = float("inf") if free is None else _HEADROOM * free
        groups: list[list[_State]] = [[]]
        taken = 0.0
        for state in self._alive():
            need = state.run.peak_bytes or 0
            if groups[-1] and taken + need > limit:
                groups.append([])
                taken = 0.0
            groups[-1].append(state)
            taken += need
        self._interleaved = len(groups) == 1
        yield from (group for group in groups if group)

    def _warm(self, group: list[_State]) -> None:
        """Measure images in turns until every interval is narrow enough or the budget is spent."""
        energy = machine.Energy()
        with contextlib.ExitStack() as stack:
            workers: dict[int, Worker] = {}
            for k, state in enumerate(group):
                try:
                    worker = stack.enter_context(self._start(state.job))
                    worker.wait("started")
                    worker.wait("loaded")
                    worker.ask("image", "image")  # warm-up, not counted
                    workers[k] = worker
                except WorkerError as e:
                    self._fail(state, e)
            for n in range(self.budget.most):
                for k, state in enumerate(group):
                    if k not in workers:
                        continue
                    self._report(f"{state.job.config.label}: image {n + 1}")
                    try:
                        before = energy.read()
                        found = workers[k].ask("image", "image")
                        joules = energy.joules(before, energy.read())
                    except WorkerError as e:
                        self._fail(state, e)
                        del workers[k]
                        continue
                    image = TimedImage(
                        total=found["total"],
                        text_encoder=found["text_encoder"],
                        steps=tuple(found["steps"]),
                        decoder=found["decoder"],
                        joules=joules,
                    )
                    state.run = replace(state.run, warm=(*state.run.warm, image))
                    if n < self.budget.warm:
                        self._step()
                alive = [group[k] for k in workers]
                narrow = [is_narrow(state.totals, self.budget.width) for state in alive]
                for state, settled in zip(alive, narrow, strict=True):
                    state.run = replace(state.run, status="measured", narrow=settled)
                self._write(complete=False)
                if not alive or (n + 1 >= self.budget.warm and all(narrow)):
                    return
                if n + 1 >= self.budget.warm and self._over():
                    return

    def _profile(self, state: _State) -> None:
        self._report(f"{state.job.config.label}: profile")
        with self._worker(state) as worker:
            if worker is None:
                return
            worker.wait("started")
            worker.wait("loaded")
            found = worker.ask("profile", "profiled", top=self.operators)
            operators = {
                stage: tuple(Operator(name=n, seconds=s, share=h) for n, s, h in slowest)
                for stage, slowest in found["operators"].items()
            }
            state.run = replace(state.run, operators=operators)
        self._write(complete=False)

    def _over(self) -> bool:
        bound = self.budget.seconds
        return bound is not None and time.monotonic() - self._begun > bound

    def _step(self) -> None:
        self._done += 1
        self._write(complete=False)

    def _report(self, activity: str) -> None:
        share = min(1.0, self._done / self._all)
        spent = time.monotonic() - self._begun
        self.progress(activity, share, spent / share * (1 - share) if share > 0 else None)

    def _missing(self) -> list[str]:
        missing = []
        for state in self._states:
            label = state.job.config.label
            if state.run.status == "failed":
                missing.append(f"{label}: {state.run.error}")
            elif state.run.status == "pending":
                missing.append(f"{label}: not measured yet")
            elif not state.run.narrow:
                width = median_interval(state.totals).relative_width
                wanted = self.budget.width
                missing.append(
                    f"{label}: the 95 % interval of the median is {width:.1%} wide,"
                    f" not {wanted:.1%}"
                )
        return missing

    def _write(self, *, complete: bool) -> Result:
        result = Result(
            started=self._utc,
            complete=complete,
            missing=tuple(self._missing()),
            interleaved=self._interleaved and len(self.jobs) > 1,
            machine=self._machine,
            conditions=self._watch.conditions(),
            versions=self.versions,
            runs=tuple(state.run for state in self._states),
        )
        results.write(self.out, result)
        return result


def _thin(timeline: Sequence[tuple[float, int]], start: float) -> tuple[tuple[float, ...], ...]:
    """At most _TIMELINE points, in seconds since `start`; each bin keeps its largest."""
    size = max(1, -(-len(timeline) // _TIMELINE))
    bins = [timeline[k : k + size] for k in range(0, len(timeline), size)]
    largest = [max(points, key=lambda point: point[1]) for points in bins]
    return tuple((round(t - start, 3), float(rss)) for t, rss in largest)


def _summary(caches: dict[str, dict[str, Outcome]]) -> Outcome | None:
    """Either "miss", if anything was compiled, or "hit"; None if the provider does not compile."""
    found = {outcome for kinds in caches.values() for outcome in kinds.values()}
    return ("miss" if "miss" in found else "hit") if found else None
