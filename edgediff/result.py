"""The result of a call: images, settings and timings, and the files to save them to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from edgediff._version import __version__
from edgediff.images.contact_sheet import contact_sheet
from edgediff.images.png import check_metadata, check_output, encode, save_image
from edgediff.request.a1111 import parameters
from edgediff.request.settings import Settings
from edgediff.text.tokenizer import PromptReport

Phase = Literal["text_encoder", "encoder", "denoiser", "upscale", "decoder"]
"""A part of a run: the role of its network, or "upscale", which enlarges the result of the first
pass for the second."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run: `phase` begins, or step `step` of `steps` is done.

    step: number of finished denoising steps. steps: number of steps of all passes.
    seconds_left: estimate for the remaining steps from the finished ones; None before the first."""

    phase: Phase
    step: int
    steps: int
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Wall-clock seconds of a run.

    stages: phase (see `Phase`) → its duration; phases that did not run are missing.
    steps: each denoising step, over all passes.
    total: from the call to the last image."""

    stages: Mapping[Phase, float]
    steps: tuple[float, ...]
    total: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The images of one call, one for each seed, with their settings and timings.

    notes: one sentence for each unexpected change to an input image and for a rounded size."""

    images: list[Image.Image]
    seeds: list[int]
    timings: Timings
    prompt: PromptReport
    settings: Settings
    notes: tuple[str, ...] = ()

    def save(self, path: str | PathLike[str]) -> list[Path]:
        """Write images that contain their settings: PNG, JPEG or WebP, by the ending of the path.
        Several images go to NAME-SEED.png. Returns the paths.

        Raises InputError if a path cannot be written; all are checked before the first is."""
        paths = output_paths(Path(path), self.seeds)
        check_outputs(paths, self.seeds, self.settings)
        for image, seed, p in zip(self.images, self.seeds, paths, strict=True):
            made = _record(self.settings, seed)
            save_image(image, p, parameters=parameters(made), record=made)
        return paths

    def grid(self, columns: int | None = None) -> Image.Image:
        """A sheet of all images, labelled with their seeds, under the prompt; RGB.

        columns: None = about square. Raises InputError for fewer than 1."""
        labels = [f"seed {seed}" for seed in self.seeds]
        return contact_sheet(self.images, labels, title=self.settings.prompt, columns=columns)

    def save_grid(self, path: str | PathLike[str], columns: int | None = None) -> Path:
        """Write `grid` to an image that contains the settings and all seeds. Returns the path.

        Raises InputError if it cannot be written."""
        path = Path(path)
        check_grid(path, self.seeds, self.settings)
        record = _record_of_grid(self.settings, self.seeds)
        save_image(self.grid(columns), path, parameters=None, record=record)
        return path

    def png(self, *, grid: bool = False) -> bytes:
        """The first image, or `grid`, as the bytes of a PNG that carries its settings."""
        if grid:
            record = _record_of_grid(self.settings, self.seeds)
            return encode(self.grid(), parameters=None, record=record)
        made = _record(self.settings, self.seeds[0])
        return encode(self.images[0], parameters=parameters(made), record=made)


def check_outputs(paths: Sequence[Path], seeds: Sequence[int], settings: Settings) -> None:
    """Raise InputError, before any work is done, if an image, one for each seed, cannot be written
    to its path with these settings."""
    for path, seed in zip(paths, seeds, strict=True):
        check_output(path)
        made = _record(settings, seed)
        check_metadata(path, parameters(made), made)


def check_grid(path: Path, seeds: Sequence[int], settings: Settings) -> None:
    """The same for a contact sheet."""
    check_output(path)
    check_metadata(path, None, _record_of_grid(settings, seeds))


def output_paths(path: Path, seeds: Sequence[int]) -> list[Path]:
    """The paths of the images of `seeds`: `path`, or NAME-SEED.png for each of several.

    The second image of a repeated seed goes to NAME-SEED-2.png, and so on."""
    if len(seeds) == 1:
        return [path]
    paths: list[Path] = []
    seen: Counter[int] = Counter()
    for seed in seeds:
        seen[seed] += 1
        name = f"{path.stem}-{seed}" + (f"-{seen[seed]}" if seen[seed] > 1 else "")
        paths.append(path.with_name(name + path.suffix))
    return paths


def _record(settings: Settings, seed: int) -> dict[str, Any]:
    return {"edgediff": __version__, "seed": seed, **asdict(settings)}


def _record_of_grid(settings: Settings, seeds: Sequence[int]) -> dict[str, Any]:
    return {"edgediff": __version__, "seeds": list(seeds), **asdict(settings)}
