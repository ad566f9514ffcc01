"""What a call of `generate` asks for: defaults filled in, values checked."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from edgediff.bundle import Bundle
from edgediff.denoiser import needs_negative
from edgediff.errors import InputError
from edgediff.schedule import make_plan

MAX_SIDE = 4096
"""Pixels; beyond it a single float32 feature map of a decoder takes tens of gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a picture but its seed; each default has been filled in."""

    prompt: str
    negative_prompt: str | None
    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    model: str
    bundle: str
    provider: str


def resolve(
    bundle: Bundle,
    prompt: str,
    *,
    negative_prompt: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    size: int | tuple[int, int] | None = None,
    sampler: str | None = None,
    provider: str = "auto",
) -> Settings:
    """Fill in the bundle's defaults and check everything that needs no session; see `generate`.

    Raises InputError."""
    manifest = bundle.manifest
    defaults = manifest.defaults
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt or "")):
        if not isinstance(text, str):
            raise InputError(f"{name} is {type(text).__name__}, expected text (str)")
    if size is None:
        size = (defaults.width, defaults.height)
    width, height = _check_size(size, manifest.latent.downscale)
    guidance = defaults.guidance_scale if guidance_scale is None else guidance_scale
    if isinstance(guidance, bool) or not isinstance(guidance, int | float):
        raise InputError(f"guidance_scale is {guidance!r}: expected a number")
    needs_negative(guidance)  # refuses what is not finite
    settings = Settings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        steps=defaults.steps if steps is None else steps,
        guidance_scale=float(guidance),
        sampler=defaults.sampler if sampler is None else sampler,
        width=width,
        height=height,
        model=manifest.name,
        bundle=bundle.id,
        provider=provider,
    )
    make_plan(manifest.schedule, settings.sampler, settings.steps)
    return settings


def _check_size(size: int | tuple[int, int], multiple: int) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise InputError(f"size is {size!r}: expected (width, height) in pixels")
    width, height = sides
    for side in sides:
        if type(side) is int and side > MAX_SIDE:
            raise InputError(f"size {width}x{height}: at most {MAX_SIDE} pixels a side")
        if type(side) is not int:
            raise InputError(f"size is {size!r}: expected whole numbers of pixels")
        if side < 1 or side % multiple:
            raise InputError(
                f"size {width}x{height}: both sides must be multiples of {multiple} from"
                f" {multiple} up; {_nearest(width, multiple)}x{_nearest(height, multiple)} is near"
            )
    return width, height


def _nearest(side: int, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)


def resolve_seeds(seed: int | Iterable[int] | None) -> list[int]:
    """One seed for each picture; None draws one. Raises InputError for an empty list."""
    if seed is None:
        return [secrets.randbelow(2**32)]
    seeds = list(seed) if isinstance(seed, Iterable) else [seed]
    if not seeds:
        raise InputError("seed is an empty list: give one seed for each picture")
    return seeds
