"""The forward process: from latents to noise in a straight line (Liu et al. 2023)."""

import torch
from torch import Tensor

# Logit-normal times (Esser et al. 2024): most of the learning is in the middle of the way.
MEAN, DEVIATION = 0.2, 1.1


def noised(x: Tensor, e: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 − t) x + t e. x: latents (n, c, h, w); e: noise like x; t (n,) from 0 to 1."""
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * x + t * e


def velocity(x: Tensor, e: Tensor) -> Tensor:
    """v = dz_t/dt = e − x, the same all along the line."""
    return e - x


def draw_times(n: int, random: torch.Generator) -> Tensor:
    """(n,) times from 0 to 1, each the logistic of a normal number."""
    return torch.sigmoid(MEAN + DEVIATION * torch.randn(n, generator=random))


def draw_intervals(n: int, random: torch.Generator, *, instants: float) -> tuple[Tensor, Tensor]:
    """r ≤ t, (n,) each: the ends of the intervals that leaps span (Geng et al. 2025, section 4.3).

    instants: the share with r = t. Of the others, a third start at t = 1, as sampling does.
    """
    a, b = draw_times(n, random), draw_times(n, random)
    t, r = torch.maximum(a, b), torch.minimum(a, b)
    which = torch.rand(n, generator=random)
    t = torch.where(which > 1 - (1 - instants) / 3, torch.ones_like(t), t)
    return torch.where(which < instants, t, r), t
