"""Weights in prompts: how they are parsed, and how they change the hidden states."""

import numpy as np
import pytest

from edgediff.errors import InputError
from edgediff.text.emphasis import MAX_WEIGHT, apply_weights, parse_weights, plain

UP, DOWN = 1.1, 1 / 1.1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a fox", [("a fox", 1)]),
        ("(fox)", [("fox", UP)]),
        ("[fox]", [("fox", DOWN)]),
        ("(fox:1.3)", [("fox", 1.3)]),
        ("(fox:0)", [("fox", 0)]),
        ("(fox:-1)", [("fox", -1)]),
        ("(fox:+.5)", [("fox", 0.5)]),
        ("(fox:2.)", [("fox", 2)]),
        ("(fox : 1.3 )", [("fox ", 1.3)]),
        ("a (red:1.2) fox", [("a ", 1), ("red", 1.2), (" fox", 1)]),
        # Nested: factors multiply.
        ("((fox))", [("fox", UP * UP)]),
        ("[[fox]]", [("fox", DOWN * DOWN)]),
        ("(a [b] c:2)", [("a ", 2), ("b", 2 * DOWN), (" c", 2)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3), (" c", 1.5)]),
        ("(a:2)(b:2)", [("ab", 2)]),
        ("(a:1)b", [("ab", 1)]),
        ("()", []),
        ("(:1.3)", []),
        # Escaped brackets are text.
        (r"\(fox\)", [("(fox)", 1)]),
        (r"\[fox\]", [("[fox]", 1)]),
        (r"(fox\):1.3)", [("fox)", 1.3)]),
        (r"a\\b", [("a\b".replace("\b", "\\b"), 1)]),
        (r"(a\\)", [("a\\", UP)]),
        (r"a\b", [("a\\b", 1)]),
        ("a\\", [("a\\", 1)]),
        # Unmatched brackets are text.
        ("(fox", [("(fox", 1)]),
        ("fox)", [("fox)", 1)]),
        ("[fox", [("[fox", 1)]),
        ("fox]", [("fox]", 1)]),
        ("fox:1.3)", [("fox:1.3)", 1)]),
        ("[fox:1.3)", [("[fox:1.3)", 1)]),
        ("((fox)", [("(", 1), ("fox", UP)]),
        ("(fox))", [("fox", UP), (")", 1)]),
        ("(a [b)", [("a [b", UP)]),
        ("[a (b]", [("a (b", DOWN)]),
        ("(a [b) c]", [("a [b", UP), (" c]", 1)]),
        (":( :)", [(":", 1), (" :", UP)]),
        (")(", [(")(", 1)]),
        # Anything but a number is text.
        ("(fox:x)", [("fox:x", UP)]),
        ("(fox:)", [("fox:", UP)]),
        ("(fox:1.2.3)", [("fox:1.2.3", UP)]),
        ("(fox:1,5)", [("fox:1,5", UP)]),
        ("(fox:nan)", [("fox:nan", UP)]),
        ("(fox:inf)", [("fox:inf", UP)]),
        ("(fox:1e2)", [("fox:1e2", UP)]),
        ("(fox:1e9)", [("fox:1e9", UP)]),
        ("(fox:٣)", [("fox:٣", UP)]),
        ("(fox:--1)", [("fox:--1", UP)]),
        ("(a:1.3:2)", [("a:1.3", 2)]),
        ("[fox:1.3]", [("fox:1.3", DOWN)]),
        ("16:9, 1.5", [("16:9, 1.5", 1)]),
        ("日(本:1.5)\n☀", [("日", 1), ("本", 1.5), ("\n☀", 1)]),
    ],
)
def test_parsing_of_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    found = parse_weights(prompt)
    assert [f.text for f in found] == [text for text, _ in expected]
    assert [f.weight for f in found] == pytest.approx([weight for _, weight in expected])
    for f in found:
        assert "".join(prompt[i] for i in f.at) == f.text


def test_a_prompt_without_brackets_is_one_fragment_as_it_was_typed() -> None:
    prompt = "a fox: 1.5, 'x' — ☀"
    assert parse_weights(prompt) == [plain(prompt)]


@pytest.mark.parametrize(
    "prompt",
    ["(fox:101)", "(fox:-100.5)", "(fox:" + "9" * 400 + ")", "(" * 9999 + "fox" + ")" * 9999],
)
def test_weights_that_are_too_large(prompt: str) -> None:
    with pytest.raises(InputError, match=rf"the weight of 'fox' is \S+: at most {MAX_WEIGHT:g}"):
        parse_weights(prompt)


@pytest.mark.parametrize(
    "nonsense",
    ["(", ")", "([", ":", ": ", "\\", "(a:", "[" * 9999 + ")" * 9999, ":" + " " * 9999],
    ids=range(9),
)
def test_long_nonsense_is_parsed_quickly(nonsense: str) -> None:
    """Quadratic time would be minutes."""
    parse_weights((nonsense * 19999)[:19999])


def random_states(mean: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((1, 7, 5)) + mean).astype(np.float32)


def test_weights_of_one_change_nothing() -> None:
    states = random_states(0.2)
    assert apply_weights(states, np.ones(7, np.float32)) is states


def test_states_are_multiplied_and_keep_their_mean() -> None:
    states = random_states(0.2)
    before = states.copy()
    weights = np.array([1, 1.5, 0, -1, 1, 1, 1], np.float32)
    weighted = apply_weights(states, weights)
    assert (states == before).all()
    assert weighted.dtype == np.float32
    assert weighted.mean(dtype=np.float64) == pytest.approx(states.mean(dtype=np.float64), rel=1e-5)
    multiplied = states[0] * weights[:, None]
    scale = states.mean(dtype=np.float64) / multiplied.mean(dtype=np.float64)
    np.testing.assert_allclose(weighted[0], multiplied * scale, rtol=1e-5)


def test_a_mean_of_only_rounding_errors_is_not_restored() -> None:
    states = random_states(0)
    states -= states.mean(-1, keepdims=True)
    weights = np.array([1, 1.5, 1, 1, 1, 1, 1], np.float32)
    assert (apply_weights(states, weights) == states * weights[:, None]).all()


def test_weights_that_cancel_out() -> None:
    states = np.ones((1, 4, 3), np.float32)
    with pytest.raises(InputError, match="from -1 to 1, cancel each other out"):
        apply_weights(states, np.array([1, -1, 1, -1], np.float32))
