"""Compare two results, or explain why they are not comparable."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgediff.bench.intervals import Interval, paired_ratio, unpaired_ratio
from edgediff.bench.results import Config, Result, Run, TimedImage
from edgediff.errors import InputError

BUSY = 0.1
"""Share of the cores' time. If other processes used more, absolute times are unreliable."""

# Properties that must be equal for times to be comparable, by their names in messages.
_ALIKE: dict[str, Callable[[Config], object]] = {
    "model": lambda c: c.model.name,
    "size": lambda c: f"{c.width}x{c.height}",
    "steps": lambda c: c.steps,
    "sampler": lambda c: c.sampler,
    "guidance scale": lambda c: c.guidance_scale,
    "batch": lambda c: c.batch,
}
# Properties that may differ, since they are the object of a comparison. Among several comparable
# runs, those with equal values are paired.
_COMPARED: dict[str, Callable[[Config], object]] = {
    "provider": lambda c: c.provider,
    "threads": lambda c: c.threads,
    "bundle": lambda c: c.model.id,
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run of A and a run of B. Ratios are B's time over A's: below 1, B is faster.

    ratios: of the whole image and of each stage. cold: of the time from process start to the first
    image; None if either run lacks it."""

    a: Run
    b: Run
    ratios: dict[str, Interval]
    cold: Interval | None

    @property
    def within_noise(self) -> bool:
        """Whether the ratio's interval contains 1, so that the difference is not significant."""
        return self.ratios["image"].holds_one


def stages(images: Sequence[TimedImage]) -> dict[str, list[float]]:
    """Seconds of the whole image and of each stage; "step" is an image's mean step."""
    return {
        "image": [p.total for p in images],
        "text_encoder": [p.text_encoder for p in images],
        "step": [sum(p.steps) / len(p.steps) for p in images if p.steps],
        "decoder": [p.decoder for p in images],
    }


def against(a: Run, b: Run, *, interleaved: bool) -> Comparison:
    """Compare two measured runs. interleaved: they took turns, in one result."""
    ratio = _paired if interleaved else unpaired_ratio
    first, second = stages(a.warm), stages(b.warm)
    cold = [[c.first_image for c in run.cold] for run in (b, a)]
    return Comparison(
        a=a,
        b=b,
        ratios={
            name: ratio(second[name], first[name])
            for name in first
            if first[name] and second[name] and min(first[name]) > 0
        },
        cold=ratio(*cold) if all(cold) else None,
    )


def _paired(a: Sequence[float], b: Sequence[float]) -> Interval:
    rounds = min(len(a), len(b))  # one may have failed before the other
    return paired_ratio(a[:rounds], b[:rounds])


def first_comparable(run: Run, runs: Sequence[Run]) -> Run | None:
    """The first measured run in `runs` that generated the same images with the same model, or
    another export of it; None if that is `run` itself."""
    first = next(other for other in runs if other.warm and _key(other, _ALIKE) == _key(run, _ALIKE))
    return None if first is run else first


def compare(a: Result, b: Result, *, exports: bool = False) -> list[Comparison]:
    """Pair up the runs of two results. exports: bundles may differ, as two exports of one model.

    Raises InputError, which names the differences, if no two runs are comparable."""
    measured = [[run for run in result.runs if run.warm] for result in (a, b)]
    for letter, runs in zip("AB", measured, strict=True):
        if not runs:
            raise InputError(f"{letter} holds no measured run: let `edgediff bench` finish first")
    must = dict(_ALIKE) if exports else {**_ALIKE, "bundle": _COMPARED["bundle"]}
    pairs = []
    left = list(measured[1])
    for run in measured[0]:
        alike = [other for other in left if _key(run, must) == _key(other, must)]
        exact = [other for other in alike if _key(run, _COMPARED) == _key(other, _COMPARED)]
        several = sum(_key(other, must) == _key(run, must) for other in measured[0]) > 1
        # If one file has several comparable runs, only runs with equal properties are paired.
        chosen = exact or ([] if several or len(alike) > 1 else alike)
        if chosen:
            left.remove(chosen[0])
            pairs.append(against(run, chosen[0], interleaved=False))
    if not pairs:
        raise InputError(_why_not(measured[0][0], measured[1], must))
    return pairs


def _key(run: Run, parts: dict[str, Callable[[Config], object]]) -> tuple[object, ...]:
    return tuple(part(run.config) for part in parts.values())


def _why_not(a: Run, others: Sequence[Run], must: dict[str, Callable[[Config], object]]) -> str:
    """The reason why a run is not comparable with the most similar one."""
    differences = min(
        ([n for n, part in must.items() if part(a.config) != part(b.config)], k)
        for k, b in enumerate(others)
    )
    names, k = differences
    b = others[k]
    if names:
        found = ", ".join(
            f"{name} {_short(must[name](a.config))} against {_short(must[name](b.config))}"
            for name in names
        )
        remedy = (
            "if they are two exports of one model, add --exports"
            if names == ["bundle"]
            else "measure both with the same settings"
        )
        return f"not comparable: {found}: {remedy}"
    found = ", ".join(
        f"{name} {_short(part(a.config))} against {_short(part(b.config))}"
        for name, part in _COMPARED.items()
        if part(a.config) != part(b.config)
    )
    return (
        "several runs are comparable, but no run of A has the provider and threads of a run of B"
        f" ({found}): measure one configuration each"
    )


def _short(value: object) -> str:
    text = "default" if value is None else str(value)
    return text[:12] + "…" if len(text) > 40 else text


def differences(a: Result, b: Result) -> list[str]:
    """Other differences between two results, one line each: machine, versions, conditions."""
    found = []
    for name in (f.name for f in dataclasses.fields(a.machine)):
        x, y = getattr(a.machine, name), getattr(b.machine, name)
        if x != y:
            found.append(f"{name.replace('_', ' ')}: {_listed(x)} / {_listed(y)}")
    for name in sorted(a.versions.keys() | b.versions.keys()):
        x, y = a.versions.get(name), b.versions.get(name)
        if x != y:
            found.append(f"{name}: {x or 'absent'} / {y or 'absent'}")
    busy, throttled = (
        [None if r.conditions is None else getattr(r.conditions, name) for r in (a, b)]
        for name in ("others", "throttled")
    )
    if any(share is not None and share > BUSY for share in busy):
        shares = ("unknown" if share is None else f"{share:.0%}" for share in busy)
        found.append(f"CPU time of other processes: {' / '.join(shares)}")
    if any(throttled):
        counts = ("unknown" if events is None else str(events) for events in throttled)
        found.append(f"throttling events: {' / '.join(counts)}")
    return found


def _listed(value: object) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
