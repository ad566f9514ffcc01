"""`edgediff bench` as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgediff.bench import results

COMMAND = [sys.executable, "-m", "edgediff", "bench"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of two configurations of the tiny bundle."""
    out = tmp_path_factory.mktemp("bench") / "tiny.json"
    done = run(
        *(tiny_bundle, "--threads", 1, "--steps", 1, "--steps", 4, "--json", out),
        *("--runs", 3, "--cold", 1, "--ort-profile", 2),
    )
    assert done.returncode == 0, done.stderr
    assert "4 steps" in done.stdout
    assert "against the first" not in done.stdout  # other steps, another image
    return out


def test_the_result_says_what_ran_where_and_how_well(measured: Path, tiny_bundle: Path) -> None:
    result = results.read(measured)
    assert [r.config.steps for r in result.runs] == [1, 4]
    for r in result.runs:
        assert r.status == "measured"
        assert len(r.warm) == 3
        assert len(r.warm[0].steps) == r.config.steps
        assert len(r.cold) == 1
        assert set(r.cold[0].stages) == {"text_encoder", "unet", "vae_decoder"}
        assert r.cold[0].first_image > r.cold[0].load
        assert r.placement["unet"]["CPUExecutionProvider"].nodes > 10
        assert len(r.operators["unet"]) == 2
        assert r.peak_bytes is None or r.peak_bytes > 10_000_000
        assert r.image_png is not None
        assert r.config.model.bytes > 100_000
    manifest = json.loads((tiny_bundle / "bundle.json").read_text())
    made = manifest["fidelity"]["images"][0]
    same = next(r for r in result.runs if r.config.steps == made["steps"])
    assert same.quality is not None
    assert same.quality.equal or (same.quality.psnr_db or 0) > 30
    assert same.config.prompt == made["prompt"]
    assert result.interleaved


def test_compare_and_report(measured: Path, tmp_path: Path) -> None:
    done = run("compare", measured, measured)
    assert done.returncode == 0
    assert done.stdout.count("No significant difference: it is within the noise.") == 2
    answer = json.loads(run("compare", measured, measured, "--json").stdout)
    assert [p["within_noise"] for p in answer["pairs"]] == [True, True]
    assert all({"psnr_db", "equal"} < one.keys() for p in answer["pairs"] for one in p["quality"])
    page = tmp_path / "report.html"
    done = run("report", measured, "-o", page)
    assert done.returncode == 0
    assert done.stdout.strip() == str(page)
    assert "<svg" in page.read_text()


def test_names_in_results_are_shown_on_one_line(measured: Path, tmp_path: Path) -> None:
    result = json.loads(measured.read_text())
    for one in result["runs"]:
        one["config"]["model"]["name"] = "a\nNo significant difference"
    (tmp_path / "x.json").write_text(json.dumps(result))
    done = run("compare", tmp_path / "x.json", tmp_path / "x.json")
    assert done.returncode == 0, done.stderr
    assert "x.json: a No significant difference " in done.stdout


def test_results_of_different_bundles_are_refused(measured: Path, tmp_path: Path) -> None:
    raw = json.loads(measured.read_text())
    for r in raw["runs"]:
        r["config"]["model"]["id"] = "f" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(raw))
    done = run("compare", measured, other)
    assert done.returncode == 2
    assert "not comparable: bundle" in done.stderr
    assert "--exports" in done.stderr
    assert run("compare", measured, other, "--exports").returncode == 0


def test_killed_half_way_what_stands_is_valid(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.json"
    with subprocess.Popen(
        [*COMMAND, str(tiny_bundle), "--cold", "50", "--json", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        for _ in range(600):
            if out.exists() and results.read(out).runs[0].cold:
                break
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    result = results.read(out)
    assert not result.complete
    assert result.missing == ("tiny: not measured yet",)
    assert result.runs[0].cold


def test_a_provider_that_is_not_there_is_a_failed_run_beside_one_that_is(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    done = run(
        *(tiny_bundle, "--provider", "coreml", "--provider", "cpu", "--steps", 1),
        *("--runs", 1, "--cold", 0, "--json", out),
    )
    assert done.returncode == 1
    coreml, cpu = results.read(out).runs
    assert coreml.status == "failed"
    assert "provider 'coreml'" in coreml.error
    assert cpu.status == "measured"
    assert "coreml" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--provider", "gpu"], "--provider is 'gpu'"),
        (["--threads", "0"], "threads is 0"),
        (["--batch", "0"], "batch is 0"),
        (["--steps", "0"], "--steps is 0"),
        (["--size", "100x100"], "multiples of"),
        (["--size", "big"], "give width x height"),
        (["--runs", "0"], "runs 0 to 0"),
        (["--json", "no/such/folder/x.json"], "no such folder"),
        (["absent-bundle"], "no such bundle"),
        (["compare", "absent.json", "absent.json"], "cannot be read"),
    ],
)
def test_bad_requests_say_what_is_wrong(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
