"""The second pass: its size, its defaults, and enlarged latents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.errors import InputError
from edgediff.pipeline import Pipeline
from edgediff.request.hires import larger
from edgediff.sampling.resize import resized


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> Pipeline:
    return edgediff.load(tiny_bundle, threads=1)


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((64, 64), 2.0, (128, 128)),
        ((64, 96), 1.5, (96, 144)),
        ((64, 64), 1.07, (72, 72)),
        ((72, 64), 1.06, (80, 64)),
    ],
)
def test_sizes_are_rounded_to_the_nearest_multiple(
    size: tuple[int, int], factor: float, expected: tuple[int, int]
) -> None:
    assert larger(size, factor, 8) == expected


def test_even_latents_stay_even_and_equal_sizes_stay_equal() -> None:
    even = np.full((2, 3, 5, 4), 1.5, np.float32)
    out = resized(even, 11, 8)
    assert (out.shape, out.dtype) == ((2, 3, 11, 8), np.float32)
    assert np.abs(out - 1.5).max() < 1e-6
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 7)).astype(np.float32)
    assert (resized(x, 6, 7) == x).all()
    assert resized(x[:, :, :1, :1], 3, 3).shape == (1, 4, 3, 3)


@pytest.mark.parametrize("mode", ["latent", "pixel"])
@pytest.mark.parametrize("sampler", ["euler", "euler_a"])
def test_two_passes(pipe: Pipeline, mode: str, sampler: str) -> None:
    options: dict[str, Any] = {"seed": [0, 5], "steps": 3, "sampler": sampler}
    larger: dict[str, Any] = {"hires": 1.5, "hires_steps": 4, "hires_strength": 0.5}
    larger["hires_mode"] = mode
    plain = list(pipe.stream("a fox", **options))
    steps = list(pipe.stream("a fox", **options, **larger))
    assert [s.index for s in steps] == list(range(3 + 2))
    assert [s.latents.shape for s in steps] == [(2, 4, 8, 8)] * 3 + [(2, 4, 12, 12)] * 2
    for a, b in zip(plain, steps, strict=False):
        assert (a.latents == b.latents).all()
    result = pipe.generate("a fox", **options, **larger)
    assert [p.size for p in result.images] == [(96, 96)] * 2
    assert len(result.timings.steps) == 5
    assert result.timings.stages["upscale"] > 0
    assert result.timings.total >= sum(result.timings.steps) + result.timings.stages["upscale"]
    single = pipe.generate("a fox", **(options | {"seed": 5}), **larger)
    assert (np.asarray(single.images[0]) == np.asarray(result.images[1])).all()


def test_defaults_are_filled_in(pipe: Pipeline) -> None:
    for steps, own in ((1, 4), (2, 4), (8, 8)):
        result = pipe.generate("a fox", seed=0, steps=steps, hires=2)
        settings = result.settings
        assert (settings.hires, settings.hires_strength) == (2.0, 0.25)
        assert (settings.hires_steps, settings.hires_mode) == (own, "pixel")
        assert (settings.width, settings.height) == (64, 64)
        assert len(result.timings.steps) == steps + own // 4


@pytest.mark.parametrize(
    ("factor", "size", "notes"),
    [
        (1.5, None, ()),
        (1.3, None, ("64x64 times 1.3 became 80x80, the nearest in steps of 8 pixels",)),
        (1.1, (80, 64), ("80x64 times 1.1 became 88x72, the nearest in steps of 8 pixels",)),
        (1.125, None, ()),
    ],
)
def test_a_rounded_factor_is_noted(
    pipe: Pipeline, factor: float, size: Any, notes: tuple[str, ...]
) -> None:
    result = pipe.generate("a fox", seed=0, steps=2, size=size, hires=factor)
    assert result.notes == notes
    for before, made in zip(size or (64, 64), result.images[0].size, strict=True):
        assert abs(before * factor - made) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hires": 1}, "`hires` is 1: expected a factor above 1"),
        ({"hires": 0.5}, "`hires` is 0.5"),
        ({"hires": 0}, "`hires` is 0"),
        ({"hires": -2}, "`hires` is -2"),
        ({"hires": float("nan")}, "`hires` is nan"),
        ({"hires": float("inf")}, "`hires` is inf"),
        ({"hires": "2"}, "`hires` is '2': expected a number"),
        ({"hires": True}, "`hires` is True"),
        ({"hires": 1.01}, "64x64 stays as it is in steps of 8 pixels"),
        ({"hires": 1000}, "larger than 4096 pixels a side"),
        ({"hires": 2, "hires_strength": 0}, "`hires_strength` is 0"),
        ({"hires": 2, "hires_strength": 1.5}, "`hires_strength` is 1.5"),
        ({"hires": 2, "hires_strength": "a"}, "`hires_strength` is 'a'"),
        ({"hires": 2, "hires_steps": 1}, "`hires_strength` is 0.25"),
        ({"hires": 2, "hires_steps": 0}, "`hires_steps` is 0"),
        ({"hires": 2, "hires_steps": 2.5}, "`hires_steps` is 2.5"),
        (
            {"hires": 2, "hires_mode": "cubic"},
            "`hires_mode` is 'cubic': choose one of latent",
        ),
        ({"hires_mode": "latent"}, "`hires_mode` is 'latent', but `hires` is unset"),
        ({"hires_strength": 0.5}, "but `hires` is unset"),
        ({"hires_steps": 3}, "but `hires` is unset"),
    ],
)
def test_options_that_are_refused(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.stream("a fox", **{"steps": 4, **options})
