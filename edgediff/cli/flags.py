"""Flags that several commands share, and how their values are read."""

import re
from typing import Any

import click


def parse_size(
    _context: click.Context, _flag: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """WxH in pixels → (width, height)."""
    if value is None:
        return None
    match = re.fullmatch(r"(-?\d+)[xX×](-?\d+)", value)
    if match is None:
        raise click.BadParameter(f"{value!r}: give width x height, such as 512x512")
    return int(match[1]), int(match[2])


def _parse_pairs(
    _context: click.Context, _flag: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """KEY=VALUE, repeated → a dict."""
    pairs = [value.partition("=") for value in values]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise click.BadParameter(f"{key!r}: give KEY=VALUE")
    return {key: value for key, _, value in pairs}


def provider_flags(command: Any) -> Any:
    """The flags that say where and how a bundle runs."""
    flags = [
        click.option(
            "--provider",
            default="auto",
            show_default=True,
            help="auto (the first that runs of those in the bundle's list), cpu, cuda, tensorrt,"
            " coreml or openvino.",
        ),
        click.option("--threads", type=int, help="CPU threads.  [default: one per core]"),
        click.option(
            "--provider-option",
            "provider_options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_parse_pairs,
            help="Handed to the provider as it is; repeatable.",
        ),
        click.option(
            "--max-memory",
            metavar="SIZE",
            help="Memory to aim for, such as 1.4GB: stages are loaded and released one by one.",
        ),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


json_flag = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
