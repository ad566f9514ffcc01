"""The inputs on which stages are compared: small ones that look like the real thing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgediff.bundle import LatentSpec
from edgediff.conditioning import time_ids
from edgediff.guidance import Guidance
from edgediff.prompt import Tokenizer
from edgediff_export.fidelity.measure import PROMPTS, Array, Case, Named

# Latents a side: enough for every layer to do what it does, and no more.
_UNET_SIDE = 32
_VAE_SIDE = 8
_TIMESTEPS = (981.0, 261.5)


def text_encoder_inputs(tokenizer: Tokenizer, embeddings: Sequence[str] = ()) -> dict[str, Named]:
    """input_ids (1, 77) int64 of a prompt, of none, and of the tokens of textual inversion."""
    prompts = {"prompt": PROMPTS[0], "empty": ""}
    if embeddings:
        prompts["embeddings"] = " ".join(embeddings)
    return {name: {"input_ids": tokenizer.encode(text).ids} for name, text in prompts.items()}


def unet_inputs(
    config: Mapping[str, Any],
    text: Sequence[Sequence[Case]],
    *,
    guidance_scale: float,
    size: tuple[int, int],
) -> dict[str, Named]:
    """Noise (1, c, h, w) near both ends of the schedule, under the first prompts.

    text: of each text encoder, a case for each prompt. size: (width, height) of a picture."""
    rng = np.random.default_rng(0)
    side = min(sample_side(config), _UNET_SIDE)
    cond_dim = config.get("time_cond_proj_dim")
    shape = (1, config.get("in_channels", 4), side, side)
    cases: dict[str, Named] = {}
    for timestep, prompt in zip(_TIMESTEPS, zip(*text, strict=True), strict=False):
        states = [next(iter(case.outputs.values())) for case in prompt]
        inputs = {
            "sample": rng.standard_normal(shape, dtype=np.float32),
            "timestep": np.array(timestep, np.float32),
            "encoder_hidden_states": np.concatenate(states, axis=-1),
        }
        embedding = Guidance(scale=guidance_scale, embedding_dim=cond_dim or None).embedding()
        if embedding is not None:
            inputs["timestep_cond"] = embedding
        if config.get("addition_embed_type") == "text_time":
            inputs["text_embeds"] = prompt[-1].outputs["text_embeds"]
            inputs["time_ids"] = time_ids(*size)
        cases[f"t{timestep:g}"] = inputs
    return cases


def vae_decoder_inputs(latent: LatentSpec, sample_size: int) -> dict[str, Named]:
    """Latents of a real picture's scale: unit variance, over the scaling factor."""
    rng = np.random.default_rng(1)
    side = min(sample_size, _VAE_SIDE)
    shape = (1, latent.channels, side, side)
    noise = rng.standard_normal(shape, dtype=np.float32)
    # Real latents have large even areas, which a decoder's norms amplify.
    even = 1.5 * _even_areas(rng, shape) + 0.1 * noise
    scale = np.float32(1 / latent.scaling_factor)
    return {"noise": {"latent_sample": noise * scale}, "even": {"latent_sample": even * scale}}


def vae_encoder_inputs(latent: LatentSpec, sample_size: int) -> dict[str, Named]:
    """Pictures (1, 3, h, w) in [-1, 1]: noise all over, and even areas with a little of it."""
    rng = np.random.default_rng(2)
    side = min(sample_size, _VAE_SIDE) * latent.downscale
    shape = (1, 3, side, side)
    noise = rng.uniform(-1, 1, shape).astype(np.float32)
    even = np.clip(0.7 * _even_areas(rng, shape) + 0.05 * noise, -1, 1)
    return {"noise": {"sample": noise}, "even": {"sample": even}}


def painting(width: int, height: int) -> tuple[Array, Array]:
    """A picture (h, w, 3) of even areas, and what to paint anew of it (h, w): its left half. Both
    uint8."""
    side = max(width, height)
    even = _even_areas(np.random.default_rng(5), (1, 3, side, side))[0, :, :height, :width]
    init = np.clip(even.transpose(1, 2, 0) * 64 + 128, 0, 255).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return init, mask


def sample_side(unet_config: Mapping[str, Any]) -> int:
    """A UNet's own latent size, the shorter side where there are two."""
    size = unet_config.get("sample_size") or 64
    return min(size) if isinstance(size, list | tuple) else int(size)


def _even_areas(
    rng: np.random.Generator, shape: tuple[int, int, int, int]
) -> npt.NDArray[np.float32]:
    """Quarters of one value each, (n, c, side, side), standard normal."""
    n, c, side, _ = shape
    coarse = rng.standard_normal((n, c, 2, 2), dtype=np.float32)
    half = -(-side // 2)
    areas = np.kron(coarse, np.ones((1, 1, half, half), np.float32))
    quarters: npt.NDArray[np.float32] = areas[..., :side, :side]
    return quarters
