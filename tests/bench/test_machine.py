"""What the system tells of itself."""

import os
import sys
import time
from pathlib import Path

import pytest

from edgediff.bench import machine


def test_this_machine_describes_itself() -> None:
    found = machine.describe()
    assert found.cpu
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.system
    assert found.memory_bytes is None or found.memory_bytes > 100_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="Windows needs psutil for it")
def test_peak_memory_counts_what_this_process_took() -> None:
    before = machine.peak_memory()
    block = bytearray(50_000_000)
    block[::4096] = b"x" * len(block[::4096])
    after = machine.peak_memory()
    assert before is not None
    assert after is not None
    assert after >= 50_000_000


def test_a_watch_follows_a_process_and_sees_the_others() -> None:
    with machine.Watch() as watch:
        watch.follow(os.getpid())
        time.sleep(0.3)
        watch.follow(None)
    if Path("/proc/self/status").exists():
        assert watch.timeline
        times = [t for t, _ in watch.timeline]
        assert times == sorted(times)
        assert all(rss > 1_000_000 for _, rss in watch.timeline)
    conditions = watch.conditions()
    assert conditions.others is None or 0 <= conditions.others <= 1


def test_energy_counters_that_start_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "energy_uj").write_text("900\n")
    (package / "max_energy_range_uj").write_text("1000\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the package, and not to be counted twice
    monkeypatch.setattr(machine, "_RAPL", tmp_path)
    energy = machine.Energy()
    assert energy.read() == (900,)
    assert energy.joules((900,), (950,)) == pytest.approx(50e-6)
    assert energy.joules((900,), (100,)) == pytest.approx(200e-6)
    assert energy.joules(None, (1,)) is None


def test_no_energy_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_RAPL", tmp_path / "absent")
    assert machine.Energy().read() is None
