"""The command line as a person and as a program see it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgediff import Pipeline, cli
from edgediff.cli import running
from edgediff.cli.flags import SECTIONS

COMMAND = [sys.executable, "-m", "edgediff"]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_a_image(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    done = run("generate", "a fox", "-m", tiny_bundle, "-o", path, "--seed", 7, "--steps", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}\n"
    assert "tiny on cpu" in done.stderr
    assert "seed 7" in done.stderr
    with Image.open(path) as image:
        assert image.size == (64, 64)
        assert "Steps: 2, " in image.info["parameters"]
        assert "Seed: 7, " in image.info["parameters"]


def test_every_flag_and_json(tiny_bundle: Path, tmp_path: Path) -> None:
    flags = "--steps 3 --seed 1 --seed 0 --size 128x64 --guidance 0 --sampler lcm --provider cpu"
    done = run(
        *["generate", "a fox", "-m", tiny_bundle, "-o", tmp_path / "a.png", "--negative", "blue"],
        *[*flags.split(), "--threads", 1, "--json"],
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [i["seed"] for i in answer["images"]] == [1, 0]
    assert [Path(i["path"]).name for i in answer["images"]] == ["a-1.png", "a-0.png"]
    settings = answer["settings"]
    assert (settings["width"], settings["height"], settings["steps"]) == (128, 64, 3)
    assert settings["guidance_scale"] == 0
    assert settings["negative_prompt"] == "blue"
    assert settings["sampler"] == "lcm"
    assert len(answer["seconds"]["steps"]) == 3
    with Image.open(answer["images"][0]["path"]) as image:
        assert image.size == (128, 64)


def test_flags_of_sampling(tiny_bundle: Path, tmp_path: Path) -> None:
    flags = (
        "--steps 2 --seed 1 --sampler unipc --spacing beta --guidance 4 --guidance-rescale 0.7"
        " --guidance-interval 0-.5 --variation-seed 9 --variation-strength 0.3 --json"
    )
    done = run("generate", "a", "-m", tiny_bundle, "-o", tmp_path / "a.png", *flags.split())
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["sampler"], settings["spacing"]) == ("unipc", "beta")
    assert settings["guidance_rescale"] == 0.7
    assert settings["guidance_interval"] == [0.0, 0.5]
    assert (settings["variation_seed"], settings["variation_strength"]) == (9, 0.3)


def test_a_image_from_a_image(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (64, 72), (200, 60, 60, 128)).save(tmp_path / "photo.png")
    mask = Image.new("L", (64, 72))
    mask.paste(255, (0, 0, 32, 72))
    mask.save(tmp_path / "mask.png")
    given = ["--init", tmp_path / "photo.png", "--mask", tmp_path / "mask.png"]
    flags = ["-m", tiny_bundle, "--steps", 2, "--seed", 1, "--strength", 0.5]
    made = tmp_path / "made.png"
    done = run("generate", "a", *flags, *given, "--keep-unmasked", "--tile", 256, "-o", made)
    assert done.returncode == 0, done.stderr
    assert f"Note: {tmp_path / 'photo.png'}: transparent parts were laid on white" in done.stderr
    assert "64x72, 1 step of euler" in done.stderr
    with Image.open(made) as image:
        assert image.getpixel((60, 60)) == (227, 157, 157)
    again = run("generate", "--from", made, "-m", tiny_bundle, "-o", tmp_path / "again.png")
    assert again.returncode == 2
    assert "was generated from photo.png and mask.png" in again.stderr
    assert "give that again, with --init and --mask" in again.stderr
    again = run(
        *["generate", "--from", made, "-m", tiny_bundle, *given],
        *["--tile", 256, "-o", tmp_path / "again.png"],
    )
    assert again.returncode == 0, again.stderr
    assert "Warning" not in again.stderr
    with Image.open(made) as one, Image.open(tmp_path / "again.png") as other:
        assert one.tobytes() == other.tobytes()


def test_a_second_pass(tiny_bundle: Path, tmp_path: Path) -> None:
    flags = "--steps 4 --seed 1 --hires 1.5 --hires-strength 0.5 --hires-steps 2 --json"
    done = run(
        *["generate", "a", "-m", tiny_bundle, "-o", tmp_path / "a.png", *flags.split()],
        *["--hires-mode", "pixel"],
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["seconds"]["steps"]) == 5
    assert answer["seconds"]["upscale"] > 0
    assert answer["settings"]["hires_mode"] == "pixel"
    assert answer["notes"] == []
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (96, 96)
        assert "Hires upscale: 1.5, Hires steps: 2" in image.info["parameters"]


def test_images_are_looked_at_before_the_model_loads(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"no image")
    flags = ["-m", tiny_bundle, "-o", tmp_path / "a.png"]
    done = run("generate", "a", *flags, "--init", tmp_path / "photo.jpg")
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: --init {tmp_path / 'photo.jpg'}: is not an image")
    done = run("generate", "a", *flags, "--mask", tmp_path / "mask.png")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --mask is given, but --init is not")
    done = run("generate", "a", *flags, "--tile", 100)
    assert done.returncode == 2
    assert "--tile is 100" in done.stderr


def test_count_and_grid(tiny_bundle: Path, tmp_path: Path) -> None:
    flags = ["-m", tiny_bundle, "--steps", 1, "--count", 3]
    last = 2**64 - 1
    done = run("generate", "a", "-o", tmp_path / "a.png", *flags, "--seed", last - 1)
    assert done.returncode == 0, done.stderr
    names = [f"a-{seed}.png" for seed in (last - 1, last, 0)]
    assert [Path(line).name for line in done.stdout.splitlines()] == names
    done = run("generate", "a", "-o", tmp_path / "sheet.png", *flags, "--grid", "--json")
    assert done.returncode == 0, done.stderr
    (sheet,) = json.loads(done.stdout)["images"]
    first = sheet["seeds"][0]
    assert sheet["seeds"] == [first, first + 1, first + 2]
    with Image.open(sheet["path"]) as image:
        record = json.loads(image.info["edgediff"])
    assert record["seeds"] == sheet["seeds"]
    assert (record["prompt"], record["steps"]) == ("a", 1)
    assert {p.name for p in tmp_path.iterdir()} == {*names, "sheet.png"}


def test_a_image_made_again_from_its_png(tiny_bundle: Path, tmp_path: Path) -> None:
    flags = ["-m", tiny_bundle, "--provider", "cpu"]
    first = ["generate", "a fox", "--seed", 7, "--steps", 2, "--guidance", 0, "--size", "128x64"]
    assert run(*first, *flags, "-o", "a.png", cwd=tmp_path).returncode == 0
    done = run("generate", "--from", "a.png", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a-again.png\n"
    assert "Warning" not in done.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "a-again.png").read_bytes()

    done = run(
        *["generate", "a cat", "--from", tmp_path / "a.png", "-o", tmp_path / "b.png", "--json"],
        *["--steps", 1, "--count", 2, *flags],
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [i["seed"] for i in answer["images"]] == [7, 8]
    settings = answer["settings"]
    assert (settings["prompt"], settings["steps"], settings["width"]) == ("a cat", 1, 128)

    done = run("generate", "--from", "a.png", "-o", "c.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning: the image may differ: tiny made it, this is emoji (" in done.stderr


def test_images_that_cannot_be_made_again(tiny_bundle: Path, tmp_path: Path) -> None:
    made = {"edgediff": "1", "prompt": "a", "model": "m", "bundle": "b", "provider": "cpu"}
    for texts, status, message in (
        ({}, 2, "does not say how it was made"),
        ({"edgediff": json.dumps(made | {"width": 60, "height": 64})}, 2, "size 60x64: both"),
        ({"edgediff": json.dumps(made | {"sampler": "magic"})}, 2, "choose one of euler, "),
        ({"parameters": "a\nSteps: 0, Sampler: Restart"}, 2, "a.png are ignored: Sampler: Rest"),
    ):
        info = PngInfo()
        for key, text in texts.items():
            info.add_itxt(key, text)
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        done = run("generate", "--from", "a.png", "-m", tiny_bundle, cwd=tmp_path)
        assert done.returncode == status
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_how_prompts_are_read(tiny_bundle: Path, tmp_path: Path) -> None:
    prompt = "a (red:1.3) fox " + "and fog " * 50
    flags = ["-m", tiny_bundle, "-o", tmp_path / "a.png", "--steps", 1, "--seed", 0, "--json"]
    done = run("generate", prompt, *flags)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["prompt"]["chunks"] == 1
    assert answer["prompt"]["truncated"] != ""
    assert "--long-prompts encodes all of them" in done.stderr
    done = run("generate", prompt, *flags, "--prompt-weights", "--long-prompts")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["settings"]["prompt_weights"] is True
    assert answer["settings"]["long_prompts"] is True
    report = answer["prompt"]
    assert report["truncated"] == ""
    assert report["chunks"] > 1
    assert "Warning" not in done.stderr
    tokens, chunks = report["tokens"], report["chunks"]
    assert f"the prompt's {tokens} tokens are encoded in {chunks} chunks of 75" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clip-skip", "0"], "--clip-skip is 0: expected a whole number from 1 up"),
        (["--clip-skip", "9"], "--clip-skip is 9: this bundle's text encoder"),
        (["--prompt-weights"], "the weight of 'fox' is 1000: at most 100, either way"),
    ],
    ids=str,
)
def test_prompts_that_cannot_be_read_so(
    tiny_bundle: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    done = run("generate", "a (fox:1000)", "-m", tiny_bundle, "-o", tmp_path / "a.png", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "loaded in" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_max_memory_changes_no_pixel(tiny_bundle: Path, tmp_path: Path) -> None:
    flags = ["-m", tiny_bundle, "--seed", 7, "--steps", 2]
    images = []
    for name, limit in (("a.png", []), ("b.png", ["--max-memory", "40MB"])):
        done = run("generate", "a fox", "-o", tmp_path / name, *flags, *limit)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / name) as image:
            images.append(image.tobytes())
    assert images[0] == images[1]
    done = run("verify", tiny_bundle, "--max-memory", "40MB")
    assert done.returncode == 0, done.stderr
    assert "all checks ok" in done.stdout
    done = run("verify", tiny_bundle, "--max-memory", "1MB")
    assert done.returncode == 2
    assert "the largest stage, unet" in done.stderr


def test_a_cut_prompt_is_said(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("generate", "a fox " * 99, "-m", tiny_bundle, "-o", tmp_path / "a.png", "--steps", 1)
    assert done.returncode == 0
    assert "Warning: the prompt has" in done.stderr
    assert "cut:" in done.stderr


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--size", "64"], 2, "give width x height"),
        (["--size", "63x64"], 2, "multiples of"),
        (["--size", "0x0"], 2, "multiples of"),
        (["--size", "-64x64"], 2, "multiples of"),
        (["--size", "99999999x64"], 2, "at most 4096"),
        (["--steps", "0"], 2, "steps is 0"),
        (["--steps", "-3"], 2, "steps is -3"),
        (["--steps", "many"], 2, "not a valid integer"),
        (["--sampler", "magic"], 2, "choose one of euler, "),
        (["--sampler", "lcm", "--spacing", "karras"], 2, "sampler lcm takes none"),
        (["--guidance-interval", "0.5"], 2, "give START-END, such as 0.2-0.8"),
        (["--guidance-interval", "0.5-0.2"], 2, "--guidance-interval 0.5-0.2"),
        (["--variation-seed", "1"], 2, "give --variation-strength too"),
        (["--provider", "gpu"], 2, "expected auto or one of cpu, cuda, tensorrt"),
        (["--provider", "cuda"], 1, 'pip install "onnxruntime-gpu[cuda,cudnn]"'),
        (["--threads", "0"], 2, "threads is 0"),
        (["--seed", "1.5"], 2, "not a valid integer"),
        (["--seed", "99999999999999999999"], 2, "seed is 99999999999999999999"),
        (["--count", "0"], 2, "0 is not in the range 1<=x<=1000"),
        (["--count", "1001"], 2, "1001 is not in the range"),
        (["--count", "2", "--seed", "1", "--seed", "5"], 2, "--count 2 with 2 seeds: give only"),
        (["--count", "2", "--seed", str(2**64)], 2, "seed is 18446744073709551616: give"),
        (["--guidance", "nan"], 2, "--guidance is nan"),
        (["--provider-option", "x"], 2, "give KEY=VALUE"),
        (["--max-memory", "lots"], 2, "such as 1.4GB, 900MB or 1GiB"),
        (["--max-memory", "0"], 2, "--max-memory is '0': expected bytes"),
        (["--max-memory", "1MB"], 2, "the largest stage, unet, takes about"),
        (["--unknown"], 2, "No such option"),
        (["-m", "absent"], 1, "no such bundle"),
        (["-o", "a.gif"], 2, "ends in .png, .jpg or .webp"),
        (["-o", "absent/a.png"], 2, "no such folder"),
        (["-o", "."], 2, "ends in .png"),
    ],
)
def test_bad_input(
    tiny_bundle: Path, tmp_path: Path, flags: list[str], status: int, message: str
) -> None:
    done = run("generate", "a", "-m", tiny_bundle, "-o", "a.png", *flags, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_damaged(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    (bundle / "unet.onnx").write_bytes((bundle / "unet.onnx").read_bytes()[:-7])
    for arguments in (["generate", "a", "-m", bundle, "-o", tmp_path / "a.png"], ["info", bundle]):
        done = run(*arguments)
        assert done.returncode == 1
        assert "unet.onnx" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "a.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is sent to a process group there")
def test_ctrl_c_leaves_no_image(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["generate", "a", "-m", tiny_bundle, "-o", "a.png"]
    # A shell's background jobs ignore the signal and hand that down to the tests: undo it.
    listening = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from edgediff.cli import main; main()"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            listening,
            *arguments,
            "--steps",
            "500",
            "--size",
            "512x512",
        ],  # tens of seconds
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    assert "tiny on cpu" in process.stderr.readline()  # loaded; hundreds of steps lie ahead
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_info(tiny_bundle: Path) -> None:
    done = run("info", tiny_bundle)
    assert done.returncode == 0
    assert "licence" in done.stdout
    assert "64x64, 4 steps" in done.stdout
    raw = json.loads(run("info", tiny_bundle, "--json").stdout)
    assert raw["name"] == "tiny"
    assert len(raw["id"]) == 64


def test_info_tells_the_plan(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "planned"
    shutil.copytree(tiny_bundle, bundle)
    raw = json.loads((bundle / "bundle.json").read_text())
    raw["quantization"] |= {
        "precision": "int8",
        "tensors": {"unet": {"a": "int8-weights", "b": "int8", "c": "int8"}},
        "averaged_attention": True,
        "reduced_range": True,
        "search": {
            "min_psnr_db": 46.0,
            "max_bytes": 16_000_000,
            "calibration_psnr_db": 47.8,
            "unseen_psnr_db": 46.2,
            "unseen_lowest_db": 44.9,
            "unseen_images": 8,
        },
    }
    (bundle / "bundle.json").write_text(json.dumps(raw))
    shown = run("info", bundle).stdout
    assert "2 in int8, 1 in int8-weights" in shown
    assert "averaged" in shown
    assert "7 bits" in shown
    assert "46 dB, 16.0 MB; reached 46.2 dB on 8 unseen images" in shown


def test_providers() -> None:
    done = run("providers")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines.keys() == {"cpu", "cuda", "tensorrt", "coreml", "openvino"}
    assert lines["cpu"].split()[1] == "yes"
    answer = json.loads(run("providers", "--json").stdout)
    assert answer["cpu"]["installed"] is True
    assert "pip install" in answer["openvino"]["install"]


def test_version_and_help() -> None:
    import edgediff

    assert run("--version").stdout.split()[-1] == edgediff.__version__
    done = run("--help")
    for command in ("generate", "export", "info", "verify", "providers"):
        assert command in done.stdout
    assert run("nonsense").returncode == 2


def test_help_is_in_sections_and_every_flag_is_in_one() -> None:
    lines = run("generate", "--help").stdout.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    every = [f"{section}:" for section in (*SECTIONS, "Other")]
    assert headings == [heading for heading in every if heading in headings]
    assert {"Prompt:", "Image:", "Where it runs:", "Output:"} <= set(headings)
    assert [line.split()[0] for line in lines[lines.index("Other:") + 1 :]] == ["-h,"]
    wrapped = {len(line) - len(line.lstrip()) for line in lines if line.startswith(" " * 9)}
    assert len(wrapped) == 1  # one column


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'give a prompt (edgediff generate "a red apple" -o apple.png)'),
        (["a fox"], "give the file to write, such as -o image.png"),
        (["a fox", "--stesp", "3"], "--steps"),
        (["a fox", "-o", "a.png", "another"], "unexpected extra argument"),
    ],
)
def test_an_incomplete_command_says_what_to_type(arguments: list[str], message: str) -> None:
    done = run("generate", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_export_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    absent = "raise ModuleNotFoundError('absent', name='onnx_ir')"
    inherited = filter(None, [os.environ.get("PYTHONPATH")])
    (tmp_path / "onnx_ir.py").write_text(absent)
    done = subprocess.run(
        [*COMMAND, "export", "a", "b"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *inherited])},
    )
    assert done.returncode == 1
    assert 'needs onnx_ir: pip install "edgediff[export]"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a cat", "-m", "BUNDLE", "-o", "cat.png"],
        ["generate", "-m", "BUNDLE", "--prompts", "list.txt", "--out-dir", "out"],
        ["verify", "BUNDLE"],
    ],
)
def test_what_loading_found_is_told_once(
    arguments: list[str], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "unet.onnx: runs without a CUDA graph (no device)"
    monkeypatch.setattr(Pipeline, "load_notes", property(lambda _: (note,)))
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("a cat\na dog\n")
    words = [str(tiny_bundle) if word == "BUNDLE" else word for word in arguments]
    done = CliRunner().invoke(cli.edgediff, words)
    assert done.exit_code == 0, done.output
    assert done.stderr.count(f"Note: {note}\n") == 1
    assert note not in done.stdout


def test_ctrl_c_while_the_run_starts_cancels_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = threading.Event()
    start = threading.Thread.start

    class Endless:
        """A run that goes on until it is cancelled."""

        cancel = staticmethod(cancelled.set)

        def result(self, _: object) -> bool:
            return cancelled.wait(timeout=20)

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        running.finish(Endless())  # type: ignore[arg-type]
    assert cancelled.is_set()
