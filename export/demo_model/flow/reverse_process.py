"""The reverse process: from noise to latents, following u in a few steps.

One step from time t to time r is z_r = z_t − (t − r) u(z_t, r, t): exact if u is the average
velocity (Geng et al. 2025, eq. 4), and Euler's method if it is the velocity of the instant.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from demo_model import device
from demo_model.flow.guidance import guided
from demo_model.flow.networks import Denoiser


def times(steps: int) -> list[float]:
    """steps + 1 times from 1 to 0, evenly apart: 1, 0.75, 0.5, 0.25, 0 for four steps."""
    return [1 - k / steps for k in range(steps)] + [0.0]


def trajectory(
    denoiser: Denoiser,
    e: Tensor,
    hidden: Tensor,
    *,
    steps: int,
    scale: float = 1.0,
    other: Tensor | None = None,
    leaps: bool = True,
) -> Iterator[Tensor]:
    """Yield the latents after each step, the last ones the result.

    e: noise (n, c, h, w). hidden: the text's states; other: those to be guided away from, needed if
    scale is not 1. leaps: whether the network is told where each step ends; a teacher is not.
    """
    z, way = e, times(steps)
    for t, r in pairwise(way):
        z = z - (t - r) * _velocity(denoiser, z, r if leaps else t, t, hidden, scale, other)
        yield z


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    e: Tensor,
    hidden: Tensor,
    *,
    steps: int,
    scale: float = 1.0,
    other: Tensor | None = None,
    leaps: bool = True,
) -> Tensor:
    """The latents at the end of the trajectory."""
    z = e
    for z in trajectory(  # noqa: B007
        denoiser, e, hidden, steps=steps, scale=scale, other=other, leaps=leaps
    ):
        pass
    return z


def _velocity(
    denoiser: Denoiser,
    z: Tensor,
    r: float,
    t: float,
    hidden: Tensor,
    scale: float,
    other: Tensor | None,
) -> Tensor:
    n = len(z)
    start, end = torch.full((n,), t, device=z.device), torch.full((n,), r, device=z.device)
    with device.autocast(z.device):
        if scale == 1 or other is None:
            return denoiser(z, end, start, hidden)
        both = torch.cat([hidden, other.expand_as(hidden)])
        u = denoiser(torch.cat([z, z]), torch.cat([end, end]), torch.cat([start, start]), both)
    return guided(u[:n], u[n:], scale)
