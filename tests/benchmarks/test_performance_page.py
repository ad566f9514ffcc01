"""The performance sections say what benchmarks/results/ contains, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import performance_page as performance
from benchmarks import record
from benchmarks.peers.results import Cold, Measured, Result, Settings, Warm
from edgediff.bench.machine import Conditions, Machine
from edgediff.bench.results import write

MACHINE = Machine(
    cpu="Abacus(R) 9",
    cpu_flags=("avx2", "avx512_vnni"),
    cores=2,
    memory_bytes=8_000_000_000,
    system="Linux",
    python="3.11.7",
    power="mains",
    gpus=(),
)


def peer(name: str, seconds: float) -> Measured:
    return Measured(
        name=name,
        status="measured",
        installed_bytes=round(seconds * 100e6),
        model_bytes=1_234_000_000,
        peak_bytes=round(seconds * 1e9),
        cold=tuple(
            Cold(round=k + 1, first_picture=3 * seconds + k, imports=1.0, load=1.0)
            for k in range(3)
        ),
        warm=tuple(
            Warm(round=k + 1, total=seconds + 0.1 * k, steps=(0.25 * seconds,)) for k in range(3)
        ),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One machine's results: the peers and the built-in model."""
    result = Result(
        started="2026-01-01T00:00:00+00:00",
        complete=True,
        settings=Settings(
            shape="sd15",
            prompt="a fox",
            seed=0,
            width=512,
            height=512,
            steps=4,
            rounds=3,
            warm=1,
            clear=3.0,
        ),
        machine=MACHINE,
        conditions=Conditions(frequency_mhz=None, throttled=None, others=0.01),
        peers=(
            peer("slow", 20.0),
            peer("fast", 8.0),
            peer("edgediff int8", 4.0),
            peer("edgediff float32", 6.0),
            Measured(name="absent", status="left out", reason="no wheel"),
        ),
    )
    where = tmp_path / "results"
    where.mkdir()
    write(where / "peers-abacus.json", result)
    stages = {
        "machine": {"cpu": "Abacus", "cores": 2},
        "size": [128, 128],
        "steps": 4,
        "guidance_scale": 1.0,
        "load": 0.4,
        "peak_mb": 119.4,
        "median": {"picture": 0.081, "step": 0.0069, "overhead": 0.034},
    }
    (where / "stages-abacus.json").write_text(json.dumps(stages))
    startup = {"import edgediff": [0.02, 0.03, 0.02], "first picture": [0.8, 0.9, 0.83]}
    (where / "startup-abacus.json").write_text(json.dumps(startup))
    return where


def document(section: str) -> str:
    return f"# edgediff\n\n{performance.BEGIN}\n{section}{performance.END}\n\n12.7 GB elsewhere\n"


@pytest.mark.parametrize("path", performance.SECTIONS, ids=lambda path: path.name)
def test_each_section_is_what_the_script_makes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    made = performance.SECTIONS[path](record.RESULTS)
    assert made
    assert performance.section(text) == made
    assert performance.unheld(text, made) == []


def test_tables_say_what_was_measured(folder: Path) -> None:
    page = performance.page(folder)
    assert "| edgediff int8 | 6 | 13.0 s | 4.10 s | 0.51 | – | 1.00 s | – | 4.00 GB |" in page
    assert "| slow | 6 | 61.0 s | 20.1 s | 2.48 |" in page
    assert (
        "* warm image, edgediff int8 / fast (0.50 to 0.51 with 75% confidence, 3 pairs): 0.51"
        " (target ≤ 0.85): met\n" in page
    )
    assert "* absent: no wheel\n" in page
    assert "| one UNet step | 7 ms |" in page
    assert "| first image, from the start of the process | 0.83 s |" in page
    assert "avx2, avx512_vnni" in page


def test_the_summary_has_the_fastest_variant_of_each_engine(folder: Path) -> None:
    summary = performance.summary(folder)
    assert "| edgediff int8 | 4.10 s | 13.0 s | 4.00 GB | 1.23 GB | 400 MB | – |" in summary
    assert "| edgediff float32 |" not in summary
    assert "| slow | 20.1 s | 61.0 s |" in summary
    assert "absent" not in summary
    assert "makes a 128×128 image in 81 ms there, and its first image 0.83 s after" in summary


def test_a_figure_that_no_result_holds_is_named(folder: Path) -> None:
    made = performance.page(folder)
    assert performance.unheld(document(made), made) == []
    wrong = document(made.replace("4.10 s", "3.10 s"))
    assert performance.unheld(wrong, made) == ["3.10 s"]


def test_the_section_is_replaced_and_the_rest_stays(folder: Path) -> None:
    made = performance.page(folder)
    assert performance.replaced(document("out of date\n"), made) == document(made)
    with pytest.raises(SystemExit, match="expected <!-- performance"):
        performance.section("# edgediff\n")


def test_no_results_make_no_section(tmp_path: Path) -> None:
    assert performance.page(tmp_path) == performance.summary(tmp_path) == ""


def test_files_are_named_by_machine() -> None:
    assert record.slug(MACHINE) == "abacus-9-avx512-vnni-2-cores"
    assert record.slug(replace(MACHINE, cpu_flags=("avx2",))) == "abacus-9-avx2-2-cores"
