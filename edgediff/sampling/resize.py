"""Latents at another size."""

import numpy as np

from edgediff.arrays import Array


def resized(latents: Array, height: int, width: int) -> Array:
    """latents (n, c, h, w) float32 → (n, c, height, width), by cubic convolution: Keys 1981, with
    a = -0.75 and repeated edges, as torch's bicubic interpolation has it."""
    rows, columns = (
        _cubic(*sides) for sides in ((latents.shape[2], height), (latents.shape[3], width))
    )
    return np.ascontiguousarray(rows @ latents @ columns.T)


def _cubic(size: int, new: int) -> Array:
    """The interpolation from `size` samples to `new`, as a matrix (new, size)."""
    place = (np.arange(new) + 0.5) * size / new - 0.5
    nearest = np.floor(place).astype(int)
    matrix = np.zeros((new, size))
    a = -0.75
    for tap in range(-1, 3):
        x = np.abs(place - nearest - tap)
        inner = ((a + 2) * x - (a + 3)) * x**2 + 1
        outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        sample = np.clip(nearest + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(new), sample), np.where(x <= 1, inner, outer))
    return matrix.astype(np.float32)
