"""A call under way: its prompts encoded, its steps, and what each took."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from edgediff.bundle import Manifest
from edgediff.conditioning import TextConditioner
from edgediff.denoiser import Denoiser, UNet
from edgediff.noise import TorchGenerator, VariedGenerator
from edgediff.plan import Plan, make_plan
from edgediff.result import Timings
from edgediff.samplers import Latents, Noise, Step, initial_latents, sample
from edgediff.settings import Settings
from edgediff.vae import Vae


class Run:
    """One call of `generate` or `stream`: encodes the prompts, and iterates over the steps, once.

    settings: what was asked for; seeds: one for each picture to make. unet: plan → the network.
    report: what became of the prompts."""

    def __init__(
        self,
        manifest: Manifest,
        settings: Settings,
        seeds: Sequence[int],
        *,
        text: TextConditioner,
        unet: Callable[[Plan], UNet],
        vae: Vae,
    ) -> None:
        self._manifest = manifest
        self._text = text
        self._unet = unet
        self._vae = vae
        self.settings = settings
        self.seeds = list(seeds)
        self._sources = [_source(settings, seed) for seed in seeds]
        self._step_times: list[float] = []
        before = time.perf_counter()
        self.report, self._prompt, self._negative = text(settings)
        self._text_encoder = time.perf_counter() - before

    def __iter__(self) -> Iterator[Step]:
        settings, schedule = self.settings, self._manifest.schedule
        plan = make_plan(schedule, settings.sampler, settings.steps, spacing=settings.spacing)
        noise = self._noise_at(settings.width, settings.height)
        denoise = Denoiser(
            self._unet(plan),
            plan=plan,
            prediction_type=schedule.prediction_type,
            prompt=self._prompt,
            negative=self._negative,
            guidance_scale=settings.guidance_scale,
            guidance_embedding_dim=self._text.guidance_embedding_dim(),
            guidance_rescale=settings.guidance_rescale,
            guidance_interval=settings.guidance_interval,
        )
        before = time.perf_counter()
        for step in sample(denoise, initial_latents(noise(0), plan), plan, noise):
            self._step_times.append(time.perf_counter() - before)
            yield step
            before = time.perf_counter()

    def finish(self, latents: Latents) -> list[Image.Image]:
        """The last step's latents → the pictures."""
        return self._vae.decode(latents)

    def timings(self, *, vae_decoder: float, total: float) -> Timings:
        """What the steps taken so far took, with what the caller measured; all in seconds."""
        return Timings(
            text_encoder=self._text_encoder,
            steps=tuple(self._step_times),
            vae_decoder=vae_decoder,
            total=total,
        )

    def _noise_at(self, width: int, height: int) -> Noise:
        """A source of N(0, 1) noise for latents of a picture of this size in pixels: (n, c, h, w)
        float32, each row from its own seed."""
        space = self._manifest.latent
        shape = (1, space.channels, height // space.downscale, width // space.downscale)

        def noise(_: int) -> Latents:
            return np.concatenate([source.randn(shape) for source in self._sources])

        return noise


def _source(settings: Settings, seed: int) -> TorchGenerator | VariedGenerator:
    if settings.variation_seed is None:
        return TorchGenerator(seed)
    return VariedGenerator(seed, settings.variation_seed, settings.variation_strength)
