"""Control maps made from an image: Canny's edges, and inverted brightness."""

import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

import edgediff
from edgediff.errors import InputError
from edgediff.images.canny import edges, invert

OPENCV = (
    "40040040400c00e040180080401001804062010040dff90040b0070041800202411805020110050201700c8201200882"
    "0120188201401082034010820240310206602102042062020c380602080fd8061800600c100000083003001810010008"
)
"""cv2.Canny(a, 50, 100, L2gradient=True) of OpenCV 5.0.0, its rows packed: see the test."""


def found(image: Image.Image, *limits: float, sigma: float = 0.0) -> np.ndarray:
    made = edges(image, *limits, sigma=sigma)
    assert (made.mode, made.size) == ("RGB", image.size)
    pixels = np.asarray(made)
    assert set(np.unique(pixels)) <= {0, 255}
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0] > 0


def step(vertical: bool, bright: int = 200) -> Image.Image:
    a = np.zeros((32, 48), np.uint8)
    a[:, 20:] = bright
    return Image.fromarray(a if vertical else np.ascontiguousarray(a.T))


@pytest.mark.parametrize("vertical", [True, False])
def test_a_step_gives_one_line_one_pixel_wide(vertical: bool) -> None:
    lines = found(step(vertical))
    lines = lines if vertical else lines.T
    assert (lines.sum(axis=1) == 1).all()
    assert lines[:, 19:21].sum() == len(lines)


@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_a_disc_gives_a_closed_thin_ring(sigma: float) -> None:
    image = Image.new("RGB", (96, 96))
    ImageDraw.Draw(image).ellipse((16, 16, 80, 80), fill="white")
    ring = found(image, 50, 100, sigma=sigma)
    y, x = np.nonzero(ring)
    radius = np.hypot(y - 48, x - 48)
    assert np.abs(radius - 32).max() < 2
    assert 2 * np.pi * 32 * 0.8 < len(y) < 2 * np.pi * 32 * 1.3
    angle = np.sort(np.arctan2(y - 48, x - 48))
    assert np.diff(angle).max() < 0.15  # no gaps


def test_it_turns_and_mirrors_with_the_image() -> None:
    """Except for a few ties."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8))
    smooth = coarse.resize((64, 64), Image.Resampling.BICUBIC)
    here = found(smooth, 20, 60, sigma=1.2)
    turned = found(smooth.transpose(Image.Transpose.ROTATE_90), 20, 60, sigma=1.2)
    assert (np.rot90(here) != turned).mean() < 0.01


def test_a_weak_edge_counts_if_it_continues_a_strong_one() -> None:
    a = np.zeros((32, 64), np.uint8)
    a[16:, :] = np.linspace(60, 20, 64).astype(np.uint8)  # gradients 240 … 80
    whole = found(Image.fromarray(a), 70, 200)
    assert whole[14:18].any(axis=0).all()
    alone = found(Image.fromarray(a[:, 40:]), 70, 200)
    assert not alone.any()
    assert not found(Image.fromarray(a), 250, 250).any()


def test_a_blank_image_has_no_edges() -> None:
    assert not found(Image.new("L", (40, 30), 128)).any()
    assert not found(Image.new("RGB", (1, 1), "red"), 0, 0).any()


def test_blurring_removes_noise() -> None:
    rng = np.random.default_rng(1)
    noisy = Image.fromarray(rng.normal(128, 20, (64, 64)).clip(0, 255).astype(np.uint8))
    assert found(noisy).sum() > 20 * found(noisy, sigma=2).sum()


def test_the_same_as_opencv() -> None:
    y, x = np.mgrid[:24, :32]
    a = (127 + 60 * np.sin(x / 4 + y / 9) + 50 * ((x - 16) ** 2 + (y - 12) ** 2 < 64)).astype(int)
    packed = np.packbits(found(Image.fromarray(a.clip(0, 255).astype(np.uint8)), 50, 100), axis=1)
    assert packed.tobytes().hex() == OPENCV


def test_512_pixels_a_side_take_well_under_a_second() -> None:
    rng = np.random.default_rng(2)
    noise = Image.fromarray(rng.integers(0, 256, (512, 512), dtype=np.uint8))
    started = time.perf_counter()
    edges(noise, sigma=1.4)
    assert time.perf_counter() - started < 1.0


def test_invert() -> None:
    made = invert(Image.new("L", (3, 2), 250))
    assert made.mode == "RGB"
    assert set(np.asarray(made).ravel()) == {5}


@pytest.mark.parametrize(
    ("low", "high", "sigma"),
    [
        (200, 100, 0),
        (-1, 5, 0),
        (float("nan"), 5, 0),
        (1, float("inf"), 0),
        (1, 2, -1),
        (1, 2, 101),
    ],
)
def test_limits_that_are_refused(low: float, high: float, sigma: float) -> None:
    with pytest.raises(InputError, match="edges: "):
        edgediff.edges(Image.new("L", (4, 4)), low, high, sigma=sigma)
