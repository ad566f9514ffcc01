"""The autoencoder's losses: pixels, edges, an opponent, and latents that diffusion likes."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import avg_pool2d, relu

from demo_model import device
from demo_model.first_stage.model import CELL, FirstStage, to_tensor

LATENT_NOISE = 0.1  # σ; the denoiser's latents are never exact, so the decoder must not need that
W_EDGES, W_ADVERSARIAL, W_MOMENTS, W_COLOUR = 1.0, 0.04, 0.05, 0.2
P_HALVED = 0.25  # of the batch: see `first_stage_loss`
# Of `colour_targets` over the scenes, measured on 2,048 of them.
MEANS, STDS = (0.267, 0.069, -0.083), (0.479, 0.430, 0.498)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, to the right and downwards."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of pixels at four scales, and of their gradients: a scalar.

    Without the coarse scales, edges outweigh colours, and whole hues are learnt very late.
    """
    total = x.new_zeros(())
    for dy, dx in zip(edges(y), edges(x), strict=True):
        total = total + W_EDGES * (dy - dx).abs().mean()
    for _ in range(4):
        total = total + (y - x).abs().mean()
        y, x = avg_pool2d(y, 2), avg_pool2d(x, 2)
    return total


def colour_targets(x: Tensor) -> Tensor:
    """x (n, 3, 8h, 8w) → brightness, red-green and blue-yellow of each cell (n, 3, h, w).

    The first three channels of the latents are tied to them: an encoder that is left to itself
    spends its channels on edges and learns green last.
    """
    r, g, b = avg_pool2d(x, CELL).unbind(1)
    axes = ((r + g + b) / 3 - MEANS[0], r - g - MEANS[1], b - (r + g) / 2 - MEANS[2])
    return torch.stack([axis / std for axis, std in zip(axes, STDS, strict=True)], 1)


def first_stage_loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: crops (n, h, w, 3) uint8, the opponent's share (n,) → a scalar for both networks.

    A part of the latents is halved in size before decoding and must give the halved crop (EQ-VAE,
    Kouzelis et al. 2025): latents that behave like images are easier to denoise.
    """
    assert isinstance(module, FirstStage)  # noqa: S101
    x, share = to_tensor(batch[0]), batch[1].mean()
    halved = round(P_HALVED * len(x))
    with device.autocast(x.device):
        z = module.autoencoder.encoder(x).float()
        noisy = z + LATENT_NOISE * torch.randn_like(z)
        y = module.autoencoder.decoder(noisy[halved:]).float()
        small = module.autoencoder.decoder(avg_pool2d(noisy[:halved], 2)).float()
    total = reconstruction_loss(y, x[halved:])
    total = total + P_HALVED * reconstruction_loss(small, avg_pool2d(x[:halved], 2))
    # Unit, centred channels: diffusion wants them, and the pipeline has one factor for all.
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    total = total + W_MOMENTS * (mean.square().mean() + (std - 1).square().mean())
    total = total + W_COLOUR * (z[:, :3] - colour_targets(x)).square().mean()
    return total + _adversarial(module.discriminator, y, x[halved:], share)


def _adversarial(opponent: nn.Module, y: Tensor, x: Tensor, share: Tensor) -> Tensor:
    """The autoencoder's wish to pass for original, and the opponent's hinge loss, in one sum.

    The opponent learns from the start; what it thinks counts as much as `share` says.
    """
    frozen = {name: p.detach() for name, p in opponent.named_parameters()}
    with device.autocast(x.device):
        passed = functional_call(opponent, frozen, (y,)).float()
        false, true = opponent(y.detach()).float(), opponent(x).float()
    hinge = relu(1 + false).mean() + relu(1 - true).mean()
    return 0.5 * hinge - share * W_ADVERSARIAL * passed.mean()
