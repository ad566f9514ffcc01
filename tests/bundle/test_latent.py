"""Shapes of latents, and the sizes that they decode to."""

from typing import Any

import pytest

from edgediff.bundle.latent import LatentSpec
from edgediff.errors import BundleError, InputError


def space(**changes: Any) -> LatentSpec:
    return LatentSpec(**{"channels": 4, "downscale": 8, "scaling_factor": 1.0, **changes})


IMAGE = space()
CAUSAL = space(type="video", channels=16, temporal_downscale=4, causal=True)
VIDEO = space(type="video", temporal_downscale=2)
AUDIO = space(type="audio", channels=64, downscale=2048, sample_rate=44100)


@pytest.mark.parametrize(
    ("latent", "size", "shape"),
    [
        (IMAGE, (512, 256), (4, 32, 64)),
        (IMAGE, (8, 8), (4, 1, 1)),
        (VIDEO, (64, 32, 8), (4, 4, 4, 8)),
        (CAUSAL, (832, 480, 81), (16, 21, 60, 104)),
        (CAUSAL, (64, 64, 1), (16, 1, 8, 8)),
        (AUDIO, (2048 * 1024,), (64, 1024)),
    ],
)
def test_shape_and_size_are_inverse(
    latent: LatentSpec, size: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    assert latent.shape(size) == shape
    assert latent.size(shape) == size
    assert latent.size((1, *shape)) == size


@pytest.mark.parametrize(
    ("latent", "size", "message"),
    [
        (IMAGE, (512, 250), "250 pixels are not whole latents: expected a multiple of 8"),
        (IMAGE, (512,), "the size of the image is .*: expected .width, height. in pixels"),
        (IMAGE, (0, 8), "each 1 or more"),
        (VIDEO, (64, 64, 7), "7 frames are not whole latents: expected a multiple of 2"),
        (CAUSAL, (64, 64, 80), "80 frames .* expected 1 and a multiple of 4"),
        (CAUSAL, (64, 64), "a number of frames"),
        (AUDIO, (44100,), "44100 samples are not whole latents"),
    ],
)
def test_sizes_that_are_not_whole_latents(
    latent: LatentSpec, size: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        latent.shape(size)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"downscale": 65}, "downscale is 65, expected from 1 to 64"),
        ({"type": "audio"}, "sample_rate is None"),
        ({"sample_rate": 16000}, "sample_rate is 16000"),
        ({"temporal_downscale": 4}, "temporal_downscale is 4"),
        ({"causal": True}, "causal is True"),
        ({"type": "video", "temporal_downscale": 0}, "temporal_downscale is 0"),
    ],
)
def test_values_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        space(**changes)
