"""Where a pipeline comes from: a hub id, a diffusers folder, or one safetensors file.

Only the Stable Diffusion family, and only safetensors: a pickle can run any code when it is read.
"""

import re
from pathlib import Path

from edgediff.errors import ExportError
from edgediff_export.source.checkpoint import unpack
from edgediff_export.source.config_file import read_config
from edgediff_export.source.families import PIPELINES, TEXT_ENCODERS, check_index
from edgediff_export.source.hub import download_pipeline, is_hub_id
from edgediff_export.source.origin import hub_origin, origin
from edgediff_export.source.pipeline import Source
from edgediff_export.source.support import check_components


def open_source(
    source: str, *, work: Path, vae: Path | None = None, unet: Path | None = None
) -> Source:
    """Find a pipeline and read its configs; no weights yet.

    source: a hub id such as "owner/name", a diffusers folder, or a .safetensors file.
    work: an existing folder for what has to be unpacked.
    vae: a folder holding another VAE (AutoencoderKL or AutoencoderTiny) or a pipeline with one.
    unet: a folder holding another UNet or a pipeline with one, or a .safetensors file of the
        weights of one that is shaped like the pipeline's.

    Raises ExportError where it is absent, unsafe or of a kind that is not supported."""
    path = Path(source)
    if path.is_dir():
        folder = path
    elif path.is_file():
        folder = unpack(path, work / "source")
    elif is_hub_id(source):
        folder = download_pipeline(source)
    else:
        raise ExportError(
            f"{source}: no such folder or file: give a diffusers folder, a .safetensors file, or a"
            " hub id such as owner/name"
        )
    index = read_config(folder / "model_index.json")
    check_index(source, index)
    vae_folder = folder / "vae" if vae is None else _find_component("vae", vae)
    unet_path = folder / "unet" if unet is None else _find_component("unet", unet)
    unet_folder = unet_path if unet_path.is_dir() else folder / "unet"
    found = origin(path) if path.exists() else hub_origin(source)
    description = found.hub or found.name
    for part, other in (("UNet", unet), ("VAE", vae)):
        if other is not None:
            description += f" with the {part} {origin(other).hub or other.name}"
    named = [found, *([origin(unet)] if unet is not None else [])]
    encoders = [e for e in TEXT_ENCODERS if e in PIPELINES[str(index["_class_name"])]]
    opened = Source(
        description=description,
        name=named[-1].name,
        names=named[-1].names,
        pipeline=str(index["_class_name"]),
        license=_license(folder / "README.md"),
        folder=folder,
        unet_path=unet_path,
        vae_folder=vae_folder,
        index=index,
        unet=read_config(unet_folder / "config.json"),
        vae=read_config(vae_folder / "config.json"),
        text_encoders={e: read_config(folder / e / "config.json") for e in encoders},
        scheduler=read_config(folder / "scheduler" / "scheduler_config.json"),
    )
    check_components(opened)
    return opened


def _find_component(component: str, path: Path) -> Path:
    """The folder of a component that stands in for the pipeline's, or the file of a UNet."""
    if component == "unet" and path.is_file():
        return path
    for folder in (path, path / component):
        if (folder / "config.json").is_file():
            return folder
    what = "VAE" if component == "vae" else "UNet"
    raise ExportError(
        f"--{component} {path}: no {what} there: give a folder with config.json and its weights"
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
