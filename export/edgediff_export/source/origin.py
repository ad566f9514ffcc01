"""The names of a model on disk: as it was typed, as links call it, and as the hub's cache does.

A few-step model often says only in its name how it is to be sampled, and the hub's client keeps
files as links whose targets are named by a hash. So a link is never resolved for a name: each step
of its way is read for one. If a file or folder is called as in every pipeline, such as "unet", the
folder around it has the name.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MOST_LINKS = 40
"""As many links in a row as Linux follows."""
_PART = re.compile(
    r"unet|vae|text_encoder(_2)?|lora|(diffusion_pytorch_model|pytorch_lora_weights|adapter_model).*",
    re.IGNORECASE,
)
"""Names of a part of any pipeline, and of the file of its weights."""
_MODEL = re.compile(r"model([.-].*)?", re.IGNORECASE)
"""Likewise, but also a name that people give to a whole model."""
_MOST_FOLDERS = 2
"""How many folders around a file are read for a name, as for name/unet/model.safetensors."""


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
    stem = _stem(typed)
    names = (stem, *_names(typed))
    name = stem
    if _PART.fullmatch(stem):
        around = [folder.name for folder in (typed.parent, typed.parent.parent) if folder.name]
        name = next((n for n in around if not _PART.fullmatch(n)), stem)
    if found is None:
        return Origin(name=name, names=_unique(names))
    repository, inside = found
    if not (inside and typed.is_file()) or _PART.fullmatch(stem):
        name = repository.rpartition("/")[2]
    hub = f"{repository}/{inside}" if inside else repository
    return Origin(name=name, names=_unique((name, *names)), hub=hub)


def hub_origin(hub_id: str) -> Origin:
    """The names of a model on the hub, "owner/name", perhaps with `hf:` or "@revision"."""
    hub_id = hub_id.removeprefix("hf:")
    repository = hub_id.partition("@")[0]
    return Origin(name=repository.rpartition("/")[2], names=(repository,), hub=hub_id)


def _names(path: Path, folders: int = _MOST_FOLDERS) -> list[str]:
    """The names of a path and of where its links lead. folders: how many around it to read, if it
    is called as in every pipeline."""
    names: list[str] = []
    for step in _steps(path):
        stem, hub_id = _stem(step), _hub_id(step)
        names += [stem, *(hub_id[:1] if hub_id else ())]
        if folders and (_PART.fullmatch(stem) or _MODEL.fullmatch(stem)):
            names += _names(step.parent, folders - 1)
    return names


def _stem(path: Path) -> str:
    return path.stem if path.is_file() else path.name


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


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name and not _HASH.fullmatch(name)))
