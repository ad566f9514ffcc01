"""Captions vary as prompts do, and say nothing that is not in the tables."""

from dataclasses import replace

import numpy as np
import pytest
from demo_model import captions
from demo_model.dataset import Concept

FOX = Concept(
    emoji="🦊",
    names=("fox", "fox face"),
    synonyms=("vixen",),
    weight=3.0,
    pictures=((4, "3d"), (5, "flat")),
)
OWL = Concept(emoji="🦉", names=("owl",), synonyms=(), weight=1.0, pictures=((9, "flat"),))


@pytest.mark.parametrize(
    ("noun", "expected"), [("apple", "an"), ("fox", "a"), ("owl", "an"), ("unicorn", "a")]
)
def test_article(noun: str, expected: str) -> None:
    assert captions.article(noun) == expected


def test_every_form_of_a_caption_occurs() -> None:
    rng = np.random.default_rng(0)
    plain = {captions.caption("fox", None, rng) for _ in range(2000)}
    forms = set(captions.forms("fox"))
    assert plain == forms | {f.format(form) for f in captions.FRAMES for form in forms}
    styled = {captions.caption("fox", "3d", rng) for _ in range(2000)}
    assert {"a fox, 3d", "3d fox", "the fox in 3d style", "fox, 3d style"} <= styled
    assert all("3d" in text and "fox" in text for text in styled)


def test_every_name_of_a_concept_occurs() -> None:
    rng = np.random.default_rng(0)
    assert {captions.draw_name(FOX, rng) for _ in range(200)} == {"fox", "fox face", "vixen"}
    assert captions.draw_name(OWL, rng) == "owl"


def test_numbers_have_no_article() -> None:
    assert set(captions.forms("two cats")) == {"two cats"}


def test_batches_follow_the_weights_and_leave_captions_out() -> None:
    sampler = captions.Sampler([FOX, OWL], np.random.default_rng(0))
    indices, texts = sampler.batch(4000, p_empty=0.1)
    assert set(indices) == {4, 5, 9}
    assert indices.count(9) / 4000 == pytest.approx(0.25, abs=0.03)
    assert texts.count("") / 4000 == pytest.approx(0.1, abs=0.02)
    said = [(index, text) for index, text in zip(indices, texts, strict=True) if text]
    assert all(("owl" in text) == (index == 9) for index, text in said)
    assert all(("3d" in text) == (index == 4) for index, text in said)


def test_focus_shows_the_heavy_more_often() -> None:
    sampler = captions.Sampler([FOX, OWL], np.random.default_rng(0), focus=2)
    indices, _ = sampler.batch(4000, p_empty=0)
    assert indices.count(9) / 4000 == pytest.approx(0.1, abs=0.02)


def test_further_words_are_synonyms_of_the_published_drawings_alone() -> None:
    two = replace(FOX, names=("two foxes",), synonyms=(), variant="two")
    wide = captions.widened([FOX, OWL, two], {"🦊": ["reynard"]})
    assert [c.synonyms for c in wide] == [("vixen", "reynard"), (), ()]


def test_some_captions_have_every_style_and_none() -> None:
    texts = captions.some([FOX, OWL])
    assert len(texts) == 5
    assert sum("3d" in text for text in texts) == 1


def test_the_same_seed_draws_the_same_batch() -> None:
    first, second = (
        captions.Sampler([FOX, OWL], np.random.default_rng(7)).batch(50, p_empty=0.1)
        for _ in range(2)
    )
    assert first == second
