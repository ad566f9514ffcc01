"""Where a pipeline comes from: a hub id, a diffusers folder, or one safetensors file.

Only the Stable Diffusion family, and only safetensors: a pickle can run any code when it is read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgediff.errors import ExportError
from edgediff_export.source.config_file import read_config
from edgediff_export.source.families import PIPELINES, SAME_AS, TEXT_ENCODERS, check_index
from edgediff_export.source.hub import download_pipeline, is_hub_id
from edgediff_export.source.origin import Origin, hub_origin, origin
from edgediff_export.source.pipeline import Source
from edgediff_export.source.safetensors_file import Header, read_header
from edgediff_export.source.scheduler import mend
from edgediff_export.source.single_file import open_single_file
from edgediff_export.source.statements import Statements, read_statements
from edgediff_export.source.support import check_components
from edgediff_export.source.weights import is_tiny_vae

_CALLED = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}
_OLD_UNET = (0, 9, 0)
"""Before this version of diffusers, UNets' configs had a wrong `sample_size`."""
_SMALLEST = 64


def open_source(
    source: str,
    *,
    work: Path,
    vae: Path | None = None,
    unet: Path | None = None,
    text_encoder: Path | None = None,
    text_encoder_2: Path | None = None,
) -> Source:
    """Find a pipeline and read its configs; no weights yet.

    source: a hub id such as "owner/name", a diffusers folder, or a .safetensors file.
    work: an existing folder for what has to be unpacked.
    vae: another VAE (AutoencoderKL or AutoencoderTiny): its folder, a pipeline with one, or a
        .safetensors file of its weights.
    unet, text_encoder, text_encoder_2: the same for these; one from a file is shaped like the
        pipeline's.

    Raises ExportError where it is absent, unsafe or of a kind that is not supported."""
    given = {
        "unet": unet,
        "vae": vae,
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
    }
    others = {
        component: _find_component(component, path)
        for component, path in given.items()
        if path is not None
    }
    path = Path(source)
    header: Header | None = None
    if path.is_dir():
        folder = path
    elif path.is_file():
        folder = work / "source"
        header = open_single_file(path, folder, replaced=others)
    elif is_hub_id(source):
        folder = download_pipeline(source)
    else:
        raise ExportError(
            f"{source}: no such folder or file: give a diffusers folder, a .safetensors file, or a"
            " hub id such as owner/name"
        )
    index = read_config(folder / "model_index.json")
    notes = check_index(source, index, replaced=others)
    built = str(index["_class_name"])
    pipeline = SAME_AS.get(built, built)
    encoders = [e for e in TEXT_ENCODERS if e in PIPELINES[pipeline]]
    unused = next((c for c in others if c in TEXT_ENCODERS and c not in encoders), None)
    if unused is not None:
        raise ExportError(
            f"--{unused.replace('_', '-')} {given[unused]}: this pipeline has no such component:"
            " leave the option out"
        )
    home = path if header is not None else None
    weights = {
        component: others.get(component) or home or folder / component
        for component in ("unet", "vae", *encoders)
    }
    configs = {
        component: read_config(
            (others[component] if _is_folder(others, component) else folder / component)
            / "config.json"
        )
        for component in weights
        if not (component == "vae" and _is_tiny(others))
    }
    if "vae" not in configs:
        configs["vae"] = _tiny_config(read_header(others["vae"], flag="--vae"))
    found = origin(path) if path.exists() else hub_origin(source)
    named = [found, *([origin(unet)] if unet is not None else [])]
    said = [read_statements(h) for h in (_unet_header(unet, others), header) if h is not None]
    opened = Source(
        description=_described(found, given),
        name=named[-1].name,
        names=(*named[-1].names, *(name for s in said for name in s.names)),
        pipeline=pipeline,
        license=_license(folder / "README.md")
        or next((s.license for s in said if s.license), None),
        folder=folder,
        weights=weights,
        flags={component: "--" + component.replace("_", "-") for component in others},
        index=index,
        unet=_mended_unet(configs["unet"], built),
        vae=configs["vae"],
        text_encoders={encoder: configs[encoder] for encoder in encoders},
        scheduler=mend(
            read_config(folder / "scheduler" / "scheduler_config.json"),
            pipeline=built,
            class_name=_scheduler_class(index),
        ),
        said=said[0] if said else Statements(),
        bare=header is not None or unet is not None,
        notes=notes,
    )
    check_components(opened)
    return opened


def _is_folder(others: Mapping[str, Path], component: str) -> bool:
    return component in others and others[component].is_dir()


def _is_tiny(others: Mapping[str, Path]) -> bool:
    """Whether another VAE is a file of AutoencoderTiny's weights, which are shaped by its class."""
    path = others.get("vae")
    return path is not None and path.is_file() and is_tiny_vae(read_header(path, flag="--vae"))


def _tiny_config(header: Header) -> dict[str, Any]:
    first = header.shapes["decoder.layers.0.weight"]
    return {"_class_name": "AutoencoderTiny", "latent_channels": first[1]}


def _unet_header(unet: Path | None, others: Mapping[str, Path]) -> Header | None:
    """Of another UNet that is a file."""
    if unet is None or not others["unet"].is_file():
        return None
    return read_header(others["unet"], flag="--unet")


def _described(found: Origin, given: Mapping[str, Path | None]) -> str:
    """Where a pipeline came from, and whatever was put into it."""
    description = found.hub or found.name
    for component, other in given.items():
        if other is not None:
            description += f" with the {_CALLED[component]} {origin(other).hub or other.name}"
    return description


def _scheduler_class(index: Mapping[str, Any]) -> str | None:
    entry = index.get("scheduler")
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _mended_unet(config: Mapping[str, Any], pipeline: str) -> dict[str, Any]:
    """A UNet's config as diffusers' pipelines of Stable Diffusion 1 and 2 have it: before 0.9.0 its
    sample_size was written wrong where it is below 64."""
    size, version = config.get("sample_size"), config.get("_diffusers_version")
    mends = pipeline.startswith("StableDiffusion") and "XL" not in pipeline
    if mends and isinstance(size, int) and size < _SMALLEST and isinstance(version, str):
        numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
        if numbers < _OLD_UNET:
            return {**config, "sample_size": _SMALLEST}
    return dict(config)


def _find_component(component: str, path: Path) -> Path:
    """The folder of a component that stands in for the pipeline's, or the file of its weights."""
    flag = "--" + component.replace("_", "-")
    if path.is_file():
        read_header(path, flag=flag)
        return path
    for folder in (path, path / component):
        if (folder / "config.json").is_file():
            return folder
    raise ExportError(
        f"{flag} {path}: no {_CALLED[component]} there: give a folder with config.json and its"
        " weights, or a .safetensors file"
    )


def _license(card: Path) -> str | None:
    """The license that a model card's front matter states."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
