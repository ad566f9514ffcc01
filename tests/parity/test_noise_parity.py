"""Our noise against torch's own generator."""

import numpy as np
import pytest
import torch

from edgediff.sampling.noise import TorchGenerator

SHAPES = [
    (1,),
    (2,),
    (15,),
    (16,),
    (17,),
    (31,),
    (32,),
    (33,),
    (1, 4, 8, 8),
    (1, 4, 16, 16),
    (1, 4, 64, 64),
    (4096,),
    (4097,),
    (16384,),
    (3, 5, 7),
    (0,),
    (),
]
SEEDS = [0, 1, 7, 12345, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 1, -1, -7, -(2**63)]


def assert_equal_to_torch(ours: np.ndarray, theirs: torch.Tensor) -> None:
    assert ours.dtype == np.float32
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_draw(seed: int, shape: tuple[int, ...]) -> None:
    theirs = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
    assert_equal_to_torch(TorchGenerator(seed).randn(shape), theirs)


@pytest.mark.parametrize("seed", [0, 7, -3])
def test_a_stream_of_mixed_sizes(seed: int) -> None:
    theirs, ours = torch.Generator("cpu").manual_seed(seed), TorchGenerator(seed)
    for size in (16, 1, 17, 2, 3, 1024, 1, 31, 15, 4096, 1, 1, 16384, 5):
        assert_equal_to_torch(ours.randn((size,)), torch.randn(size, generator=theirs))


def test_a_long_stream_of_single_numbers() -> None:
    theirs, ours = torch.Generator("cpu").manual_seed(11), TorchGenerator(11)
    for _ in range(700):  # past a refill of the twister's 624 words
        assert_equal_to_torch(ours.randn((1,)), torch.randn(1, generator=theirs))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, True, None, "7"])
def test_seeds_that_torch_refuses(seed: object) -> None:
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        torch.Generator("cpu").manual_seed(seed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`seed` is"):
        TorchGenerator(seed)  # type: ignore[arg-type]
