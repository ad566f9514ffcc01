"""The autoencoder: 128×128 pixels ↔ 8×8×16 latents, in the shape of diffusers' AutoencoderTiny.

As many numbers as Stable Diffusion's 16×16×4 would be, but the UNet works at a quarter of the
positions, and nearly all of the autoencoder's own work is at 64×64 and below.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from demo_model import checkpoint, device
from demo_model.replicas import Replicas

CELL = 16  # pixels a side of one latent position
CROP = 64  # pixels a side: convolutions learn as much from a quarter of a picture
BATCH = 16
LR = 1.5e-3
MEANS, STDS = (0.584, 0.105, -0.156), (0.408, 0.386, 0.448)  # of `colour_targets`, measured
LATENT_NOISE = 0.1  # σ; the denoiser's latents are never exact, so the decoder must not need that
SAVE_EVERY = 60.0  # seconds


def new_model() -> AutoencoderTiny:
    """Untrained. The decoder, which ships, is wider than the encoder, which does not."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 5,
        decoder_block_out_channels=(48,) * 5,
        num_encoder_blocks=(0, 1, 1, 2, 2),
        num_decoder_blocks=(3, 3, 2, 1, 0),
        latent_channels=16,
        scaling_factor=1.0,
    )


def to_tensor(images: Tensor) -> Tensor:
    """(n, h, w, 3) uint8 → (n, 3, h, w) float32 in [-1, 1], channels last."""
    x = images.permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return x.contiguous(memory_format=torch.channels_last)


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of pixels at four scales and of their gradients at full size: a scalar.

    Without the coarse scales, edges outweigh colours, and whole hues are learnt very late.
    """
    total = x.new_zeros(())
    for dy, dx in zip(_edges(y), _edges(x), strict=True):
        total = total + 0.5 * (dy - dx).abs().mean()
    for _ in range(4):
        total = total + (y - x).abs().mean()
        y, x = avg_pool2d(y, 2), avg_pool2d(x, 2)
    return total


def colour_targets(x: Tensor) -> Tensor:
    """x (n, 3, 16h, 16w) → brightness, red-green and blue-yellow of each cell (n, 3, h, w).

    The constants make each of about zero mean and unit deviation over the dataset.
    """
    r, g, b = avg_pool2d(x, CELL).unbind(1)
    axes = (((r + g + b) / 3 - MEANS[0]), (r - g - MEANS[1]), (b - (r + g) / 2 - MEANS[2]))
    return torch.stack([axis / std for axis, std in zip(axes, STDS, strict=True)], 1)


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: images (n, h, w, 3) uint8 → reconstruction loss plus, for the encoder, its shape."""
    x = to_tensor(batch[0])
    encoder_trains = next(model.encoder.parameters()).requires_grad
    with device.autocast(x.device):
        with torch.set_grad_enabled(encoder_trains):
            z = model.encoder(x).float()
        y = model.decoder(z + LATENT_NOISE * torch.randn_like(z)).float()
    total = reconstruction_loss(y, x)
    if encoder_trains:
        # Unit, centred channels: diffusion wants them, and the pipeline has one factor for all.
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        total = total + 0.05 * (mean.square().mean() + (std - 1).square().mean())
        # Left to itself, the encoder spends its four channels on edges and finds green last.
        total = total + 0.5 * (z[:, :3] - colour_targets(x)).square().mean()
    return total


def crops(images: NDArray[np.uint8], rng: np.random.Generator, n: int) -> NDArray[np.uint8]:
    """n random crops (n, CROP, CROP, 3) of images (m, h, w, 3), a few of them the same image's."""
    _, height, width, _ = images.shape
    tops, lefts = rng.integers(height - CROP + 1, size=n), rng.integers(width - CROP + 1, size=n)
    chosen = zip(rng.integers(len(images), size=n), tops, lefts, strict=True)
    return np.stack([images[k, y : y + CROP, x : x + CROP] for k, y, x in chosen])


def train(
    images: NDArray[np.uint8],
    folder: Path,
    *,
    minutes: float,
    log: Callable[[str], None],
    processes: int = 2,
    finetune: bool = False,
    new: Callable[[], AutoencoderTiny] = new_model,
) -> None:
    """Train for so many minutes of wall clock in all, resuming folder/autoencoder.ckpt.

    images (n, 128, 128, 3) uint8. With `finetune`, the encoder is frozen, so that latents stay
    what they were, and the decoder goes on from the trained one (folder/decoder.ckpt).
    """
    path = folder / ("decoder.ckpt" if finetune else "autoencoder.ckpt")
    model = new()
    model.to(memory_format=torch.channels_last)
    model.encoder.requires_grad_(not finetune)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    step, spent = 0, 0.0
    state = checkpoint.load(path)
    budget = minutes * 60
    if state is not None and state["seconds"] >= budget:
        return
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    elif finetune:
        start = checkpoint.load(folder / "autoencoder.ckpt")
        if start is None:
            raise FileNotFoundError(f"{folder / 'autoencoder.ckpt'}: train the autoencoder first")
        model.load_state_dict(start["model"])
    peak = LR / 3 if finetune else LR

    def save() -> None:
        checkpoint.save(
            path,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": spent,
            },
        )

    rng = np.random.default_rng(step)
    model.train()
    replicas = Replicas(model, loss, processes, seed=step)
    last = saved = time.monotonic()
    average: float | None = None
    while spent < budget:
        # The rate follows the clock, not a step count: warm up, then down to zero in a line.
        rate = peak * min(1.0, (step + 1) / 50) * max(0.02, 1 - spent / budget)
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = replicas.backward((crops(images, rng, BATCH),))
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        now = time.monotonic()
        spent, last = spent + now - last, now
        average = value if average is None else 0.98 * average + 0.02 * value
        if step % 100 == 0:
            log(f"autoencoder step {step} loss {average:.4f} {spent:.0f} s")
        if now - saved > SAVE_EVERY:
            save()
            saved = now
    save()
    replicas.close()


def load(folder: Path, new: Callable[[], AutoencoderTiny] = new_model) -> AutoencoderTiny:
    """The trained autoencoder, with the fine-tuned decoder where there is one."""
    model = new()
    for name in ("autoencoder.ckpt", "decoder.ckpt"):
        state = checkpoint.load(folder / name)
        if state is not None:
            model.load_state_dict(state["model"])
    return model.eval()


@torch.no_grad()
def encode(model: AutoencoderTiny, images: NDArray[np.uint8]) -> Tensor:
    """images (n, 128, 128, 3) uint8 → raw latents (n, 16, 8, 8) float32."""
    model.to(memory_format=torch.channels_last)
    parts = []
    for start in range(0, len(images), 64):
        with device.autocast(torch.device("cpu")):
            parts.append(
                model.encoder(
                    to_tensor(torch.from_numpy(np.array(images[start : start + 64])))
                ).float()
            )
    return torch.cat(parts).contiguous()
