"""Parse the value of `--control`."""

import re
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from edgediff.request.control import Control, Process

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+|nan|inf)"
_PART = r"(?:\d+(?:\.\d*)?|\.\d+)"
# Numbers are matched at the end, and the rest is the image, so that its path may contain colons.
_FORM = re.compile(
    rf"(?P<name>[^=]+)=(?:(?P<process>edges|invert):)?+(?P<image>.+?)"
    rf"(?::(?P<scale>{_NUMBER})(?::(?P<start>{_PART})-(?P<end>{_PART}))?)?",
    re.DOTALL,
)


def parse_controls(
    _context: click.Context, _flag: click.Parameter, values: tuple[str, ...]
) -> "dict[str, Control]":
    """NAME=[edges:|invert:]IMAGE[:SCALE[:START-END]], repeated → name → Control."""
    found: dict[str, Control] = {}
    for value in values:
        name, control = _parse(value)
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice: give each control network once")
        found[name] = control
    return found


def _parse(value: str) -> "tuple[str, Control]":
    from edgediff.request.control import Control

    match = _FORM.fullmatch(value)
    if match is None:
        raise click.BadParameter(
            f"{value!r}: give NAME=IMAGE, NAME=IMAGE:SCALE or NAME=IMAGE:SCALE:START-END, such as"
            " canny=edges.png:0.8:0-0.5"
        )
    scale, start, end = (match[group] for group in ("scale", "start", "end"))
    return match["name"], Control(
        match["image"],
        scale=1.0 if scale is None else float(scale),
        start=0.0 if start is None else float(start),
        end=1.0 if end is None else float(end),
        process=cast("Process | None", match["process"]),
    )
