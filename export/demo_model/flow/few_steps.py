"""Few steps: average velocities instead of instantaneous ones (MeanFlow, Geng et al. 2025).

The average velocity u over [r, t] obeys u = v − (t − r) du/dt (eq. 6), where du/dt is the
derivative along the way, (v ∂_z + ∂_t) u. The network learns the right-hand side, its own
derivative taken by one forward-mode product. Nothing is averaged over images, as by a
regression onto them: each noise still leads to an image of its own.

The velocity v is a frozen teacher's, guided at a fixed scale: so that four steps need no second
pass for guidance. Guidance and negative prompts still work on top of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from demo_model import device
from demo_model.flow.forward_process import noised
from demo_model.flow.guidance import guided
from demo_model.flow.networks import Denoiser

SCALE = 2.0  # of the guidance that is taught
INSTANTS = 0.5  # the share of the batch with r = t
C, POWER = 1e-3, 0.75  # of the adaptive weight (eq. 22)


class Pupil(nn.Module):
    """The network that learns to leap, and its frozen teacher."""

    def __init__(self, pupil: Denoiser, teacher: Denoiser) -> None:
        super().__init__()
        self.pupil, self.teacher = pupil, teacher.requires_grad_(False).eval()


def mean_flow_loss(networks: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: x, e (n, c, h, w), r, t (n,), token ids, those of the empty caption → a scalar."""
    assert isinstance(networks, Pupil)  # noqa: S101
    x, e, r, t, ids, empty = batch
    pupil, z = networks.pupil, noised(x, e, t)
    with device.autocast(x.device):
        hidden, nothing = pupil.encode(ids), pupil.encode(empty)
        with torch.no_grad():
            v = guided(networks.teacher(z, t, t, hidden), networks.teacher(z, t, t, nothing), SCALE)
            target = v - (t - r).view(-1, 1, 1, 1) * derivative(pupil, z, r, t, v, hidden)
        u = pupil(z, r, t, hidden)
    squared = (u - target).square().mean((1, 2, 3))
    weight = (squared.detach() + C) ** -POWER
    return (weight * squared).mean()


def derivative(
    pupil: Denoiser, z: Tensor, r: Tensor, t: Tensor, v: Tensor, hidden: Tensor
) -> Tensor:
    """du/dt along the way, like z: the product of u's Jacobian with (v, 0, 1) in (z, r, t)."""
    with torch.no_grad(), dual_level(), _float_norms(pupil):
        along = pupil(make_dual(z, v), r, make_dual(t, torch.ones_like(t)), hidden)
        tangent = unpack_dual(along).tangent
    if tangent is None:
        raise RuntimeError(
            "the network's output does not depend on z and t by differentiable steps"
        )
    return tangent


@contextmanager
def _float_norms(network: nn.Module) -> Iterator[None]:
    """Norms in their weights' type: of bfloat16, PyTorch gives derivatives of another type."""
    norms = [
        module for module in network.modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm)
    ]
    handles = [
        norm.register_forward_pre_hook(lambda norm, given: (given[0].to(norm.weight.dtype),))
        for norm in norms
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
