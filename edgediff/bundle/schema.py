"""Parses JSON files into frozen dataclasses; unknown keys are refused."""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from edgediff.errors import BundleError, EdgediffError


def load_json(text: str) -> Any:
    """JSON text → plain values. Raises ValueError, for nan and infinity too."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def parse(kind: Any, raw: object, where: str, error: type[EdgediffError]) -> Any:
    """Turn parsed JSON into `kind`: a dataclass, tuple[T, ...], dict[str, T], union or scalar.

    A union of dataclasses is tagged: each has a field `type: Literal["..."]`, which JSON must have.
    `where` names the place in messages; `error` is raised for values that do not fit."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(typing.cast(type, kind), raw, where, error)
    if origin is tuple and isinstance(raw, list):
        return tuple(parse(args[0], item, f"{where}[{i}]", error) for i, item in enumerate(raw))
    if origin is dict and isinstance(raw, dict):
        return {key: parse(args[1], item, f"{where}.{key}", error) for key, item in raw.items()}
    if origin is Literal and raw in args:
        return raw
    if origin in (types.UnionType, typing.Union):
        if raw is None and type(None) in args:
            return None
        options = [option for option in args if option is not type(None)]
        if len(options) > 1 and all(map(dataclasses.is_dataclass, options)):
            return _parse_tagged(options, raw, where, error)
        matching = [option for option in options if option is type(raw)]
        return parse((matching or options)[0], raw, where, error)
    if kind is float and type(raw) in (int, float):
        return float(typing.cast(float, raw))
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


def _parse_dataclass(cls: type, raw: object, where: str, error: type[EdgediffError]) -> Any:
    if not isinstance(raw, Mapping):
        raise error(f"{where}: expected an object, found {describe(raw)}")
    fields = _fields(cls)
    for key in raw:
        if key not in fields:
            raise error(f"{where}: unknown key {key!r}: expected one of {', '.join(fields)}")
    for name, (_, required) in fields.items():
        if required and name not in raw:
            raise error(f"{where}: {name} is missing")
    return cls(
        **{key: parse(fields[key][0], item, f"{where}: {key}", error) for key, item in raw.items()}
    )


def _parse_tagged(members: list[Any], raw: object, where: str, error: type[EdgediffError]) -> Any:
    if not isinstance(raw, Mapping):
        raise error(f"{where}: expected an object, found {describe(raw)}")
    if "type" not in raw:
        raise error(f"{where}: type is missing")
    tags = {tag: m for m in members for tag in typing.get_args(_fields(m)["type"][0])}
    tag = raw["type"]
    if not isinstance(tag, str) or tag not in tags:
        raise error(f"{where}: type: expected one of {', '.join(tags)}, found {describe(tag)}")
    return _parse_dataclass(tags[tag], raw, where, error)


def _type_name(kind: Any) -> str:
    names = {tuple: "a list", dict: "an object", float: "a number", int: "a whole number"}
    names |= {str: "text", bool: "true or false"}
    return names.get(typing.get_origin(kind) or kind, str(kind))


def describe(raw: object) -> str:
    text = json.dumps(raw, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def require(ok: bool, where: str, value: object, expected: str) -> None:
    """Raise BundleError for a value of bundle.json unless `ok`."""
    if not ok:
        raise BundleError(f"{where} is {value!r}, expected {expected}: export the bundle again")
