"""Captions vary as prompts do, and say nothing that is not in the tables."""

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
    seen = {captions.sample(FOX, "3d", rng) for _ in range(2000)}
    names = ("fox", "fox face", "vixen")
    expected = {form for name in names for form in captions.forms(name)}
    assert seen == expected | {f"{form}, 3d" for form in expected}


def test_batches_follow_the_weights_and_leave_captions_out() -> None:
    sampler = captions.Sampler([FOX, OWL], np.random.default_rng(0))
    indices, texts = sampler.batch(4000, p_empty=0.1)
    assert set(indices) == {4, 5, 9}
    assert indices.count(9) / 4000 == pytest.approx(0.25, abs=0.03)
    assert texts.count("") / 4000 == pytest.approx(0.1, abs=0.02)
    said = [(index, text) for index, text in zip(indices, texts, strict=True) if text]
    assert all(("owl" in text) == (index == 9) for index, text in said)


def test_the_same_seed_draws_the_same_batch() -> None:
    first, second = (
        captions.Sampler([FOX, OWL], np.random.default_rng(7)).batch(50, p_empty=0.1)
        for _ in range(2)
    )
    assert first == second
