"""A training run counts samples, resumes, pauses, and falls to a low rate at its end."""

import threading
import time
from pathlib import Path

import pytest
import torch
from demo_model.training_run import TrainingRun


def _run(
    path: Path, samples: int, pause: Path | None = None
) -> tuple[TrainingRun, torch.nn.Linear]:
    layer = torch.nn.Linear(2, 2)
    return TrainingRun(path, {"layer": layer}, samples=samples, log=print, pause=pause), layer


def test_it_ends_when_the_samples_are_seen(tmp_path: Path) -> None:
    run, _ = _run(tmp_path / "a.ckpt", 100)
    steps = []
    for step in run.steps():
        steps.append(step)
        run.note(8, loss=1.0)
    assert steps == [*range(13)]
    assert run.progress == 1


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run, layer = _run(tmp_path / "a.ckpt", 64)
    for _ in run.steps():
        run.note(16)
    again, other = _run(tmp_path / "a.ckpt", 128)
    assert torch.equal(layer.weight, other.weight)
    assert (again.step, again.seen) == (4, 64)
    for _ in again.steps():
        again.note(16)
    assert again.seen == 128
    finished, _ = _run(tmp_path / "a.ckpt", 128)
    assert list(finished.steps()) == []


def test_it_sleeps_while_the_pause_file_exists(tmp_path: Path) -> None:
    pause = tmp_path / "PAUSE"
    pause.touch()
    run, _ = _run(tmp_path / "a.ckpt", 8, pause)
    timer = threading.Timer(0.3, pause.unlink)
    start = time.monotonic()
    timer.start()
    for _ in run.steps():
        run.note(8)
    timer.join()
    assert time.monotonic() - start > 0.3
    assert run.minutes * 60 < 0.3  # a pause is no training
    assert (tmp_path / "a.ckpt").exists()


def test_the_rate_warms_up_and_falls(tmp_path: Path) -> None:
    run, layer = _run(tmp_path / "a.ckpt", 1000)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    rates = []
    for _ in run.steps():
        run.set_rate(optimizer, 2.0, warm_up=10)
        rates.append(optimizer.param_groups[0]["lr"])
        run.note(10)
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=0.05)
    assert rates[-1] < 0.05
