import math
from typing import Any

import numpy as np
import pytest

from edgediff.errors import InputError
from edgediff.sampling.guidance import NO_GUIDANCE, Guidance


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0])
def test_guidance_acts_only_above_1(scale: float) -> None:
    guidance = Guidance(scale=scale)
    assert not guidance.acts
    assert not guidance.needs_negative
    assert guidance.steps(4) == ()
    assert not NO_GUIDANCE.acts
    assert Guidance(scale=1.001).steps(3) == (0, 1, 2)


def test_a_network_that_reads_the_scale_needs_no_negative_prompt() -> None:
    assert not Guidance(scale=8.5, embedding_dim=16).needs_negative
    assert Guidance(scale=8.5).needs_negative
    assert Guidance(scale=8.5).embedding() is None


@pytest.mark.parametrize(
    ("interval", "count", "steps"),
    [
        ((0.0, 1.0), 1, (0,)),
        ((0.0, 0.01), 4, (0,)),
        ((0.25, 0.75), 4, (1, 2)),
        ((0.3, 0.4), 4, ()),
        ((0.0, 1.0), 0, ()),
        ([0.5, 1], 4, (2, 3)),
    ],
)
def test_a_step_belongs_to_the_part_that_it_begins_in(
    interval: Any, count: int, steps: tuple[int, ...]
) -> None:
    assert Guidance(scale=2.0, interval=interval).steps(count) == steps


def test_equal_guidance_is_equal() -> None:
    given: Any = {"scale": np.float32(2.0), "interval": [0, 1]}
    assert Guidance(**given) == Guidance(scale=2.0)
    assert hash(Guidance(**given)) == hash(Guidance(scale=2.0))


@pytest.mark.parametrize("rescale", [-0.1, 1.1, math.nan, True, "1", None])
def test_bad_rescale(rescale: Any) -> None:
    with pytest.raises(InputError, match=r"`guidance_rescale` is .*from 0"):
        Guidance(scale=7.5, rescale=rescale)


@pytest.mark.parametrize(
    "interval",
    [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1), (0.0,), (0.0, math.nan), "01", None, 0.5],
)
def test_bad_interval(interval: Any) -> None:
    with pytest.raises(InputError, match=r"`guidance_interval=.*rising fractions"):
        Guidance(scale=7.5, interval=interval)


@pytest.mark.parametrize("guidance_scale", [math.nan, math.inf])
def test_guidance_must_be_finite(guidance_scale: float) -> None:
    with pytest.raises(InputError, match="finite"):
        Guidance(scale=guidance_scale)


def embedding(scale: float, dim: int) -> np.ndarray:
    found = Guidance(scale=scale, embedding_dim=dim).embedding()
    assert found is not None
    return found


@pytest.mark.parametrize("dim", [4, 7, 256])
def test_guidance_embedding_shape(dim: int) -> None:
    out = embedding(7.5, dim)
    assert out.shape == (1, dim)
    assert out.dtype == np.float32
    assert dim % 2 == 0 or out[0, -1] == 0.0
    one = embedding(1.0, dim)[0]
    half = dim // 2
    assert one[:half].tolist() == [0.0] * half
    assert one[half : 2 * half].tolist() == [1.0] * half


def test_guidance_embedding_needs_room() -> None:
    with pytest.raises(InputError, match="4 or more"):
        embedding(7.5, 3)
