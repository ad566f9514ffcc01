"""Samples of the long runs: fuzzing, a soak, and kill -9; the commands do the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz, limits

ROOT = Path(__file__).parent.parent.parent


def run(name: str, *flags: object, statuses: tuple[int, ...] = (0,)) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert done.returncode in statuses, (done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@pytest.mark.slow
def test_mutated_inputs_are_taken_or_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    run("fuzz", "--cases", 300, "--seed", 7, "--state", state)
    found = json.loads(state.read_text())
    assert found["next"] == 300
    assert found["findings"] == []
    counts = found["counts"]
    assert counts["taken"] + counts["refused"] == 300
    assert min(counts["taken"], counts["refused"]) > 20
    assert {*fuzz.KINDS} <= {*counts}
    run("fuzz", "--cases", 320, "--seed", 7, "--state", state)  # goes on
    assert json.loads(state.read_text())["next"] == 320


@pytest.mark.slow
def test_a_crash_a_hang_and_a_foreign_error_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: with what a worker may do wrong in place of the worker."""
    worker = (
        "import sys, time\n"
        "first = int(sys.argv[sys.argv.index('--first') + 1])\n"
        "for k in range(first, 4):\n"
        "    print('begin', k, 'bundle', flush=True)\n"
        "    if k == 1: sys.exit(9)\n"
        "    if k == 2:\n"
        "        while True: pass\n"
        "    print('end', k, 'foreign: KeyError' if k == 3 else 'taken', flush=True)\n"
    )
    real = subprocess.Popen

    def fake(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", worker, *command[3:]], **options)

    monkeypatch.setattr(fuzz.subprocess, "Popen", fake)
    monkeypatch.setattr(fuzz, "HANG", 1.0)
    found = fuzz.run(0, 4, 0, [], None)
    assert found["findings"] == [
        "1 bundle: crash: status 9",
        "2 bundle: hang: no answer in 1 s",
        "3 bundle: foreign: KeyError",
    ]
    assert found["counts"]["taken"] == 1


@pytest.mark.slow
def test_limits_give_an_error_or_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"address-space": (150, 4000), "files": (5,), "processor": (1,)}
    if os.geteuid() == 0:
        kinds |= {"cgroup": (48, 1024), "disk": (4, 1024)}
    monkeypatch.setattr(limits, "STEPS", kinds)
    monkeypatch.setattr(sys, "argv", ["limits", "--json", str(tmp_path / "limits.json")])
    with pytest.raises(SystemExit) as e:
        limits.main()
    assert not e.value.code
    found = json.loads((tmp_path / "limits.json").read_text())["outcomes"]
    assert {*found} == {*kinds}
    assert found["address-space"] == {"150": "error", "4000": "image"}
    assert found["files"] == {"5": "image"}
    assert found["processor"] == {"1": "image"}
    if os.geteuid() == 0:
        assert found["cgroup"] == {"48": "error", "1024": "image"}
        assert found["disk"] == {"4": "error", "1024": "image"}


@pytest.mark.slow
def test_limits_without_root_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["limits", "--only", "cgroup"])
    with pytest.raises(SystemExit, match="need root"):
        limits.main()


@pytest.mark.slow
def test_a_process_does_not_grow() -> None:
    found = json.loads(run("soak", "--images", 320, "--loads", 40, statuses=(0, 1)))
    assert found["foreign"] == []
    assert found["growth"] < 0.05  # so soon, not every thread has drawn the largest image
    assert found["loads_growth"] < 0.01
    assert sum(found["outcomes"].values()) == 320
    assert found["outcomes"]["same"] > 10


@pytest.mark.slow
def test_a_kill_leaves_no_half_file(tmp_path: Path) -> None:
    run("kill", "--times", 4, "--only", "generate", "--only", "prompts", "--json", tmp_path / "k")
    for found in json.loads((tmp_path / "k").read_text()).values():
        assert found["wrong"] == []
