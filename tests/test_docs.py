"""README, CONTRIBUTING and docs/: links lead somewhere, code runs, commands and flags exist."""

import dataclasses
import importlib.util
import re
import shlex
import shutil
import tomllib
import typing
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from edgediff import cli
from edgediff.bundle.manifest import Manifest

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and line, code) of every block in that language."""
    return [
        (f"{page.name}:{text.count(chr(10), 0, found.start()) + 2}", found[2])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for found in BLOCK.finditer(text)
        if found[1] == language
    ]


def slug(heading: str) -> str:
    """The anchor that a Markdown heading gets."""
    kept = "".join(c for c in heading.strip().lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder that the examples assume: images, bundles and a file of prompts."""
    side = 128
    for name in ("scribble.png", "house.png", "edges.png", "photo.jpg"):
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (0, 0, side, side // 2))
    mask.save(tmp_path / "mask.png")
    for name, golden in {"sd15": "tiny", "canny": "tiny_control"}.items():
        shutil.copytree(GOLDEN / golden, tmp_path / name)
    (tmp_path / "list.jsonl").write_text('"a fox"\n')
    shutil.copy(GOLDEN / "emoji" / "0.png", tmp_path / "fox.png")
    for name in ("here.json", "there.json"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


def test_every_page_is_linked_from_the_readme() -> None:
    linked = re.findall(r"\]\((docs/[\w-]+\.md)\)", PAGES[0].read_text(encoding="utf-8"))
    assert {f"docs/{page.name}" for page in PAGES if page.parent != ROOT} == {*linked}


def test_every_image_is_shown() -> None:
    shown = {
        (page.parent / path).resolve()
        for page in PAGES
        for path in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    assert shown == {*(ROOT / "docs").resolve().glob("*.png")}


def test_every_test_that_is_named_exists() -> None:
    named = [
        (name, page.parent / path)
        for page in PAGES
        for name, path in re.findall(
            r"\[`(test_\w+)`\]\(([./]*tests/[\w/]+\.py)\)", page.read_text(encoding="utf-8")
        )
    ]
    assert len(named) > 10
    for name, path in named:
        assert f"def {name}(" in path.read_text(encoding="utf-8"), (name, path)


def test_each_row_of_the_table_of_formats_says_what_happens_and_names_a_test() -> None:
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    _, _, section = text.partition("## What happens with each format")
    section, _, _ = section.partition("\n## ")
    rows = [[cell.strip() for cell in line.split(" | ")] for line in section.splitlines()]
    rows = [row for row in rows if len(row) > 1 and row[1] != "what happens"]
    assert len(rows) > 50
    for given, happens, test in rows:
        assert re.match(r"works|refused|noted|equal|the first works", happens), given
        assert re.fullmatch(r"\[`test_\w+`\]\(\.\./tests/[\w/]+\.py\) \|", test), given


def test_the_architecture_names_files_that_exist_and_draws_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    runtime, export = ROOT / "edgediff", ROOT / "export" / "edgediff_export"
    prompt, _, rest = text.partition("## A weight")
    weight, _, drawing = rest.partition("## Folders")
    for root, part in ((runtime, prompt), (export, weight)):
        named = re.findall(r"`([\w/]+\.py)`", part)
        assert len(named) >= 10
        for name in named:
            assert (root / name).is_file(), name
    for root in (runtime, export):
        drawn = {*re.findall(r"([\w]+)/", drawing)}
        for folder in {path.parent for path in root.rglob("*.py")} - {root}:
            assert folder.name in drawn, folder
    for name in re.findall(r"\b\w+\.py", drawing):
        assert (runtime / name).is_file() or (export / name).is_file(), name


def test_the_bundle_format_has_every_field() -> None:
    text = (ROOT / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    named = {*re.findall(r"`(\w+)`", text)}
    classes = dataclasses_of(Manifest)
    assert len(classes) > 10
    for kind in classes:
        for field in dataclasses.fields(kind):
            assert field.name in named, f"{kind.__name__}.{field.name}"


def dataclasses_of(kind: Any) -> set[type]:
    """A dataclass and every dataclass in the types of its fields."""
    if dataclasses.is_dataclass(kind):
        inner = typing.get_type_hints(kind).values()
        return {kind}.union(*map(dataclasses_of, inner))  # type: ignore[arg-type]
    return set().union(*map(dataclasses_of, typing.get_args(kind)))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("where", "code"), blocks("python"), ids=[w for w, _ in blocks("python")])
def test_python_examples_run(where: str, code: str) -> None:
    exec(compile(code, where, "exec"), {"__name__": "example"})


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("where", "code"), blocks("sh"), ids=[w for w, _ in blocks("sh")])
def test_commands_exist_and_take_their_flags(
    where: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands are parsed, not run."""
    from edgediff_export.cli import export

    monkeypatch.setattr(click.Command, "invoke", lambda *_: None)
    commands = [
        words
        for line in code.replace("\\\n", " ").splitlines()
        for command in line.split(" && ")
        if (words := shlex.split(command, comments=True))
    ]
    assert commands, where
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for words in commands:
        match words:
            case ["edgediff", "export", *arguments]:
                export.main(arguments, standalone_mode=False)
            case ["edgediff", *arguments]:
                cli.edgediff.main(arguments, standalone_mode=False)
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module) is not None, module
            case ["pip", "install", *arguments]:
                for extra in re.findall(r"\[(\w[\w-]*)\]", " ".join(arguments)):
                    assert extra in extras["optional-dependencies"], extra
            case ["pytest", *_]:
                pass
            case ["bash", script]:
                assert (ROOT / script).is_file(), script
            case _:
                pytest.fail(f"{where}: unexpected command {words}")
