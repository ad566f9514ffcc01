"""Mixed precision under a budget of picture quality and size.

How much int8 costs is measured layer by layer, on the final latents of short runs over calibration
prompts. The layers that cost most for the work that they save are taken out of int8, twice as many
each time, until the pictures of the whole plan are near enough to float's; the plan is then
measured again, on prompts and seeds that the search has not seen."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgediff.errors import ExportError
from edgediff_export.targets.cpu.dense import BLOCK, Format, Layer
from edgediff_export.targets.cpu.prepare import quantizable

Plan = dict[str, Format]
"""Weight → format, for one stage."""
_BYTES: Mapping[Format, float] = {
    "int4": 0.5 + 4 / BLOCK,
    "int8": 1.0,
    "int8-weights": 1.0,
    "fp16": 2.0,
    "fp32": 4.0,
}
LADDER: tuple[Format, ...] = ("int8-weights", "fp16")
"""What layers are raised to, rung by rung."""
_ROUNDS = 6
"""The first try raises 1 in 2^(rounds - 1) of the layers, the last one all."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """min_psnr: dB of the median picture against the float model's. max_size: bytes of all graphs
    and weights. None where it does not matter."""

    min_psnr: float | None = None
    max_size: int | None = None

    @property
    def asked(self) -> bool:
        """Whether there is any."""
        return self.min_psnr is not None or self.max_size is not None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Pictures of a plan against the float model's: PSNR in dB."""

    median: float
    lowest: float

    @classmethod
    def of(cls, psnrs: Sequence[float | None]) -> "Measured":
        """From each picture's PSNR, None where equal."""
        values = [math.inf if p is None else p for p in psnrs]
        return cls(median=statistics.median(values), lowest=min(values))


def search(
    found: Mapping[str, Sequence[Layer]],
    start: Mapping[str, Plan],
    cost: Mapping[str, float],
    budget: Budget,
    try_plan: Callable[[Mapping[str, Plan], bool], Measured],
    size_of: Callable[[Mapping[str, Plan]], int],
    report: Callable[[str], None],
) -> tuple[dict[str, Plan], Measured, Measured]:
    """The plan of every stage that keeps the budget, and what was measured of it: on calibration
    pictures, and on unseen ones.

    found: the layers of each stage. start: plain int8. cost: stage/weight → mean square error that
    the layer's int8 activations add to the final latents, for each multiplication that they speed
    up. try_plan: (plans, unseen) → measured on pictures. size_of: bytes of plans.

    Raises ExportError where no plan does, saying what was reached."""
    plans = {stage: dict(plan) for stage, plan in start.items()}
    plans = fit_size(found, plans, cost, budget, size_of)
    target = budget.min_psnr
    calibration = try_plan(plans, False)
    unseen: Measured | None = None  # of these plans
    reached = -math.inf
    report(f"int8: {calibration.median:.1f} dB on calibration pictures")
    for rung in LADDER:
        order = _order(found, plans, cost, rung)
        share = 0.0
        while target is not None and order and share < 1.0:
            if calibration.median >= target:
                unseen = unseen or try_plan(plans, True)
                if unseen.median >= target:
                    return plans, calibration, unseen
                reached = max(reached, unseen.median)
            share = min(1.0, share * 2 if share else 1 / 2 ** (_ROUNDS - 1))
            raised = _raised(plans, order[: math.ceil(share * len(order))], rung)
            if budget.max_size is not None and size_of(raised) > budget.max_size:
                break
            plans, unseen = raised, None
            calibration = try_plan(plans, False)
            kept = sum(f != "int8" for plan in plans.values() for f in plan.values())
            report(f"{kept} layers kept out of int8: {calibration.median:.1f} dB")
    unseen = unseen or try_plan(plans, True)
    last = min(unseen.median, calibration.median)
    if target is None or last >= target:
        return plans, calibration, unseen
    within, larger = "", ""
    if budget.max_size is not None:
        within = f" within {budget.max_size / 1e6:g} MB"
        larger = ", allow more with --max-size"
    raise ExportError(
        f"--min-psnr {target:g}: the best that int8 reached{within} is {max(reached, last):.1f} dB:"
        f" ask for less{larger}, or export with --precision fp32; nothing was written"
    )


def _order(
    found: Mapping[str, Sequence[Layer]],
    plans: Mapping[str, Plan],
    cost: Mapping[str, float],
    rung: Format,
) -> list[tuple[str, str]]:
    """(stage, weight) of the layers that a rung of the ladder would raise, dearest first."""
    lower = ("int8",) if rung == "int8-weights" else ("int8", "int8-weights", "int4")
    able = [
        (stage, layer.name)
        for stage, layers in found.items()
        for layer in layers
        if quantizable(layer) and plans[stage].get(layer.name) in lower
    ]
    return sorted(able, key=lambda key: -cost.get("/".join(key), 0.0))


def _raised(
    plans: Mapping[str, Plan], keys: Sequence[tuple[str, str]], to: Format
) -> dict[str, Plan]:
    raised = {stage: dict(plan) for stage, plan in plans.items()}
    for stage, name in keys:
        raised[stage][name] = to
    return raised


def fit_size(
    found: Mapping[str, Sequence[Layer]],
    plans: dict[str, Plan],
    cost: Mapping[str, float],
    budget: Budget,
    size_of: Callable[[Mapping[str, Plan]], int],
) -> dict[str, Plan]:
    """Blocks of int4 for linear layers, the least sensitive first, until the size fits."""
    if budget.max_size is None:
        return plans
    able = sorted(
        (
            (stage, layer)
            for stage, layers in found.items()
            for layer in layers
            if quantizable(layer) and layer.pointwise and layer.channels[0] % BLOCK == 0
        ),
        key=lambda key: cost.get(f"{key[0]}/{key[1].name}", 0.0),
    )
    for stage, layer in able:
        if size_of(plans) <= budget.max_size:
            return plans
        plans[stage][layer.name] = "int4"
    smallest = size_of(plans)
    if smallest > budget.max_size:
        raise ExportError(
            f"--max-size {budget.max_size / 1e6:g}: the smallest that int8 and int4 reach is"
            f" {math.ceil(smallest / 1e5) / 10:g} MB: allow that, or give a smaller model; nothing"
            " was written"
        )
    return plans


def stored_bytes(layer: Layer, form: Format) -> int:
    """Bytes of a layer's weight and its scales in a format."""
    weights = layer.weight.size * _BYTES[form]
    scales = 4 * layer.channels[1] if form.startswith("int8") else 0
    return int(np.ceil(weights)) + scales
