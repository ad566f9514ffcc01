"""Where `edgediff generate` writes, and where it does not."""

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import edgediff

COMMAND = [sys.executable, "-m", "edgediff", "generate", "a fox", "--steps", "1", "--seed", "5"]


def run(bundle: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, "-m", str(bundle), *flags]
    return subprocess.run(command, capture_output=True, cwd=folder, timeout=120, check=False)


def test_every_path_is_checked_before_the_model_loads(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "n-6.png").mkdir()
    done = run(tiny_bundle, tmp_path, "--count", "3", "-o", "n.png")
    assert done.returncode == 2
    assert b"-o n-6.png: is a folder" in done.stderr.replace(b"--output", b"-o")
    assert b"loaded in" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["n-6.png"]


def test_a_link_is_followed_and_a_mode_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("target.png")
    (tmp_path / "target.png").touch()
    (tmp_path / "target.png").chmod(0o600)
    assert run(tiny_bundle, tmp_path, "-o", "link.png").returncode == 0
    assert (tmp_path / "link.png").is_symlink()
    assert stat.S_IMODE((tmp_path / "target.png").stat().st_mode) == 0o600
    assert edgediff.recorded(tmp_path / "target.png").prompt == "a fox"


def test_a_fifo_is_left_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.png")
    done = run(tiny_bundle, tmp_path, "-o", "f.png")
    assert done.returncode == 2
    assert b"f.png: cannot be written to (not a regular file)" in done.stderr
    assert (tmp_path / "f.png").is_fifo()


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_jpeg_and_webp_are_made_again(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    assert run(tiny_bundle, tmp_path, "-o", name).returncode == 0
    made = edgediff.recorded(tmp_path / name)
    assert (made.prompt, made.options["seed"]) == ("a fox", 5)
    with Image.open(tmp_path / name) as image:
        assert image.format == {".jpg": "JPEG", ".webp": "WEBP"}[Path(name).suffix]
    command = [sys.executable, "-m", "edgediff", "generate", "--from", name, "-o", "again.png"]
    again = subprocess.run(
        [*command, "-m", str(tiny_bundle)], capture_output=True, cwd=tmp_path, check=False
    )
    assert again.returncode == 0, again.stderr
    assert b"Warning" not in again.stderr
    assert run(tiny_bundle, tmp_path, "-o", "b.png").returncode == 0
    with Image.open(tmp_path / "b.png") as one, Image.open(tmp_path / "again.png") as other:
        assert one.tobytes() == other.tobytes()


def test_a_png_to_stdout(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run(tiny_bundle, tmp_path, "-o", "-")
    assert done.returncode == 0
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.format == "PNG"
        assert json.loads(image.info["edgediff"])["seed"] == 5
    assert b"seed 5" in done.stderr
    sheet = run(tiny_bundle, tmp_path, "--count", "2", "--grid", "-o", "-")
    with Image.open(io.BytesIO(sheet.stdout)) as image:
        assert json.loads(image.info["edgediff"])["seeds"] == [5, 6]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json"], b"--json and -o - both write to stdout"),
        (["--count", "2"], b"-o - takes one image, not 2"),
    ],
)
def test_stdout_takes_one_image(
    tiny_bundle: Path, tmp_path: Path, flags: list[str], message: bytes
) -> None:
    done = run(tiny_bundle, tmp_path, *flags, "-o", "-")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_do_not_stop_an_image(
    tiny_bundle: Path, tmp_path: Path, closed: str
) -> None:
    command = f'"$0" -m edgediff generate x --steps 1 -m "$1" -o a.png {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(tiny_bundle)], cwd=tmp_path, check=False
    )
    assert done.returncode == 0
    assert edgediff.recorded(tmp_path / "a.png").prompt == "x"
    listed = f'"$0" -m edgediff generate --prompts p.txt --steps 1 -m "$1" --out-dir o {closed}'
    (tmp_path / "p.txt").write_text("a fox\n")
    done = subprocess.run(
        ["sh", "-c", listed, sys.executable, str(tiny_bundle)], cwd=tmp_path, check=False
    )
    assert done.returncode == 0
    assert edgediff.recorded(tmp_path / "o" / "0001.png").prompt == "a fox"
