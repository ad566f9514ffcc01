"""The initial latents of a pass: noise, a noised image, or an image to repaint under a mask."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgediff.arrays import Array
from edgediff.bundle.manifest import Manifest
from edgediff.networks.autoencoder import Vae, to_sample
from edgediff.request.init_image import Inputs, inpaints, latent_mask, mask_at
from edgediff.request.settings import Settings
from edgediff.sampling.plan import Plan
from edgediff.sampling.samplers import Noise, Step, Trajectory, initial_latents


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The known part of an image that is repainted: latents x0 (n or 1, c, h, w), their noise
    (n, c, h, w), and a mask (1, 1, h, w) that is 0 in the part to keep. All float32. plan: converts
    noise levels."""

    plan: Plan
    x0: Array
    noise: Array
    mask: Array

    def blend(self, latents: Array, sigma: float) -> Array:
        """Lugmayr et al. 2022 (arXiv:2201.09865), eq. 8, with the same noise in all steps, as in
        diffusers: the known part at noise level sigma, and the rest from `latents`."""
        known = noised(self.plan, self.x0, self.noise, sigma)
        return (1 - self.mask) * known + self.mask * latents


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of a pass.

    latents: (n, c, h, w) float32 at the plan's first noise level.
    extra_channels: further input channels of the network, (n or 1, k, h, w) float32, or None.
    kept: the part that each step must keep, or None."""

    latents: Array
    extra_channels: Array | None = None
    kept: Kept | None = None


def noised(plan: Plan, x0: Array, noise: Array, sigma: float) -> Array:
    """Ho et al. 2020 (arXiv:2006.11239), eq. 4: alpha·x0 + sigma_t·noise, float32."""
    alpha, sigma_t = plan.alpha_sigma(sigma)
    return x0 * alpha + noise * sigma_t


def from_latents(x0: Array, noise: Noise, plan: Plan) -> Start:
    """SDEdit, Meng et al. 2022 (arXiv:2108.01073), algorithm 1: noised latents."""
    return Start(latents=noised(plan, x0, noise(0), plan.start))


def start(
    manifest: Manifest, settings: Settings, inputs: Inputs, plan: Plan, vae: Vae, noise: Noise
) -> Start:
    """The start of a call's first pass. Noise is drawn in the same order as in diffusers."""
    if inputs.init_image is None:
        return Start(latents=initial_latents(noise(0), plan))
    sample = to_sample(inputs.init_image.at(settings.width, settings.height))
    if inputs.mask is None:
        return from_latents(vae.encode(sample).sample(noise), noise, plan)
    repainted = mask_at(inputs.mask, settings.width, settings.height)
    mask = latent_mask(repainted, manifest.latent.downscale)
    if inpaints(manifest):
        x0 = None if settings.strength == 1 else vae.encode(sample).sample(noise)
        first = noise(0)
        masked = vae.encode(sample * ~repainted).sample(noise)
        rows = np.broadcast_to(mask, (len(masked), *mask.shape[1:]))
        return Start(
            latents=_under(x0, first, plan), extra_channels=np.concatenate((rows, masked), axis=1)
        )
    encoded = vae.encode(sample)
    x0 = encoded.sample(noise)
    first = noise(0)
    # diffusers also encodes the masked image here, which draws noise: draw the same amount, so that
    # stochastic samplers get the same numbers.
    encoded.sample(noise)
    latents = _under(None if settings.strength == 1 else x0, first, plan)
    return Start(latents=latents, kept=Kept(plan=plan, x0=x0, noise=first, mask=mask))


def repaint(trajectory: Trajectory, kept: Kept, plan: Plan) -> Iterator[Step]:
    """The trajectory's steps; after each one, the part to keep is restored in its latents."""
    latents: Array | None = None
    for after in (*plan.steps[1:], None):
        step = trajectory.send(latents)
        latents = kept.blend(step.latents, 0.0 if after is None else after.sigma)
        yield dataclasses.replace(step, latents=latents)


def _under(x0: Array | None, noise: Array, plan: Plan) -> Array:
    """Latents at the plan's first noise level; without x0, only noise."""
    return initial_latents(noise, plan) if x0 is None else noised(plan, x0, noise, plan.start)
