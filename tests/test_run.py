"""A call is resolved once, and its run can be stopped at any time."""

import concurrent.futures
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgediff
import edgediff.batch
import edgediff.images.source
import edgediff.pipeline
import edgediff.request.request
from edgediff.backend.cancellation import CancelToken
from edgediff.backend.run_stage import RunStage
from edgediff.batch import prepare_jobs, run_jobs
from edgediff.cli import main
from edgediff.errors import Cancelled, DeadlineExceeded, InputError
from edgediff.prompt_file import read_jobs


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> Iterator[edgediff.Pipeline]:
    with edgediff.load(tiny_bundle, threads=1) as pipe:
        yield pipe


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    return path


class Counts:
    """How often a call is resolved, images are decoded, and plans made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resolved = self.decoded = self.planned = 0
        edgediff.request.request._remembered_plan.cache_clear()
        resolve, plan = edgediff.request.request.resolve, edgediff.request.request.make_plan
        decode = edgediff.images.source._convert

        def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                setattr(self, name, getattr(self, name) + 1)
                return function(*arguments, **options)

            return call

        for module in (edgediff.request.request, edgediff.batch, edgediff.pipeline):
            monkeypatch.setattr(module, "resolve", counted("resolved", resolve))
        monkeypatch.setattr(edgediff.request.request, "make_plan", counted("planned", plan))
        monkeypatch.setattr(edgediff.images.source, "_convert", counted("decoded", decode))

    @property
    def all(self) -> tuple[int, int, int]:
        return self.resolved, self.decoded, self.planned


def test_a_call_by_the_api_is_resolved_once(
    pipe: edgediff.Pipeline, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counts(monkeypatch)
    pipe.generate("a fox", seed=0, init_image=photo)
    assert counts.all == (1, 1, 1)


def test_under_hires_each_pass_has_its_plan(
    pipe: edgediff.Pipeline, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counts(monkeypatch)
    pipe.generate("a fox", seed=0, init_image=photo, hires=2)
    assert counts.all == (1, 1, 2)


def test_a_call_by_the_command_line_is_resolved_once(
    tiny_bundle: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counts(monkeypatch)
    out = tmp_path / "out.png"
    typed = ["generate", "a fox", "-m", str(tiny_bundle), "--init", str(photo), "-o", str(out)]
    monkeypatch.setattr(sys, "argv", ["edgediff", *typed])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 0
    assert out.is_file()
    assert counts.all == (1, 1, 1)


@pytest.mark.usefixtures("photo")
def test_a_batch_job_is_resolved_once(
    pipe: edgediff.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "init_image": "photo.png"}\n')
    counts = Counts(monkeypatch)
    jobs = prepare_jobs(read_jobs(tmp_path / "p.jsonl", tmp_path / "out"), pipe.bundle)
    assert [o.status for o in run_jobs(pipe, jobs)] == ["made"]
    assert counts.all == (1, 1, 1)


@pytest.mark.usefixtures("photo")
def test_images_beyond_the_budget_are_read_again(
    pipe: edgediff.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = '{"prompt": "a", "init_image": "photo.png", "seed": 1}\n'
    (tmp_path / "p.jsonl").write_text(line * 3)
    monkeypatch.setattr(edgediff.batch, "_KEPT_PIXELS", 64 * 64)
    jobs = prepare_jobs(read_jobs(tmp_path / "p.jsonl", tmp_path / "out"), pipe.bundle)
    assert [job.request is not None for job in jobs] == [True, False, False]
    outcomes = list(run_jobs(pipe, jobs))
    assert [o.status for o in outcomes] == ["made"] * 3
    images = [np.asarray(Image.open(o.paths[0])) for o in outcomes]
    assert (images[0] == images[1]).all()
    assert (images[0] == images[2]).all()


def test_a_jobs_paths_draw_no_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(_: int) -> int:
        raise AssertionError("a seed was drawn")

    monkeypatch.setattr(edgediff.request.request.secrets, "randbelow", drawn)
    (tmp_path / "p.txt").write_text("a fox\n")
    (job,) = read_jobs(tmp_path / "p.txt", tmp_path)
    assert job.paths == job.paths == [tmp_path / "0001.png"]


def test_a_wrong_seed_is_refused_before_a_model_loads(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(edgediff.pipeline, "load", lambda *_, **__: pytest.fail("it was loaded"))
    typed = ["generate", "a", "-m", str(tiny_bundle), "-o", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", ["edgediff", *typed, "--seed", str(2**64)])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 2
    assert "--seed is 18446744073709551616" in capsys.readouterr().err


def test_a_request_runs_any_number_of_times(pipe: edgediff.Pipeline) -> None:
    request = pipe.resolve("a fox", steps=2)
    first, second = (pipe.run(request).result() for _ in range(2))
    assert first.seeds == second.seeds == list(request.seeds)
    assert (np.asarray(first.images[0]) == np.asarray(second.images[0])).all()
    assert first.settings.provider == "cpu"


def test_a_request_of_another_bundle_is_refused(pipe: edgediff.Pipeline) -> None:
    with edgediff.load() as other, pytest.raises(InputError, match="resolve it again"):
        other.run(pipe.resolve("a fox"))


def test_a_result_may_be_asked_for_at_any_step_and_again(pipe: edgediff.Pipeline) -> None:
    whole = pipe.generate("a fox", seed=4, steps=3)
    run = pipe.stream("a fox", seed=4, steps=3)
    next(run)
    result = run.result()
    assert result is run.result()
    assert len(result.timings.steps) == 3
    assert (np.asarray(result.images[0]) == np.asarray(whole.images[0])).all()


def test_nothing_runs_before_the_first_step_is_asked_for(pipe: edgediff.Pipeline) -> None:
    ran: list[str] = []
    run = pipe.run(pipe.resolve("a fox", steps=1), wrap=noting(ran))
    assert ran == []
    run.cancel()
    with pytest.raises(Cancelled):
        next(run)
    with pytest.raises(Cancelled):
        run.result()
    assert ran == []


def test_progress_names_every_phase(pipe: edgediff.Pipeline, photo: Path) -> None:
    seen: list[edgediff.Progress] = []
    result = pipe.generate(
        "a fox", seed=0, steps=4, init_image=photo, hires=2, on_progress=seen.append
    )
    phases = [phase for phase, _ in itertools.groupby(p.phase for p in seen)]
    assert phases == ["text_encoder", "encoder", "denoiser", "upscale", "denoiser", "decoder"]
    assert [p.step for p in seen] == sorted(p.step for p in seen)
    steps = len(result.timings.steps)
    assert {p.steps for p in seen} == {steps}
    assert seen[0].seconds_left is None
    assert seen[-1].step == steps
    assert seen[-1].seconds_left == 0
    assert all(p.seconds_left > 0 for p in seen if 0 < p.step < steps)
    assert set(result.timings.stages) == set(phases)
    assert result.timings.total >= sum(result.timings.stages.values())


def test_an_exception_from_on_progress_ends_the_run(pipe: edgediff.Pipeline) -> None:
    def stop(_: edgediff.Progress) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        pipe.generate("a fox", seed=0, steps=1, on_progress=stop)


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_wrong_deadline_is_refused(pipe: edgediff.Pipeline, deadline: Any) -> None:
    with pytest.raises(InputError, match="deadline"):
        pipe.generate("a fox", deadline=deadline)


def test_a_deadline_that_is_kept_changes_nothing(pipe: edgediff.Pipeline) -> None:
    threads = threading.active_count()
    plain = pipe.generate("a fox", seed=0, steps=2)
    limited = pipe.generate("a fox", seed=0, steps=2, deadline=600)
    assert (np.asarray(plain.images[0]) == np.asarray(limited.images[0])).all()
    end = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.01)  # a timer that was cancelled ends by itself
    assert threading.active_count() == threads


# The tiny bundle at a size at which one step takes some tenths of a second.
LARGE = {"steps": 50, "seed": 0, "size": 512, "guidance_scale": 1}
PROMPT = "a fox in the snow"
TOLERANCE = 1.5
"""Seconds; the tests share two cores with others. `benchmarks.cancelling` measures the latency."""


def noting(ran: list[str]) -> Callable[[RunStage], RunStage]:
    """Notes the stages that run."""

    def wrap(run_stage: RunStage) -> RunStage:
        def noted(stage: str, inputs: Any) -> Any:
            ran.append(stage)
            return run_stage(stage, inputs)

        return noted

    return wrap


def cut_short(pipe: edgediff.Pipeline, stage: str, **options: Any) -> tuple[float, bool]:
    """Cancel a run 50 ms after `stage` began: seconds from the cancel to the end of the run, and
    whether the stage was cut short."""
    told: list[float] = []
    finished: list[str] = []

    def cancel() -> None:
        told.append(time.monotonic())
        run.cancel()

    def wrap(run_stage: RunStage) -> RunStage:
        def runs(name: str, inputs: Any) -> Any:
            if name == stage and not told:
                threading.Timer(0.05, cancel).start()
            found = run_stage(name, inputs)
            finished.append(name)
            return found

        return runs

    run = pipe.run(pipe.resolve(PROMPT, **options), wrap=wrap)
    with pytest.raises(Cancelled):
        run.result()
    return time.monotonic() - told[0], stage not in finished


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("unet", LARGE),
        ("vae_encoder", {"init_image": np.zeros((2048, 2048, 3), np.uint8), "size": 2048}),
        ("vae_decoder", {"size": 768, "steps": 1, "guidance_scale": 1}),
    ],
)
def test_a_stage_is_cut_short(pipe: edgediff.Pipeline, stage: str, options: dict[str, Any]) -> None:
    before = reference(pipe)
    latency, unfinished = cut_short(pipe, stage, **{"seed": 0, **options})
    assert unfinished
    assert latency < TOLERANCE
    assert (np.asarray(reference(pipe)) == np.asarray(before)).all()  # it stays usable


def test_a_deadline_cuts_a_run_short(pipe: edgediff.Pipeline) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"deadline of 0\.3 s"):
        pipe.generate(PROMPT, deadline=0.3, **LARGE)
    assert 0.3 <= time.monotonic() - started < 0.3 + TOLERANCE
    with pytest.raises(TimeoutError):
        list(pipe.stream(PROMPT, deadline=0.01, **LARGE))


def reference(pipe: edgediff.Pipeline) -> Image.Image:
    return pipe.generate("a fox", seed=0, steps=1).images[0]


def test_other_threads_go_on_undisturbed(pipe: edgediff.Pipeline) -> None:
    expected = {seed: pipe.generate("a", seed=seed, steps=4).images[0] for seed in range(4)}

    def draw(seed: int) -> bool:
        found = pipe.generate("a", seed=seed, steps=4).images[0]
        return bool((np.asarray(found) == np.asarray(expected[seed])).all())

    def cancel(_: int) -> bool:
        run = pipe.stream("a", seed=1, steps=200)
        threading.Timer(0.02, run.cancel).start()
        with pytest.raises(Cancelled):
            run.result()
        return True

    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        tasks = [pool.submit(draw, k % 4) for k in range(16)]
        tasks += [pool.submit(cancel, k) for k in range(16)]
        assert all(task.result() for task in tasks)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to one process")
def test_ctrl_c_ends_a_step(tiny_bundle: Path, tmp_path: Path) -> None:
    typed = ["generate", PROMPT, "-m", str(tiny_bundle), "-o", "out.png", "--threads", "1"]
    typed += ["--size", "512x512", "--steps", "50", "--guidance", "1"]
    # A shell's background jobs ignore the signal and hand that down to the tests: undo it.
    listening = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from edgediff.cli import main; main()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", listening, *typed],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert running.stderr is not None
    with running:
        loaded = running.stderr.readline()
        assert "loaded in" in loaded
        time.sleep(0.3)
        before = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
        took = time.monotonic() - before
    assert running.returncode == 130
    assert "Interrupted" in err
    assert took < TOLERANCE
    assert list(tmp_path.iterdir()) == []


def test_a_second_thread_is_refused_and_does_no_harm(pipe: edgediff.Pipeline) -> None:
    inside, done = threading.Event(), threading.Event()
    run = pipe.stream("a fox", seed=0, steps=2)

    def wait(_: edgediff.Step) -> None:
        inside.set()
        assert done.wait(30)

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(run.result, wait)
        assert inside.wait(30)
        with pytest.raises(InputError, match="another thread is iterating this run"):
            run.result()
        with pytest.raises(InputError, match="another thread is iterating this run"):
            next(run)
        done.set()
        images = first.result().images
    expected = pipe.generate("a fox", seed=0, steps=2).images
    assert (np.asarray(images[0]) == np.asarray(expected[0])).all()


def test_an_error_that_ended_a_run_is_raised_again(pipe: edgediff.Pipeline) -> None:
    def stop(_: edgediff.Step) -> None:
        raise KeyError("stop")

    run = pipe.stream("a fox", seed=0, steps=2)
    for _ in range(2):
        with pytest.raises(KeyError, match="stop"):
            run.result(stop)
    with pytest.raises(KeyError, match="stop"):
        next(run)
    cancelled = pipe.stream("a fox", seed=0, steps=2)
    cancelled.cancel()
    for _ in range(2):
        with pytest.raises(Cancelled):
            list(cancelled)


def test_a_request_is_frozen_and_nothing_else_runs(pipe: edgediff.Pipeline) -> None:
    request = pipe.resolve("a fox")
    with pytest.raises(TypeError):
        request.controls["canny"] = None  # type: ignore[index]
    with pytest.raises(InputError, match="expected a Request"):
        pipe.run("a fox")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", ["12", {1: 2}])
def test_text_and_mappings_are_not_seeds(pipe: edgediff.Pipeline, seed: Any) -> None:
    with pytest.raises(InputError, match="`seed` is"):
        pipe.resolve("a fox", seed=seed)


def test_a_deadline_counts_from_the_call(
    pipe: edgediff.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = edgediff.pipeline.resolve

    def slow(*arguments: Any) -> edgediff.Request:
        time.sleep(0.2)
        return resolve(*arguments)

    monkeypatch.setattr(edgediff.pipeline, "resolve", slow)
    with pytest.raises(DeadlineExceeded):
        pipe.generate("a fox", seed=0, steps=1, deadline=0.1)


def test_a_long_operator_is_not_waited_for(tiny_bundle: Path) -> None:
    class Slow:
        """A session whose only operator takes two seconds."""

        def run(self, *_: object) -> None:
            time.sleep(2)

    with edgediff.load(tiny_bundle, threads=1) as pipe:
        session = pipe.stages.session(pipe.bundle.manifest.denoiser.name, {})
        fast, session._session = session._session, Slow()
        run = pipe.stream("a fox", seed=0, steps=1)
        threading.Timer(0.1, run.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            run.result()
        assert time.monotonic() - started < 1
        with pytest.raises(DeadlineExceeded):
            pipe.generate("a fox", seed=0, steps=1, deadline=0.2)
        assert time.monotonic() - started < 1.5
        session._session = fast
        # Whatever size was quick before, another one may be long.
        assert len(pipe.generate("a fox", seed=0, steps=1).images) == 1
        session._session = Slow()
        run = pipe.stream("a fox", seed=0, steps=1, size=128)
        threading.Timer(0.1, run.cancel).start()
        started = time.monotonic()
        with pytest.raises(Cancelled):
            run.result()
        assert time.monotonic() - started < 1


def test_a_stage_that_nothing_can_stop_needs_no_thread(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CancelToken, "wait", lambda *_: pytest.fail("a thread was started"))
    with edgediff.load(tiny_bundle, threads=1) as pipe:
        assert len(pipe.decode(np.zeros((1, 4, 8, 8), np.float32))) == 1
