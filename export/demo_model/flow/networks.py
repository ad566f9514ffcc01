"""The network u(z, r, t | text): a UNet in diffusers' layout, with the text encoder that it reads.

It predicts the average velocity from time t back to time r (Geng et al. 2025); with r = t that is
the velocity of flow matching. r reaches it as an embedding of t − r, through the input that latent
consistency models use for guidance (`timestep_cond`).
"""

import math
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel

from demo_model.first_stage.model import CHANNELS

TIMESTEPS = 1000  # t is told to the UNet as 1000 t, as runtimes count timesteps
SPAN_WIDTH = 64  # of the embedding of t − r
FASTEST = 60.0  # radians that a wave of the embeddings turns from t = 0 to 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The UNet's sizes; the defaults are those of the model that ships."""

    channels: tuple[int, ...] = (128, 160, 192)  # at 16×16, 8×8 and 4×4
    attention: tuple[bool, ...] = (False, True, False)  # beside the middle block's
    layers: int = 1
    heads: int = 4
    groups: int = 16
    latent_channels: int = CHANNELS
    latent_size: int = 16


class Denoiser(nn.Module):
    """The text encoder, frozen, and the UNet."""

    def __init__(self, shape: Shape, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        across = tuple(zip(shape.channels, shape.attention, strict=True))
        self.unet = UNet2DConditionModel(
            sample_size=shape.latent_size,
            in_channels=shape.latent_channels,
            out_channels=shape.latent_channels,
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if attends else "DownBlock2D" for _, attends in across
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if attends else "UpBlock2D" for _, attends in across[::-1]
            ),
            block_out_channels=shape.channels,
            layers_per_block=shape.layers,
            cross_attention_dim=text_encoder.config.hidden_size,
            # In this class it is the number of heads, whatever its name says.
            attention_head_dim=shape.heads,
            # The pooled text also scales the channels of every residual block: by cross-attention
            # only, so short a training hardly learns to listen.
            addition_embed_type="text",
            addition_embed_type_num_heads=text_encoder.config.num_attention_heads,
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=shape.groups,
            time_cond_proj_dim=SPAN_WIDTH,
            time_embedding_type="fourier",
        )
        # Slow waves of t: with the usual fast ones, derivatives by time drown all else (Lu & Song
        # 2024, section 4.1).
        waves = self.unet.time_proj.weight
        waves.data = _rates(len(waves)) / (2 * math.pi * TIMESTEPS)
        # Plain products and layout: `few_steps` takes forward-mode derivatives, which know no fused
        # attention, and no group norm of channels that lie side by side.
        self.unet.set_attn_processor(AttnProcessor())
        # At first, a leap is taken for an instant.
        nn.init.zeros_(self.unet.time_embedding.cond_proj.weight)

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Tensor:
        """ids (n, length) → the text's hidden states (n, length, width)."""
        # Padding is attended, here and at inference, as in Stable Diffusion 1.
        return self.text_encoder(ids).last_hidden_state

    def forward(self, z: Tensor, r: Tensor, t: Tensor, hidden: Tensor) -> Tensor:
        """z (n, c, h, w), r and t (n,) from 0 to 1, hidden (n, length, width) → u like z."""
        span = span_embedding(t - r)
        u = self.unet(z, t * TIMESTEPS, hidden, timestep_cond=span, return_dict=False)[0]
        return u.float()


def span_embedding(span: Tensor) -> Tensor:
    """t − r (n,) → (n, SPAN_WIDTH): 0 for an instant, then sines and cosines of it."""
    angles = span[:, None] * _rates(SPAN_WIDTH // 2).to(span.device)
    return torch.cat([angles.sin(), 1 - angles.cos()], -1)


def _rates(count: int) -> Tensor:
    """So many rates of waves, radians per unit of time, from slow to FASTEST."""
    return torch.exp(torch.linspace(0, math.log(FASTEST), count))
