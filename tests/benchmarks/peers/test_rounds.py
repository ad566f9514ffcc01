"""Peers take turns; one that fails is left out by name and the others go on."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import results, table
from benchmarks.peers.__main__ import _earlier
from benchmarks.peers.results import Measured, Result, Settings
from benchmarks.peers.rounds import Entrant, Rounds
from edgediff.bench.results import write
from edgediff.errors import InputError

FAKE = Path(__file__).parent / "fake_worker.py"
SETTINGS = Settings(
    shape="sd1",
    prompt="a fox",
    seed=0,
    width=4,
    height=2,
    steps=2,
    rounds=2,
    warm=1,
    clear=3.0,
)


class Bench:
    """Made-up peers, and a log of their runs."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "starts"
        self.log.touch()
        self.out = folder / "out.json"
        self.told: list[str] = []

    def peer(self, name: str, seconds: float, *how: object, **more: Any) -> Entrant:
        colour = more.pop("colour", "red")
        return Entrant(
            known=Measured(name=name, model_bytes=10, installed_bytes=20, versions={"fake": "1"}),
            command=tuple(map(str, (sys.executable, FAKE, seconds, self.log, name, *how))),
            inputs={"width": 4, "height": 2, "colour": colour},
            **more,
        )

    def run(self, *peers: Entrant, **more: Any) -> Result:
        return Rounds(
            entrants=peers,
            settings=more.pop("settings", SETTINGS),
            environment=dict(os.environ),
            write=lambda result: write(self.out, result),
            tell=self.told.append,
            answer=30.0,
            **more,
        ).run()

    @property
    def starts(self) -> list[str]:
        return self.log.read_text().split()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_they_take_turns_and_a_cache_is_filled_before(bench: Bench) -> None:
    result = bench.run(bench.peer("A", 1.0), bench.peer("B", 2.0, compiles=True))
    assert bench.starts == ["B", "A", "B", "A", "B"]
    a, b = result.peers
    assert [w.total for w in a.warm] == [1.0, 1.0]
    assert len(b.cold) == 2
    assert a.cold[0].first_picture > 0
    assert a.cold[0].load == 0.2
    assert b.peak_bytes == 3_000_000  # of all its processes the largest
    assert result.complete
    assert results.read(bench.out) == result


def test_one_that_is_clearly_slower_draws_once(bench: Bench) -> None:
    result = bench.run(
        bench.peer("A", 1.0), bench.peer("B", 3.1), bench.peer("edgediff", 2.9), reference="A"
    )
    assert bench.starts == ["A", "B", "edgediff", "A", "edgediff"]
    rows = [dict(zip(table.HEADER, row, strict=True)) for row in table.rows(result)]
    assert [r["images"] for r in rows] == ["4", "2", "4"]
    assert [r["warm ratio"] for r in rows] == ["1", "3.10", "2.90"]


def test_edgediff_is_not_what_makes_others_slow(bench: Bench) -> None:
    bench.run(bench.peer("A", 4.0), bench.peer("edgediff", 1.0))
    assert bench.starts == ["A", "edgediff", "A", "edgediff"]


def test_an_earlier_run_goes_on(bench: Bench) -> None:
    """Round by round, as one run would; a peer that has changed starts over."""
    first = bench.run(bench.peer("A", 1.0), bench.peer("B", 3.0), reference="A")
    changed = bench.peer("B", 2.0)
    changed = replace(changed, known=replace(changed.known, versions={"fake": "2"}))
    settings = replace(SETTINGS, rounds=3)
    again = bench.run(bench.peer("A", 1.0), changed, settings=settings, before=first)
    assert bench.starts == ["A", "B", "A", "B", "A", "B"]
    a, b = again.peers
    assert [c.round for c in a.cold] == [w.round for w in a.warm] == [1, 2, 3]
    assert [(w.round, w.total) for w in b.warm] == [(3, 2.0)]
    assert again.started == first.started
    assert [row[table.HEADER.index("warm ratio")] for row in table.rows(again)] == ["1", "2.00"]


def test_peers_that_are_not_asked_for_stay_and_new_ones_get_a_round(bench: Bench) -> None:
    first = bench.run(bench.peer("A", 1.0), bench.peer("B", 2.0))
    again = bench.run(bench.peer("C", 1.5), before=first)
    assert bench.starts == ["A", "B", "A", "B", "C"]
    assert {p.name: len(p.cold) for p in again.peers} == {"A": 2, "B": 2, "C": 1}
    assert {p.status for p in again.peers} == {"measured"}


def test_an_earlier_run_of_other_settings_is_refused(bench: Bench) -> None:
    bench.run(bench.peer("A", 1.0))
    assert _earlier(bench.out, replace(SETTINGS, rounds=9, clear=2.0)) is not None
    assert _earlier(bench.out.with_name("none"), SETTINGS) is None
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        _earlier(bench.out, replace(SETTINGS, steps=8))
    found = results.read(bench.out)
    write(bench.out, replace(found, machine=replace(found.machine, cpu="Abacus")))
    with pytest.raises(SystemExit, match="on another machine, Abacus"):
        _earlier(bench.out, SETTINGS)


def test_one_that_fails_is_left_out_by_name(bench: Bench) -> None:
    result = bench.run(bench.peer("A", 1.0, "crash", 2), bench.peer("B", 2.0))
    assert bench.starts == ["A", "B", "A", "B"]
    assert [p.status for p in result.peers] == ["left out", "measured"]
    (line,) = table.left_out(result)
    assert line.startswith("A: ended with status 1: ImportError: libpicture.so")
    assert [row[0] for row in table.rows(result)] == ["B"]


def test_one_that_draws_another_size_is_left_out(bench: Bench) -> None:
    result = bench.run(bench.peer("A", 1.0, "small"))
    assert "generated (1, 1, 3) pixels, expected (2, 4, 3)" in result.peers[0].reason
    assert table.rows(result) == []
    assert table.checks(result) == []


def test_one_that_is_not_installed_stays_in_the_result(bench: Bench) -> None:
    missing = Measured(name="C", status="left out", reason="pip ended with status 1: no wheel")
    result = bench.run(bench.peer("A", 1.0), left_out=[missing])
    assert table.left_out(result) == ["C: pip ended with status 1: no wheel"]


def test_images_are_compared_with_the_reference(bench: Bench) -> None:
    result = bench.run(
        bench.peer("A", 1.0),
        bench.peer("B", 1.0),
        bench.peer("C", 1.0, colour="blue"),
        bench.peer("D", 1.0, colour="blue", differs=True),
        reference="A",
    )
    a, b, c, d = result.peers
    assert (a.psnr_db, a.equal) == (None, False)
    assert (b.psnr_db, b.equal) == (None, True)
    assert (d.psnr_db, d.equal) == (None, False)
    assert [row[-1] for row in table.rows(result)] == ["–", "equal", "1.8 dB", "–"]
    assert c.psnr_db == pytest.approx(1.76, abs=0.01)  # two of three channels are all wrong


def test_the_table_has_ratios_to_the_fastest_of_the_others(bench: Bench) -> None:
    result = bench.run(
        bench.peer("torch", 3.0),
        bench.peer("fast", 2.0, "coy"),
        bench.peer("edgediff int8", 1.0),
    )
    torch, fast, ours = (dict(zip(table.HEADER, row, strict=True)) for row in table.rows(result))
    assert [r["warm ratio"] for r in (torch, fast, ours)] == ["1.50", "1", "0.50"]
    assert torch["UNet step"] == "1.20 s"
    assert torch["peak memory"] == "2 MB"
    assert (fast["UNet step"], fast["peak memory"]) == ("–", "–")
    assert (ours["model"], ours["installed"]) == ("0 MB", "0 MB")
    checks = table.checks(result)
    assert "(0.50 to 0.50 with 50% confidence, 2 pairs)" in checks[0].what
    quickest_start = min(result.peers[:2], key=lambda p: table.figures(p).cold).name
    assert [c.what.split(" (")[0] for c in checks] == [
        "warm image, edgediff int8 / fast",
        f"cold image, edgediff int8 / {quickest_start}",
        "peak memory, edgediff int8 / torch",
        "installed size, edgediff int8 / fast",
    ]
    assert checks[0].value == 0.5
    assert checks[0].met


def test_the_fastest_variant_of_each_engine(bench: Bench) -> None:
    result = bench.run(
        bench.peer("stable-diffusion.cpp f16", 4.0),
        bench.peer("stable-diffusion.cpp q8_0", 3.0),
        bench.peer("edgediff int8", 1.0),
        bench.peer("edgediff float32", 2.0),
        bench.peer("another", 9.0),
    )
    assert [p.name for p in table.fastest_variants(result)] == [
        "stable-diffusion.cpp q8_0",
        "edgediff int8",
        "another",
    ]


def test_a_result_of_another_version_is_refused(bench: Bench) -> None:
    bench.run(bench.peer("A", 1.0))
    bench.out.write_text(
        bench.out.read_text().replace('"format_version": 1', '"format_version": 9')
    )
    with pytest.raises(InputError, match="format_version is 9, expected 1"):
        results.read(bench.out)
