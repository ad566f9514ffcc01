"""The result of a call: images, settings and timings, and the files to save them to."""

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
        """Write PNGs that contain their settings. Several images go to NAME-SEED.png. Returns the
        paths.

        Raises InputError if a path cannot be written."""
        paths = output_paths(Path(path), self.seeds)
        for p in paths:
            check_output(p)
        for image, seed, p in zip(self.images, self.seeds, paths, strict=True):
            record = {"edgediff": __version__, "seed": seed, **asdict(self.settings)}
            save_png(image, p, parameters=parameters(record), record=record)
        return paths

    def grid(self, columns: int | None = None) -> Image.Image:
        """A sheet of all images, labelled with their seeds, under the prompt; RGB.

        columns: None = about square. Raises InputError for fewer than 1."""
        labels = [f"seed {seed}" for seed in self.seeds]
        return contact_sheet(self.images, labels, title=self.settings.prompt, columns=columns)

    def save_grid(self, path: str | PathLike[str], columns: int | None = None) -> Path:
        """Write `grid` to a PNG that contains the settings and all seeds. Returns the path.

        Raises InputError if it cannot be written."""
        path = Path(path)
        check_output(path)
        record = {"edgediff": __version__, "seeds": self.seeds, **asdict(self.settings)}
        save_png(self.grid(columns), path, parameters=None, record=record)
        return path


def output_paths(path: Path, seeds: Sequence[int]) -> list[Path]:
    """The paths of the images of `seeds`: `path`, or NAME-SEED.png for each of several.

    The second image of a repeated seed goes to NAME-SEED-2.png, and so on."""
    if len(seeds) == 1:
        return [path]
    paths: list[Path] = []
    for k, seed in enumerate(seeds):
        before = list(seeds[:k]).count(seed)
        name = f"{path.stem}-{seed}-{before + 1}" if before else f"{path.stem}-{seed}"
        paths.append(path.with_name(name + path.suffix))
    return paths
