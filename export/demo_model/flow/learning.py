"""Learning: the network points from noise back to the image, along the line that led there.

Flow matching (Lipman et al. 2023) on straight paths. A tenth of the captions is left out, so that
one network knows both the conditional and the unconditional velocity (Ho & Salimans 2022).
"""

import torch
from torch import Tensor, nn

from demo_model import device
from demo_model.flow.forward_process import noised, velocity
from demo_model.flow.networks import Denoiser

P_EMPTY = 0.1  # captions left out, for `guidance`


def flow_matching_loss(denoiser: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: latents x, noise e, times t (n,), token ids → mean squared error of v, a scalar."""
    assert isinstance(denoiser, Denoiser)  # noqa: S101
    x, e, t, ids = batch
    with device.autocast(x.device):
        v = denoiser(noised(x, e, t), t, t, denoiser.encode(ids))
    return (v - velocity(x, e)).square().mean()


def without_some(texts: list[str], random: torch.Generator, p_empty: float = P_EMPTY) -> list[str]:
    """The captions, a share of them replaced by the empty one."""
    left_out = torch.rand(len(texts), generator=random) < p_empty
    return ["" if out else text for text, out in zip(texts, left_out.tolist(), strict=True)]
