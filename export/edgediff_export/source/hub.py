"""Downloads from the Hugging Face hub: of a repository, only the files that an export opens."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from edgediff.bundle.hub import (
    HubFile,
    OnDownload,
    cached_folder,
    fetch_files,
    fetch_one,
    list_files,
)
from edgediff.bundle.hub_name import PREFIX, is_hub_name, parse_hub_name
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import BundleError, ExportError
from edgediff.files import is_file_name
from edgediff_export.source.families import TEXT_ENCODERS
from edgediff_export.source.weights import choose_weights

_INDEX = "model_index.json"
_CARD = "README.md"
_WHOLE = ("scheduler", *TEXT_ENCODERS.values())
"""Folders of a pipeline that are small and read whole."""
_COMPONENTS = ("unet", "vae", *TEXT_ENCODERS)


def is_hub_id(text: str) -> bool:
    """Whether a text may be a hub id, "owner/name", perhaps with `hf:` or "@revision"."""
    return is_hub_name(text) or re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", text) is not None


def download_pipeline(
    hub_id: str, *, replaced: Collection[str] = (), on_download: OnDownload | None = None
) -> Path:
    """The folder of a downloaded pipeline, without files that an export does not open: other
    formats and variants of its weights, the safety checker, and the weights of components that are
    replaced.

    Raises ExportError."""

    def needed(files: Collection[str]) -> list[str]:
        if _INDEX not in files:
            raise ExportError(f"{hub_id}: {_otherwise(hub_id, files)}")
        folders = _folders(files)
        names = [_INDEX, *[f"{f}/{name}" for f in _WHOLE for name in folders.get(f, ())]]
        for component in _COMPONENTS:
            if component in folders:
                there = folders[component]
                names += [f"{component}/config.json"] if "config.json" in there else []
                if component not in replaced:
                    where = f"{hub_id}/{component}"
                    names += [f"{component}/{name}" for name in _weights(there, where)]
        return names

    return _download(hub_id, needed, hub_id, on_download)


def download_component(hub_id: str, *, flag: str, on_download: OnDownload | None = None) -> Path:
    """The folder of a downloaded network of one component. flag: the option that asks for it.

    Raises ExportError."""

    def needed(files: Collection[str]) -> list[str]:
        there = [name for name in files if "/" not in name]
        if "config.json" not in there:
            raise ExportError(
                f"{flag} {hub_id}: holds no config.json: give a repository of one network, or a"
                " local folder or file"
            )
        return ["config.json", *_weights(there, f"{flag} {hub_id}")]

    return _download(hub_id, needed, f"{flag} {hub_id}", on_download)


def _download(
    hub_id: str,
    needed: Callable[[Collection[str]], list[str]],
    shown: str,
    on_download: OnDownload | None,
) -> Path:
    """The folder with the files of a repository that are needed, and its model card.

    Without a connection: with those that were downloaded before. shown: for messages."""
    try:
        name = parse_hub_name(hub_id)
        try:
            commit, files = list_files(name)
        except BundleError:
            folder = cached_folder(name)
            if folder is None:
                raise
            return folder
        chosen: Mapping[str, HubFile] = {
            path: files[path] for path in (*needed(files), _CARD) if path in files
        }
        fetch_files(commit, chosen, on_download)
        fetch_one(name, next(iter(chosen)))
        folder = cached_folder(commit)
    except BundleError as e:
        text = str(e).removeprefix(PREFIX).removeprefix(f"{hub_id.removeprefix(PREFIX)}: ")
        raise ExportError(f"{shown}: no such folder or file here, and {text}") from e
    if folder is None:
        raise ExportError(f"{shown}: the hub's cache was cleared meanwhile: try again")
    return folder


def _folders(files: Iterable[str]) -> dict[str, list[str]]:
    """Folder → the names of the files that lie in it directly."""
    found: dict[str, list[str]] = {}
    for path in sorted(files):
        folder, slash, name = path.partition("/")
        if slash and is_file_name(name):
            found.setdefault(folder, []).append(name)
    return found


def _weights(names: list[str], where: str) -> list[str]:
    """The weights of a component, and the lists of their pieces."""
    _, chosen = choose_weights(names, where)
    lists = [n for n in names if ".safetensors.index." in n] if len(chosen) > 1 else []
    return [*chosen, *lists]


def _otherwise(hub_id: str, files: Collection[str]) -> str:
    """The real kind of a repository that is not a pipeline, and the remedy."""
    name = hub_id.removeprefix(PREFIX)
    if MANIFEST in files:
        return f"is a bundle already: run it with edgediff generate --model {PREFIX}{name}"
    loose = sorted(f for f in files if "/" not in f and f.endswith(".safetensors"))
    if loose:
        return (
            f"is not a pipeline ({_INDEX} is missing): download one of its files, such as"
            f" {loose[0]}, and give its path"
        )
    return f"is not a pipeline ({_INDEX} is missing): give the repository of a diffusers pipeline"
