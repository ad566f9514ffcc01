"""The result of a run: one row per peer, and edgediff's best against the best of the others."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.measure import Check
from benchmarks.peers.catalogue import LEAN, OURS, PEERS
from benchmarks.peers.results import Cold, Measured, Result, Warm
from edgediff.bench.intervals import Interval, paired_ratio, unpaired_ratio

HEADER = (
    *("peer", "images", "cold", "warm", "warm ratio", "text encoder", "UNet step", "VAE decode"),
    *("peak memory", "model", "installed", "PSNR"),
)
NONE = "–"
_Image = TypeVar("_Image", Cold, Warm)

WARM_BAR = 0.85
COLD_BAR = 0.5
PEAK_BAR = 0.75
"""edgediff's targets, at most, as a share of the best peer's value."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Medians of a peer, in seconds and bytes. None: the peer does not report it."""

    cold: float
    warm: float
    text_encoder: float | None
    step: float | None
    decoder: float | None
    peak: int | None
    model: int | None
    installed: int | None


def figures(peer: Measured) -> Figures:
    """The figures of a measured peer."""
    return Figures(
        cold=statistics.median(c.first_image for c in peer.cold),
        warm=statistics.median(w.total for w in peer.warm),
        text_encoder=_median(w.text_encoder for w in peer.warm),
        step=_median(s for w in peer.warm for s in w.steps),
        decoder=_median(w.decoder for w in peer.warm),
        peak=peer.peak_bytes,
        model=peer.model_bytes,
        installed=peer.installed_bytes,
    )


def _median(values: Iterable[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return statistics.median(there) if there else None


def measured(result: Result) -> list[Measured]:
    return [p for p in result.peers if p.status == "measured"]


def others(result: Result) -> list[Measured]:
    return [p for p in measured(result) if not p.name.startswith(OURS)]


def ours(result: Result) -> list[Measured]:
    return [p for p in measured(result) if p.name.startswith(OURS)]


def fastest(peers: Sequence[Measured]) -> Measured:
    """The peer with the smallest median of warm images."""
    return min(peers, key=lambda p: figures(p).warm)


def fastest_variants(result: Result) -> list[Measured]:
    """The fastest measured variant of each engine, in the order of the result."""
    engines: dict[str, list[Measured]] = {}
    for peer in measured(result):
        engines.setdefault(_engine(peer.name), []).append(peer)
    chosen = [fastest(variants) for variants in engines.values()]
    return [peer for peer in measured(result) if peer in chosen]


def _engine(name: str) -> str:
    """The software that a peer runs: variants differ in precision only."""
    if name.startswith(OURS):
        return OURS
    return PEERS[name].environment if name in PEERS else name


def warm_ratio(a: Measured, b: Measured) -> Interval:
    """a / b, round by round."""
    return _in_turns(a.warm, b.warm, lambda w: w.total)


def cold_ratio(a: Measured, b: Measured) -> Interval:
    """a / b, round by round."""
    return _in_turns(a.cold, b.cold, lambda c: c.first_image)


def _in_turns(
    a: Sequence[_Image], b: Sequence[_Image], seconds: Callable[[_Image], float]
) -> Interval:
    """a / b over the rounds in which both ran; over all images if there is no such round."""
    pairs = [
        pair
        for n in sorted({x.round for x in a} & {y.round for y in b})
        for pair in zip(
            (seconds(x) for x in a if x.round == n),
            (seconds(y) for y in b if y.round == n),
            strict=True,
        )
    ]
    if not pairs:
        return unpaired_ratio([seconds(x) for x in a], [seconds(y) for y in b])
    return paired_ratio(*zip(*pairs, strict=True))


def rows(result: Result) -> list[tuple[str, ...]]:
    """HEADER's columns for each measured peer. The ratio is to the fastest peer but edgediff,
    or to the fastest of all if there is no other."""
    against = fastest(others(result) or measured(result)) if measured(result) else None
    return [_row(p, against) for p in measured(result) if against is not None]


def _row(peer: Measured, against: Measured) -> tuple[str, ...]:
    found = figures(peer)
    ratio = "1" if peer is against else f"{warm_ratio(peer, against).median:.2f}"
    return (
        peer.name,
        str(len(peer.cold) + len(peer.warm)),
        seconds(found.cold),
        seconds(found.warm),
        ratio,
        seconds(found.text_encoder),
        seconds(found.step),
        seconds(found.decoder),
        size(found.peak),
        size(found.model),
        size(found.installed),
        "equal" if peer.equal else NONE if peer.psnr_db is None else f"{peer.psnr_db:.1f} dB",
    )


def left_out(result: Result) -> list[str]:
    """NAME: the reason."""
    return [f"{p.name}: {p.reason}" for p in result.peers if p.status == "left out"]


def checks(result: Result) -> list[Check]:
    """edgediff's fastest variant against the fastest peer, warm and cold; against the lowest peak
    memory; and against the smallest installation, not counting LEAN's."""
    if not ours(result) or not others(result):
        return []
    best = fastest(ours(result))
    peer = fastest(others(result))
    cold = min(others(result), key=lambda p: figures(p).cold)
    found = [
        _ratio(f"warm image, {best.name} / {peer.name}", warm_ratio(best, peer), WARM_BAR),
        _ratio(f"cold image, {best.name} / {cold.name}", cold_ratio(best, cold), COLD_BAR),
    ]
    found += _least(best, others(result), "peak memory", PEAK_BAR, lambda p: p.peak_bytes)
    larger = [p for p in others(result) if not p.name.startswith(LEAN)]
    found += _least(best, larger, "installed size", 1.0, lambda p: p.installed_bytes)
    return found


def _ratio(what: str, found: Interval, bar: float) -> Check:
    bounds = (
        f" ({found.low:.2f} to {found.high:.2f} with {found.confidence:.0%} confidence,"
        f" {found.count} pairs)"
    )
    return Check(what=what + bounds * (found.count > 1), value=found.median, bar=bar)


def _least(
    best: Measured,
    peers: Sequence[Measured],
    what: str,
    bar: float,
    key: Callable[[Measured], int | None],
) -> list[Check]:
    """`best` against the peer with the smallest `key`."""
    known = [(value, p.name) for p in peers if (value := key(p)) is not None]
    value = key(best)
    if not known or value is None:
        return []
    least, name = min(known)
    return [Check(what=f"{what}, {best.name} / {name}", value=value / least, bar=bar)]


def seconds(value: float | None) -> str:
    """For a table: 12.3 s, 0.45 s, 67 ms."""
    if value is None:
        return NONE
    if value < 0.1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def size(value: int | None) -> str:
    """For a table: 1.23 GB, 456 MB."""
    if value is None:
        return NONE
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
