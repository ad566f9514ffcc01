"""The judge's scores, on images with known answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import emoji


@pytest.fixture(scope="module")
def judge() -> emoji.Judge:
    return emoji.Judge()


def test_the_300_are_there_and_fewer_are_spread(judge: emoji.Judge) -> None:
    every = judge.common()
    assert len(every) == 300
    some = judge.common(40)
    assert len(set(some)) == 40
    assert some[0] == every[0]
    assert some[-1] > every[280]


def test_requests_say_what_should_be_seen(judge: emoji.Judge) -> None:
    named = emoji.by_name(judge, 2, 10)
    assert len(named) == 20
    assert {r.style for r in named} == {None}
    for request in emoji.by_style(judge, 30):
        concept = judge.concepts[request.concept]
        assert request.style is not None
        assert judge.styles[request.style] in concept["styles"]
        assert request.prompt.endswith(judge.styles[request.style])
    for request in emoji.held_out(judge, None):
        assert request.style is not None
        concept = judge.concepts[request.concept]
        assert judge.styles[request.style] in concept["held_out_styles"]
    shown = {n for c in judge.concepts for n in c["names"]}
    unseen = {w for r in emoji.by_synonym(judge, None) for w in [r.prompt.split(" ", 1)[1]]}
    assert unseen
    assert not unseen & shown


def test_scores_count_concepts_and_styles() -> None:
    class Always:
        concepts = ({"names": ["cat"]}, {"names": ["dog"]})

        def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
            return np.zeros(len(images), int), np.ones(len(images), int), images

    requests = [
        emoji.Request(prompt="a cat", seed=0, concept=0, style=1),
        emoji.Request(prompt="a dog", seed=0, concept=1, style=0),
    ]
    images = np.zeros((2, 128, 128, 3), np.uint8)
    found = emoji.score(Always(), requests, images)  # type: ignore[arg-type]
    assert found == {"images": 2, "concept": 0.5, "style": 0.5}
    assert emoji.confusions(Always(), requests, images) == [["a dog", "cat"]]  # type: ignore[arg-type]


def test_copies_are_found(judge: emoji.Judge) -> None:
    shown = np.random.default_rng(0).integers(0, 256, (6, 128, 128, 3), np.uint8)
    found = emoji.nearest(judge, shown[[4, 1]], shown)
    assert found["index"] == [4, 1]
    assert found["pixel_psnr_db"]["median"] > 60
    assert found["feature_cosine"]["median"] == pytest.approx(1, abs=1e-4)
    assert found["between_training"]["pixel_psnr_db"]["median"] < 40


def test_bars_are_checked_where_there_is_a_figure() -> None:
    found = {"by name": {"concept": 0.9}, "teacher": {"concept": 0.95}}
    checks = {c.what: c for c in emoji.checks(found)}
    assert checks["concept, by name"].met
    assert not checks["teacher at 20 steps ahead by"].met
    assert len(checks) == 2


@pytest.mark.slow
def test_the_whole_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["emoji", "--concepts", "2", "--seeds", "1",
                                     "--float", "emoji", "--out", str(tmp_path)])  # fmt: skip
    emoji.main()
    found = json.loads((tmp_path / "emoji.json").read_text())
    assert found["by name"]["images"] == 2
    assert found["int8"]["minimum_db"] == float("inf")
    assert {p.name for p in tmp_path.iterdir()} == {"emoji.json", "sheet.png", "steps.png"}
