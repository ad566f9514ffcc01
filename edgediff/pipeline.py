"""Load a bundle and make pictures: the only place that knows the order of the stages."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgediff import __version__, image
from edgediff.bundle import Bundle, Defaults, GraphSpec
from edgediff.denoiser import Conditioning, Denoiser, needs_negative
from edgediff.errors import BundleError, ProviderError
from edgediff.noise import TorchGenerator
from edgediff.prompt import EncodedPrompt, Tokenizer
from edgediff.samplers import Step, initial_latents, sample
from edgediff.schedule import make_plan
from edgediff.session import (
    PROVIDERS,
    SessionOptions,
    check_provider_name,
    default_cache_dir,
    free_dimensions,
    is_installed,
    why_missing,
)
from edgediff.settings import Settings, resolve, resolve_seeds
from edgediff.stages import Stages, memory_limit

BUILT_IN = "emoji"


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """What became of a prompt. `truncated` and `negative_truncated` are the ends that were cut."""

    text: str
    tokens: int
    limit: int
    truncated: str
    negative_text: str | None = None
    negative_truncated: str = ""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Wall-clock seconds: text encoding, each denoising step, decoding, and all of it."""

    text_encoder: float
    steps: tuple[float, ...]
    vae_decoder: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The pictures of one call, one for each seed, and how they came about."""

    images: list[Image.Image]
    seeds: list[int]
    timings: Timings
    prompt: PromptReport
    settings: Settings

    def save(self, path: str | PathLike[str]) -> list[Path]:
        """Write PNGs that carry their settings. Several go to NAME-SEED.png. Returns the paths.

        Raises InputError where a path cannot be written."""
        paths = output_paths(Path(path), self.seeds)
        for p in paths:
            image.check_output(p)
        for picture, seed, p in zip(self.images, self.seeds, paths, strict=True):
            record = {"edgediff": __version__, "seed": seed, **asdict(self.settings)}
            image.save_png(picture, p, parameters=image.parameters(record), record=record)
        return paths


def output_paths(path: Path, seeds: Sequence[int]) -> list[Path]:
    """Where the pictures of `seeds` go: `path`, or NAME-SEED.png each where there are several.

    A seed that comes again gets NAME-SEED-2.png, and so on."""
    if len(seeds) == 1:
        return [path]
    paths: list[Path] = []
    for k, seed in enumerate(seeds):
        before = list(seeds[:k]).count(seed)
        name = f"{path.stem}-{seed}-{before + 1}" if before else f"{path.stem}-{seed}"
        paths.append(path.with_name(name + path.suffix))
    return paths


def load(
    path_or_name: str | PathLike[str] = BUILT_IN,
    *,
    provider: str = "auto",
    threads: int | None = None,
    cache_dir: str | PathLike[str] | Literal[False] | None = None,
    provider_options: dict[str, str] | None = None,
    max_memory: int | str | None = None,
    check_hashes: bool = True,
) -> "Pipeline":
    """Load a bundle's folder, or the built-in model by its name.

    provider: auto (the first that runs here of those that the bundle was made for, which
        bundle.json lists fastest first), cpu, cuda, tensorrt, coreml or openvino.
    threads: CPU threads within an operator, None = one per core.
    cache_dir: where a provider that compiles (tensorrt, coreml, openvino) keeps its result between
        runs. None = `edgediff/<bundle's id>` in the user's cache (`~/.cache` or $XDG_CACHE_HOME,
        `~/Library/Caches`, `%LOCALAPPDATA%`), made when such a provider first runs. False =
        nowhere.
    provider_options: handed to the provider as they are.
    max_memory: bytes, or text such as "1.4GB" or "1GiB", that the stages may take together. None
        loads them all at once; with a limit, the text encoder is loaded now, each other stage when
        it is first needed, and before that those used longest ago are released until it fits. A
        picture is the same, and takes longer by what loads again. It is a target, not a guarantee:
        a stage is taken to need its files (weights as float32 at worst) and an allowance for one
        picture of the default size, so larger pictures, several seeds at once, several threads, and
        Python with its libraries (70 MB) come on top.
    check_hashes: compare every file's SHA-256 with bundle.json while the sessions load.

    Where `auto` passed over a provider that is installed, `Pipeline.passed_over` says why.

    Raises BundleError, ProviderError, InputError."""
    bundle = Bundle.open(find_bundle(path_or_name))
    limit = memory_limit(bundle.manifest, max_memory)
    refusals: list[str] = []
    for name in _candidates(bundle, provider):
        missing = why_missing(name) if provider == "auto" else None
        if missing is not None:
            refusals.append(f"provider {name!r}: {missing}")
            continue
        options = SessionOptions(
            provider=name,
            threads=threads,
            cache_dir=_cache_dir(bundle, name, cache_dir),
            provider_options=provider_options or {},
            frugal=limit is not None,
        )
        try:
            pipe = Pipeline(bundle, options, check_hashes=check_hashes, max_memory=limit)
        except ProviderError as e:
            refusals.append(str(e))
        else:
            pipe.passed_over = tuple(refusals)
            return pipe
    raise ProviderError("; ".join(refusals))


def _cache_dir(
    bundle: Bundle, provider: str, asked: str | PathLike[str] | Literal[False] | None
) -> Path | None:
    if asked is None and PROVIDERS[provider].static_shapes:
        return default_cache_dir(bundle.id)
    return None if asked is None or asked is False else Path(asked)


def find_bundle(path_or_name: str | PathLike[str]) -> Path:
    """The folder of the built-in model for its name, as text; anything else is a path.

    A folder of that name is `./emoji`, or a Path: what lies in the working folder must not change
    what the default is."""
    if path_or_name == BUILT_IN:
        return Path(__file__).parent / "models" / BUILT_IN
    return Path(path_or_name)


def _candidates(bundle: Bundle, provider: str) -> list[str]:
    """The providers to try, in order: the one asked for, or for `auto` those that are installed,
    of which one may yet find no device."""
    if provider != "auto":
        check_provider_name(provider)
        return [provider]
    made_for = [p for p in bundle.manifest.providers if p in PROVIDERS]
    installed = [p for p in made_for if is_installed(p)]
    if not installed:
        reasons = "; ".join(f"{p}: {why_missing(p)}" for p in made_for)
        raise ProviderError(f"no provider that {bundle.manifest.name} was made for: {reasons}")
    return installed


class Pipeline:
    """A loaded bundle. `generate` and `stream` keep no state between calls and may be called from
    several threads. A context manager; `close` frees the sessions."""

    def __init__(
        self,
        bundle: Bundle,
        options: SessionOptions,
        *,
        check_hashes: bool,
        max_memory: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.provider = options.provider
        self.passed_over: tuple[str, ...] = ()
        self._stages = Stages(bundle, options, max_memory)
        manifest = bundle.manifest
        with ThreadPoolExecutor(max_workers=1) as pool:
            hashes = pool.submit(_check_hashes, bundle) if check_hashes else None
            try:
                spec = manifest.tokenizers["text_encoder"]
                self._tokenizer = Tokenizer(bundle.path(spec.file), spec)
                missing = why_missing(options.provider)
                if missing is not None:
                    raise ProviderError(f"provider {options.provider!r}: {missing}")
                # A provider that compiles does so when the size is known.
                if not PROVIDERS[options.provider].static_shapes:
                    # The text encoder comes first in every call, and shows a provider that fails.
                    for stage in manifest.graphs if max_memory is None else ["text_encoder"]:
                        self._stages.session(stage, {})
            except (BundleError, ProviderError):
                _raise_first(hashes)  # a damaged file explains whatever followed from it
                raise
            _raise_first(hashes)

    @property
    def name(self) -> str:
        """The model's name, as bundle.json has it."""
        return self.bundle.manifest.name

    @property
    def loaded_stages(self) -> tuple[str, ...]:
        """The stages that are in memory now, least recently used first: all, unless max_memory or
        a provider that compiles for each size puts it off."""
        return self._stages.loaded

    @property
    def defaults(self) -> Defaults:
        """What `generate` uses for arguments that are left unset."""
        return self.bundle.manifest.defaults

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the sessions; the next call loads them again."""
        self._stages.close()

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] | None = None,
        size: int | tuple[int, int] | None = None,
        sampler: str | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Result:
        """Make one picture for each seed.

        negative_prompt: what to steer away from; has an effect where guidance_scale > 1.
        steps: denoising steps. guidance_scale: classifier-free guidance; up to 1 there is none.
        seed: torch's; one, or one for each picture. None draws one, which the result tells.
        size: (width, height) in pixels, or one side of a square. sampler: a name in SAMPLERS.
        on_step: called after each step; what it raises ends the run and reaches the caller.

        Arguments left None take the bundle's defaults. Raises InputError, ProviderError."""
        started = time.perf_counter()
        settings = self._resolve(prompt, negative_prompt, steps, guidance_scale, size, sampler)
        seeds = resolve_seeds(seed)
        report, trajectory = self._start(settings, seeds)
        before = encoded = time.perf_counter()
        step_times: list[float] = []
        for step in trajectory:
            step_times.append(time.perf_counter() - before)
            if on_step is not None:
                on_step(step)
            before = time.perf_counter()
        denoised = time.perf_counter()
        pictures = self.decode(step.latents)
        ended = time.perf_counter()
        return Result(
            images=pictures,
            seeds=seeds,
            timings=Timings(
                text_encoder=encoded - started,
                steps=tuple(step_times),
                vae_decoder=ended - denoised,
                total=ended - started,
            ),
            prompt=report,
            settings=settings,
        )

    def stream(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] | None = None,
        size: int | tuple[int, int] | None = None,
        sampler: str | None = None,
    ) -> Iterator[Step]:
        """Yield each denoising step; may be abandoned at any of them. Arguments as in `generate`.

        The last step's latents are the result, and `decode` turns any step's latents or x0 into
        pictures. Arguments are checked at the call, before the first step is asked for."""
        settings = self._resolve(prompt, negative_prompt, steps, guidance_scale, size, sampler)
        return self._start(settings, resolve_seeds(seed))[1]

    def decode(self, latents: NDArray[np.float32]) -> list[Image.Image]:
        """latents (n, c, h/8, w/8) float32 → n RGB pictures. Raises ProviderError where the
        provider gives values that are not finite."""
        graph = self.bundle.manifest.graphs["vae_decoder"]
        if not np.isfinite(latents).all():
            raise ProviderError(
                f"the latents are not finite on {self.provider}: run `edgediff verify` to see"
                " whether a stage is at fault, or ask for less guidance"
            )
        pictures: list[Image.Image] = []
        for one in self.decoder_input(latents)[:, None]:
            outputs = self.run_stage("vae_decoder", {graph.inputs[0].name: one})
            decoded = outputs[graph.outputs[0].name]
            if not np.isfinite(decoded).all():
                raise ProviderError(
                    f"{graph.file}: gave values that are not finite on {self.provider}:"
                    " run `edgediff verify` to see which stage is at fault"
                )
            pictures += image.to_pictures(decoded)
        return pictures

    def decoder_input(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents as the UNet has them → as the VAE has them, of the same shape and dtype."""
        space = self.bundle.manifest.latent
        return (latents / space.scaling_factor + space.shift_factor).astype(np.float32)

    def encode_prompt(self, prompt: str) -> tuple[EncodedPrompt, NDArray[np.float32]]:
        """A prompt → its tokens and encoder_hidden_states (1, tokens, width) float32."""
        graph = self.bundle.manifest.graphs["text_encoder"]
        encoded = self._tokenizer.encode(prompt)
        ids = encoded.ids.astype(graph.inputs[0].dtype)
        outputs = self.run_stage("text_encoder", {graph.inputs[0].name: ids})
        return encoded, outputs["last_hidden_state"]

    def run_stage(self, stage: str, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        dimensions: dict[str, int] = {}
        if PROVIDERS[self.provider].static_shapes:
            specs = {i.name: i for i in self.bundle.manifest.graphs[stage].inputs}
            for name, array in inputs.items():
                dimensions |= free_dimensions(specs[name], array.shape)
        return self._stages.session(stage, dimensions).run(**inputs)

    def _resolve(
        self,
        prompt: str,
        negative_prompt: str | None,
        steps: int | None,
        guidance_scale: float | None,
        size: int | tuple[int, int] | None,
        sampler: str | None,
    ) -> Settings:
        return resolve(
            self.bundle,
            prompt,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            size=size,
            sampler=sampler,
            provider=self.provider,
        )

    def _start(self, settings: Settings, seeds: list[int]) -> tuple[PromptReport, Iterator[Step]]:
        """Encode the prompts and hand back the trajectory, its first step not yet taken."""
        manifest = self.bundle.manifest
        plan = make_plan(manifest.schedule, settings.sampler, settings.steps)
        space = manifest.latent
        shape = (
            1,
            space.channels,
            settings.height // space.downscale,
            settings.width // space.downscale,
        )
        sources = [TorchGenerator(seed) for seed in seeds]

        def noise(_: int = 0) -> NDArray[np.float32]:
            return np.concatenate([source.randn(shape) for source in sources])

        encoded, states = self.encode_prompt(settings.prompt)
        guidance_dim = self._guidance_embedding_dim()
        negative, negative_states = None, None
        if needs_negative(settings.guidance_scale, guidance_dim):
            negative, negative_states = self.encode_prompt(settings.negative_prompt or "")
        denoise = Denoiser(
            self._unet,
            plan=plan,
            prediction_type=manifest.schedule.prediction_type,
            prompt=Conditioning(encoder_hidden_states=states),
            negative=negative_states
            if negative_states is None
            else Conditioning(encoder_hidden_states=negative_states),
            guidance_scale=settings.guidance_scale,
            guidance_embedding_dim=guidance_dim,
        )
        report = PromptReport(
            text=settings.prompt,
            tokens=encoded.tokens,
            limit=encoded.limit,
            truncated=encoded.truncated,
            negative_text=settings.negative_prompt,
            negative_truncated=negative.truncated if negative else "",
        )
        return report, sample(denoise, initial_latents(noise(), plan), plan, noise)

    def _guidance_embedding_dim(self) -> int | None:
        """The width of the UNet's `timestep_cond`, None where it has no such input."""
        spec = self.bundle.manifest.graphs["unet"].input("timestep_cond")
        if spec is None:
            return None
        width = spec.shape[-1]
        if not isinstance(width, int):
            raise BundleError("unet: timestep_cond has no fixed width: export the bundle again")
        return width

    def _unet(
        self,
        latents: NDArray[np.float32],
        timestep: float,
        encoder_hidden_states: NDArray[np.float32],
        extra: Mapping[str, NDArray[np.float32]],
        /,
    ) -> NDArray[np.float32]:
        """One evaluation, as `denoiser.UNet` describes it."""
        graph = self.bundle.manifest.graphs["unet"]
        outputs = self.run_stage(
            "unet",
            {
                "sample": latents,
                "timestep": _timestep(graph, timestep),
                "encoder_hidden_states": encoder_hidden_states,
                **{k: np.repeat(v, len(latents) // len(v), axis=0) for k, v in extra.items()},
            },
        )
        return outputs[graph.outputs[0].name]


def _timestep(graph: GraphSpec, timestep: float) -> NDArray[Any]:
    """The timestep as the graph takes it: its dtype, and a scalar or a vector of one."""
    spec = graph.input("timestep")
    if spec is None:
        raise BundleError(f"{graph.file}: has no input `timestep`: export the bundle again")
    value = np.asarray(timestep, dtype=spec.dtype)
    return value.reshape((1,) * len(spec.shape))


def _check_hashes(bundle: Bundle) -> None:
    for name in bundle.manifest.files:
        bundle.check_hash(name)


def _raise_first(check: Future[None] | None) -> None:
    """Wait for a check that runs beside the loading, and raise what it found."""
    if check is not None:
        check.result()
