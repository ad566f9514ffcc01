"""The names of a model on disk: as it was typed, as links call it, and as the hub's cache does.

A few-step model often says only in its name how it is to be sampled, and the hub's client keeps
files as links whose targets are named by a hash. So a link is never resolved for a name: each step
of its way is read for one.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MOST_LINKS = 40
"""As many links in a row as Linux follows."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model was found.

    name: short, without folders or suffix.
    names: all names that it goes by, from which to read how it is sampled.
    hub: the hub id, with the path in that repository if it is a part of one; "" for others. A local
        path is never recorded: it says something about the machine, and nothing about the model."""

    name: str
    names: tuple[str, ...]
    hub: str = ""


def origin(path: Path) -> Origin:
    """The names of a file or folder."""
    typed = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve follows links
    found = _hub_id(typed)
    stem = typed.stem if typed.is_file() else typed.name
    names = [stem]
    for step in _steps(typed):
        hub_id = _hub_id(step)
        part = step.stem if step.is_file() else step.name
        names += [part] if not _HASH.fullmatch(part) else []
        names += [hub_id[0]] if hub_id else []
    if found is None:
        return Origin(name=stem, names=_unique(names))
    repository, inside = found
    name = stem if inside and typed.is_file() else repository.rpartition("/")[2]
    hub = f"{repository}/{inside}" if inside else repository
    return Origin(name=name, names=_unique([name, *names]), hub=hub)


def hub_origin(hub_id: str) -> Origin:
    """The names of a model on the hub, "owner/name", perhaps with `hf:` or "@revision"."""
    hub_id = hub_id.removeprefix("hf:")
    repository = hub_id.partition("@")[0]
    return Origin(name=repository.rpartition("/")[2], names=(repository,), hub=hub_id)


def _steps(path: Path) -> list[Path]:
    """A path, and where each link on its way leads."""
    steps = [path]
    while path.is_symlink() and len(steps) <= _MOST_LINKS:
        path = Path(os.path.normpath(path.parent / path.readlink()))
        steps.append(path)
    return steps


def _hub_id(path: Path) -> tuple[str, str] | None:
    """A path in the hub's cache, …/models--org--name/snapshots/<revision>/file, as ("org/name",
    "file"); None for any other."""
    parts = path.parts
    for i, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[i + 1] == "snapshots":
            repository = part.removeprefix("models--").replace("--", "/", 1)
            return repository, "/".join(parts[i + 3 :])
    return None


def _unique(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if not _HASH.fullmatch(name)))
