"""`edgediff export` as a user meets it: exit statuses, stdout and stderr, and no noise."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from edgediff_export.cli import export

from edgediff import cli


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgediff", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_shows_every_option() -> None:
    shown = CliRunner().invoke(export, ["--help"])
    assert shown.exit_code == 0
    for option in (
        "--precision", "--size", "--vae", "--name", "--steps", "--guidance", "--sampler",
        "--license", "--attribution", "--force", "--json", "--target", "--min-psnr", "--max-size",
        "--plan", "--average-attention", "--lora", "--embedding", "--fidelity",
    ):  # fmt: skip
        assert option in shown.output


@pytest.mark.slow
def test_an_export_is_quiet_and_reports(
    small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    done = run(small_pipeline("sd1"), tmp_path / "out", "--steps", 1, "--precision", "int8")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == [
        "stage", "text_encoder", "unet", "vae_decoder", "bundle",
    ]  # fmt: skip
    assert "images compared with the float model's, 64x64, 1 step of pndm:" in lines
    assert sum(" dB  seed " in line for line in lines) == 2
    assert any(line.startswith("fidelity quick: 2 images of 64x64, 1 step") for line in lines)
    assert lines[-1] == str(tmp_path / "out")
    # Only progress: seconds, then the step; no warning of any library underneath.
    progress = [line.split(" s  ") for line in done.stderr.splitlines()]
    assert all(len(parts) == 2 and float(parts[0]) >= 0 for parts in progress)
    assert [parts[1] for parts in progress][-1] == "done"


@pytest.mark.slow
def test_json(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    done = run(small_pipeline("sd1"), tmp_path / "out", "--steps", 1, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bundle"] == str(tmp_path / "out")
    assert set(report["stages"]) == {"text_encoder", "unet", "vae_decoder"}
    assert report["stages"]["unet"]["bytes"] == report["stages"]["unet"]["float_bytes"]
    assert report["images"][0]["psnr_db"] is None
    assert report["fidelity"]["level"] == "quick"
    assert report["fidelity"]["meaning"].startswith("quick: 2 images of 64x64")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Missing argument 'SOURCE'"),
        (["a/b/c"], 2, "Missing argument 'OUT'"),
        (["no-such-source", "OUT"], 1, "Error: no-such-source: no such folder or file"),
        (["SOURCE", "OUT", "--precision", "int4"], 2, "'int4' is not one of 'fp32'"),
        (["SOURCE", "OUT", "--size", "big"], 2, "'big': give width x height"),
        (["SOURCE", "OUT", "--steps", "x"], 2, "'x' is not a valid integer"),
        (["SOURCE", "OUT", "--vae", "nowhere"], 1, "--vae nowhere: no VAE there"),
        (["SOURCE", "OUT", "--lora", "nowhere"], 1, "--lora nowhere: no such file"),
        (["SOURCE", "OUT", "--lora", "a.safetensors:x"], 2, "SCALE is 'x': give a number"),
        (["SOURCE", "OUT", "--embedding", "a.safetensors:"], 2, "TOKEN is '': give a word"),
        (["SOURCE", "OUT/sub"], 1, "no such folder: create it first"),
        (["SOURCE", "."], 1, "exists already"),
        (["SOURCE", "OUT", "--frobnicate"], 2, "No such option"),
    ],
)
def test_bad_input(
    arguments: list[str],
    status: int,
    message: str,
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    places = {"SOURCE": str(small_pipeline("sd1")), ".": str(tmp_path)}
    given = [places.get(a, a.replace("OUT", str(tmp_path / "out"))) for a in arguments]
    done = run(*given)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


INT8 = ["--precision", "int8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--precision", "fp16", "--target", "cpu"],
            "--precision fp16 for --target cpu: CPUs have no float16 arithmetic that would be"
            " faster; give --precision fp32 or --precision int8, or another target",
        ),
        (["--precision", "fp16", "--target", "openvino"], "give --precision fp32 or --precision i"),
        ([*INT8, "--target", "gpu"], "GPUs are fast in float16; give --precision fp32 or --prec"),
        (["--min-psnr", "30"], "--min-psnr needs --precision int8 --target cpu"),
        (["--max-size", "30"], "--max-size needs --precision int8 --target cpu"),
        (["--average-attention"], "--average-attention needs --precision int8 --target cpu"),
        ([*INT8, "--target", "openvino", "--min-psnr", "30"], "--min-psnr needs --precision int8"),
        (["--precision", "fp16", "--plan", "BUNDLE"], "--plan needs --precision int8"),
        ([*INT8, "--plan", "BUNDLE"], "give the bundle.json of an export in int8 for cpu"),
        ([*INT8, "--plan", "nowhere"], "nowhere: does not hold a plan"),
        ([*INT8, "--plan", "SOURCE"], "give the bundle.json of an export"),
        ([*INT8, "--plan", "BUNDLE", "--min-psnr", "30"], "--plan fixes the format of each layer"),
        (
            [*INT8, "--plan", "BUNDLE", "--profile", "arm-dot"],
            "--plan brings the kernels of its own",
        ),
        (
            [*INT8, "--fidelity", "none", "--min-psnr", "30"],
            "--fidelity none compares no images, which --min-psnr needs: leave one of them out",
        ),
        (["--fidelity", "some"], "'some' is not one of 'full', 'quick', 'none'"),
        ([*INT8, "--plan", "BUNDLE", "--max-size", "3"], "--plan fixes the format of each layer"),
        ([*INT8, "--min-psnr", "0"], "0.0 is not in the range x>0"),
        ([*INT8, "--max-size", "-1"], "-1.0 is not in the range x>0"),
        ([*INT8, "--min-psnr", "nan"], "Invalid value for '--min-psnr': nan is not finite"),
        ([*INT8, "--max-size", "inf"], "Invalid value for '--max-size': inf is not finite"),
        (["--target", "npu"], "'npu' is not one of 'cpu', 'openvino', 'gpu'"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str],
    message: str,
    small_pipeline: Callable[[str], Path],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = str(small_pipeline("sd1"))
    places = {"BUNDLE": str(tiny_bundle), "SOURCE": source}
    given = [places.get(a, a) for a in arguments]
    monkeypatch.setattr("sys.argv", ["edgediff", "export", source, str(tmp_path / "out"), *given])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if line.startswith("Error: ")]
    assert lines == shown.err.splitlines()[-1:]
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quality_that_int8_does_not_reach(
    small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    done = run(
        small_pipeline("sd1"), tmp_path / "out", "--steps", 1, *INT8, "--min-psnr", 90
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    *progress, last = done.stderr.splitlines()
    assert last.startswith("Error: --min-psnr 90: the best that int8 reached is ")
    assert last.endswith("nothing was written")
    assert all(" s  " in line for line in progress)
    assert any("layers kept out of int8: " in line for line in progress)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "60x64"], "--size 60x64: both sides must be multiples of 8"),
        (["--size", "0x0"], "--size 0x0"),
        (["--steps", "0"], "--steps is 0"),
        (["--sampler", "magic"], "--sampler is 'magic': choose one of"),
        (["--guidance", "nan"], "--guidance is nan"),
    ],
)
def test_options_that_do_not_fit_the_pipeline(
    arguments: list[str], message: str, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    done = run(small_pipeline("sd1"), tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert f"Error: {message}" in done.stderr
    assert list(tmp_path.iterdir()) == []
