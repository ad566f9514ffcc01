"""Files of prompts: what is made, what is kept, and what is wrong with them."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import edgediff
from edgediff import prompt_file
from edgediff.batch import kept, prepare_jobs, run_jobs, save_sheet
from edgediff.bundle.folder import Bundle
from edgediff.errors import InputError, ProviderError
from edgediff.prompt_file import Job, read_jobs


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> edgediff.Pipeline:
    return edgediff.load(tiny_bundle)


def written(tmp_path: Path, *lines: Any, name: str = "p.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def jobs_of(tmp_path: Path, *lines: Any, **defaults: Any) -> list[Job]:
    return read_jobs(written(tmp_path, *lines), tmp_path / "out", defaults)


def done(pipe: edgediff.Pipeline, jobs: list[Job]) -> list[tuple[int, str, list[str]]]:
    outcomes = run_jobs(pipe, prepare_jobs(jobs, pipe.bundle))
    return [(o.job.line, o.status, [p.name for p in o.paths]) for o in outcomes]


def test_lines(tmp_path: Path) -> None:
    jobs = jobs_of(
        tmp_path,
        '\ufeff"a fox, 日本"',
        "",
        {"prompt": "b", "seed": 0, "guidance_scale": 0, "output": "B.PNG", "size": [64, 128]},
        '  {"prompt": "c", "steps": 3, "seed": null}\r',
        steps=2,
        seed=5,
    )
    out = tmp_path / "out"
    assert jobs == [
        Job(line=1, prompt="a fox, 日本", options={"steps": 2, "seed": 5}, output=out / "0001.png"),
        Job(
            line=3,
            prompt="b",
            options={"steps": 2, "seed": 0, "guidance_scale": 0, "size": [64, 128]},
            output=out / "B.PNG",
        ),
        Job(line=4, prompt="c", options={"steps": 3, "seed": 5}, output=out / "0004.png"),
    ]


def test_a_line_with_control(tiny_bundle: Path, tmp_path: Path) -> None:
    control = {"canny": {"image": "m.png", "scale": 0.5, "process": "edges"}, "depth": "d.png"}
    jobs = jobs_of(tmp_path, {"prompt": "a", "control": control})
    assert jobs[0].options["control"] == {
        "canny": edgediff.Control(str(tmp_path / "m.png"), scale=0.5, process="edges"),
        "depth": edgediff.Control(str(tmp_path / "d.png")),
    }
    with pytest.raises(InputError, match=r"p\.jsonl, line 1: control 'canny': tiny has none"):
        prepare_jobs(jobs, Bundle.open(tiny_bundle))


def test_prompts_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "a fox", '"quoted"', " ", '{"x', name="p.TXT")
    jobs = read_jobs(path, tmp_path)
    assert [(j.line, j.prompt) for j in jobs] == [(1, "a fox"), (2, '"quoted"'), (4, '{"x')]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a fox", 'is not JSON (Expecting value at character 1): give {"prompt": "a red apple"}'),
        ('{"prompt": "a"', "is not JSON (Expecting ',' delimiter at character 15)"),
        ("[" * 100_000, "is not JSON ("),
        ("1" * 10_000, "is not JSON ("),
        ("7", "is 7: give an object with a prompt"),
        ("null", "is null: give an object"),
        ("{}", "has no prompt"),
        ({"prompt": None}, "prompt is NoneType, expected text"),
        ({"prompt": ["a"]}, "prompt is list, expected text"),
        ('"\\ud800"', "prompt is not valid text"),
        ('"a\\u0000"', "prompt has the control character '\\x00': leave it out"),
        ('"a\\u001b[2J"', "prompt has the control character '\\x1b': leave it out"),
        ({"prompt": "a", "stesp": 3}, "has 'stesp': did you mean 'steps'?"),
        ({"prompt": "a", "x": 3}, "has 'x': expected prompt, output, negative_prompt, "),
        ('{"prompt": "a", "steps": 1, "steps": 2}', "has 'steps' twice"),
        ({"prompt": "a", "seed": 1.5}, "seed is 1.5: give an integer"),
        ({"prompt": "a", "seed": []}, "seed is an empty list"),
        ({"prompt": "a", "seed": "1"}, "seed is '1': give an integer"),
        ({"prompt": "a", "output": ""}, "output is '': expected a file's name"),
        ({"prompt": "a", "output": 3}, "output is 3: expected a file's name"),
        ({"prompt": "a", "output": "../a.png"}, "output is '../a.png': expected a file's name"),
        ({"prompt": "a", "output": "C:\\a.png"}, "expected a file's name"),
        ({"prompt": "a", "output": "\x1b]0;pwn\x07x.png"}, "expected a file's name"),
        ({"prompt": "a", "output": "a\nb.png"}, "expected a file's name"),
        ({"prompt": "a", "output": "a:b.png"}, "expected a file's name"),
        ({"prompt": "a", "output": "CON.png"}, "expected a file's name"),
        ({"prompt": "a", "output": ".."}, "ends in .png"),
        ({"prompt": "a", "output": ".png"}, "ends in .png"),
        ({"prompt": "a", "output": "a.gif"}, "ends in .png, .jpg or .webp"),
        ({"prompt": "a", "output": "0001.PNG"}, "0001.PNG is already the output of line 1"),
    ],
)  # fmt: skip
def test_lines_that_cannot_be_used(tmp_path: Path, line: Any, message: str) -> None:
    one, other, last = jobs_of(tmp_path, '"a fox"', line, '"a dog"')
    assert (one.error, last.error) == (None, None)
    assert other.where == f"{tmp_path / 'p.jsonl'}, line 2"
    assert message in str(other.error)
    if not message.startswith("0001"):
        with pytest.raises(InputError) as e:
            jobs_of(tmp_path, "", line)
        assert str(e.value).startswith(f"{other.where}: ")
        assert message in str(e.value)


def test_of_a_file_without_a_line_that_can_be_used_ten_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as e:
        jobs_of(tmp_path, '"\\ud800"', "", *["{}"] * 12)
    lines = str(e.value).splitlines()
    assert lines[0] == f"{tmp_path / 'p.jsonl'}: none of 13 lines can be used:"
    assert lines[1].startswith("  line 1: prompt is not valid text")
    assert lines[2].startswith("  line 3: has no prompt")
    assert len(lines) == 12
    assert lines[-1] == "  and 3 more"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a fox", "a dog", ""], " of 2 lines can be used, the first is not JSON (Expecting value"),
        (
            ["[", '{"prompt": "a"},', '{"prompt": "b"}', "]"][:2],
            "; put prompts without options in a .txt",
        ),
        (["{}"] * 30, ' of 30 lines can be used: has no prompt: give {"prompt": "a red apple"}'),
    ],
)
def test_one_mistake_in_all_lines_is_one_message(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(InputError) as e:
        jobs_of(tmp_path, *lines)
    assert str(e.value).startswith(f"{tmp_path / 'p.jsonl'}: none of ")
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("seeds", "output"), [([1, 2], "a-2.png"), ([2, 2], "a-2.png"), ([2, 2], "A-2-2.png")]
)
def test_two_lines_for_one_file(tmp_path: Path, seeds: list[int], output: str) -> None:
    one, other = jobs_of(
        tmp_path,
        {"prompt": "a", "seed": seeds, "output": "a.png"},
        {"prompt": "b", "output": output},
    )
    assert one.error is None
    assert "is already the output of line 1" in str(other.error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no prompts"),
        (b"\n \r\n", "has no prompts"),
        ('"a"\n"b"\n"c"'.encode("utf-16"), "is not UTF-8 text, it has zero bytes"),
        (b'"a"\n\0', "is not UTF-8 text, it has zero bytes"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not UTF-8 text"),
        (b'[\n{"prompt": "a"},\n{"prompt": "b"}\n]', "is a JSON array: put each item on its own"),
        (b'[{"prompt": "a"}]', "is a JSON array"),
        (b"\x1f\x8b\x08\n\xff\xfe\nb\n", "is not UTF-8 text: give one prompt per line"),
        (None, "cannot be read (No such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "p.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as e:
        read_jobs(path, tmp_path)
    assert str(e.value).startswith(f"{path}: ")
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_a_line_that_is_no_text_does_not_spoil_the_others(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'"a"\n"\xff"')
    one, other = read_jobs(path, tmp_path)
    assert one.error is None
    assert str(other.error) == "is not UTF-8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": "x"}, "steps is 'x'"),
        ({"size": [63, 64]}, "size 63x64"),
        ({"size": "64x64"}, "size is '64x64'"),
        ({"sampler": []}, "sampler is list"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_interval": [0.5, 0.5]}, "guidance_interval [0.5, 0.5]: give"),
    ],
)
def test_what_does_not_fit_the_bundle_is_found_before_anything_is_made(
    tiny_bundle: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    bundle = Bundle.open(tiny_bundle)
    lines = jobs_of(tmp_path, '"a"', {"prompt": "b", **options})
    one, other = prepare_jobs(lines, bundle)
    assert one.error is None
    assert str(other.error).startswith(message)
    assert kept(other, bundle) is None
    (tmp_path / "out").rmdir()
    with pytest.raises(InputError) as e:
        prepare_jobs(lines[1:], bundle)
    assert str(e.value).startswith(f"{lines[1].where}: {message}")
    assert not (tmp_path / "out").exists()


def test_a_job_with_an_error_fails_and_a_folder_in_its_way_is_one(
    pipe: edgediff.Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "out" / "0002.png").mkdir(parents=True)
    jobs = prepare_jobs(jobs_of(tmp_path, '"a"', '"b"', "{}", steps=1), pipe.bundle)
    outcomes = list(run_jobs(pipe, jobs))
    assert [o.status for o in outcomes] == ["made", "failed", "failed"]
    assert "0002.png: is a folder" in str(outcomes[1].error)
    assert "has no prompt" in str(outcomes[2].error)


def test_finished_images_are_kept(pipe: edgediff.Pipeline, tmp_path: Path) -> None:
    lines = ['"a"', {"prompt": "b", "seed": [1, 2]}, {"prompt": "c", "output": "c.png"}]
    jobs = jobs_of(tmp_path, *lines, steps=1)
    names = [["0001.png"], ["0002-1.png", "0002-2.png"], ["c.png"]]
    assert done(pipe, jobs) == [(k, "made", n) for k, n in enumerate(names, 1)]
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert done(pipe, jobs) == [(k, "kept", n) for k, n in enumerate(names, 1)]

    # Of several images of a line one is missing; another was not copied whole.
    (tmp_path / "out" / "0002-2.png").unlink()
    (tmp_path / "out" / "c.png").write_bytes(before[tmp_path / "out" / "c.png"][:-40])
    assert [status for _, status, _ in done(pipe, jobs)] == ["kept", "made", "made"]
    path = tmp_path / "out" / "0002-2.png"
    assert path.read_bytes() == before[path]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "kept"),
        ({"seed": 3}, "made"),
        ({"prompt": "b"}, "made"),
        ({"steps": 2}, "made"),
        ({"negative_prompt": "x"}, "made"),
        ({"size": 128}, "made"),
        ({"sampler": "lcm"}, "made"),
        ({"seed": None}, "kept"),
    ],
)
def test_an_edited_line_is_made_again(
    pipe: edgediff.Pipeline, tmp_path: Path, change: dict[str, Any], status: str
) -> None:
    line = {"prompt": "a", "seed": 7, "steps": 1}
    done(pipe, jobs_of(tmp_path, line))
    assert [s for _, s, _ in done(pipe, jobs_of(tmp_path, line | change))] == [status]


def test_a_line_that_moved_is_made_under_its_new_name_or_kept_under_its_own(
    pipe: edgediff.Pipeline, tmp_path: Path
) -> None:
    lines = [{"prompt": "a"}, {"prompt": "b", "output": "b.png"}]
    done(pipe, jobs_of(tmp_path, *lines, steps=1))
    moved = done(pipe, jobs_of(tmp_path, {"prompt": "new"}, *lines, steps=1))
    assert moved == [
        (1, "made", ["0001.png"]),
        (2, "made", ["0002.png"]),
        (3, "kept", ["b.png"]),
    ]


def test_another_bundles_image_is_not_kept(pipe: edgediff.Pipeline, tmp_path: Path) -> None:
    (job,) = jobs_of(tmp_path, '"a"', steps=1)
    done(pipe, [job])
    path = job.output
    with Image.open(path) as image:
        record = json.loads(image.info["edgediff"])
        for changes, there in (
            ({"edgediff": "0", "provider": "x"}, True),
            ({"bundle": "x"}, False),
        ):
            text = json.dumps(record | changes)
            edgediff.images.png.save_image(
                image.copy(), path, parameters=None, record=json.loads(text)
            )
            assert (kept(job, pipe.bundle) is not None) == there


def test_one_failure_does_not_stop_the_rest(
    pipe: edgediff.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pipe.run

    def sometimes(request: edgediff.Request, **options: Any) -> edgediff.Run:
        if request.settings.prompt == "b":
            raise ProviderError("out of memory")
        return run(request, **options)

    jobs = jobs_of(tmp_path, '"a"', '"b"', '"c"', steps=1)
    prepare_jobs(jobs, pipe.bundle)
    monkeypatch.setattr(pipe, "run", sometimes)
    outcomes = list(run_jobs(pipe, jobs))
    assert [o.status for o in outcomes] == ["made", "failed", "made"]
    assert (outcomes[1].error, outcomes[1].paths) == ("out of memory", [])
    monkeypatch.undo()
    assert [o.status for o in run_jobs(pipe, jobs)] == ["kept", "made", "kept"]


def test_a_sheet_of_all(pipe: edgediff.Pipeline, tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, {"prompt": "a", "seed": [1, 2]}, {"prompt": "b", "seed": 3}, steps=1)
    prepare_jobs(jobs, pipe.bundle)
    path = save_sheet(list(run_jobs(pipe, jobs)), tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        images = json.loads(sheet.info["edgediff"])["images"]
        assert sheet.width == 320
    assert [(p["prompt"], p["seed"]) for p in images] == [("a", 1), ("a", 2), ("b", 3)]
    with pytest.raises(InputError, match="no images"):
        save_sheet([], path)


@dataclasses.dataclass(frozen=True)
class Guide:
    """As an option may have it."""

    image: str | os.PathLike[str]
    _: dataclasses.KW_ONLY
    scale: float = 1.0


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (str | None, "a.png", "a.png"),
        (str | os.PathLike[str] | None, "a.png", "F/a.png"),
        (str | os.PathLike[str] | None, "/a.png", "/a.png"),
        (str | os.PathLike[str] | None, 3, 3),
        (Mapping[str, Guide] | None, {"x": "a.png"}, {"x": Guide("F/a.png")}),
        (
            Mapping[str, Guide] | None,
            {"x": {"image": "a.png", "scale": 0.5}, "y": 3},
            {"x": Guide("F/a.png", scale=0.5), "y": 3},
        ),
        (Mapping[str, Guide] | None, ["a.png"], ["a.png"]),
    ],
)
def test_paths_in_a_line_are_beside_its_file(kind: Any, value: Any, expected: Any) -> None:
    assert prompt_file._option(kind, value, Path("F")) == expected


@pytest.mark.parametrize("option", ["init_image", "mask", "control"])
def test_an_object_in_place_of_an_image_is_refused(tmp_path: Path, option: str) -> None:
    fake: Any = {"rgb": "f.png", "name": "n", "what": "w"}
    value = {"canny": {"image": fake}} if option == "control" else fake
    line = {"prompt": "a", option: value}
    if option == "mask":
        Image.new("RGB", (64, 64)).save(tmp_path / "i.png")
        line["init_image"] = "i.png"
    jobs = read_jobs(written(tmp_path, line, {"prompt": "b"}), tmp_path / "out")
    name = "tiny_control" if option == "control" else "tiny"
    bundle = Bundle.open(Path(__file__).parent / "golden" / name)
    odd, other = prepare_jobs(jobs, bundle)
    assert other.error is None
    assert odd.error is not None
    assert "dict" in str(odd.error) or "an object" in str(odd.error)


@pytest.mark.parametrize("value", [{"image": "a.png", "sclae": 1}, {"scale": 1}, {}])
def test_an_object_of_other_fields(value: Any) -> None:
    with pytest.raises(InputError, match=r"expected an object of image, scale"):
        prompt_file._option(Mapping[str, Guide], {"x": value}, Path("F"))
