"""Control maps made from an image with numpy and pillow: edges, and inverted brightness."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgediff.errors import InputError

_RADIANS_22_5 = math.tan(math.pi / 8)
# Neighbours (row, column) along the gradient, by its direction rounded to 45°.
_ALONG = {"0°": (0, 1), "45°": (1, 1), "90°": (1, 0), "135°": (1, -1)}
_AROUND = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


def edges(
    image: Image.Image, low: float = 100.0, high: float = 200.0, *, sigma: float = 0.0
) -> Image.Image:
    """White edges, one pixel wide, on black: a control map in RGB, of the image's size.

    Canny 1986 (doi:10.1109/TPAMI.1986.4767851): Gaussian, Sobel, non-maximum suppression, and
    hysteresis.

    low, high: thresholds of the gradient, a 3×3 Sobel sum over 8-bit greys. An edge is at least
        `low` everywhere and above `high` somewhere. Control networks for edges were trained with
        about 100 and 200.
    sigma: standard deviation of the Gaussian in pixels; 0 = no blur, as control networks were
        trained. Use 1 to 2 for a noisy photo.

    Raises InputError unless 0 ≤ low ≤ high, both finite, and 0 ≤ sigma ≤ 100."""
    if not 0 <= low <= high < math.inf:  # nan too
        raise InputError(
            f"edges: low {low} and high {high}: expected 0 ≤ low ≤ high, such as 100, 200"
        )
    if not 0 <= sigma <= 100:
        raise InputError(f"edges: sigma is {sigma}: expected pixels from 0 to 100")
    grey = np.asarray(image.convert("L"), np.float32)
    if sigma > 0:
        grey = _blur(grey, sigma)
    gx, gy = _sobel(grey)
    magnitude = np.hypot(gx, gy)
    crest = _suppress(magnitude, gx, gy)
    found = _hysteresis(crest & (magnitude >= low), crest & (magnitude > high))
    return Image.fromarray(np.where(found, np.uint8(255), np.uint8(0))).convert("RGB")


def invert(image: Image.Image) -> Image.Image:
    """The image with inverted brightness, in RGB: control networks for drawings expect white lines
    on black."""
    return ImageOps.invert(image.convert("RGB"))


def _blur(grey: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blur by a Gaussian, cut off at 3 sigma, along each axis in turn."""
    radius = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    for axis in (0, 1):
        size = grey.shape[axis]
        padded = np.pad(grey, [(radius, radius) if k == axis else (0, 0) for k in (0, 1)], "edge")
        shifted = (np.take(padded, range(i, i + size), axis) for i in range(len(kernel)))
        grey = sum((w * s for w, s in zip(kernel, shifted, strict=True)), start=np.zeros_like(grey))
    return grey


def _sobel(grey: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The gradient's components along columns and along rows."""
    p = np.pad(grey, 1, "edge")
    across = p[:, 2:] - p[:, :-2]
    down = p[2:] - p[:-2]
    gx = across[:-2] + 2 * across[1:-1] + across[2:]
    gy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    return gx, gy


def _suppress(
    magnitude: NDArray[np.float32], gx: NDArray[np.float32], gy: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Non-maximum suppression: True if the gradient is larger than that of the neighbour before,
    along its direction, and at least as large as that of the neighbour behind.

    With the same comparison on both sides, two equal pixels, as at a clean step, would both be kept
    or both be dropped."""
    x, y = np.abs(gx), np.abs(gy)
    flat, steep = y <= x * _RADIANS_22_5, x < y * _RADIANS_22_5
    rising = (gx < 0) == (gy < 0)
    sector = {
        "0°": flat,
        "90°": steep,
        "45°": ~flat & ~steep & rising,
        "135°": ~flat & ~steep & ~rising,
    }
    h, w = magnitude.shape
    padded = np.pad(magnitude, 1)
    crest = np.zeros((h, w), np.bool_)
    for direction, (i, j) in _ALONG.items():
        before = padded[1 - i : 1 - i + h, 1 - j : 1 - j + w]
        behind = padded[1 + i : 1 + i + h, 1 + j : 1 + j + w]
        crest |= sector[direction] & (magnitude > before) & (magnitude >= behind)
    return crest


def _hysteresis(weak: NDArray[np.bool_], strong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The strong pixels, and the weak ones connected to them through weak ones (8 neighbours)."""
    h, w = weak.shape
    width = w + 2
    # On a flat array with a border of False, neighbours are offsets that need no bounds check.
    open_ = np.pad(weak, 1).reshape(-1)
    found = np.pad(strong, 1).reshape(-1)
    open_ &= ~found
    offsets = np.array([i * width + j for i, j in _AROUND])
    front = np.flatnonzero(found)
    while front.size:
        near = (front[:, None] + offsets).reshape(-1)
        near = near[open_[near]]
        open_[near] = False
        found[near] = True
        front = np.unique(near)
    return found.reshape(h + 2, width)[1:-1, 1:-1]
