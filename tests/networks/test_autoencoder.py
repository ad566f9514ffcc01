"""A bundle's autoencoder: encoding and decoding whole images and in tiles."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.backend.memory import estimate, memory_limit
from edgediff.bundle.folder import Bundle
from edgediff.errors import InputError
from edgediff.networks.autoencoder import to_sample
from edgediff.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> Pipeline:
    return edgediff.load(tiny_bundle, threads=1)


def test_pixels_are_scaled_to_minus_one_to_one() -> None:
    pixels = np.array([[[0, 51, 255]], [[102, 204, 255]]], np.uint8)
    sample = to_sample(pixels)
    assert (sample.shape, sample.dtype) == ((1, 3, 2, 1), np.float32)
    expected = np.array([[[-1], [-0.2]], [[-0.6], [0.6]], [[1], [1]]])
    assert np.abs(sample[0] - expected).max() < 1e-6


@pytest.mark.parametrize("size", [(320, 256), (256, 256), (64, 640)])
def test_tiles_make_nearly_the_same_image(
    pipe: Pipeline, tiny_bundle: Path, size: tuple[int, int]
) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, size[1] // 8, size[0] // 8))
    latents = latents.astype(np.float32)
    (whole,) = pipe.decode(latents)
    with edgediff.load(tiny_bundle, threads=1, tile=256) as tiled:
        (image,) = tiled.decode(latents)
    assert image.size == whole.size == size
    difference = np.asarray(image).astype(int) - np.asarray(whole).astype(int)
    assert np.sqrt((difference**2).mean()) < 2.55  # 40 dB
    assert (difference == 0).all() == (max(size) <= 256)


def test_tiles_encode_nearly_the_same_latents(pipe: Pipeline, tiny_bundle: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (320, 256, 3), np.uint8)

    def latents(pipe: Pipeline) -> Any:
        steps = pipe.stream("a fox", seed=0, init_image=pixels, size=(256, 320), steps=20)
        return next(iter(steps)).latents

    whole = latents(pipe)
    with edgediff.load(tiny_bundle, threads=1, tile=256) as tiled:
        assert 0 < np.abs(latents(tiled) - whole).max() < 0.1


@pytest.mark.parametrize("tile", [0, -256, 255, 128, 248, 260, 256.0, "256", True])
def test_tile_sizes_that_are_refused(tiny_bundle: Path, tile: Any) -> None:
    with pytest.raises(InputError, match=r"`tile` is .* a multiple of 8 from 256 up"):
        edgediff.load(tiny_bundle, tile=tile)


def test_the_memory_of_decoding_follows_the_tile(sized_bundle: Bundle) -> None:
    manifest = sized_bundle.manifest
    whole, tiled = estimate(manifest), estimate(manifest, tile=256)
    assert tiled["vae_decoder"].work == whole["vae_decoder"].work / 16
    assert tiled["vae_encoder"].work == whole["vae_encoder"].work / 16
    assert tiled["unet"] == whole["unet"]
    assert estimate(manifest, tile=2048) == whole
    assert memory_limit(manifest, "20GB", 256) == 20 * 10**9


@pytest.fixture
def sized_bundle(tiny_bundle: Path) -> Bundle:
    """A bundle whose images are 1024x1024."""
    bundle = Bundle.open(tiny_bundle)
    defaults = dataclasses.replace(bundle.manifest.defaults, width=1024, height=1024)
    return dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, defaults=defaults)
    )
