"""Parses JSON files into frozen dataclasses; unknown keys are refused."""

import dataclasses
import functools
import json
import math
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Literal

from edgediff.errors import BundleError, EdgediffError, printable

_DIGITS = 20
"""Of the largest whole number that is taken, 2**64 - 1."""
_HIDDEN = ("Cc", "Cs", "Zl", "Zp")  # not Cn: this Python may not know the newest emoji
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def load_json(text: str) -> Any:
    """JSON text → plain values. Raises ValueError, also for what JSON's grammar allows and no file
    of ours has: a key that comes twice, nesting without end, numbers beyond float64 or 64 bits; and
    for nan and infinity, which it does not allow."""
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_unique,
        )
    except RecursionError as e:
        raise ValueError("it nests too deep") from e


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:40]} is too large a number")
    return number


def _int(digits: str) -> int:
    if len(digits) > _DIGITS + digits.startswith("-"):
        raise ValueError(f"{digits[:40]} is too large a number")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = repeated_key(pairs)
    if twice is not None:
        raise ValueError(f"{twice[:40]!r} comes twice in one object")
    return dict(pairs)


def repeated_key(pairs: list[tuple[str, Any]]) -> str | None:
    """The first key of a JSON object that comes again in it; None if there is none."""
    if len(dict(pairs)) == len(pairs):
        return None
    names = [name for name, _ in pairs]
    return next(name for name in names if names.count(name) > 1)


def is_shown(text: str) -> bool:
    """Whether text holds nothing but what is shown, and breaks: no control characters, of which
    NUL ends a C string and ESC commands a terminal; no halves of surrogate pairs; nothing that
    turns the direction of what follows."""
    if text.isprintable():
        return True
    return not any(
        (unicodedata.category(c) in _HIDDEN and c not in "\n\r\t")
        or unicodedata.bidirectional(c) in _TURNING
        for c in text
    )


def is_line(text: str) -> bool:
    """Whether text has no tabs or line breaks: a name with one could look like a line of the
    program's own."""
    return not {*"\n\r\t"} & {*text}


def parse(
    kind: Any,
    raw: object,
    where: str,
    error: type[EdgediffError],
    is_text: Callable[[str], bool] = is_shown,
) -> Any:
    """Turn parsed JSON into `kind`: a dataclass, tuple[T, ...], dict[str, T], union or scalar.

    A union of dataclasses is tagged: each has a field `type: Literal["..."]`, which JSON must have.
    `where` names the place in messages; `error` is raised for values that do not fit, and for text
    that `is_text` refuses."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(typing.cast(type, kind), raw, where, error, is_text)
    if origin is tuple and isinstance(raw, list):
        return tuple(
            parse(args[0], item, f"{where}[{i}]", error, is_text) for i, item in enumerate(raw)
        )
    if origin is dict and isinstance(raw, dict):
        for key in raw:
            if not (is_shown(key) and is_line(key)):
                raise error(f"{where}: key {key[:40]!r} has characters that are not shown")
        return {
            key: parse(args[1], item, f"{where}.{key}", error, is_text) for key, item in raw.items()
        }
    if origin is Literal and raw in args:
        return raw
    if origin in (types.UnionType, typing.Union):
        if raw is None and type(None) in args:
            return None
        options = [option for option in args if option is not type(None)]
        if len(options) > 1 and all(map(dataclasses.is_dataclass, options)):
            return _parse_tagged(options, raw, where, error, is_text)
        matching = [option for option in options if option is type(raw)]
        return parse((matching or options)[0], raw, where, error, is_text)
    if kind is float and type(raw) in (int, float):
        return float(typing.cast(float, raw))
    if kind is str and isinstance(raw, str) and not is_text(raw):
        raise error(f"{where}: {describe(raw)} has characters that are not shown")
    if kind in (int, str, bool) and type(raw) is kind:
        return raw
    expected = "one of " + ", ".join(map(str, args)) if origin is Literal else _type_name(kind)
    raise error(f"{where}: expected {expected}, found {describe(raw)}")


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, bool]]:
    """Name → (type, required) of a dataclass's fields."""
    hints = typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
    }


def _parse_dataclass(
    cls: type,
    raw: object,
    where: str,
    error: type[EdgediffError],
    is_text: Callable[[str], bool],
) -> Any:
    if not isinstance(raw, Mapping):
        raise error(f"{where}: expected an object, found {describe(raw)}")
    fields = _fields(cls)
    for key in raw:
        if key not in fields:
            raise error(f"{where}: unknown key {key[:40]!r}: expected one of {', '.join(fields)}")
    for name, (_, required) in fields.items():
        if required and name not in raw:
            raise error(f"{where}: {name} is missing")
    return cls(
        **{
            key: parse(fields[key][0], item, f"{where}: {key}", error, is_text)
            for key, item in raw.items()
        }
    )


def _parse_tagged(
    members: list[Any],
    raw: object,
    where: str,
    error: type[EdgediffError],
    is_text: Callable[[str], bool],
) -> Any:
    if not isinstance(raw, Mapping):
        raise error(f"{where}: expected an object, found {describe(raw)}")
    if "type" not in raw:
        raise error(f"{where}: type is missing")
    tags = {tag: m for m in members for tag in typing.get_args(_fields(m)["type"][0])}
    tag = raw["type"]
    if not isinstance(tag, str) or tag not in tags:
        raise error(f"{where}: type: expected one of {', '.join(tags)}, found {describe(tag)}")
    return _parse_dataclass(tags[tag], raw, where, error, is_text)


def _type_name(kind: Any) -> str:
    names = {tuple: "a list", dict: "an object", float: "a number", int: "a whole number"}
    names |= {str: "text", bool: "true or false"}
    return names.get(typing.get_origin(kind) or kind, str(kind))


def describe(raw: object) -> str:
    text = printable(json.dumps(raw, ensure_ascii=False))
    return text if len(text) <= 60 else text[:57] + "…"


def require(ok: bool, where: str, value: object, expected: str) -> None:
    """Raise BundleError for a value of bundle.json unless `ok`."""
    if not ok:
        raise BundleError(f"{where} is {value!r}, expected {expected}: export the bundle again")
