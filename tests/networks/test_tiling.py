"""Maps in tiles: equal to the map of the whole if the map is local, and smooth if it is not."""

import numpy as np
import pytest

from edgediff.networks.tiling import tiled

RNG = np.random.default_rng(0)


def repeat(x: np.ndarray, factor: int = 3) -> np.ndarray:
    """A decoder that sees one latent at a time."""
    return x.repeat(factor, axis=2).repeat(factor, axis=3)


@pytest.mark.parametrize("height", [1, 7, 16, 17, 19, 29, 31, 40, 57, 64])
@pytest.mark.parametrize("width", [5, 16, 50])
@pytest.mark.parametrize("tile", [16, 18])
def test_a_local_map_gives_the_same_result_in_tiles(height: int, width: int, tile: int) -> None:
    x = RNG.standard_normal((1, 2, height, width), dtype=np.float32)
    decoded = tiled(repeat, x, tile, up=3)
    assert decoded.dtype == np.float32
    assert np.abs(decoded - repeat(x)).max() < 1e-5
    encoded = tiled(lambda p: p[:, :, ::3, ::3], repeat(x), tile, down=3)
    assert np.abs(encoded - x).max() < 1e-5


def test_tiles_have_one_shape_and_overlap() -> None:
    shapes = []

    def note(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape)
        return x

    tiled(note, np.zeros((1, 4, 40, 17), np.float32), 16)
    assert set(shapes) == {(1, 4, 16, 16)}
    assert len(shapes) == 4 * 2


def test_an_input_that_fits_in_a_tile_is_run_once_and_unchanged() -> None:
    x = RNG.standard_normal((1, 4, 9, 16), dtype=np.float32)
    calls = []
    assert (tiled(lambda p: (calls.append(1), p)[1], x, 16) == x).all()
    assert len(calls) == 1


def test_padding_at_the_edges_of_tiles_does_not_show() -> None:
    """With a map that is wrong in the two outermost samples of its input."""

    def spoilt(x: np.ndarray) -> np.ndarray:
        out = x.copy()
        out[:, :, [0, 1, -2, -1]] += 100
        out[:, :, :, [0, 1, -2, -1]] += 100
        return out

    x = RNG.standard_normal((1, 1, 60, 60), dtype=np.float32)
    out = tiled(spoilt, x, 32)
    assert np.abs(out - x)[:, :, 2:-2, 2:-2].max() < 1e-5


def test_tiles_with_different_values_blend_linearly() -> None:
    values = iter([0.0, 1.0])
    x = np.zeros((1, 1, 4, 24), np.float32)
    out = tiled(lambda p: np.full_like(p, next(values)), x, 16, up=1)[0, 0, 0]
    assert (np.diff(out) >= 0).all()
    ramp = out[(out > 0) & (out < 1)]
    assert len(ramp) >= 2
    assert np.ptp(np.diff(ramp)) < 1e-6
