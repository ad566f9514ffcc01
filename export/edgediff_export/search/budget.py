"""Mixed precision under a budget of image quality and size.

How much int8 costs is measured layer by layer, on the final latents of short runs over calibration
prompts. The layers that cost most for the work that they save are taken out of int8, twice as many
each time, until the images are near enough to float's; the result is then measured again, on
prompts and seeds that the search has not seen."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgediff.errors import ExportError
from edgediff_export.targets.cpu.dense import BLOCK, Format, Layer
from edgediff_export.targets.cpu.prepare import quantizable

Formats = dict[str, dict[str, Format]]
"""Stage → weight → format."""
_BYTES: Mapping[Format, float] = {
    "int4": 0.5 + 4 / BLOCK,
    "int8": 1.0,
    "int8-weights": 1.0,
    "fp16": 2.0,
    "fp32": 4.0,
}
LADDER: tuple[Format, ...] = ("int8-weights", "fp16")
"""The formats that layers are raised to, rung by rung."""
_ROUNDS = 6
"""The first try raises 1 in 2^(rounds - 1) of the layers, the last one all."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """min_psnr: dB of the median image against the float model's. max_size: bytes of all graphs
    and weights. None sets no limit."""

    min_psnr: float | None = None
    max_size: int | None = None

    @property
    def asked(self) -> bool:
        """Whether there is any."""
        return self.min_psnr is not None or self.max_size is not None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Images of a quantized model against the float model's: PSNR in dB."""

    median: float
    lowest: float

    @classmethod
    def of(cls, psnrs: Sequence[float | None]) -> "Measured":
        """From each image's PSNR, None if the two are equal."""
        values = [math.inf if p is None else p for p in psnrs]
        return cls(median=statistics.median(values), lowest=min(values))


@dataclass(frozen=True, kw_only=True)
class Found:
    """The formats that keep a budget, measured on calibration images and on unseen ones."""

    formats: Formats
    calibration: Measured
    unseen: Measured


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for the formats of all layers.

    layers: of each stage. cost: "stage/weight" → mean square error that the layer's int8
    activations add to the final latents, for each multiplication that they speed up.
    measure: (formats, unseen) → the images in these formats, measured. size_of: their bytes.
    report: called with what was reached."""

    layers: Mapping[str, Sequence[Layer]]
    cost: Mapping[str, float]
    budget: Budget
    measure: Callable[[Formats, bool], Measured]
    size_of: Callable[[Formats], int]
    report: Callable[[str], None]

    def run(self, start: Formats) -> Found:
        """The formats that keep the budget, from plain int8 on.

        Raises ExportError if none do; it says how near they came."""
        formats = self.fit_size(start)
        target = self.budget.min_psnr
        calibration = self.measure(formats, False)
        unseen: Measured | None = None  # of these formats
        reached = -math.inf
        self.report(f"int8: {calibration.median:.1f} dB on calibration images")
        for rung in LADDER:
            order = self._order(formats, rung)
            share = 0.0
            while target is not None and order and share < 1.0:
                if calibration.median >= target:
                    unseen = unseen or self.measure(formats, True)
                    if unseen.median >= target:
                        return Found(formats=formats, calibration=calibration, unseen=unseen)
                    reached = max(reached, unseen.median)
                share = min(1.0, share * 2 if share else 1 / 2 ** (_ROUNDS - 1))
                raised = _raised(formats, order[: math.ceil(share * len(order))], rung)
                if not self._fits(raised):
                    break
                formats, unseen = raised, None
                calibration = self.measure(formats, False)
                kept = sum(f != "int8" for its in formats.values() for f in its.values())
                self.report(f"{kept} layers kept out of int8: {calibration.median:.1f} dB")
        unseen = unseen or self.measure(formats, True)
        last = min(unseen.median, calibration.median)
        if target is None or last >= target:
            return Found(formats=formats, calibration=calibration, unseen=unseen)
        raise ExportError(self._refusal(max(reached, last)))

    def fit_size(self, start: Formats) -> Formats:
        """The formats with blocks of int4 for linear layers, the least sensitive first, until the
        size fits. Raises ExportError if it never does."""
        formats = {stage: dict(its) for stage, its in start.items()}
        able = [
            (stage, layer.name)
            for stage, layers in self.layers.items()
            for layer in layers
            if quantizable(layer) and layer.takes_int4
        ]
        for stage, name in sorted(able, key=lambda key: self.cost.get("/".join(key), 0.0)):
            if self._fits(formats):
                return formats
            formats[stage][name] = "int4"
        if self.budget.max_size is not None and not self._fits(formats):
            smallest = math.ceil(self.size_of(formats) / 1e5) / 10
            raise ExportError(
                f"--max-size {self.budget.max_size / 1e6:g}: the smallest that int8 and int4 reach"
                f" is {smallest:g} MB: allow that, or give a smaller model; nothing was written"
            )
        return formats

    def _order(self, formats: Formats, rung: Format) -> list[tuple[str, str]]:
        """(stage, weight) of the layers that a rung of the ladder would raise, dearest first."""
        lower = ("int8",) if rung == "int8-weights" else ("int8", "int8-weights", "int4")
        able = [
            (stage, layer.name)
            for stage, layers in self.layers.items()
            for layer in layers
            if quantizable(layer) and formats[stage].get(layer.name) in lower
        ]
        return sorted(able, key=lambda key: -self.cost.get("/".join(key), 0.0))

    def _fits(self, formats: Formats) -> bool:
        largest = self.budget.max_size
        return largest is None or self.size_of(formats) <= largest

    def _refusal(self, reached: float) -> str:
        within, larger = "", ""
        if self.budget.max_size is not None:
            within = f" within {self.budget.max_size / 1e6:g} MB"
            larger = ", allow more with --max-size"
        return (
            f"--min-psnr {self.budget.min_psnr:g}: the best that int8 reached{within} is"
            f" {reached:.1f} dB: ask for less{larger}, or export with --precision fp32;"
            " nothing was written"
        )


def _raised(formats: Formats, keys: Sequence[tuple[str, str]], to: Format) -> Formats:
    raised = {stage: dict(its) for stage, its in formats.items()}
    for stage, name in keys:
        raised[stage][name] = to
    return raised


def stored_bytes(layer: Layer, form: Format) -> int:
    """Bytes of a layer's weight and its scales in a format."""
    weights = layer.weight.size * _BYTES[form]
    scales = 4 * layer.channels[1] if form.startswith("int8") else 0
    return int(np.ceil(weights)) + scales
