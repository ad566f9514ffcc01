"""The order of runs, when they stop, and workers that fail."""

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgediff.bench import machine, results
from edgediff.bench.results import Config, Result
from edgediff.bench.runner import Bench, Budget, Job
from edgediff.errors import InputError

FAKE = Path(__file__).parent / "fake_worker.py"


def job(config: Config, label: str, *arguments: object) -> Job:
    return Job(
        config=replace(config, label=label),
        inputs={},
        command=(sys.executable, str(FAKE), *map(str, arguments)),
    )


def run(out: Path, *jobs: Job, **budget: Any) -> tuple[Result, list[str]]:
    """The result, and what was done in which order."""
    told: list[str] = []
    bench = Bench(
        jobs=jobs,
        budget=Budget(**{"cold": 1, "answer": 20.0, **budget}),
        out=out,
        versions={"edgediff": "0"},
        progress=lambda what, _share, _left: told.append(what),
    )
    return bench.run(), told


def test_runs_take_turns_and_stop_when_both_are_known(tmp_path: Path, config: Config) -> None:
    out = tmp_path / "out.json"
    result, told = run(out, job(config, "A", 1.0), job(config, "B", 2.0), warm=3)
    warm = [line for line in told if "image" in line and "process" not in line]
    assert warm[:4] == ["A: image 1", "B: image 1", "A: image 2", "B: image 2"]
    a, b = result.runs
    # Six is the fewest that can bound a median with 95 %.
    assert len(a.warm) == len(b.warm) == 6
    assert a.narrow
    assert result.complete
    assert result.interleaved
    assert not result.missing
    assert [c.first_image > c.interpreter > 0 for c in a.cold] == [True]
    assert a.placement["unet"]["CPUExecutionProvider"].partitions == 2
    assert a.peak_bytes == 1_000_000
    assert results.read(out) == result


def test_what_is_not_narrow_is_said(tmp_path: Path, config: Config) -> None:
    result, _ = run(tmp_path / "out.json", job(config, "A", 1.0), warm=2, most=2, width=0.001)
    assert not result.complete
    assert result.missing == ("A: the 95 % interval of the median is 2.0% wide, not 0.1%",)
    assert not result.interleaved


@pytest.mark.parametrize(
    ("how", "after", "said"),
    [
        ("crash", 1, "ended with status 1: Segmentation of thought"),
        ("kill", 1, "killed by SIGKILL: out of memory?"),
        ("kill", 3, "killed by SIGKILL: out of memory?"),
        ("refuse", 2, "unet.onnx: the run failed"),
        ("babble", 1, "sent a line that is not JSON: 'no JSON"),
    ],
)
def test_a_worker_that_fails_is_a_result_and_not_the_end(
    how: str, after: int, said: str, tmp_path: Path, config: Config
) -> None:
    result, _ = run(
        tmp_path / "out.json", job(config, "A", 1.0, how, after), job(config, "B", 1.0), warm=2
    )
    a, b = result.runs
    assert a.status == "failed"
    assert a.error.startswith(said)
    assert b.status == "measured"
    assert not result.complete
    assert result.missing[0].startswith(f"A: {said}")


def test_what_was_compiled_is_recorded(tmp_path: Path, config: Config) -> None:
    out = tmp_path / "out.json"
    run(out, job(config, "A", 1.0, "compile"), job(config, "B", 1.0), warm=1, most=1)
    a, b = results.read(out).runs
    assert a.cache == "miss"
    assert a.caches == {"unet": {"engine": "miss", "timing": "hit"}}
    assert a.notes == ("unet.onnx: runs without a CUDA graph",)
    assert (b.cache, b.caches, b.notes) == (None, {}, ())


@pytest.mark.parametrize(
    ("readings", "expected"),
    [([100, 900, 700], 800), ([100, 100, 700], 600), ([None, None, None], None)],
)
def test_memory_of_the_gpu_is_the_most_that_was_seen(
    readings: list[int | None],
    expected: int | None,
    tmp_path: Path,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the process, while it runs, and after its second image."""
    before, during, after = readings

    def used() -> int | None:
        if threading.current_thread() is not threading.main_thread():
            return during
        asked.append(None)
        return before if len(asked) == 1 else after

    asked: list[None] = []
    monkeypatch.setattr(machine, "gpu_memory", used)
    monkeypatch.setattr(machine, "_SECONDS", 0.001)
    result, _ = run(tmp_path / "out.json", job(config, "A", 1.0), cold=0, warm=1, most=1)
    assert result.runs[0].gpu_peak_bytes == expected


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended(tmp_path: Path, config: Config) -> None:
    result, _ = run(tmp_path / "out.json", job(config, "A", 1.0, "hang"), answer=1.5)
    assert result.runs[0].error == "no answer in 1.5 s"


def test_a_command_that_is_not_there_fails_alone(tmp_path: Path, config: Config) -> None:
    absent = replace(job(config, "A"), command=(str(tmp_path / "absent"),))
    result, _ = run(tmp_path / "out.json", absent, job(config, "B", 1.0))
    assert "does not start" in result.runs[0].error
    assert result.runs[1].status == "measured"


def test_what_stands_is_valid_at_every_moment(tmp_path: Path, config: Config) -> None:
    out = tmp_path / "out.json"
    seen: list[Result] = []
    bench = Bench(
        jobs=[job(config, "A", 1.0), job(config, "B", 1.0)],
        budget=Budget(cold=1, warm=2),
        out=out,
        versions={},
        progress=lambda *_: seen.append(results.read(out)),
    )
    bench.run()
    assert seen[0].missing == ("A: not measured yet", "B: not measured yet")
    assert not any(result.complete for result in seen)
    assert len({len(result.runs[1].warm) for result in seen}) > 2


def test_processes_that_do_not_fit_side_by_side_run_one_after_the_other(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgediff.bench.machine.available_memory", lambda: 2_000_000)
    result, told = run(
        tmp_path / "out.json", job(config, "A", 1.0), job(config, "B", 1.0), warm=1, most=2
    )
    warm = [line for line in told if "image" in line and "process" not in line]
    assert warm == ["A: image 1", "A: image 2", "B: image 1", "B: image 2"]
    assert not result.interleaved


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"width": 0.0}, "width is 0.0"),
        ({"width": float("nan")}, "width is nan"),
        ({"warm": 0}, "runs 0 to 50"),
        ({"warm": 5, "most": 4}, "runs 5 to 4"),
        ({"cold": -1}, "cold is -1"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"answer": -1.0}, r"answer is -1\.0"),
    ],
)
def test_budgets_that_make_no_sense(budget: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Budget(**budget)


def test_a_result_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match="cannot be read"):
        results.read(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        results.read(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="format_version is None, expected 1"):
        results.read(path)
    path.write_text(json.dumps({"format_version": 1, "started": 3}))
    with pytest.raises(InputError, match=r"x\.json"):
        results.read(path)
