"""Load a bundle and generate images from it."""

import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgediff.backend.available import is_installed, why_missing
from edgediff.backend.cancellation import CancelToken
from edgediff.backend.compile_cache import default_cache_dir
from edgediff.backend.left_memory import left_memory
from edgediff.backend.memory import AUTO, check_fits, fit, memory_limit
from edgediff.backend.options import Observe, SessionOptions
from edgediff.backend.pool import Stages
from edgediff.backend.providers import PROVIDERS, check_provider_name
from edgediff.backend.run_stage import RunStage
from edgediff.bundle.folder import Bundle
from edgediff.bundle.graph_files import checked_beside
from edgediff.bundle.hub import OnDownload, fetch_bundle
from edgediff.bundle.hub_name import is_hub_name
from edgediff.bundle.manifest import Defaults, Manifest, Role
from edgediff.errors import BundleError, InputError, ProviderError
from edgediff.networks.autoencoder import Vae, check_tile, decoder_input
from edgediff.networks.text_encoder import TextConditioner
from edgediff.request.options import Options
from edgediff.request.request import Request, resolve
from edgediff.request.settings import Settings
from edgediff.result import Progress, Result
from edgediff.run import Run
from edgediff.sampling.samplers import Step

BUILT_IN = "emoji"


def load(
    path_or_name: str | PathLike[str] = BUILT_IN,
    *,
    provider: str = "auto",
    threads: int | None = None,
    cache_dir: str | PathLike[str] | Literal[False] | None = None,
    provider_options: dict[str, str] | None = None,
    max_memory: int | str | None = AUTO,
    tile: int | None = None,
    check_hashes: bool = True,
    observe: Observe | None = None,
    on_download: OnDownload | None = None,
) -> "Pipeline":
    """Load a bundle's folder, the built-in model by its name, or a bundle on the Hugging Face hub
    by "hf:owner/name" or "hf:owner/name@revision", which needs `edgediff[hub]`.

    provider: auto (the first provider in bundle.json that runs here; the fastest comes first), cpu,
        cuda, tensorrt, coreml or openvino.
    threads: CPU threads within an operator, None = one per core; at most one per logical processor
        runs, and `Pipeline.load_notes` report a larger number.
    cache_dir: folder for models that a provider (tensorrt, coreml, openvino) compiles, with a
        subfolder for each bundle. None = `edgediff` in the user's cache (`~/.cache` or
        $XDG_CACHE_HOME, `~/Library/Caches`, `%LOCALAPPDATA%`), created when such a provider first
        runs. False = keep none.
    provider_options: passed to the provider unchanged.
    max_memory: limit for all stages together, in bytes or as text such as "1.4GB" or "1GiB". None =
        load all stages at once. "auto" = on the CPU, the memory that this process may still take:
        the least of its cgroups' limits, `ulimit -v` and free memory (Linux; elsewhere no limit).
        If all stages fit, all are loaded at once. If an image does not fit even so, under a limit
        at which the system ends the process, the call raises ProviderError before it begins; so
        does loading, if a stage does not fit.
        With a limit, the text encoder is loaded now and each other stage when it is first needed;
        to make room, the least recently used stages are released. Images are identical; reloading
        costs time. It is a target, not a guarantee: it counts the files of a stage (with weights as
        float32 at worst) and an allowance for one image of the default size. Larger images, several
        seeds or threads, and Python with its libraries (70 MB) need more. With `control`, every
        step runs the control networks and the UNet; if they do not fit together, they are reloaded
        at every step.
    tile: decode and encode images in overlapping tiles with sides of this many pixels, to save
        memory; None = whole images. Smaller tiles take longer. An autoencoder with group norms
        gives different results for a tile than for the whole image.
    check_hashes: compare every file's SHA-256 with bundle.json now, and that of a stage's files
        again whenever it is loaded later.
    observe: additional records of the sessions, for benchmarks (see
        `edgediff.backend.options.Observe`).

    on_download: for a bundle on the hub, called with the bytes that are there and those in total,
        from another thread. An exception that it raises ends the call once the file that is being
        downloaded is complete. An interrupted download goes on at the next call; only what is not
        in the hub's cache is fetched.

    If `auto` skipped an installed provider, `Pipeline.skipped_providers` gives the reason.

    Raises BundleError, ProviderError, InputError."""
    bundle = Bundle.open(find_bundle(path_or_name, on_download))
    latent = bundle.manifest.latent
    if latent.type != "image":
        raise BundleError(
            f"{bundle.root}: its latents are of type {latent.type}, but this version of edgediff"
            " generates only images: pip install -U edgediff"
        )
    if tile is not None:
        tile = check_tile(tile, latent.downscale)
    limit = memory_limit(bundle.manifest, max_memory, tile)
    refusals: list[str] = []
    for name in _candidates(bundle, provider):
        missing = why_missing(name) if provider == "auto" else None
        if missing is not None:
            refusals.append(f"provider {name!r}: {missing}")
            continue
        planned = max_memory == AUTO and name == "cpu"  # others have their own memory
        note = None
        if planned:
            try:
                limit, note = fit(bundle.manifest, tile)
            except ProviderError as e:
                refusals.append(str(e))
                continue
        options = SessionOptions(
            provider=name,
            threads=threads,
            cache_dir=_cache_dir(bundle, name, cache_dir),
            provider_options=provider_options or {},
            shrink_arena=limit is not None,
            observe=observe or Observe(),
        )
        try:
            pipe = Pipeline(
                bundle,
                options,
                check_hashes=check_hashes,
                max_memory=limit,
                tile=tile,
                checks_memory=planned,
            )
        except ProviderError as e:
            refusals.append(str(e))
        else:
            pipe.skipped_providers = tuple(refusals)
            pipe._memory_notes = () if note is None else (note,)
            return pipe
    raise ProviderError("; ".join(refusals))


def _cache_dir(
    bundle: Bundle, provider: str, chosen: str | PathLike[str] | Literal[False] | None
) -> Path | None:
    if chosen is None and PROVIDERS[provider].static_shapes:
        return default_cache_dir(bundle.id)
    # Several bundles may share one folder, and compiled models do not say which bundle they are of.
    return None if chosen is None or chosen is False else Path(chosen).absolute() / bundle.id[:16]


def find_bundle(path_or_name: str | PathLike[str], on_download: OnDownload | None = None) -> Path:
    """The folder of the built-in model, if its name is given as text, or of a bundle on the hub,
    which is fetched first; anything else is a path.

    A local folder of the same name is `./emoji` or a Path, so that the contents of the working
    folder cannot change the default. on_download: as in `load`. Raises BundleError if the package
    lacks its data, or if the bundle cannot be fetched."""
    if is_hub_name(path_or_name):
        return fetch_bundle(str(path_or_name), on_download)
    if path_or_name == BUILT_IN:
        folder = Path(__file__).parent / "models" / BUILT_IN
        if not folder.is_dir():
            raise BundleError(
                f"{folder}: the built-in model is not there: edgediff was packaged without its data"
                " files, or runs from a zip: unpack it, or add them (PyInstaller: --collect-data"
                " edgediff)"
            )
        return folder
    return Path(path_or_name)


def _candidates(bundle: Bundle, provider: str) -> list[str]:
    """The providers to try, in order: the given one, or for `auto` the installed ones, which may
    still fail to find a device."""
    if provider != "auto":
        check_provider_name(provider)
        return [provider]
    made_for = [p for p in bundle.manifest.providers if p in PROVIDERS]
    installed = [p for p in made_for if is_installed(p)]
    if not installed:
        reasons = "; ".join(f"{p}: {why_missing(p)}" for p in made_for)
        raise ProviderError(f"no provider of {bundle.manifest.name} runs here: {reasons}")
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
        tile: int | None = None,
        checks_memory: bool = False,
    ) -> None:
        """checks_memory: of each larger image than before, whether its work space fits."""
        self.bundle = bundle
        self.provider = options.provider
        self.skipped_providers: tuple[str, ...] = ()
        self._stages = Stages(bundle, options, max_memory, tile, check_hashes=check_hashes)
        self._tile = tile
        self._memory_notes: tuple[str, ...] = ()
        manifest = bundle.manifest
        self._checks_memory = checks_memory
        self._limited = max_memory is not None
        self._most_pixels = 0
        # A provider that compiles does so when the size is known.
        now = [] if PROVIDERS[options.provider].static_shapes else _at_once(manifest)
        if max_memory is not None:
            # The text encoder comes first in every call, and shows a provider that fails.
            now = [stage for stage in now if stage == manifest.text_encoders[0].name]
        # Those of stages, and of tokenizers, are hashed when they are loaded.
        loaded = {file for stage in now for file in manifest.graphs[stage].files}
        loaded |= {tokenizer.file for tokenizer in manifest.tokenizers.values()}
        rest = [file for file in manifest.files if file not in loaded] if check_hashes else []
        with checked_beside(bundle, rest):
            self._text = TextConditioner(bundle, check_hashes=check_hashes)
            missing = why_missing(options.provider)
            if missing is not None:
                raise ProviderError(f"provider {options.provider!r}: {missing}")
            for stage in now:
                self._stages.session(stage, {})

    @property
    def name(self) -> str:
        """The model's name in bundle.json."""
        return self.bundle.manifest.name

    @property
    def loaded_stages(self) -> tuple[str, ...]:
        """The stages in memory, least recently used first. All are loaded at once, unless
        max_memory is set or the provider compiles for each size. Control networks, and both UNets
        of a bundle that has them, are loaded by the first call that runs them."""
        return self._stages.loaded

    @property
    def load_notes(self) -> tuple[str, ...]:
        """Notes on the stages in memory: whether a compiled model came from the cache ("hit") or
        was compiled now ("miss"), and requests that could not be met."""
        return (*self._memory_notes, *self._stages.notes())

    @property
    def stages(self) -> Stages:
        """The sessions, for measurements."""
        return self._stages

    @property
    def defaults(self) -> Defaults:
        """The values that `generate` uses for options that are not given."""
        return self.bundle.manifest.defaults

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Pipeline holds a loaded model and cannot be pickled or copied: hand on the bundle's"
            f" path, {str(self.bundle.root)!r}, and call edgediff.load there"
        )

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

    def resolve(self, prompt: str, **options: Unpack[Options]) -> Request:
        """Check a call's options and fill in the bundle's defaults, without running anything.

        options: see `edgediff.Options`; missing ones and None take the bundle's defaults.
        Raises InputError, and TypeError for an unknown option."""
        return resolve(self.bundle, prompt, options)

    def run(
        self,
        request: Request,
        *,
        deadline: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        wrap: Callable[[RunStage], RunStage] | None = None,
    ) -> Run:
        """A run of a resolved call: iterate over it for the steps, or call `result` for the images.

        deadline: seconds from now after which the run stops with DeadlineExceeded, even within a
            step. None = no limit.
        on_progress: called in the iterating thread when a phase begins and after each step; an
            exception that it raises stops the run and reaches the caller.
        wrap: replaces the function that runs a stage, for this run; for measurements.

        Raises InputError if the request was resolved for another bundle."""
        return self._run(request, CancelToken(deadline), on_progress, wrap)

    def generate(
        self,
        prompt: str,
        *,
        on_step: Callable[[Step], None] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        deadline: float | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Generate one image for each seed.

        options: see `edgediff.Options`; missing ones and None take the bundle's defaults.
        on_step: called after each step; an exception that it raises stops the run and reaches the
            caller.
        on_progress, deadline: as in `run`.

        Raises InputError, ProviderError, DeadlineExceeded, and TypeError for an unknown option."""
        started, token = time.perf_counter(), CancelToken(deadline)
        request = resolve(self.bundle, prompt, options)
        return self._run(request, token, on_progress, started=started).result(on_step)

    def stream(
        self,
        prompt: str,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        deadline: float | None = None,
        **options: Unpack[Options],
    ) -> Run:
        """A run that yields each denoising step; it can be abandoned at any step, or cancelled.

        `Run.result` decodes the latents of the last step to images; `decode` decodes the latents or
        x0 of any step. The options, as in `generate`, are checked now; nothing is computed before
        the first step is requested."""
        token = CancelToken(deadline)
        return self._run(resolve(self.bundle, prompt, options), token, on_progress)

    def decode(self, latents: NDArray[np.float32]) -> list[Image.Image]:
        """latents (n, c, h/8, w/8) float32 → n RGB images. Raises ProviderError if the provider
        returns values that are not finite."""
        manifest = self.bundle.manifest
        return Vae(manifest, self.run_stage, self.provider, tile=self._tile).decode(latents)

    def decoder_input(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The denoiser's latents → the decoder's input, with the same shape and dtype."""
        return decoder_input(self.bundle.manifest.latent, latents)

    def run_stage(self, stage: str, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one graph of the bundle: inputs by name → outputs by name.

        Raises InputError for a wrong name, dtype or shape, ProviderError if the run fails."""
        return self._stages.runner()(stage, inputs)

    def _run(
        self,
        request: Request,
        token: CancelToken,
        on_progress: Callable[[Progress], None] | None,
        wrap: Callable[[RunStage], RunStage] | None = None,
        started: float | None = None,
    ) -> Run:
        if not isinstance(request, Request):
            raise InputError(
                f"the request is {type(request).__name__}: expected a Request, as"
                " `Pipeline.resolve` returns it"
            )
        if request.settings.bundle != self.bundle.id:
            raise InputError(
                f"the request was resolved for {request.settings.model}"
                f" ({request.settings.bundle[:12]}), but this pipeline runs {self.name}"
                f" ({self.bundle.id[:12]}): resolve it again with this pipeline"
            )
        if self._checks_memory:
            self._check_memory(request.settings)
        run_stage = self._stages.runner(token)
        return Run(
            request,
            self.bundle.manifest,
            run_stage if wrap is None else wrap(run_stage),
            self._text,
            provider=self.provider,
            tile=self._tile,
            token=token,
            on_progress=on_progress,
            started=started,
        )

    def _check_memory(self, settings: Settings) -> None:
        """Raise ProviderError if a larger image than before would not fit. Work space of an image
        that was drawn is kept, and serves the next one."""
        factor = settings.hires or 1
        size = (int(settings.width * factor), int(settings.height * factor))
        pixels = size[0] * size[1]
        if pixels <= self._most_pixels:
            return
        left = left_memory()
        if left is not None:
            check_fits(
                self.bundle.manifest,
                size,
                self._tile,
                left,
                loaded=self.loaded_stages,
                limited=self._limited,
            )
        self._most_pixels = pixels


def _at_once(manifest: Manifest) -> list[str]:
    """The stages that every call runs. The encoder is not among them: only calls with an image need
    it. In a bundle with control networks, nor is the UNet: each call runs one of two."""
    roles: tuple[Role, ...] = ("text_encoder", "decoder")
    if not manifest.controlnets:
        roles += ("denoiser",)
    return [name for name, graph in manifest.graphs.items() if graph.role in roles]
