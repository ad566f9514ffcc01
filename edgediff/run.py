"""A call under way: its prompts encoded, its passes one after the other, and what each took."""

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from PIL import Image

from edgediff.bundle import Manifest
from edgediff.conditioning import TextConditioner, at_size
from edgediff.denoiser import Denoiser, UNet
from edgediff.hires import larger, resized
from edgediff.inputs import Inputs
from edgediff.noise import TorchGenerator, VariedGenerator
from edgediff.plan import Plan
from edgediff.result import Timings
from edgediff.samplers import Latents, Noise, Step, sample
from edgediff.settings import Settings, make_plans
from edgediff.start import Start, from_latents, repaint, start
from edgediff.vae import Vae, to_sample


class Run:
    """One call of `generate` or `stream`: encodes the prompts, and the picture if one is given, and
    iterates over the steps, once.

    settings: what was asked for; inputs: its pictures; seeds: one for each picture to make.
    notes: what one might not expect to have been done to pictures that were given, or to sizes.
    unet: plan → the network.
    report: what became of the prompts."""

    def __init__(
        self,
        manifest: Manifest,
        settings: Settings,
        inputs: Inputs,
        seeds: Sequence[int],
        *,
        text: TextConditioner,
        unet: Callable[[Plan], UNet],
        vae: Vae,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._manifest = manifest
        self._text = text
        self._unet = unet
        self._vae = vae
        self.settings = settings
        self.inputs = inputs
        self.seeds = list(seeds)
        self.notes = notes
        self._sources = [_source(settings, seed) for seed in seeds]
        self._plans = make_plans(manifest.schedule, settings)
        self._step_times: list[float] = []
        self._upscale = 0.0
        before = time.perf_counter()
        self.report, self._prompt, self._negative = text(settings)
        encoded = time.perf_counter()
        self._text_encoder = encoded - before
        self._noise = self._noise_at(settings.width, settings.height)
        self._begin = start(manifest, settings, inputs, self._plans[0], vae, self._noise)
        given = inputs.init_image is not None
        self._vae_encoder = time.perf_counter() - encoded if given else 0.0

    def __iter__(self) -> Iterator[Step]:
        """The steps of the first pass; under `hires`, those of the second over its result."""
        latents = yield from self._pass(self._plans[0], self._begin, self._noise)
        for plan in self._plans[1:]:
            before = time.perf_counter()
            width, height = self._larger_size()
            self._prompt = at_size(self._prompt, width, height)
            self._negative = self._negative and at_size(self._negative, width, height)
            noise = self._noise_at(width, height)
            begin = from_latents(self._enlarged(latents, width, height, noise), noise, plan)
            self._upscale = time.perf_counter() - before
            latents = yield from self._pass(plan, begin, noise)

    def finish(self, latents: Latents) -> list[Image.Image]:
        """The last step's latents → the pictures, with what was to be kept of the one given."""
        pictures = self._vae.decode(latents)
        if self.settings.keep_unmasked:
            pictures = [self.inputs.restored(picture) for picture in pictures]
        return pictures

    def timings(self, *, vae_decoder: float, total: float) -> Timings:
        """What the steps taken so far took, with what the caller measured; all in seconds."""
        return Timings(
            text_encoder=self._text_encoder,
            vae_encoder=self._vae_encoder,
            steps=tuple(self._step_times),
            upscale=self._upscale,
            vae_decoder=vae_decoder,
            total=total,
        )

    def _pass(self, plan: Plan, begin: Start, noise: Noise) -> Generator[Step, None, Latents]:
        """Yields the steps, counted on from those before; returns the last one's latents."""
        denoise = Denoiser(
            self._unet(plan),
            plan=plan,
            prediction_type=self._manifest.schedule.prediction_type,
            prompt=self._prompt,
            negative=self._negative,
            guidance=self.settings.guidance(self._text.guidance_embedding_dim()),
            beside=begin.beside,
        )
        trajectory = sample(denoise, begin.latents, plan, noise)
        kept = begin.kept
        latents = begin.latents
        before = time.perf_counter()
        for step in trajectory if kept is None else repaint(trajectory, kept, plan):
            index = len(self._step_times)
            self._step_times.append(time.perf_counter() - before)
            latents = step.latents
            yield dataclasses.replace(step, index=index)
            before = time.perf_counter()
        return latents

    def _noise_at(self, width: int, height: int) -> Noise:
        """A source of N(0, 1) noise for latents of a picture of this size in pixels: (n, c, h, w)
        float32, each row from its own seed."""
        space = self._manifest.latent
        shape = (1, space.channels, height // space.downscale, width // space.downscale)

        def noise(_: int) -> Latents:  # the step, which a stream need not know
            return np.concatenate([source.randn(shape) for source in self._sources])

        return noise

    def _larger_size(self) -> tuple[int, int]:
        """Of the second pass: (width, height) in pixels."""
        size = (self.settings.width, self.settings.height)
        return larger(size, self.settings.hires or 1.0, self._manifest.latent.downscale)

    def _enlarged(self, latents: Latents, width: int, height: int, noise: Noise) -> Latents:
        """The first pass's latents, for a picture of this size in pixels."""
        downscale = self._manifest.latent.downscale
        if self.settings.hires_mode == "latent":
            return resized(latents, height // downscale, width // downscale)
        pictures = [
            np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
            for picture in self._vae.decode(latents)
        ]
        samples = np.concatenate([to_sample(pixels) for pixels in pictures])
        return self._vae.encode(samples).sample(noise)


def _source(settings: Settings, seed: int) -> TorchGenerator | VariedGenerator:
    if settings.variation_seed is None:
        return TorchGenerator(seed)
    return VariedGenerator(seed, settings.variation_seed, settings.variation_strength)
