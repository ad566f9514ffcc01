"""Where a pipeline comes from: a hub id, a diffusers folder, or one safetensors file.

Only the Stable Diffusion family, and only safetensors: a pickle can run any code when it is read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgediff.bundle.hub import OnDownload
from edgediff.errors import ExportError
from edgediff_export.source.config_file import read_config
from edgediff_export.source.configs import Kind
from edgediff_export.source.families import PIPELINES, SAME_AS, TEXT_ENCODERS, check_index
from edgediff_export.source.hub import download_component, download_pipeline, is_hub_id
from edgediff_export.source.origin import Origin, hub_origin, origin
from edgediff_export.source.pipeline import Source
from edgediff_export.source.pipeline_folder import check_pipeline_folder
from edgediff_export.source.prediction import assume_prediction
from edgediff_export.source.safetensors_file import PICKLES, Header, read_header
from edgediff_export.source.scheduler import mend
from edgediff_export.source.single_file import open_single_file
from edgediff_export.source.statements import Statements, read_statements
from edgediff_export.source.support import check_components
from edgediff_export.source.tiny_vae import (
    CLASS,
    TINY_VAES,
    check_fits,
    fitting,
    is_half,
    join_halves,
    known_as,
    tiny_config,
)

_CALLED = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}
OWN = "own"
"""In the place of another VAE: the pipeline's."""
_OLD_UNET = (0, 9, 0)
"""Before this version of diffusers, UNets' configs had a wrong `sample_size`."""
_SMALLEST = 64


def open_source(
    source: str,
    *,
    work: Path,
    vae: Path | None = None,
    tiny_vae: bool = False,
    unet: Path | None = None,
    text_encoder: Path | None = None,
    text_encoder_2: Path | None = None,
    on_download: OnDownload | None = None,
) -> Source:
    """Find a pipeline and read its configs; no weights yet.

    source: a hub id such as "owner/name", or "hf:owner/name@revision", a diffusers folder, or a
        .safetensors file.
    work: an existing folder for what has to be unpacked.
    vae: another VAE (AutoencoderKL or AutoencoderTiny): its folder, a pipeline with one, a
        .safetensors file of its weights, a name of TINY_VAES, or "own" for the pipeline's.
    tiny_vae: without `vae`, take the tiny one of the pipeline's latents if there is one.
    unet, text_encoder, text_encoder_2: the same for these; one from a file is shaped like the
        pipeline's.
    on_download: called with the bytes that are there and those in total, from another thread.

    Raises ExportError if it is absent, unsafe or of a kind that is not supported."""
    tiny_vae = tiny_vae and vae is None
    vae = None if vae is not None and str(vae) == OWN and not vae.exists() else vae
    given = {
        "unet": unet,
        "vae": vae,
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
    }
    tiny = str(vae) if vae is not None and str(vae) in TINY_VAES and not vae.exists() else None
    others = {
        component: _find_component(component, path, work)
        for component, path in given.items()
        if path is not None and not (component == "vae" and tiny)
    }
    replaced = [component for component, path in given.items() if path is not None]
    path = Path(source)
    header: Header | None = None
    kind: Kind | None = None
    if path.is_dir():
        folder = path
    elif path.is_file():
        folder = work / "source"
        header, kind = open_single_file(path, folder, replaced=replaced)
    elif is_hub_id(source) and path.suffix not in (".safetensors", *PICKLES):
        folder = download_pipeline(source, replaced=replaced, on_download=on_download)
    else:
        raise ExportError(
            f"{source}: no such folder or file: give a diffusers folder, a .safetensors file, or a"
            " hub id such as owner/name"
        )
    check_pipeline_folder(source, folder)
    index = read_config(folder / "model_index.json")
    notes = check_index(source, index, replaced=replaced)
    built = str(index["_class_name"])
    pipeline = SAME_AS.get(built, built)
    encoders = [e for e in TEXT_ENCODERS if e in PIPELINES[pipeline]]
    unused = next((c for c in others if c in TEXT_ENCODERS and c not in encoders), None)
    if unused is not None:
        raise ExportError(
            f"--{unused.replace('_', '-')} {given[unused]}: this pipeline has no such component:"
            " leave the option out"
        )
    unet_config = read_config(
        (others["unet"] if _is_folder(others, "unet") else folder / "unet") / "config.json"
    )
    channels = unet_config.get("out_channels", 4)
    whole = read_statements(header) if header is not None else Statements()
    said = whole if unet is None else _statements(others["unet"], "--unet")
    # The UNet was trained on latents as its file says; else the VAE gives them as its own does.
    vae_said = whole if vae is None or tiny else _statements(others["vae"], "--vae")
    latents = said.vae or vae_said.vae
    own_config = folder / "vae" / "config.json"
    own = {**(read_config(own_config) if own_config.is_file() else {}), **(said.vae or whole.vae)}
    if tiny_vae and own.get("_class_name") != CLASS:
        tiny = fitting(own, pipeline=pipeline, channels=channels)
        if tiny is not None:
            given["vae"] = vae = Path(tiny)
        else:
            notes = (*notes, "the pipeline's own VAE is kept: there is no tiny one for its latents")
    if tiny is not None:
        check_fits(tiny, tiny, own, pipeline=pipeline, channels=channels)
        repository = TINY_VAES[tiny].repository
        others["vae"] = download_component(repository, flag="--vae", on_download=on_download)
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
        for component in ("vae", *encoders)
        if not (component == "vae" and _shape_of(others) is not None)
    }
    configs.setdefault("vae", _shape_of(others) or {})
    configs["vae"] = {**configs["vae"], **latents}
    credit = ""
    if vae is not None:
        name = known_as(origin(vae).names) if configs["vae"].get("_class_name") == CLASS else None
        if name is not None:
            check_fits(name, str(vae), own, pipeline=pipeline, channels=channels)
        credit = _vae_credit(vae, others["vae"], name)
    found = origin(path) if path.exists() else hub_origin(source)
    named = [found, *([origin(unet)] if unet is not None else [])]
    names = (*named[-1].names, *said.names)
    scheduler = mend(
        read_config(folder / "scheduler" / "scheduler_config.json"),
        pipeline=built,
        class_name=_scheduler_class(index),
    )
    bare = header is not None or unet is not None
    if bare:
        said = assume_prediction(said, names, scheduler, sd2=kind == "sd2" and unet is None)
    if unet is not None and whole.why.keys() - {"vae"}:
        notes = (
            *notes,
            f"{found.name}: its statements on training are about its own UNet, and another is in"
            " its place: if they hold for that one too, give `--prediction-type` and"
            " `--zero-terminal-snr`",
        )
    opened = Source(
        description=_described(found, given),
        name=named[-1].name,
        names=names,
        pipeline=pipeline,
        license=_license(folder / "README.md") or said.license or whole.license,
        folder=folder,
        weights=weights,
        flags={component: "--" + component.replace("_", "-") for component in others},
        index=index,
        unet=_mended_unet(unet_config, built),
        vae=configs["vae"],
        text_encoders={encoder: configs[encoder] for encoder in encoders},
        scheduler=scheduler,
        said=said,
        kind=kind,
        bare=bare,
        credits=(credit,) if credit else (),
        notes=notes,
    )
    check_components(opened)
    return opened


def _is_folder(others: Mapping[str, Path], component: str) -> bool:
    return component in others and others[component].is_dir()


def _shape_of(others: Mapping[str, Path]) -> dict[str, Any] | None:
    """The config of another VAE that is a file of AutoencoderTiny's weights, which are shaped by
    its class."""
    path = others.get("vae")
    if path is None or not path.is_file():
        return None
    return tiny_config(read_header(path, flag="--vae"))


def _vae_credit(vae: Path, found: Path, tiny: str | None) -> str:
    """Who made another VAE, and its license, as far as its name or its model card says so.

    vae: as it was given. found: where it is. tiny: its name in TINY_VAES, if it is one of those."""
    if tiny is not None:
        return TINY_VAES[tiny].credit
    named = origin(vae)
    license = _license(found / "README.md") or _license(vae / "README.md")
    return f"VAE: {named.hub or named.name}, {license}" if license else ""


def _statements(component: Path, flag: str) -> Statements:
    """Of another component, which states nothing if it is a folder."""
    if not component.is_file():
        return Statements()
    return read_statements(read_header(component, flag=flag))


def _described(found: Origin, given: Mapping[str, Path | None]) -> str:
    """Where a pipeline came from, and whatever was put into it."""
    description = found.hub or found.name
    for component, other in given.items():
        if other is not None:
            tiny = TINY_VAES.get(str(other)) if component == "vae" and not other.exists() else None
            called = tiny.repository if tiny else origin(other).hub or other.name
            description += f" with the {_CALLED[component]} {called}"
    return description


def _scheduler_class(index: Mapping[str, Any]) -> str | None:
    entry = index.get("scheduler")
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _mended_unet(config: Mapping[str, Any], pipeline: str) -> dict[str, Any]:
    """A UNet's config as diffusers' pipelines of Stable Diffusion 1 and 2 have it: before 0.9.0 its
    sample_size was written wrong if it is below 64."""
    size, version = config.get("sample_size"), config.get("_diffusers_version")
    mends = pipeline.startswith("StableDiffusion") and "XL" not in pipeline
    if mends and isinstance(size, int) and size < _SMALLEST and isinstance(version, str):
        numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
        if numbers < _OLD_UNET:
            return {**config, "sample_size": _SMALLEST}
    return dict(config)


def _find_component(component: str, path: Path, work: Path) -> Path:
    """The folder of a component that stands in for the pipeline's, or the file of its weights."""
    flag = "--" + component.replace("_", "-")
    if path.is_file():
        header = read_header(path, flag=flag)
        return join_halves(path, work) if component == "vae" and is_half(header) else path
    for folder in (path, path / component):
        if (folder / "config.json").is_file():
            return folder
    names = f", or one of {', '.join(TINY_VAES)}" if component == "vae" else ""
    raise ExportError(
        f"{flag} {path}: no {_CALLED[component]} there: give a folder with config.json and its"
        f" weights, or a .safetensors file{names}"
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
