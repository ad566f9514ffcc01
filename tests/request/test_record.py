"""Images made again from the record in their file, and files without a record."""

import contextlib
import dataclasses
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import edgediff
import edgediff.backend.available
from edgediff.errors import InputError
from edgediff.request.record import describe_given, recorded
from edgediff.request.settings import Settings

RECORD: dict[str, Any] = {
    "edgediff": edgediff.__version__,
    "prompt": "a fox",
    "negative_prompt": None,
    "seed": 3,
    "steps": 2,
    "guidance_scale": 0.0,
    "sampler": "lcm",
    "width": 64,
    "height": 128,
    "model": "tiny",
    "bundle": "0123",
    "provider": "cpu",
}


def png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def written(tmp_path: Path, **changes: Any) -> Path:
    return png(tmp_path / "a.png", edgediff=json.dumps(RECORD | changes))


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> edgediff.Pipeline:
    return edgediff.load(tiny_bundle)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seed": 0, "steps": 1, "guidance_scale": 0},
        {"seed": -1, "steps": 3, "guidance_scale": 4.3, "negative_prompt": "日本, \"a\"\nb: c"},
        {
            "seed": 1, "steps": 3, "sampler": "euler", "spacing": "karras",
            "guidance_rescale": 0.5, "guidance_interval": (0.0, 0.5), "prompt_weights": True,
            "variation_seed": 2, "variation_strength": 0.3,
        },
        {"seed": 2**64 - 1, "size": (128, 64), "sampler": "euler_a", "steps": 2},
    ],
)  # fmt: skip
def test_an_image_made_again_is_the_same(
    pipe: edgediff.Pipeline, tmp_path: Path, options: Any
) -> None:
    first = pipe.generate("a fox,\n  twice ", **options)
    (path,) = first.save(tmp_path / "a.png")
    made = recorded(path)
    again = pipe.generate(made.prompt, **made.options)
    assert np.array_equal(np.asarray(first.images[0]), np.asarray(again.images[0]))
    assert again.settings == first.settings
    assert again.seeds == first.seeds
    assert made.differences(again.settings) == []
    assert made.ignored == ()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_each_prompt_that_is_drawn_can_be_read_back(
    pipe: edgediff.Pipeline, tmp_path: Path, name: str
) -> None:
    """Emoji that this Python does not know, joined ones, isolates of right-to-left text, and
    whatever editors and other encodings leave."""
    whole = set(map(chr, (*range(0x400), *range(0x2000, 0x2100), *range(0xFFF0, 0x10000))))
    whole |= {"\U0001fae8", "\U0001f468\u200d\U0001f467", "\u2067\u05d0\u2069", "\U0010ffff"}
    drawn, refused = [], []
    for text in sorted(whole):
        try:
            pipe.resolve(text)
        except InputError:
            refused.append(text)
        else:
            drawn.append(text)
    spaces = "\t\n\v\f\r"
    assert refused == [c for c in map(chr, [*range(32), 127]) if c not in spaces]
    prompt = "".join(drawn)
    made = pipe.generate(prompt, negative_prompt=prompt[::-1], seed=1, steps=1)
    (path,) = made.save(tmp_path / name)
    assert recorded(path).prompt == prompt
    assert recorded(path).options["negative_prompt"] == prompt[::-1]
    assert recorded(made.save_grid(tmp_path / "sheet.png")).prompt == prompt


def test_one_of_a_batch_and_a_whole_sheet(pipe: edgediff.Pipeline, tmp_path: Path) -> None:
    batch = pipe.generate("a fox", seed=[4, 5], steps=2)
    one = recorded(batch.save(tmp_path / "a.png")[1])
    assert one.options["seed"] == 5
    again = pipe.generate(one.prompt, **one.options)
    assert again.images[0].tobytes() == batch.images[1].tobytes()
    sheet = recorded(batch.save_grid(tmp_path / "sheet.png"))
    assert sheet.options["seed"] == [4, 5]
    again = pipe.generate(sheet.prompt, **sheet.options)
    assert [p.tobytes() for p in again.images] == [p.tobytes() for p in batch.images]
    assert again.grid().tobytes() == batch.grid().tobytes()


@pytest.mark.slow
def test_an_input_image_has_to_be_given_again(controlled: Any, tmp_path: Path) -> None:
    shades = {"map.png": 90, "other.png": 200}
    for name, shade in shades.items():
        Image.new("L", (64, 64), shade).save(tmp_path / name)
    pipe = edgediff.load(controlled("sd1").bundle)
    control, other = ({"canny": edgediff.Control(tmp_path / name)} for name in shades)
    first = pipe.generate("a fox", control=control, seed=1, steps=1)
    made = recorded(first.save(tmp_path / "a.png")[0])
    assert describe_given(made.given["control"]) == "map.png"
    assert "control" not in made.options
    again = pipe.generate(made.prompt, **made.options, control=control)
    assert again.images[0].tobytes() == first.images[0].tobytes()
    assert made.differences(again.settings) == []
    request = pipe.resolve(made.prompt, **{**made.options, "control": other})
    settings = dataclasses.replace(request.settings, provider="cpu")
    assert made.differences(settings) == ["what is given is not map.png, which it was made from"]

    unnamed = {"canny": edgediff.Control(Image.new("L", (64, 64)))}
    first = pipe.generate("a fox", control=unnamed, seed=1, steps=1)
    made = recorded(first.save(tmp_path / "b.png")[0])
    assert describe_given(made.given["control"]) == "an image without a file"


def test_possible_differences_are_reported(pipe: edgediff.Pipeline, tmp_path: Path) -> None:
    settings = dataclasses.replace(pipe.resolve("a fox").settings, provider="cpu")
    same = {"bundle": pipe.bundle.id}
    assert recorded(written(tmp_path, **same)).differences(settings) == []
    for changes, message in (
        ({"edgediff": "0.0.1"}, f"edgediff 0.0.1 made it, this is {edgediff.__version__}"),
        ({"bundle": "ab" * 32}, "another bundle of tiny made it (abababababab, "),
        ({"bundle": "ab" * 32, "model": "large"}, "large made it, this is tiny (abab"),
        ({"provider": "cuda"}, "cuda made it, this is cpu"),
    ):
        (difference,) = recorded(written(tmp_path, **{**same, **changes})).differences(settings)
        assert message in difference
    # The provider is not known before a bundle is loaded.
    open_yet = dataclasses.replace(settings, provider="auto")
    assert recorded(written(tmp_path, **same, provider="cuda")).differences(open_yet) == []


def test_settings_of_a_newer_edgediff_are_reported_as_ignored(tmp_path: Path) -> None:
    made = recorded(written(tmp_path, wobble=0.5))
    assert made.ignored == ("wobble: 0.5",)
    assert "wobble" not in made.options


def test_a_record_of_an_older_edgediff_gives_its_own_settings(tmp_path: Path) -> None:
    made = recorded(written(tmp_path))
    assert made.options == {
        "negative_prompt": None,
        "seed": 3,
        "steps": 2,
        "guidance_scale": 0.0,
        "sampler": "lcm",
        "size": (64, 128),
    }


def not_a_png(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, format="BMP")


def bomb(path: Path) -> None:
    """A text chunk of ten kilobytes that holds ten megabytes."""
    whole = png(path).read_bytes()
    text = b"edgediff\0\1\0\0\0" + zlib.compress(b"x" * 10_000_000, 9)
    path.write_bytes(whole[:33] + chunk(b"iTXt", text) + whole[33:])


def large(path: Path) -> None:
    """More pixels than any decoder takes; the text is read all the same."""
    header = (2**31 - 1).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    text = b"edgediff\0\0\0\0\0" + json.dumps({"prompt": 3}).encode()
    chunks = chunk(b"IHDR", header) + chunk(b"iTXt", text) + chunk(b"IDAT", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def damaged(path: Path) -> None:
    data = bytearray(png(path, edgediff=json.dumps(RECORD)).read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda _: None, "cannot be read (No such file"),
        (lambda p: p.mkdir(), "cannot be read (Is a directory"),
        (lambda p: p.write_bytes(b""), "is not an image"),
        (lambda p: p.write_text("a fox"), "is not an image"),
        (not_a_png, "is not an image"),
        (lambda p: p.write_bytes(png(p, edgediff="{}").read_bytes()[:50]), "is damaged"),
        (damaged, "is damaged"),
        (os.mkfifo, "cannot be read (not a regular file"),
        (lambda p: Image.new("RGB", (8, 8)).save(p, format="JPEG"), "does not say how"),
        (lambda p: Image.new("RGB", (8, 8)).save(p, format="WEBP"), "does not say how"),
        (lambda p: p.write_bytes(png(p).read_bytes()[:-20]), "is damaged"),
        (lambda p: p.write_bytes(png(p).read_bytes()[:45]), "is damaged"),
        (lambda p: p.write_bytes(png(p).read_bytes().replace(b"IDAT", b"IDAT!")), "is damaged"),
        (bomb, "is damaged"),
        (large, "has no prompt"),
        (png, "does not say how it was made"),
        (lambda p: png(p, prompt='{"3": {}}'), "does not say how it was made"),
        (lambda p: png(p, edgediff="a fox"), "is not JSON"),
        (lambda p: png(p, edgediff="[" * 100_000), "is not JSON"),
        (lambda p: png(p, edgediff="[1]"), "is not a record"),
        (lambda p: png(p, edgediff="{}"), "has no prompt"),
        (lambda p: png(p, edgediff='{"images": []}'), "is a sheet of several prompts"),
        (lambda p: png(p, edgediff='{"prompt": "a"}'), "has edgediff None: expected text"),
        (lambda p: png(p, parameters="a fox"), "not in the form of AUTOMATIC1111"),
        (lambda p: png(p, parameters=""), "not in the form of AUTOMATIC1111"),
    ],
)  # fmt: skip
def test_files_without_a_record(tmp_path: Path, write: Any, message: str) -> None:
    path = tmp_path / "a.png"
    write(path)
    with pytest.raises(InputError) as e:
        recorded(path)
    assert message in str(e.value)
    assert str(path) in str(e.value)


SETTINGS = [field.name for field in dataclasses.fields(Settings)]


@pytest.mark.parametrize("name", ["seed", *(n for n in SETTINGS if n not in ("model", "bundle"))])
@pytest.mark.parametrize("junk", ["x", [], {}, [1, 2, 3], -7.5, 1e308, True, [[[]]]])
def test_nonsense_in_a_record_raises_only_input_errors(
    pipe: edgediff.Pipeline, tmp_path: Path, name: str, junk: Any
) -> None:
    with contextlib.suppress(InputError):  # some values are valid for some settings
        made = recorded(written(tmp_path, **{name: junk}))
        pipe.generate(made.prompt, **made.options)


A1111 = (
    "a (red:1.2) fox, <lora:ink:0.8>\nwith hat\n"
    "Negative prompt: blurry,\nbad: hands\n"
    "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 123, Size: 512x768, "
    'Model hash: 6ce0161689, Model: v1-5, Clip skip: 2, Hashes: "a, b: c", Version: v1.9.0'
)


def test_the_text_of_another_tool(tmp_path: Path) -> None:
    made = recorded(png(tmp_path / "a.png", parameters=A1111))
    assert made.prompt == "a (red:1.2) fox,\nwith hat"
    assert made.options == {
        "negative_prompt": "blurry,\nbad: hands",
        "steps": 20,
        "sampler": "dpmpp_2m_karras",
        "guidance_scale": 7.5,
        "seed": 123,
        "size": (512, 768),
        "prompt_weights": True,
    }
    assert made.ignored == ("<lora:ink:0.8>", "Clip skip: 2", "Hashes: a, b: c")
    assert made.version is None
    assert made.model == "v1-5"


@pytest.mark.parametrize(
    ("fields", "sampler", "ignored"),
    [
        ("Clip skip: 1, Model: x, Model hash: y, Version: z", None, ()),
        ("Sampler: Euler a", "euler_a", ()),
        ("Sampler: Euler, Schedule type: Automatic", "euler", ()),
        ("Sampler: DPM++ 2M, Schedule type: Karras", "dpmpp_2m_karras", ()),
        ("Sampler: Euler a, Schedule type: Beta", "euler_a", ("Schedule type: Beta",)),
        ("Sampler: Euler, Schedule type: Uniform", "euler", ("Schedule type: Uniform",)),
        ("Sampler: Euler a Karras", "euler_a", ("Schedule type: Karras",)),
        ("Variation seed: 7", None, ("Variation seed: 7",)),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m_karras", ()),
        ("Sampler: DPM++ 2M", "dpmpp_2m", ()),
        ("Sampler: Restart", None, ("Sampler: Restart",)),
        ("Size: big", None, ("Size: big",)),
        ("CFG scale: --", None, ("CFG scale: --",)),
        ("Seed: 1.5", None, ("Seed: 1.5",)),
    ],
)
def test_fields_of_other_tools(
    tmp_path: Path, fields: str, sampler: str | None, ignored: tuple[str, ...]
) -> None:
    made = recorded(png(tmp_path / "a.png", parameters=f"a\nSteps: 9, {fields}"))
    assert made.options.get("sampler") == sampler
    assert made.options["steps"] == 9
    assert made.ignored == ignored


@pytest.mark.parametrize(
    ("fields", "sampler", "spacing"),
    [
        ("Sampler: Euler, Schedule type: Beta", "euler", "beta"),
        ("Sampler: DPM++ SDE, Schedule type: Karras", "dpmpp_sde", "karras"),
        ("Sampler: DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m_karras", None),
        ("Sampler: DPM++ SDE, Schedule type: Automatic", "dpmpp_sde", "karras"),
        ("Sampler: DPM++ 2M SDE, Schedule type: Automatic", "dpmpp_2m_sde", "exponential"),
        ("Sampler: Euler, Schedule type: Automatic", "euler", None),
    ],
)
def test_spacings_of_other_tools(
    tmp_path: Path, fields: str, sampler: str, spacing: str | None
) -> None:
    made = recorded(png(tmp_path / "a.png", parameters=f"a\nSteps: 9, {fields}"))
    assert made.options.get("sampler") == sampler
    assert made.options.get("spacing") == spacing
    assert made.ignored == ()


def test_variations_of_other_tools(tmp_path: Path) -> None:
    text = "a\nSteps: 9, Seed: 1, Variation seed: 7, Variation seed strength: 0.25"
    made = recorded(png(tmp_path / "a.png", parameters=text))
    assert made.options["variation_seed"] == 7
    assert made.options["variation_strength"] == 0.25
    assert made.ignored == ()


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("a (red:1.2) fox\nSteps: 4", True),
        ("a fox\nNegative prompt: [b]\nSteps: 4", True),
        ("a (red:1.2) fox\nSteps: 4, Emphasis: None", None),
        ("a fox\nSteps: 4", None),
    ],
)
def test_brackets_of_other_tools_weight_words(
    tmp_path: Path, text: str, weights: bool | None
) -> None:
    made = recorded(png(tmp_path / "a.png", parameters=text))
    assert made.options.get("prompt_weights") == weights
    assert made.ignored == ()


def test_our_own_text_for_other_tools_is_read_back(pipe: edgediff.Pipeline, tmp_path: Path) -> None:
    result = pipe.generate("a: b, c", negative_prompt="x", seed=0, steps=2, guidance_scale=1.5)
    with Image.open(result.save(tmp_path / "a.png")[0]) as image:
        parameters = image.info["parameters"]
    ours = recorded(tmp_path / "a.png")
    theirs = recorded(png(tmp_path / "b.png", parameters=parameters))
    assert (theirs.prompt, theirs.options) == (ours.prompt, ours.options)
    assert theirs.ignored == ()


HASHED = {"name": "a.png", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_image": "/etc/passwd"}, "init_image: expected an object"),
        ({"mask": "/etc/passwd"}, "mask: expected an object"),
        ({"control": {"canny": "/etc/passwd"}}, "control: expected a list"),
        ({"control": [{"image": "/etc/passwd"}]}, "control[0]"),
        ({"init_image": HASHED | {"path": "/etc/passwd"}}, "unknown key 'path'"),
        ({"seed": 2**64}, "`seed` is 18446744073709551616"),
        ({"seed": 1.5}, "has seed 1.5: expected whole numbers"),
        ({"seed": "1"}, 'has seed "1": expected whole numbers'),
        ({"seed": {"1": 2}}, "expected whole numbers"),
        ({"seeds": list(range(10_001))}, "more than 10000"),
        ({"seeds": []}, "an empty list"),
        ({"steps": "x"}, "steps: expected a whole number"),
        ({"steps": True}, "steps: expected a whole number"),
        ({"width": [64]}, "width: expected a whole number"),
        ({"guidance_scale": None}, "guidance_scale: expected a number"),
        ({"guidance_interval": [0, 1, 2, "x"]}, "guidance_interval"),
        ({"prompt_weights": 1}, "prompt_weights: expected true or false"),
        ({"negative_prompt": "a\x1b[2J"}, "has characters that are not shown"),
        ({"prompt": "a\0b"}, "has characters that are not shown"),
        ({"spacing": "wide"}, "spacing: expected one of"),
        ({"onnxruntime": 1}, "onnxruntime: expected text"),
    ],
)
def test_a_record_has_the_types_of_its_settings(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as e:
        recorded(written(tmp_path, **changes))
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1e999}', "too large a number"),
        ('{"a": 123456789012345678901}', "too large a number"),
        ('{"a": 1, "a": 2}', "'a' comes twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": ' + "[" * 50_000, "nests too deep"),
        ('"' + "x" * 1_000_001 + '"', "more than 1000000 characters"),
    ],
)
def test_a_record_that_no_edgediff_wrote(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as e:
        recorded(png(tmp_path / "a.png", edgediff=text))
    assert message in str(e.value)


def test_an_image_is_named_and_not_opened(tmp_path: Path, pipe: edgediff.Pipeline) -> None:
    made = recorded(written(tmp_path, init_image={"name": "/etc/passwd", "sha256": "0" * 64}))
    assert made.given == {"init_image": {"name": "/etc/passwd", "sha256": "0" * 64}}
    assert "init_image" not in made.options
    pipe.generate(made.prompt, **made.options)


@pytest.mark.parametrize(
    "text",
    [
        "Steps: 1, " + "a" * 90_000,
        "Steps: 1, " + "a:" * 40_000,
        "Steps: 1, a: " + '"' * 80_000,
        "Steps: 1, a: " + '"\\' * 40_000,
        " " * 90_000 + "\nSteps: 1",
        "<lora:" * 15_000 + "\nSteps: 1",
        "x\n" * 40_000 + "Steps: 1",
    ],
)
def test_what_another_tool_wrote_is_read_in_linear_time(tmp_path: Path, text: str) -> None:
    path = png(tmp_path / "a.png", parameters=text)
    started = time.process_time()
    with contextlib.suppress(InputError):
        recorded(path)
    assert time.process_time() - started < 2
    with pytest.raises(InputError, match="more than 100000 characters"):
        recorded(png(path, parameters=text + "x" * 100_000))


def test_another_onnxruntime_is_a_difference(tmp_path: Path, pipe: edgediff.Pipeline) -> None:
    path = pipe.generate("a fox", seed=1, steps=1).save(tmp_path / "a.png")[0]
    made = recorded(path)
    assert made.onnxruntime == edgediff.backend.available.version()
    settings = pipe.generate("a fox", seed=1, steps=1).settings
    assert made.differences(settings) == []
    other = dataclasses.replace(made, onnxruntime="1.0.0")
    now = f"this is onnxruntime {made.onnxruntime}"
    assert other.differences(settings) == [f"onnxruntime 1.0.0 ran it, {now}"]
    older = dataclasses.replace(made, onnxruntime=None)
    assert older.differences(settings) == []
