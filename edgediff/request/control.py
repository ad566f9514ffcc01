"""How a call uses a bundle's control networks (Zhang et al. 2023, arXiv:2302.05543): which ones,
with which image, how strongly, and on which steps."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgediff.bundle.manifest import Manifest
from edgediff.checks import is_number
from edgediff.errors import InputError
from edgediff.images.canny import edges, invert
from edgediff.images.source import OpenedImage, Source, open_image
from edgediff.request.init_image import ImageRecord, record

MAX_SCALE = 100.0
"""Larger than any use, and small enough for float32 latents not to overflow."""

Process = Literal["edges", "invert"]
PROCESSES: dict[Process, Callable[[Image.Image], Image.Image]] = {"edges": edges, "invert": invert}


@dataclass(frozen=True)
class Control:
    """An image for a control network to follow.

    image: a path, a pillow image or an array (h, w, 3) uint8: a map of the kind that the network
        was trained on, such as edges or depth. It is stretched to the size of the result.
    scale: the strength: the network's outputs are multiplied by it.
    start, end: the part of the steps, from 0 to 1, in which the network runs; with `hires`, of each
        pass.
    process: how to prepare the image, at the size of the result. "edges" finds edges, as
        `edgediff.edges` does; "invert" turns dark lines on white into light ones on black.

    `resolve` checks these values, and raises InputError."""

    image: Source
    _: KW_ONLY
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    process: Process | None = None

    def acts(self, step: int, steps: int) -> bool:
        """Whether the network runs at step `step` (from 0) of `steps`."""
        inside = step / steps >= self.start and (step + 1) / steps <= self.end
        return inside and self.scale != 0

    def pixels(self, width: int, height: int) -> NDArray[np.float32]:
        """The image as the network takes it: (1, 3, height, width) float32 in [0, 1]. Raises
        InputError if the image cannot be read."""
        pixels = open_image(self.image, "`control`").at(width, height)
        if self.process is not None:
            pixels = np.asarray(PROCESSES[self.process](Image.fromarray(pixels)))
        return np.ascontiguousarray(pixels.astype(np.float32).transpose(2, 0, 1)[None] / 255)


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """A Control as it is kept in the record of an image."""

    name: str
    image: ImageRecord | None
    scale: float
    start: float
    end: float
    process: Process | None


def open_controls(manifest: Manifest, controls: Mapping[str, Control] | None) -> dict[str, Control]:
    """Controls with their images read, in the bundle's order.

    Raises InputError for a network that the bundle does not have, a scale or an interval of steps
    out of range, and an image that cannot be read."""
    if controls is None:
        return {}
    if not isinstance(controls, Mapping):
        raise InputError(
            f"`control` is {type(controls).__name__}: expected names with a Control each, such"
            ' as {"canny": edgediff.Control("edges.png")}'
        )
    known = tuple(manifest.controlnets)
    for name in controls:
        if name not in known:
            there = f"it has {', '.join(known)}" if known else _how_to_export(str(name))
            raise InputError(f"`control` {name!r}: {manifest.name} has none of that name; {there}")
    return {name: _opened(name, controls[name]) for name in known if name in controls}


def check_controls(controls: Mapping[str, Control], steps: int) -> None:
    """Raise InputError if one of the opened controls acts on none of the steps."""
    for name, control in controls.items():
        if control.scale != 0 and not any(control.acts(i, steps) for i in range(steps)):
            raise InputError(
                f"`control` {name!r}: from {control.start} to {control.end} of {steps} steps"
                " is less than a whole step: give a wider interval, or more steps"
            )


def control_records(controls: Mapping[str, Control]) -> tuple[ControlSettings, ...] | None:
    """Opened controls, as they are kept in the record of an image; None if there are none."""
    return tuple(_record(name, control) for name, control in controls.items()) or None


def control_notes(controls: Mapping[str, Control], width: int, height: int) -> tuple[str, ...]:
    """Notes on changes to the opened images of controls that a caller might not expect.

    width, height: of the result, in pixels."""
    images = [c.image for c in controls.values() if isinstance(c.image, OpenedImage)]
    return tuple(n for p in images for n in (*p.notes, *p.notes_at(width, height, asked=True)))


def _record(name: str, control: Control) -> ControlSettings:
    return ControlSettings(
        name=name,
        image=record(open_image(control.image, name)),
        scale=float(control.scale),
        start=float(control.start),
        end=float(control.end),
        process=control.process,
    )


def _how_to_export(name: str) -> str:
    return f"it has no control networks: edgediff export … --controlnet {name}=SOURCE adds one"


def _opened(name: str, control: Control) -> Control:
    if not isinstance(control, Control):
        raise InputError(
            f"`control` {name!r} is {type(control).__name__}: expected a Control, such as"
            f" edgediff.Control({control!r})"
        )
    for field in ("scale", "start", "end"):
        value = getattr(control, field)
        if not is_number(value):
            raise InputError(f"`control` {name!r}: {field} is {value!r}: expected a number")
    if not abs(control.scale) <= MAX_SCALE:  # nan too
        raise InputError(
            f"`control` {name!r}: scale is {control.scale}: expected a number from"
            f" {-MAX_SCALE:g} to {MAX_SCALE:g}"
        )
    if not 0 <= control.start < control.end <= 1:
        raise InputError(
            f"`control` {name!r}: from {control.start} to {control.end} of the steps: expected"
            " 0 ≤ start < end ≤ 1"
        )
    if control.process not in (None, *get_args(Process)):
        raise InputError(
            f"`control` {name!r}: process is {control.process!r}: expected"
            f" {' or '.join(map(repr, get_args(Process)))}, or None"
        )
    return dataclasses.replace(control, image=open_image(control.image, f"`control` {name!r}"))
