"""A running call: applies the networks of a bundle in order, and can be stopped at any time."""

import contextlib
import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Self

import numpy as np
from PIL import Image

from edgediff.arrays import Array
from edgediff.backend.available import version
from edgediff.backend.cancellation import CancelToken
from edgediff.backend.run_stage import RunStage
from edgediff.bundle.manifest import Manifest
from edgediff.errors import InputError
from edgediff.initial_latents import Start, from_latents, repaint, start
from edgediff.networks.autoencoder import Vae, to_sample
from edgediff.networks.controlnet import choose_unet
from edgediff.networks.text_encoder import TextConditioner, at_size
from edgediff.request.hires import larger
from edgediff.request.request import Request
from edgediff.request.settings import Settings
from edgediff.result import Phase, Progress, Result, Timings
from edgediff.sampling.denoiser import Conditioning, Denoiser
from edgediff.sampling.noise import TorchGenerator, VariedGenerator
from edgediff.sampling.plan import Plan
from edgediff.sampling.resize import resized
from edgediff.sampling.samplers import Noise, Step, sample
from edgediff.text.tokenizer import PromptReport


class Run(Iterator[Step]):
    """One call of `generate`, `stream` or `run`: an iterator over the denoising steps. `result`
    decodes the last one to images. Nothing is computed before the first step is requested.

        run = pipe.stream("a fox")
        threading.Timer(1, run.cancel).start()
        result = run.result()

    It may be abandoned at any step. One thread iterates; any thread may call `cancel`. With
    `hires`, the steps of the second pass follow, with larger latents.

    request: the call. settings: its settings and the provider that runs it.
    seeds: one for each image."""

    def __init__(
        self,
        request: Request,
        manifest: Manifest,
        run_stage: RunStage,
        text: TextConditioner,
        *,
        provider: str,
        tile: int | None,
        token: CancelToken,
        on_progress: Callable[[Progress], None] | None = None,
        started: float | None = None,
    ) -> None:
        """run_stage: runs the stages of this run; `token` stops it. started: start of the call, by
        `time.perf_counter`; None = now."""
        self.request = request
        self.settings = dataclasses.replace(
            request.settings, provider=provider, onnxruntime=version()
        )
        self.seeds = request.seeds
        self._manifest = manifest
        self._run_stage = run_stage
        self._text = text
        self._vae = Vae(manifest, run_stage, provider, tile=tile)
        self._network = choose_unet(manifest, run_stage, request.controls)
        self._token = token
        self._on_progress = on_progress
        self._started = time.perf_counter() if started is None else started
        self._sources = [_source(self.settings, seed) for seed in request.seeds]
        self._stage_seconds: dict[Phase, float] = {}
        self._step_seconds: list[float] = []
        self._steps = self._denoise()
        self._finished: tuple[Array, PromptReport]  # set after the last step
        self._error: BaseException | None = None
        self._in_use = threading.RLock()
        self._result: Result | None = None

    def cancel(self) -> None:
        """Stop the run, from any thread. The iterating thread gets Cancelled at the end of the
        current operator, or after `cancellation.GRACE` if that takes longer. Has no effect after
        the run has finished."""
        self._token.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        """The next denoising step. The first call also encodes the prompt and the initial image.

        Raises InputError, BundleError, ProviderError, Cancelled, DeadlineExceeded."""
        with self._used(), self._ending():
            return next(self._steps)

    def result(self, on_step: Callable[[Step], None] | None = None) -> Result:
        """Run the remaining steps, decode the latents of the last one, and return the images.

        on_step: called after each step; an exception that it raises stops the run and reaches the
            caller.
        Raises the same errors as iterating; a run that failed before raises its error again."""
        with self._used(), self._ending():
            for step in self._steps:
                if on_step is not None:
                    on_step(step)
            if self._result is None:
                self._result = self._decode(*self._finished)
            return self._result

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        """Refuse a second thread, which would destroy the run for the first."""
        if not self._in_use.acquire(blocking=False):
            raise InputError("another thread is iterating this run: start a run for each thread")
        try:
            yield
        finally:
            self._in_use.release()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Raise the error that ended the run before, and remember one that ends it now."""
        if self._error is not None:
            raise self._error
        try:
            yield
        except StopIteration:
            raise
        except BaseException as e:
            self._error = e
            raise

    def _decode(self, latents: Array, report: PromptReport) -> Result:
        with self._phase("decoder"):
            images = self._vae.decode(latents)
            if self.settings.keep_unmasked:
                images = [self.request.inputs.restored(image) for image in images]
        timings = Timings(
            stages=self._stage_seconds,
            steps=tuple(self._step_seconds),
            total=time.perf_counter() - self._started,
        )
        return Result(
            images=images,
            seeds=list(self.seeds),
            timings=timings,
            prompt=report,
            settings=self.settings,
            notes=self.request.notes,
        )

    def _denoise(self) -> Generator[Step]:
        """The steps of the first pass and, with `hires`, of the second pass on its result."""
        first, *further = self.request.plans
        with self._phase("text_encoder"):
            report, prompt, negative = self._text(self.settings, self._run_stage)
        noise = self._noise_at(self.settings.width, self.settings.height)
        given = self.request.inputs.init_image is not None
        with self._phase("encoder") if given else contextlib.nullcontext():
            begin = start(
                self._manifest, self.settings, self.request.inputs, first, self._vae, noise
            )
        latents = yield from self._pass(first, begin, noise, prompt, negative)
        for plan in further:
            with self._phase("upscale"):
                width, height = self._larger_size()
                prompt = at_size(prompt, width, height)
                negative = negative and at_size(negative, width, height)
                noise = self._noise_at(width, height)
                begin = from_latents(self._enlarged(latents, width, height, noise), noise, plan)
            latents = yield from self._pass(plan, begin, noise, prompt, negative)
        self._finished = latents, report

    def _pass(
        self,
        plan: Plan,
        begin: Start,
        noise: Noise,
        prompt: Conditioning,
        negative: Conditioning | None,
    ) -> Generator[Step, None, Array]:
        """Yield the steps, numbered after those of earlier passes; return the final latents."""
        denoise = Denoiser(
            self._network(plan),
            plan=plan,
            prompt=prompt,
            negative=negative,
            guidance=self.settings.guidance(self._text.guidance_embedding_dim()),
            extra_channels=begin.extra_channels,
        )
        trajectory = sample(denoise, begin.latents, plan, noise)
        kept = begin.kept
        latents = begin.latents
        self._report_progress("denoiser")
        before = time.perf_counter()
        for step in trajectory if kept is None else repaint(trajectory, kept, plan):
            index = len(self._step_seconds)
            self._step_seconds.append(time.perf_counter() - before)
            self._stage_seconds["denoiser"] = sum(self._step_seconds)
            latents = step.latents
            self._report_progress("denoiser")
            yield dataclasses.replace(step, index=index)
            self._token.check()
            before = time.perf_counter()
        return latents

    @contextlib.contextmanager
    def _phase(self, phase: Phase) -> Iterator[None]:
        """Report the start of a phase, and record its duration."""
        self._token.check()
        self._report_progress(phase)
        before = time.perf_counter()
        yield
        self._stage_seconds[phase] = time.perf_counter() - before

    def _report_progress(self, phase: Phase) -> None:
        if self._on_progress is None:
            return
        done, steps = len(self._step_seconds), self.request.steps
        left = (steps - done) * statistics.median(self._step_seconds) if done else None
        self._on_progress(Progress(phase=phase, step=done, steps=steps, seconds_left=left))

    def _noise_at(self, width: int, height: int) -> Noise:
        """A source of N(0, 1) noise for the latents of an image of this size in pixels:
        (n, c, h, w) float32, each row from its own seed."""
        shape = (1, *self._manifest.latent.shape((width, height)))

        def noise(_: int) -> Array:  # the step, which these sources do not need
            return np.concatenate([source.randn(shape) for source in self._sources])

        return noise

    def _larger_size(self) -> tuple[int, int]:
        """(width, height) of the second pass in pixels."""
        size = (self.settings.width, self.settings.height)
        return larger(size, self.settings.hires or 1.0, self._manifest.latent.downscale)

    def _enlarged(self, latents: Array, width: int, height: int, noise: Noise) -> Array:
        """The latents of the first pass, enlarged to an image of this size in pixels."""
        if self.settings.hires_mode == "latent":
            return resized(latents, *self._manifest.latent.shape((width, height))[1:])
        images = [
            np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
            for image in self._vae.decode(latents)
        ]
        samples = np.concatenate([to_sample(pixels) for pixels in images])
        return self._vae.encode(samples).sample(noise)


def _source(settings: Settings, seed: int) -> TorchGenerator | VariedGenerator:
    if settings.variation_seed is None:
        return TorchGenerator(seed)
    return VariedGenerator(seed, settings.variation_seed, settings.variation_strength)
