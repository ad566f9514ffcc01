"""The autoencoder, 128×128 pixels ↔ 16×16×12 latents, and the discriminator that keeps it sharp."""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor, nn

from demo_model import device

CHANNELS, CELL = 12, 8  # of the latents; pixels a side of one latent position


def new_autoencoder(width: int = 64) -> AutoencoderTiny:
    """Untrained. No block works at full size: it would cost as much as all others together."""
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(3, 3, 2, 0),
        latent_channels=CHANNELS,
        scaling_factor=1.0,
    )


class Discriminator(nn.Module):
    """Patches of 22 pixels: drawn by hand, or decoded? (Isola et al. 2017, without norms)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers += [nn.Conv2d(before, channels, 4, stride, 1), nn.LeakyReLU(0.2)]
            before = channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, 3, h, w) in [-1, 1] → logits (n, 1, h', w'), positive for original."""
        return self.layers(x)


class FirstStage(nn.Module):
    """Both networks as one module, trained by one backward pass."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.autoencoder = new_autoencoder(width)
        self.discriminator = Discriminator()
        self.to(memory_format=device.LAYOUT)


def to_tensor(images: Tensor) -> Tensor:
    """(n, h, w, 3) uint8 → (n, 3, h, w) float32 in [-1, 1], channels last."""
    x = images.permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return x.contiguous(memory_format=device.LAYOUT)


def to_images(x: Tensor) -> NDArray[np.uint8]:
    """(n, 3, h, w) in [-1, 1] → (n, h, w, 3) uint8."""
    bytes_ = x.add(1).mul(127.5).add(0.5).clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(bytes_.permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def encode(model: AutoencoderTiny, images: NDArray[np.uint8], batch: int = 64) -> Tensor:
    """images (n, 128, 128, 3) uint8 → latents (n, 12, 16, 16) float32 of about unit deviation."""
    parts = [
        _run(model.encoder, to_tensor(torch.from_numpy(part))) for part in _parts(images, batch)
    ]
    return torch.cat(parts).contiguous()


@torch.no_grad()
def decode(model: AutoencoderTiny, latents: Tensor, batch: int = 64) -> NDArray[np.uint8]:
    """latents (n, 12, 16, 16) → images (n, 128, 128, 3) uint8."""
    parts = [to_images(_run(model.decoder, part)) for part in latents.split(batch)]
    return np.concatenate(parts)


def _run(network: nn.Module, x: Tensor) -> Tensor:
    where = next(network.parameters()).device
    with device.autocast(where):
        result: Tensor = network(x.to(where).contiguous(memory_format=device.LAYOUT))
    return result.float().cpu()


def _parts(images: NDArray[np.uint8], batch: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(images), batch):
        yield np.array(images[start : start + batch])
