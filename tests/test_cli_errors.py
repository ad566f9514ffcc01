"""Errors on the command line speak of flags, in the form in which they are typed."""

import copy
import pickle
import sys
from pathlib import Path

import click
import pytest
from PIL import Image

from edgediff.cli import main
from edgediff.cli.generate import generate
from edgediff.errors import InputError

BAD = [
    # flag, what is typed, a part of the error
    ("PROMPT", "\udcff", "PROMPT is not valid text"),
    ("--negative", "--negative \udcff", "--negative is not valid text"),
    ("--prompt-weights", "--prompt-weights --negative (a:1000)", "the weight of 'a' is 1000"),
    ("--long-prompts", "--long-prompts=1", "does not take a value"),
    ("--clip-skip", "--clip-skip 0", "is 0: expected a whole number from 1 up; leave it out"),
    ("--clip-skip", "--clip-skip 7", "is 7: this bundle's text encoder"),
    ("--steps", "--steps 0", "is 0: euler takes a whole number from 1 to 1000"),
    ("--steps", "--steps 1.5", "'1.5' is not a valid integer"),
    ("--size", "--size 63x64", " 63x64: both sides must be multiples of 8"),
    ("--size", "--size 8000x64", " 8000x64: at most 4096"),
    ("--size", "--size 64", "'64': give width x height"),
    ("--guidance", "--guidance nan", "is nan: expected a number from -1000 to 1000"),
    ("--guidance", "--guidance 1e9", "is 1000000000.0: expected a number"),
    ("--sampler", "--sampler magic", "is 'magic': choose one of euler, "),
    ("--spacing", "--spacing magic", "is 'magic': choose one of karras, "),
    ("--spacing", "--sampler lcm --spacing karras", "sampler lcm takes none"),
    ("--guidance-rescale", "--guidance-rescale 2", "is 2.0: give a number from 0 (off) to 1"),
    ("--guidance-interval", "--guidance-interval 0.8-.25", " 0.8-0.25: give where guidance st"),
    ("--guidance-interval", "--guidance-interval 0.8-.2", "such as --guidance-interval 0-0.8"),
    (
        "--guidance-interval",
        "--guidance-interval .4-.45 --guidance 3 --steps 4",
        " 0.4-0.45: none of 4 steps begins there",
    ),
    ("--guidance-interval", "--guidance-interval 0.5", "give START-END, such as 0.2-0.8"),
    ("--seed", f"--seed {2**64}", "is 18446744073709551616: give an integer"),
    ("--variation-seed", "--variation-seed 1", "is 1: give --variation-strength too"),
    (
        "--variation-seed",
        f"--variation-seed {2**64} --variation-strength 0.5",
        "is 18446744073709551616: give an integer",
    ),
    ("--variation-strength", "--variation-strength 0.1", "is 0.1: give --variation-seed too"),
    ("--variation-strength", "--variation-seed 1 --variation-strength nan", "is nan: give a num"),
    ("--init", "--init absent.png", " absent.png: cannot be read (No such file"),
    ("--init", "--init line.png --strength 1", " line.png: is 9000x1 pixels, but a side of"),
    ("--init", "--init text.png", " text.png: is not an image that can be read"),
    ("--init", "--init a.png", ": tiny_control has no encoder for images: export it again"),
    ("--strength", "--strength 0.5", "is 0.5, but there is no --init: give an image"),
    ("--strength", "--init a.png --strength 0", "is 0.0: give a number above 0"),
    ("--strength", "--init a.png --strength 0.01", "of 4 steps it leaves none"),
    ("--mask", "--mask a.png", "is given, but --init is not: give the image that it lies on"),
    ("--mask", "--init a.png --mask b.png", " b.png: is 72x64, and the image 64x64"),
    ("--mask", "--init a.png --mask a.png", " a.png: nothing in it is white"),
    ("--keep-unmasked", "--keep-unmasked", "is given, but there is no --mask: give one"),
    ("--hires", "--hires nan", "is nan: expected a factor above 1"),
    ("--hires", "--init a.png --mask white.png --hires 2", "with --mask would paint over"),
    ("--hires-strength", "--hires-strength 0.5", "is 0.5, but --hires is unset: give both"),
    ("--hires-strength", "--hires 2 --hires-strength 0", "is 0.0: give a number above 0"),
    ("--hires-steps", "--hires 2 --hires-steps 0", "is 0: expected a whole number from 1 up"),
    ("--hires-steps", "--hires 2 --hires-steps 1001", "is 1001: euler takes a whole number"),
    ("--hires-mode", "--hires 2 --hires-mode cubic", "is 'cubic': choose one of latent, pixel"),
    ("--hires-mode", "--hires 2 --hires-mode pixel", ": tiny_control has no encoder"),
    ("--control", "--control canny", "'canny': give NAME=IMAGE"),
    ("--control", "--control pose=a.png", " 'pose': tiny_control has none of that name; it has"),
    ("--control", "--control canny=absent.png", " absent.png: cannot be read"),
    ("--control", "--control canny=a.png:nan", " 'canny': scale is nan: expected a number"),
    ("--control", "--control canny=a.png:1:0.5-0.2", " 'canny': from 0.5 to 0.2 of the steps"),
    ("--from", "--from absent.png", " absent.png: cannot be read"),
    ("--from", "--from text.png", " text.png: is not an image"),
    ("--count", "--count 0", "0 is not in the range"),
    ("--grid", "--grid=1", "does not take a value"),
    ("--prompts", "--prompts p.jsonl", "--out-dir FOLDER must be given together"),
    ("--out-dir", "--out-dir a.png", "'a.png' is a file"),
    ("--model", "-m absent", "absent: no such bundle"),
    ("--provider", "--provider gpu", "is 'gpu': expected auto or one of cpu, "),
    ("--threads", "--threads 0", "is 0: expected a whole number from 1 up"),
    ("--provider-option", "--provider-option x", "'x': give KEY=VALUE"),
    ("--provider-option", "--provider cpu --provider-option a=b", " a: the provider cpu"),
    ("--max-memory", "--max-memory 0", "is '0': expected bytes as a whole number"),
    ("--max-memory", "--max-memory 1MB", "is 1MB: the largest stage, "),
    ("--tile", "--tile 100", "is 100: expected pixels a side, a multiple of 8 from 256 up; leave"),
    ("--cache-dir", "--cache-dir a.png", "'a.png' is a file"),
    ("--no-cache", "--no-cache=1", "does not take a value"),
    ("--no-cache", "--no-cache --cache-dir x", "exclude each other: leave one out"),
    ("--deadline", "--deadline 0", "is 0.0: expected a positive number of seconds"),
    ("--deadline", "--deadline nan", "is nan: expected a positive number of seconds"),
    ("--output", "-o a.gif", " a.gif: edgediff writes PNG"),
    ("--output", "-o absent/a.png", " absent: no such folder"),
    ("--json", "--json=1", "does not take a value"),
]  # fmt: skip
IN_PYTHON = ("None", "True", "False", "(0", "edgediff.Control", "_seed", "_str", "_st", "_scale")


@pytest.mark.parametrize(("flag", "typed", "message"), BAD)
def test_the_flag_is_named_as_it_is_typed(
    flag: str,
    typed: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    golden = Path(__file__).parent / "golden"
    bundle = golden / (
        "tiny" if "a.png --" in typed or "line.png" in typed else "tiny_control"
    )  # with an encoder
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (72, 64)).save(tmp_path / "b.png")
    Image.new("L", (9000, 1)).save(tmp_path / "line.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "white.png")
    (tmp_path / "text.png").write_text("text")
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    arguments = [] if flag == "PROMPT" else ["a fox"]
    every = ["generate", *arguments, "-m", str(bundle), "-o", "out.png", *typed.split(" ")]
    monkeypatch.setattr(sys, "argv", ["edgediff", *every])
    with pytest.raises(SystemExit) as e:
        main()
    out, err = capsys.readouterr()
    assert e.value.code == (1 if flag == "--model" else 2)
    error = err.partition("Error: ")[2]
    assert message in error
    if flag not in ("--prompt-weights", "--model"):  # those name what is wrong with a text, a path
        assert flag in error
    assert not [spelling for spelling in IN_PYTHON if spelling in error]
    options = [p.name for p in generate.params if p.name and "_" in p.name]
    assert not [name for name in options if name in error]
    assert out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_every_flag_is_among_them() -> None:
    flags = {max(p.opts, key=len) for p in generate.params if isinstance(p, click.Option)}
    assert flags == {flag for flag, _, _ in BAD} - {"PROMPT"}


def test_in_python_the_same_errors_have_python_names() -> None:
    error = InputError("`mask`: give `mask=(0.0, 0.8)`, not {x}")
    assert str(error) == "`mask`: give `mask=(0.0, 0.8)`, not {x}"
    told = error.spelled(lambda option, value: f"<{option} {value}>")
    assert str(told) == "<mask None>: give <mask (0.0, 0.8)>, not {x}"
    assert str(error.spelled(lambda *_: None)) == str(error)


def test_a_flag_may_stand_for_an_option_and_its_value() -> None:
    error = InputError("`cache_dir`: give `cache_dir=False`")
    assert str(error.spelled(generate.spell)) == "--cache-dir: give --no-cache"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "copied",
    [copy.copy, lambda e: pickle.loads(pickle.dumps(e))],  # noqa: S301
)
def test_an_error_can_be_copied_to_another_process(copied: object) -> None:
    error = InputError("`mask` is `mask=(0.0, 0.8)`")
    again = copied(error)  # type: ignore[operator]
    assert str(again) == str(error)
    assert str(again.spelled(lambda option, _: option)) == "mask is mask"
