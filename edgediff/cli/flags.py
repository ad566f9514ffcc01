"""Flags, the parsing of their values, and their groups in --help."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

from edgediff.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]

SECTIONS = (
    "Precision",
    "Model",
    "Defaults",
    "Prompt",
    "Image",
    "Image to image",
    "Control",
    "Many images",
    "Where it runs",
    "Output",
)
"""Headings of --help, in order. A new heading is a new line here."""


_MAX_COLUMN = 28


class Flag(click.Option):
    """An option listed under the heading `section` of --help.

    form: formats a value as it is typed, if that differs from Python's form; `callback` parses it.
    stands_for: the option and value in Python that the flag sets, if its name differs from theirs.
    """

    def __init__(
        self,
        *arguments: Any,
        section: str,
        form: Callable[[Any], str] | None = None,
        stands_for: tuple[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        if section not in SECTIONS:
            raise ValueError(f"section {section!r}: not one of {SECTIONS}")
        self.section = section
        self.form = form
        self.stands_for = stands_for


def flag(section: str, *names: str, **settings: Any) -> Decorator[Any]:
    """`click.option` under a heading."""
    return click.option(*names, cls=Flag, section=section, **settings)


def flags(table: Sequence[Decorator[Any]]) -> Decorator[Any]:
    """Several flags as one decorator."""

    def decorate(command: Any) -> Any:
        for one in reversed(table):
            command = one(command)
        return command

    return decorate


class SpellingCommand(click.Command):
    """A command whose errors name options as they are typed: each parameter corresponds to the
    Python option of the same name."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as e:
            raise e.spelled(self.spell) from e

    def spell(self, option: str, value: Any) -> str | None:
        """An option as it is typed, with its value if there is one; None if it has no flag here."""
        for parameter in self.params:
            if isinstance(parameter, Flag) and parameter.stands_for == (option, value):
                return max(parameter.opts, key=len)
        flag = "--" + option.replace("_", "-")
        named = next((p for p in self.params if p.name == option or flag in p.opts), None)
        if named is None:
            return None
        if not isinstance(named, click.Option):
            return named.human_readable_name
        typed = max(named.opts, key=len)
        if value is None:
            return typed
        form = named.form if isinstance(named, Flag) else None
        return f"{typed} {value if form is None else form(value)}"


@contextlib.contextmanager
def file_of(parameter: str) -> Iterator[None]:
    """Name the flag that gives a file in errors about this file."""
    try:
        yield
    except InputError as e:
        raise InputError(f"`{parameter}` {e}") from e


class SectionedCommand(SpellingCommand):
    """A command whose --help groups its flags by section, with aligned columns."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in (*SECTIONS, "Other")}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and isinstance(parameter, click.Option):
                section = parameter.section if isinstance(parameter, Flag) else "Other"
                groups[section].append(row)
        firsts = [first for rows in groups.values() for first, _ in rows]
        width = max(len(first) for first in firsts if len(first) <= _MAX_COLUMN)
        for name, rows in groups.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl([(first.ljust(width), text) for first, text in rows], width)


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


def parse_interval(
    _context: click.Context, _flag: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    """START-END → (start, end), as fractions."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)-(\d+\.?\d*|\.\d+)", value, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{value!r}: give START-END, such as 0.2-0.8")
    return float(match[1]), float(match[2])


def interval_form(interval: tuple[float, float]) -> str:
    """(start, end) → START-END."""
    start, end = interval
    return f"{start:g}-{end:g}"


def _parse_pairs(
    _context: click.Context, _flag: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """KEY=VALUE, repeated → a dict."""
    pairs = [value.partition("=") for value in values]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise click.BadParameter(f"{key!r}: give KEY=VALUE")
    return {key: value for key, _, value in pairs}


provider_flags = flags(
    [
        flag(
            "Where it runs",
            "--provider",
            default="auto",
            show_default=True,
            help="auto (the first provider in the bundle's list that runs here), cpu, cuda,"
            " tensorrt, coreml or openvino.",
        ),
        flag("Where it runs", "--threads", type=int, help="CPU threads.  [default: one per core]"),
        flag(
            "Where it runs",
            "--provider-option",
            "provider_options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_parse_pairs,
            help="Option passed to the provider unchanged; repeatable.",
        ),
        flag(
            "Where it runs",
            "--max-memory",
            metavar="SIZE",
            default="auto",
            callback=lambda *given: None if given[-1].lower() == "none" else given[-1],
            help="Memory target, such as 1.4GB: stages are loaded when needed and released again."
            " auto takes the target from the memory that is left, none sets no target."
            "  [default: auto]",
        ),
    ]
)
"""Flags that choose the provider, its options, and the memory target."""

json_flag = flag("Output", "--json", "as_json", is_flag=True, help="Print the result as JSON.")
