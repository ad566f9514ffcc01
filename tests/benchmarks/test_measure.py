"""benchmarks.measure: the order of runs, checks against a target, printed tables."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.measure import Check


def test_runs_are_interleaved_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = measure.interleave(runs, 2, pause=0)
    assert order == ["a", "b"] * 3
    assert {k: len(v) for k, v in seconds.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("value", "at_least", "met"),
    [(0.3, False, True), (0.33, False, True), (0.34, False, False), (0.3, True, False)],
)
def test_a_value_meets_its_target(value: float, at_least: bool, met: bool) -> None:
    check = Check(what="time", value=value, bar=0.33, at_least=at_least)
    assert check.met is met
    assert check.record()["met"] is met


def test_an_infinite_psnr_is_null_in_json(tmp_path: Path) -> None:
    check = Check(what="PSNR", value=float("inf"), bar=40, at_least=True)
    out = tmp_path / "out.json"
    measure.write_json(out, [check.record()])
    assert json.loads(out.read_text())[0] == {
        "what": "PSNR",
        "value": None,
        "bar": 40,
        "at_least": True,
        "unit": "",
        "met": True,
    }


def test_checks_show_value_target_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    measure.print_checks(
        [
            Check(what="time", value=0.5, bar=0.33),
            Check(what="PSNR", value=41.23, bar=40, at_least=True, unit=" dB"),
        ]
    )
    _, header, time, psnr = capsys.readouterr().out.splitlines()
    assert header.split() == ["measured", "value", "target", "verdict"]
    assert time.split() == ["time", "0.5", "≤", "0.33", "missed"]
    assert psnr.split() == ["PSNR", "41.2", "dB", "≥", "40", "dB", "met"]


def test_peak_memory_is_of_this_process() -> None:
    assert 10 < measure.peak_megabytes() < 1e5


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_of_a_process_by_kind() -> None:
    found = measure.process_memory(os.getpid())
    assert found["RssAnon"] > 1
    assert found["VmHWM"] >= found["RssAnon"]


def test_the_machine_names_what_decides_speed() -> None:
    found = measure.machine()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert {"onnxruntime", "edgediff"} <= found["versions"].keys()
