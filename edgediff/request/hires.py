"""The second pass: it enlarges the image of the first and denoises it again at that size."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args

from edgediff.bundle.manifest import Manifest
from edgediff.checks import MAX_SIDE, check_number, check_whole
from edgediff.errors import InputError
from edgediff.networks.autoencoder import require_encoder

Mode = Literal["latent", "pixel"]

DEFAULT_STRENGTH = 0.25
"""Low enough to keep the first pass's composition; with the built-in model, 0.5 loses it."""
FEWEST_STEPS = 4
"""The default's minimum: with fewer, DEFAULT_STRENGTH would leave no step."""


class HiresSettings(TypedDict, total=False):
    """The settings of the second pass; empty if there is none."""

    hires: float
    hires_strength: float
    hires_steps: int
    hires_mode: Mode


def resolve_hires(
    manifest: Manifest, options: Mapping[str, Any], size: tuple[int, int], steps: int
) -> HiresSettings:
    """The settings of the second pass, with defaults filled in.

    size: (width, height) of the first pass, in pixels. steps: of the first pass.

    Raises InputError for values out of range, and for a pass that the bundle cannot run."""
    factor, mode = options.get("hires"), options.get("hires_mode")
    if factor is None:
        for name in ("hires_strength", "hires_steps", "hires_mode"):
            if options.get(name) is not None:
                raise InputError(f"`{name}` is {options[name]!r}, but `hires` is unset: give both")
        return {}
    if options.get("mask") is not None:
        raise InputError(
            "`hires` with `mask` would paint over the kept parts: enlarge the image in a second"
            " call"
        )
    strength, own_steps = options.get("hires_strength"), options.get("hires_steps")
    _check_factor(check_number("hires", factor), size, manifest.latent.downscale)
    if mode not in (*get_args(Mode), None):
        raise InputError(f"`hires_mode` is {mode!r}: choose one of {', '.join(get_args(Mode))}")
    if mode == "pixel":
        require_encoder(manifest, "hires_mode")
    return {
        "hires": float(factor),
        "hires_strength": (
            DEFAULT_STRENGTH if strength is None else check_number("hires_strength", strength)
        ),
        "hires_steps": (
            max(steps, FEWEST_STEPS) if own_steps is None else check_whole("hires_steps", own_steps)
        ),
        "hires_mode": mode or ("pixel" if manifest.encoder is not None else "latent"),
    }


def _check_factor(factor: float, size: tuple[int, int], multiple: int) -> None:
    if not 1 < factor < math.inf:  # nan too
        raise InputError(f"`hires` is {factor:g}: expected a factor above 1, such as 2")
    if factor * max(size) > MAX_SIDE:
        raise InputError(
            f"`hires` is {factor:g}: {size[0]}x{size[1]} would become larger than {MAX_SIDE}"
            " pixels a side: give less"
        )
    if larger(size, factor, multiple) == size:
        raise InputError(
            f"`hires` is {factor:g}: {size[0]}x{size[1]} stays as it is in steps of {multiple}"
            " pixels: give more"
        )


def larger(size: tuple[int, int], factor: float, multiple: int) -> tuple[int, int]:
    """(width, height) in pixels times `factor`, each rounded to the nearest multiple of `multiple`,
    halves up."""
    width, height = (math.floor(side * factor / multiple + 0.5) * multiple for side in size)
    return width, height


def rounding(size: tuple[int, int], factor: float | None, multiple: int) -> tuple[str, ...]:
    """A note if `larger` rounds. factor: None = no second pass."""
    if factor is None:
        return ()
    made = larger(size, factor, multiple)
    if all(abs(side * factor - got) < 0.5 for side, got in zip(size, made, strict=True)):
        return ()
    before, after = ("{}x{}".format(*s) for s in (size, made))
    return (f"{before} times {factor:g} became {after}, the nearest in steps of {multiple} pixels",)
