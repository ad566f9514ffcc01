"""Numbers as callers have them: Python's, numpy's, and what only looks like one."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.checks import check_number, check_whole, is_number, whole_number
from edgediff.errors import InputError
from edgediff.request.request import MAX_SEEDS, check_size, resolve_seeds
from edgediff.text.tokenizer import MAX_CHARACTERS


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> edgediff.Pipeline:
    return edgediff.load(tiny_bundle)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), np.array(3, np.int16)])
def test_whole_numbers(value: Any) -> None:
    assert whole_number(value) == 3
    assert type(whole_number(value)) is int
    assert check_whole("steps", value) == 3
    assert resolve_seeds(value) == (3,)
    assert check_size((value * 8, 16), 8) == (24, 16)
    assert check_size(value * 8, 8) == (24, 24)
    assert check_number("strength", value) == 3.0


@pytest.mark.parametrize(
    "value",
    [True, np.True_, np.array(True), 3.0, "3", b"3", np.array([3]), np.array(3.0), None, 3j],
)
def test_what_is_not_a_whole_number(value: Any) -> None:
    assert whole_number(value) is None
    with pytest.raises(InputError, match="expected a whole number"):
        check_whole("steps", value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), np.array(0.5, np.float32)])
def test_numbers(value: Any) -> None:
    assert is_number(value)
    assert check_number("strength", value) == 0.5


@pytest.mark.parametrize(
    "value", [True, np.True_, np.array(True), "0.5", b"0", np.array([0.5]), 1j]
)
def test_what_is_not_a_number(value: Any) -> None:
    assert not is_number(value)


@pytest.mark.parametrize("seed", [b"ab", bytearray(b"ab"), memoryview(b"ab"), "12", 2**64, 1.0])
def test_what_is_not_a_seed(seed: Any) -> None:
    with pytest.raises(InputError, match="`seed` is "):
        resolve_seeds(seed)


@pytest.mark.parametrize("size", [b"@@", bytearray(b"@@"), memoryview(b"@@"), "64", (64,), 64.0])
def test_what_is_not_a_size(size: Any) -> None:
    with pytest.raises(InputError, match="`size` is "):
        check_size(size, 8)


def test_lists_of_seeds() -> None:
    assert resolve_seeds(np.array([1, 2])) == (1, 2)
    assert resolve_seeds(range(3)) == (0, 1, 2)
    assert resolve_seeds(k for k in (5, 6)) == (5, 6)
    with pytest.raises(InputError, match=f"more than {MAX_SEEDS}"):
        resolve_seeds(itertools.count())


def test_a_size_may_come_from_an_iterator_that_does_not_end() -> None:
    with pytest.raises(InputError, match="expected \\(width, height\\)"):
        check_size(itertools.count(8, 8), 8)


def test_a_seed_out_of_range_is_refused_before_a_model_loads(tiny_bundle: Path) -> None:
    pipe = edgediff.load(tiny_bundle)
    pipe.close()
    with pytest.raises(InputError, match="`seed` is 18446744073709551616"):
        pipe.generate("a fox", seed=2**64)
    assert pipe.loaded_stages == ()


def test_numpy_values_of_every_option(pipe: edgediff.Pipeline) -> None:
    plain = pipe.generate("a fox", seed=3, size=64, steps=2, guidance_scale=2.0)
    arrays = pipe.generate(
        "a fox",
        seed=np.array(3),
        size=np.array([64, 64]),
        steps=np.int32(2),
        guidance_scale=np.array(2.0),
    )
    assert arrays.images[0].tobytes() == plain.images[0].tobytes()
    assert arrays.settings == plain.settings


def test_a_long_prompt_is_refused_before_it_is_tokenized(
    pipe: edgediff.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("edgediff.text.tokenizer.Tokenizer.encode")
    for options in ({}, {"long_prompts": True}, {"prompt_weights": True}):
        with pytest.raises(InputError, match=f"`prompt` has {10**7} characters: at most 20000"):
            pipe.generate("a" * 10**7, **options)
        with pytest.raises(InputError, match="`negative_prompt` has 20001 characters"):
            pipe.generate("a", negative_prompt="b" * (MAX_CHARACTERS + 1), **options)
