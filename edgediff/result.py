"""What a call gives back: images, how they came about, and the files that they become."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from PIL import Image

from edgediff._version import __version__
from edgediff.images.contact_sheet import contact_sheet
from edgediff.images.png import check_output, save_png
from edgediff.request.a1111 import parameters
from edgediff.request.settings import Settings
from edgediff.text.tokenizer import PromptReport

Phase = Literal["text_encoder", "encoder", "denoiser", "upscale", "decoder"]
"""A part of a run: the role of the network that works in it, or "upscale", which makes the first
pass's result larger between two passes."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is: `phase` begins, or step `step` of `steps` is done.

    step: finished denoising steps; steps: of all passes.
    seconds_left: for the steps that remain, at the pace of those done; None before the first."""

    phase: Phase
    step: int
    steps: int
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Wall-clock seconds of a run.

    stages: phase (see `Phase`) → how long it took; a phase that did not run is missing.
    steps: of each denoising step, over all passes.
    total: from the call to the last image."""

    stages: Mapping[Phase, float]
    steps: tuple[float, ...]
    total: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The images of one call, one for each seed, and how they came about.

    notes: what was done to an image that was given and one might not expect, and a size that was
        rounded, a sentence each."""

    images: list[Image.Image]
    seeds: list[int]
    timings: Timings
    prompt: PromptReport
    settings: Settings
    notes: tuple[str, ...] = ()

    def save(self, path: str | PathLike[str]) -> list[Path]:
        """Write PNGs that carry their settings. Several go to NAME-SEED.png. Returns the paths.

        Raises InputError where a path cannot be written."""
        paths = output_paths(Path(path), self.seeds)
        for p in paths:
            check_output(p)
        for image, seed, p in zip(self.images, self.seeds, paths, strict=True):
            record = {"edgediff": __version__, "seed": seed, **asdict(self.settings)}
            save_png(image, p, parameters=parameters(record), record=record)
        return paths

    def grid(self, columns: int | None = None) -> Image.Image:
        """One RGB image of all images, each with its seed, below the prompt.

        columns: None = about as wide as high. Raises InputError for fewer than 1."""
        labels = [f"seed {seed}" for seed in self.seeds]
        return contact_sheet(self.images, labels, title=self.settings.prompt, columns=columns)

    def save_grid(self, path: str | PathLike[str], columns: int | None = None) -> Path:
        """Write `grid` to a PNG that carries the settings and all seeds. Returns the path.

        Raises InputError where it cannot be written."""
        path = Path(path)
        check_output(path)
        record = {"edgediff": __version__, "seeds": self.seeds, **asdict(self.settings)}
        save_png(self.grid(columns), path, parameters=None, record=record)
        return path


def output_paths(path: Path, seeds: Sequence[int]) -> list[Path]:
    """Where the images of `seeds` go: `path`, or NAME-SEED.png each where there are several.

    A seed that comes again gets NAME-SEED-2.png, and so on."""
    if len(seeds) == 1:
        return [path]
    paths: list[Path] = []
    for k, seed in enumerate(seeds):
        before = list(seeds[:k]).count(seed)
        name = f"{path.stem}-{seed}-{before + 1}" if before else f"{path.stem}-{seed}"
        paths.append(path.with_name(name + path.suffix))
    return paths
