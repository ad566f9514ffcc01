"""The text encoder and the UNet, trained together on the latents with v-prediction.

The noise schedule is Stable Diffusion's, rescaled to end in pure noise (Lin et al. 2024,
algorithm 1): these pictures are mostly white, and a schedule that leaks the mean at its last step
would draw them grey.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo_model import captions, checkpoint
from demo_model.dataset import Concept
from demo_model.replicas import Replicas

BATCH = 32
LR = 1e-3
WARM_UP = 200  # steps
P_EMPTY = 0.1  # captions left out, for classifier-free guidance (Ho & Salimans 2022)
EMA = 0.996
EMA_EVERY = 4  # steps
GAMMA = 5.0
SAVE_EVERY = 60.0  # seconds
SNAPSHOT_EVERY = 600.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of the two networks; the defaults are those of the model that ships."""

    channels: tuple[int, ...] = (96, 128, 192)
    layers: int = 1
    attention: tuple[bool, ...] = (False, True, True)
    heads: int = 4
    groups: int = 32
    text_width: int = 192
    text_layers: int = 3
    text_heads: int = 3
    latent_size: int = 16


class Networks(nn.Module):
    """Text encoder and UNet as one module: one optimizer, one average, one checkpoint."""

    def __init__(self, shape: Shape, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=shape.text_width,
                intermediate_size=4 * shape.text_width,
                projection_dim=shape.text_width,
                num_hidden_layers=shape.text_layers,
                num_attention_heads=shape.text_heads,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        across = tuple(zip(shape.channels, shape.attention, strict=True))
        self.unet = UNet2DConditionModel(
            sample_size=shape.latent_size,
            in_channels=4,
            out_channels=4,
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if attends else "DownBlock2D" for _, attends in across
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if attends else "UpBlock2D" for _, attends in across[::-1]
            ),
            block_out_channels=shape.channels,
            layers_per_block=shape.layers,
            cross_attention_dim=shape.text_width,
            # In this class it is the number of heads, whatever its name says.
            attention_head_dim=shape.heads,
            # The pooled text also reaches every residual block with the timestep, as in DeepFloyd
            # IF: through cross-attention alone, so short a training hardly learns to listen.
            addition_embed_type="text",
            addition_embed_type_num_heads=shape.text_heads,
            norm_num_groups=shape.groups,
        ).to(memory_format=torch.channels_last)

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """x_t (n, 4, h, w) float32, t (n,) int64, ids (n, length) int64 → v (n, 4, h, w)."""
        # Padding is attended, here and at inference, as in Stable Diffusion 1.
        hidden = self.text_encoder(ids).last_hidden_state
        return self.unet(x_t, t, hidden).sample.float()


def new_scheduler() -> DDIMScheduler:
    """The schedule that training and the saved pipeline share."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,  # unused by this spacing, but the pipeline warns about 0
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """(n, length) int64, padded and cut to the tokenizer's length as the pipeline does it."""
    encoded = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = encoded.input_ids
    return ids


def noised(
    x0: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, its target v = √ᾱ ε − √(1−ᾱ) x0 (Salimans & Ho 2022, eq. 11), its weight (n,)."""
    a = alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
    v = a.sqrt() * noise - (1 - a).sqrt() * x0
    # In terms of x0 the weight is min(SNR + 1, γ + 1), which is Min-SNR (Hang et al. 2023) kept
    # above zero where SNR is zero: the last timestep must be learnt too.
    weight = ((1 + GAMMA) * (1 - a.flatten())).clamp(max=1)
    return x_t, v, weight


def loss(networks: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: x_t, t, token ids, v, weight → the weighted squared error of v, a scalar."""
    x_t, t, ids, v, weight = batch
    with torch.autocast("cpu", torch.bfloat16):
        predicted = networks(x_t.contiguous(memory_format=torch.channels_last), t, ids)
    return (weight * (predicted - v).square().mean((1, 2, 3))).mean()


def update_average(average: nn.Module, networks: nn.Module, step: int) -> None:
    """Move the averaged weights by EMA_EVERY steps' worth; faster at the beginning."""
    decay = min(EMA, (1 + step) / (10 + step)) ** EMA_EVERY
    with torch.no_grad():
        torch._foreach_lerp_(  # type: ignore[attr-defined]
            list(average.parameters()), list(networks.parameters()), 1 - decay
        )


def save_pipeline(
    folder: Path, networks: Networks, vae: AutoencoderTiny, tokenizer: CLIPTokenizer
) -> None:
    """Write a diffusers folder (safetensors), replacing the one that is there."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=networks.text_encoder,
        tokenizer=tokenizer,
        unet=networks.unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    checkpoint.replace_folder(
        folder, lambda beside: pipeline.save_pretrained(beside, safe_serialization=True)
    )


def train(
    latents: Tensor,
    concepts: Sequence[Concept],
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    minutes: float,
    log: Callable[[str], None],
    snapshot: Callable[[Networks], None] | None = None,
    shape: Shape | None = None,
    batch: int = BATCH,
    processes: int = 2,
    name: str = "diffusion",
    start: Networks | None = None,
) -> Mapping[str, float]:
    """Train for so many minutes of wall clock in all, resuming folder/NAME.ckpt or, where there is
    none yet, going on from the weights of `start`.

    latents (n, 4, h, w) float32 of about unit variance. `snapshot` is called with the averaged
    networks every ten minutes. Returns the step count, samples seen and seconds spent.
    """
    path = folder / f"{name}.ckpt"
    shape = shape or Shape()
    networks, average = Networks(shape, tokenizer), Networks(shape, tokenizer)
    if start is not None:
        networks.load_state_dict(start.state_dict())
    average.load_state_dict(networks.state_dict())
    average.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        networks.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    step, seen, spent = 0, 0, 0.0
    state = checkpoint.load(path)
    if state is not None:
        networks.load_state_dict(state["networks"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, seen, spent = state["step"], state["seen"], state["seconds"]
    alphas_cumprod: Tensor = new_scheduler().alphas_cumprod
    # A resumed run draws on from another seed, rather than repeat the first draws.
    sampler = captions.Sampler(concepts, np.random.default_rng(step))
    random = torch.Generator().manual_seed(step)
    budget = minutes * 60

    def save() -> None:
        checkpoint.save(
            path,
            {
                "networks": networks.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seen": seen,
                "seconds": spent,
            },
        )

    networks.train()
    replicas = Replicas(networks, loss, processes, seed=step)
    last = saved = time.monotonic()
    shown = saved if state is not None else -SNAPSHOT_EVERY  # the first one early: it has shapes
    average_loss: float | None = None
    while spent < budget:
        # The rate follows the clock, not a step count: warm up, then down to zero on a cosine.
        decayed = 0.5 + 0.5 * math.cos(math.pi * spent / budget)
        rate = LR * min(1.0, (step + 1) / WARM_UP) * max(0.01, decayed)
        for group in optimizer.param_groups:
            group["lr"] = rate
        indices, texts = sampler.batch(batch, p_empty=P_EMPTY)
        x0 = latents[indices]
        t = torch.randint(len(alphas_cumprod), (batch,), generator=random)
        noise = torch.randn(x0.shape, generator=random)
        x_t, v, weight = noised(x0, t, noise, alphas_cumprod)
        ids = tokenize(tokenizer, texts)
        value = replicas.backward(tuple(part.numpy() for part in (x_t, t, ids, v, weight)))
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + batch
        if step % EMA_EVERY == 0:
            update_average(average, networks, step)
        now = time.monotonic()
        spent, last = spent + now - last, now
        average_loss = value if average_loss is None else 0.98 * average_loss + 0.02 * value
        if step % 25 == 0:
            log(f"{name} step {step} loss {average_loss:.4f} rate {rate:.1e} {spent:.0f} s")
        if now - saved > SAVE_EVERY:
            save()
            saved = now
        if snapshot is not None and now - shown > SNAPSHOT_EVERY and step >= 20:
            snapshot(average)
            shown = now
    save()
    replicas.close()
    if snapshot is not None:
        snapshot(average)
    return {"steps": step, "samples": seen, "seconds": spent}


def load_average(folder: Path, tokenizer: CLIPTokenizer, shape: Shape | None = None) -> Networks:
    """The averaged networks of folder/focus.ckpt or, before that stage, of diffusion.ckpt."""
    state = checkpoint.load(folder / "focus.ckpt") or checkpoint.load(folder / "diffusion.ckpt")
    if state is None:
        raise FileNotFoundError(f"{folder / 'diffusion.ckpt'}: train the diffusion model first")
    networks = Networks(shape or Shape(), tokenizer)
    networks.load_state_dict(state["average"])
    return networks.eval()
