"""The inputs on which stages are compared: small ones that resemble real ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgediff.bundle.latent import LatentSpec
from edgediff.bundle.tensor_names import (
    CONTROL_IMAGE,
    CONTROL_SCALE,
    ENCODER_HIDDEN_STATES,
    GUIDANCE_EMBEDDING,
    INPUT_IDS,
    LATENT_SAMPLE,
    POOLED_STATES,
    SAMPLE,
    TIME_IDS,
    TIMESTEP,
)
from edgediff.networks.text_encoder import time_ids
from edgediff.sampling.guidance import Guidance
from edgediff.text.tokenizer import Tokenizer
from edgediff_export.fidelity.cases import Case, Named
from edgediff_export.fidelity.shots import PROMPTS, even_areas

# Latents a side: just enough to exercise every layer.
_UNET_SIDE = 32
_VAE_SIDE = 8
_CONTROL_SIDE = 16
"""Latents a side in the fixtures. Residuals are many: at 32 they would take 27 MB of Stable
Diffusion 1.5's, at 16 a quarter of that."""
_RESIDUAL_STRENGTH = np.float32(0.25)
"""Standard deviation of the made-up residuals that the controlled UNet is compared on."""


def text_encoder_inputs(tokenizer: Tokenizer, embeddings: Sequence[str] = ()) -> dict[str, Named]:
    """input_ids (1, 77) int64 of a prompt, of none, and of the tokens of textual inversion."""
    prompts = {"prompt": PROMPTS[0], "empty": ""}
    if embeddings:
        prompts["embeddings"] = " ".join(embeddings)
    return {name: {INPUT_IDS: tokenizer.encode(text).ids} for name, text in prompts.items()}


def unet_inputs(
    config: Mapping[str, Any],
    text: Sequence[Sequence[Case]],
    *,
    guidance_scale: float,
    size: tuple[int, int],
    timesteps: tuple[float, float],
) -> dict[str, Named]:
    """Noise (1, c, h, w) at two timesteps, under the first prompts.

    text: of each text encoder, a case for each prompt. size: (width, height) of an image."""
    rng = np.random.default_rng(0)
    side = min(sample_side(config), _UNET_SIDE)
    cond_dim = config.get("time_cond_proj_dim")
    shape = (1, config.get("in_channels", 4), side, side)
    cases: dict[str, Named] = {}
    for timestep, prompt in zip(timesteps, zip(*text, strict=True), strict=False):
        states = [next(iter(case.outputs.values())) for case in prompt]
        inputs = {
            SAMPLE: rng.standard_normal(shape, dtype=np.float32),
            TIMESTEP: np.array(timestep, np.float32),
            ENCODER_HIDDEN_STATES: np.concatenate(states, axis=-1),
        }
        embedding = Guidance(scale=guidance_scale, embedding_dim=cond_dim or None).embedding()
        if embedding is not None:
            inputs[GUIDANCE_EMBEDDING] = embedding
        if config.get("addition_embed_type") == "text_time":
            inputs[POOLED_STATES] = prompt[-1].outputs[POOLED_STATES]
            inputs[TIME_IDS] = time_ids(*size)
        cases[f"t{timestep:g}"] = inputs
    return cases


def vae_decoder_inputs(latent: LatentSpec, sample_size: int) -> dict[str, Named]:
    """Latents of a real image's scale: unit variance, over the scaling factor."""
    rng = np.random.default_rng(1)
    side = min(sample_size, _VAE_SIDE)
    shape = (1, latent.channels, side, side)
    noise = rng.standard_normal(shape, dtype=np.float32)
    # Real latents have large even areas, which a decoder's norms amplify.
    even = 1.5 * even_areas(rng, shape) + 0.1 * noise
    scale = np.float32(1 / latent.scaling_factor)
    return {"noise": {LATENT_SAMPLE: noise * scale}, "even": {LATENT_SAMPLE: even * scale}}


def vae_encoder_inputs(latent: LatentSpec, sample_size: int) -> dict[str, Named]:
    """Images (1, 3, h, w) in [-1, 1]: noise all over, and even areas with a little of it."""
    rng = np.random.default_rng(2)
    width, height = latent.size((min(sample_size, _VAE_SIDE),) * 2)
    shape = (1, 3, height, width)
    noise = rng.uniform(-1, 1, shape).astype(np.float32)
    even = np.clip(0.7 * even_areas(rng, shape) + 0.05 * noise, -1, 1)
    return {"noise": {SAMPLE: noise}, "even": {SAMPLE: even}}


def network_inputs(unet: Sequence[Case], latent: LatentSpec) -> dict[str, Named]:
    """The UNet's fixtures, cropped to _CONTROL_SIDE, with an image of noise and one of lines."""
    rng = np.random.default_rng(3)
    cases: dict[str, Named] = {}
    for k, case in enumerate(unet):
        inputs = {name: v for name, v in case.inputs.items() if name != GUIDANCE_EMBEDDING}
        sample = _cut(inputs[SAMPLE])[:, : latent.channels]
        w, h = latent.size(sample.shape)
        noise = rng.random((1, 3, h, w), dtype=np.float32)
        lines = np.broadcast_to(rng.random((1, 1, h, 1)) > 0.9, noise.shape).astype(np.float32)
        cases[case.name] = {
            **inputs,
            SAMPLE: sample,
            CONTROL_IMAGE: lines if k % 2 else noise,
            CONTROL_SCALE: np.array(1.0, np.float32),
        }
    return cases


def controlled_inputs(unet: Sequence[Case], network: Sequence[Case]) -> dict[str, Named]:
    """The UNet's fixtures, cropped to _CONTROL_SIDE, with made-up residuals: those of a network
    that was not trained for long are next to nothing."""
    rng = np.random.default_rng(4)
    cases: dict[str, Named] = {}
    for case, of in zip(unet[:1], network, strict=False):
        residuals = {
            name: rng.standard_normal(v.shape, dtype=np.float32) * _RESIDUAL_STRENGTH
            for name, v in of.outputs.items()
        }
        cases[case.name] = {**case.inputs, SAMPLE: _cut(case.inputs[SAMPLE]), **residuals}
    return cases


def _cut(sample: Any) -> Any:
    return np.ascontiguousarray(sample[:, :, :_CONTROL_SIDE, :_CONTROL_SIDE])


def sample_side(unet_config: Mapping[str, Any]) -> int:
    """A UNet's own latent size, the shorter side if there are two."""
    size = unet_config.get("sample_size") or 64
    return min(size) if isinstance(size, list | tuple) else int(size)
