"""A search on a small pipeline: the bundle holds what the search promised."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from edgediff_export.cli import export as command
from edgediff_export.export import Exported, Options, export
from edgediff_export.fidelity import shots
from edgediff_export.search.budget import Budget, Formats, Found, Search

from edgediff.bundle.folder import Bundle
from edgediff.errors import ExportError
from edgediff.verification import verify

pytestmark = pytest.mark.slow
MIN_PSNR = 39.0


@pytest.fixture(scope="module")
def source(small_pipeline: Callable[[str], Path]) -> str:
    return str(small_pipeline("sd1"))


@pytest.fixture(scope="module")
def searched(
    source: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Exported, list[str], list[tuple[Any, int]]]:
    """A search only for quality, its reports, and the size that it expects."""
    said: list[str] = []
    sizes = []
    run = Search.run

    def recording(search: Search, start: Formats) -> Found:
        found = run(search, start)
        sizes.append((found.formats, search.size_of(found.formats)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "run", recording)
        made = export(
            Options(
                source=source,
                out=tmp_path_factory.mktemp("searched") / "b",
                precision="int8",
                steps=1,
                budget=Budget(min_psnr=MIN_PSNR),
            ),
            lambda progress: said.append(progress.text),
        )
    return made, said, sizes


def test_the_bundle_says_what_was_measured(searched: Any) -> None:
    made, said, _ = searched
    assert "sensitivity of each layer" in said
    assert any(s.startswith("int8: ") and s.endswith(" on calibration images") for s in said)
    search = Bundle.open(made.root).manifest.quantization.search
    assert search is not None
    assert (search.min_psnr_db, search.max_bytes) == (MIN_PSNR, None)
    assert search.unseen_images == len(shots.TRIAL_PROMPTS) - shots.CALIBRATION
    assert search.calibration_psnr_db >= MIN_PSNR
    assert search.unseen_psnr_db >= MIN_PSNR
    assert search.unseen_lowest_db <= search.unseen_psnr_db
    assert [c for c in verify(made.root, provider="cpu").checks if not c.ok] == []
    assert "trial" not in {p.name for p in made.root.iterdir()}


def test_the_bundle_is_the_plan_that_was_found(searched: Any) -> None:
    made, _, ((plans, _),) = searched
    for stage, plan in plans.items():
        stored = made.manifest.quantization.tensors[stage]
        assert {k: stored[k] for k in plan} == plan
    formats = {f for plan in plans.values() for f in plan.values()}
    assert formats == {"int8", "int8-weights", "fp32"}


def test_the_size_that_a_search_sees_is_that_of_the_files(searched: Any) -> None:
    """But for how they are aligned, and for the nodes around a layer."""
    made, _, ((_, size),) = searched
    files = made.manifest.files
    actual = sum(f.size for name, f in files.items() if name != made.manifest.fixtures)
    assert size == pytest.approx(actual, rel=0.01, abs=30_000)


def test_size_and_quality_together_and_json(source: str, searched: Any, tmp_path: Path) -> None:
    _, _, ((_, size),) = searched
    most = (size - 30_000) / 1e6
    arguments = [source, str(tmp_path / "b"), "--precision", "int8", "--steps", "1", "--json"]
    done = CliRunner().invoke(
        command, [*arguments, "--max-size", f"{most}", "--min-psnr", "20"]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["search"]["max_bytes"] == int(most * 1e6)
    assert report["search"]["min_psnr_db"] == 20
    assert report["search"]["unseen_psnr_db"] >= 20
    tensors = Bundle.open(tmp_path / "b").manifest.quantization.tensors
    assert "int4" in {f for plan in tensors.values() for f in plan.values()}
    assert verify(tmp_path / "b", provider="cpu").ok
    found = Bundle.open(tmp_path / "b").manifest
    files = sum(f.size for name, f in found.files.items() if name != found.fixtures)
    assert files < 1.02 * most * 1e6


def test_a_size_that_cannot_be(source: str, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"--max-size 0\.1: the smallest that int8 and int4 reach"
    ):
        export(
            Options(
                source=source,
                out=tmp_path / "b",
                precision="int8",
                steps=1,
                budget=Budget(max_size=100_000),
            )
        )
    assert list(tmp_path.iterdir()) == []
