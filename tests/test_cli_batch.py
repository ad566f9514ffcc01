"""`edgediff generate --prompts` as a person and as a program see it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgediff.cli import main
from edgediff.cli.report import duration, print_path

COMMAND = [sys.executable, "-m", "edgediff", "generate"]


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_made_once_and_gone_on_with(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"a"\n{"prompt": "b", "seed": [1, 2], "output": "b.png"}\n')
    flags = ["--prompts", "p.jsonl", "--out-dir", "x/y", "-m", tiny_bundle, "--steps", 1]
    paths = [f"x/y/{name}" for name in ("0001.png", "b-1.png", "b-2.png")]
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == paths
    assert "1/2, about " in done.stderr
    assert "2 generated in " in done.stderr

    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines() == paths
    assert done.stderr == "All 2 already exist.\n"  # without loading the model

    (tmp_path / paths[0]).unlink()
    done = run(*flags, "--json", "--grid", cwd=tmp_path)
    assert "1 of 2 already exist" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["sheet"] == "x/y/sheet.png"
    assert [p["status"] for p in answer["images"]] == ["made", "kept"]
    assert [i["path"] for p in answer["images"] for i in p["images"]] == paths
    assert [i["seed"] for i in answer["images"][1]["images"]] == [1, 2]
    assert (answer["made"], answer["kept"], answer["failed"], answer["left"]) == (1, 1, 0, 0)


def test_a_failure_is_told_at_the_end_and_by_the_status(tiny_bundle: Path, tmp_path: Path) -> None:
    failing = (
        "import edgediff.pipeline, edgediff.cli\n"
        "from edgediff.errors import ProviderError\n"
        "run = edgediff.pipeline.Pipeline.run\n"
        "def sometimes(self, request, **options):\n"
        "    if request.settings.prompt == 'b':\n"
        "        raise ProviderError('out of memory')\n"
        "    return run(self, request, **options)\n"
        "edgediff.pipeline.Pipeline.run = sometimes\n"
        "edgediff.cli.main()\n"
    )
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    flags = ["--prompts", "p.txt", "--out-dir", "out", "-m", str(tiny_bundle), "--steps", "1"]
    done = subprocess.run(
        [sys.executable, "-c", failing, "generate", *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["out/0001.png", "out/0003.png"]
    *_, summary, last = done.stderr.splitlines()
    assert summary.startswith("2 generated in ")
    assert summary.endswith("1 of 3 failed:")
    assert last == "  p.txt, line 2: out of memory"


def test_lines_that_cannot_be_used_are_failures_and_the_others_are_made(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    lines = [
        '"a"',
        "no JSON",
        '{"prompt": "c", "steps": 0}',
        '{"prompt": "d", "sampler": "lcm"}',  # the flag's spacing does not go with it
        '{"prompt": "e", "output": "sheet.png"}',
        '{"prompt": "f", "guidance_interval": [0.5, 0.2]}',
        '{"prompt": "g"}',
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    flags = ["--prompts", "p.jsonl", "--out-dir", "out", "-m", tiny_bundle, "--steps", 1, "--grid"]
    flags += ["--spacing", "karras"]
    told = [
        "p.jsonl, line 2: is not JSON (Expecting value at character 1): give ",
        "p.jsonl, line 3: steps is 0: euler takes a whole number from 1 to 1000",
        "p.jsonl, line 4: --spacing is 'karras': sampler lcm takes none: use ",
        "p.jsonl, line 5: its image would be sheet.png, which is the sheet of --grid",
        "p.jsonl, line 6: guidance_interval [0.5, 0.2]: give where guidance starts and where it"
        " ends, as rising fractions of the steps, such as guidance_interval [0.0, 0.8]",
    ]

    def at_the_start_and_the_end(stderr: str, summary: str, made: int) -> None:
        lines = stderr.splitlines()
        for line, message in zip(lines[:5], told, strict=True):
            assert line.startswith(f"Failed: {message}")
        for line, message in zip(lines[-5:], told, strict=True):
            assert line.startswith(f"  {message}")
        assert lines[-6].startswith(f"{made} generated in ")
        assert lines[-6].endswith(summary)

    paths = ["out/0001.png", "out/0007.png", "out/sheet.png"]
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == paths
    at_the_start_and_the_end(done.stderr, "0 already existed, 5 of 7 failed:", 2)

    done = run(*flags, cwd=tmp_path)  # the rest is kept, and the model is not loaded
    assert done.returncode == 1
    assert done.stdout.splitlines() == paths
    assert "tiny on cpu" not in done.stderr
    outcomes = [line for line in done.stderr.splitlines() if not line.startswith("Failed")]
    assert "0 generated, 2 already existed, 5 of 7 failed:" in outcomes

    (tmp_path / "out" / "0007.png").unlink()
    done = run(*flags, "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert (answer["made"], answer["kept"], answer["failed"], answer["left"]) == (1, 1, 5, 0)
    failed = {p["line"]: p["error"] for p in answer["images"] if p["status"] == "failed"}
    assert sorted(failed) == [2, 3, 4, 5, 6]
    assert failed[3].startswith("steps is 0: euler")
    at_the_start_and_the_end(done.stderr, "1 already existed, 5 of 7 failed:", 1)


def test_no_escape_of_a_file_of_prompts_is_written(tiny_bundle: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "output": "\x1b]0;pwn\x07x.png"},
        {"prompt": "\x9b2J" + "b " * 200},
        {"prompt": "c", "sampler": "\x9b2J\n1 generated"},
        {"prompt": "d", "\x1b[2J": 1},
    ]
    (tmp_path / "\x1b[2J.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--out-dir", "out", "-m", tiny_bundle, "--steps", 1]
    done = run("--prompts", "\x1b[2J.jsonl", *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "out/0002.png\n"
    assert "3 of 4 failed" in done.stderr
    assert "\nWarning: \\x1b[2J.jsonl, line 2: the prompt has " in done.stderr
    assert "\n1 generated" not in done.stderr.replace("\n1 generated in ", "")
    assert not {*"\x1b\x07\x9b\r"} & {*done.stdout, *done.stderr}
    done = run("--prompts", "p.jsonl", "--\x1b[2J", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_sheet_that_cannot_be_written_is_refused_before_the_model_loads(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a\n")
    flags = ["--prompts", "p.txt", "--out-dir", "out", "-m", tiny_bundle, "--steps", 1, "--grid"]
    (tmp_path / "out" / "sheet.png").mkdir(parents=True)
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --grid out/sheet.png: is a folder: give ")
    (tmp_path / "out" / "sheet.png").rmdir()
    os.mkfifo(tmp_path / "out" / "sheet.png")
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 2
    expected = "Error: --grid out/sheet.png: cannot be written to (not a regular file)"
    assert done.stderr.startswith(expected)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["sheet.png"]


@pytest.mark.skipif(os.name == "nt", reason="bash")
def test_prompts_come_from_pipes(tiny_bundle: Path, tmp_path: Path) -> None:
    command = (
        '"$0" -m edgediff generate --prompts <(sleep 0.2; echo \'"a"\') --out-dir x -m "$1"'
        ' --steps 1; echo \'"a"\' | "$0" -m edgediff generate --prompts /dev/stdin --out-dir x'
        ' -m "$1" --steps 1'
    )
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, str(tiny_bundle)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.stdout == "x/0001.png\nx/0001.png\n"
    assert done.stderr.endswith("All 1 already exist.\n")


def test_a_path_is_whole_for_a_program_and_harmless_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_path(Path("a\u3000\x07b.png"))
    assert capsys.readouterr().out == "a\u3000\x07b.png\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_path(Path("a\u3000\x07b.png"))
    assert capsys.readouterr().out == "a\\u3000\\x07b.png\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompts", "p.jsonl"], "--prompts FILE and --out-dir FOLDER must be given together"),
        (["--out-dir", "out"], "must be given together"),
        (["--prompts", "p.jsonl", "--out-dir", "out", "a fox"], "PROMPT is for one image"),
        (["--prompts", "p.jsonl", "--out-dir", "out", "-o", "a.png"], "--output is for one"),
        (["--prompts", "p.jsonl", "--out-dir", "out", "--from", "a.png"], "--from is for one"),
        (
            ["--prompts", "sheet.jsonl", "--out-dir", "out", "--grid"],
            "sheet.jsonl, line 1: its image would be sheet.png, which is the sheet of --grid",
        ),
        (["--prompts", "p.jsonl", "--out-dir", "out", "--count", "2"], "needs the first --seed"),
        (["--prompts", "absent", "--out-dir", "out"], "--prompts absent: cannot be read"),
        (["--prompts", ".", "--out-dir", "out"], ".: cannot be read"),
        (["--prompts", "/dev/zero", "--out-dir", "out"], "(larger than 64000000 bytes): give a f"),
        (["--prompts", "p.jsonl", "--out-dir", "p.jsonl"], "is a file"),
        (["--prompts", "p.jsonl", "--out-dir", "p.jsonl/x"], "the folder cannot be created"),
        (
            ["--prompts", "p.jsonl", "--out-dir", "out", "--steps", "0"],
            "p.jsonl, line 1: --steps is 0",
        ),
        (
            ["--prompts", "bad.jsonl", "--out-dir", "out"],
            "--prompts bad.jsonl, line 1: has 'guidance': did",
        ),
    ],
)
def test_bad_input(
    tiny_bundle: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "p.jsonl").write_text('"a"\n')
    (tmp_path / "sheet.jsonl").write_text('{"prompt": "a", "output": "sheet.png"}')
    (tmp_path / "bad.jsonl").write_text('{"prompt": "b", "guidance": 2}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edgediff", "generate", *flags, "-m", str(tiny_bundle)])
    with pytest.raises(SystemExit) as e:
        main()
    out, err = capsys.readouterr()
    assert e.value.code == 2
    assert message in err
    assert out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "p.jsonl", "sheet.jsonl"]


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is sent to a process group there")
def test_ctrl_c_leaves_whole_images_and_says_how_to_go_on(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a\n" * 500)
    # A shell's background jobs ignore the signal and hand that down to the tests: undo it.
    listening = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from edgediff.cli import main; main()"
    )
    flags = ["--prompts", "p.txt", "--out-dir", "out", "-m", str(tiny_bundle), "--steps", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", listening, "generate", *flags],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("out/0*.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    there = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert 2 <= len(there) < 500
    assert all(name.endswith(".png") and not name.startswith(".") for name in there)
    told = len(out.splitlines())
    assert told in (len(there), len(there) - 1)
    assert f"Interrupted: {told} of 500 are finished; run the same command again to continue" in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3725, "1 h 2 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
