import math

import numpy as np
import pytest

from edgediff.errors import InputError
from edgediff.sampling.noise import TorchGenerator, VariedGenerator, slerp


def test_draws_continue_one_stream() -> None:
    whole = TorchGenerator(0).randn((64,))
    generator = TorchGenerator(0)
    parts = np.concatenate([generator.randn((16,)), generator.randn((48,))])
    np.testing.assert_array_equal(parts, whole)


def test_short_draws_keep_the_second_of_a_pair() -> None:
    together, apart = TorchGenerator(3), TorchGenerator(3)
    singles = [float(apart.randn((1,))[0]) for _ in range(6)]
    assert together.randn((6,)).tolist() == singles


def test_a_long_draw_leaves_the_kept_number_alone() -> None:
    plain, mixed = TorchGenerator(3), TorchGenerator(3)
    second = plain.randn((2,))[1]
    mixed.randn((1,))
    mixed.randn((16,))
    assert mixed.randn((1,))[0] == second


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (15,), (17,), (1, 4, 8, 8)])
def test_shape_and_dtype(shape: tuple[int, ...]) -> None:
    out = TorchGenerator(0).randn(shape)
    assert out.shape == shape
    assert out.dtype == np.float32
    assert out.flags.writeable


@pytest.mark.parametrize("shape", [(1, 4, 64), (1, 4, 2, 4, 8), (256,)])
def test_a_shape_only_arranges_the_numbers(shape: tuple[int, ...]) -> None:
    def draw(generator: TorchGenerator | VariedGenerator, shape: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([generator.randn(shape).reshape(-1) for _ in range(2)])

    for make in (lambda: TorchGenerator(5), lambda: VariedGenerator(5, 6, 0.3)):
        np.testing.assert_array_equal(draw(make(), shape), draw(make(), (1, 4, 8, 8)))


def test_statistics() -> None:
    z = TorchGenerator(1).randn((1, 4, 256, 256))
    assert abs(float(z.mean())) < 0.01
    assert abs(float(z.std()) - 1.0) < 0.01
    assert np.isfinite(z).all()


@pytest.mark.parametrize(
    ("seed", "same_as"), [(-1, 2**64 - 1), (2**32 + 7, 7), (2**63, 0), (np.int64(7), 7)]
)
def test_only_the_low_32_bits_of_a_seed_count(seed: int, same_as: int) -> None:
    a, b = TorchGenerator(seed).randn((33,)), TorchGenerator(same_as).randn((33,))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.0, None, "7", True])
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(InputError, match="from -2\\*\\*63 to 2\\*\\*64 - 1"):
        TorchGenerator(seed)  # type: ignore[arg-type]


def test_bad_shape() -> None:
    with pytest.raises(InputError, match="0 or more"):
        TorchGenerator(0).randn((4, -1))


def test_a_variation_of_0_is_the_seed_and_of_1_the_variation_seed() -> None:
    shape = (1, 4, 8, 8)
    for strength, seed in ((0, 3), (0.0, 3), (1, 7), (1.0, 7)):
        varied, plain = VariedGenerator(3, 7, strength), TorchGenerator(seed)
        for _ in range(3):
            np.testing.assert_array_equal(varied.randn(shape), plain.randn(shape))


@pytest.mark.parametrize("strength", [0.01, 0.2, 0.5, 0.9])
def test_a_variation_lies_between_and_keeps_its_variance(strength: float) -> None:
    shape = (1, 4, 64, 64)
    a, b = TorchGenerator(3).randn(shape), TorchGenerator(7).randn(shape)
    z = VariedGenerator(3, 7, strength).randn(shape)
    assert z.dtype == np.float32
    assert z.std() == pytest.approx(1.0, abs=0.01)

    def angle(x: np.ndarray, y: np.ndarray) -> float:
        return math.acos(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))

    whole = angle(a, b)
    assert angle(a, z) == pytest.approx(strength * whole, abs=5e-3)
    assert angle(z, b) == pytest.approx((1.0 - strength) * whole, abs=5e-3)


def test_a_variation_towards_the_same_seed_is_that_seed() -> None:
    a = TorchGenerator(3).randn((64,))
    np.testing.assert_allclose(VariedGenerator(3, 3, 0.4).randn((64,)), a, atol=1e-6)


def test_slerp_of_what_has_no_direction() -> None:
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    np.testing.assert_allclose(slerp(zero, one, 0.25), 0.25 * one)
    np.testing.assert_allclose(slerp(one, -one, 0.25), 0.5 * one, atol=1e-6)


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan, True, "0.5", None])
def test_bad_variation_strength(strength: object) -> None:
    with pytest.raises(InputError, match=r"`variation_strength` is .*from 0 .*to 1"):
        VariedGenerator(3, 7, strength)  # type: ignore[arg-type]
