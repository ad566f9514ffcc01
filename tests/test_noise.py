import numpy as np
import pytest

from edgediff.errors import InputError
from edgediff.noise import TorchGenerator


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
