"""A checkpoint of a whole pipeline in one safetensors file: which model it is of, and the configs
that go with it, which such a file does not hold."""

from collections.abc import Collection, Mapping
from pathlib import Path

from edgediff.errors import ExportError
from edgediff_export.quiet import quiet
from edgediff_export.source.configs import REPOSITORIES, Kind, write_configs
from edgediff_export.source.families import TEXT_ENCODERS
from edgediff_export.source.file_kinds import FAMILIES, SOURCE, kind_of
from edgediff_export.source.safetensors_file import PICKLES, Header, read_header

_UNET = "model.diffusion_model."
_VAE = ("first_stage_model.", "vae.")
_CLIP_L = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_OPEN_CLIP = "cond_stage_model.model."
_OPEN_CLIP_2 = "conditioner.embedders.1."
_REFINER = "conditioner.embedders.0.model."

_CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an InstructPix2Pix model, which edits an image",
}


def open_single_file(path: Path, folder: Path, *, replaced: Collection[str]) -> tuple[Header, Kind]:
    """Find out which model a checkpoint is of and put its configs into `folder`: those of the
    hub's local cache, else those that edgediff ships → its header, and which model.

    replaced: components that come from elsewhere, which the file need not have.

    Raises ExportError if it is not a checkpoint, of an unsupported model, or lacks a part."""
    if path.suffix in PICKLES:
        raise ExportError(
            f"{path}: a pickle, which can run any code when it is read; edgediff reads safetensors"
            " only: if you trust it, convert it with"
            f' StableDiffusionPipeline.from_single_file("{path.name}").save_pretrained(folder)'
        )
    if path.suffix == ".gguf":
        raise ExportError(
            f"{path}: a GGUF file, whose weights are quantized already: give the .safetensors file"
            " that it was made from"
        )
    if path.suffix != ".safetensors":
        raise ExportError(
            f"{path}: a {path.suffix or 'file without suffix'}: give a .safetensors file, a"
            " diffusers folder or a hub id"
        )
    header = read_header(path)
    kind = identify(header, replaced=replaced)
    cached = _cached_configs(kind)
    if cached is None:
        write_configs(kind, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        for child in cached.iterdir():
            (folder / child.name).symlink_to(child.absolute())
    return header, kind


def identify(header: Header, *, replaced: Collection[str] = ()) -> Kind:
    """Which model a checkpoint is of. Raises ExportError with the reason where it is of none."""
    path, shapes = header.path, header.shapes
    first = shapes.get(_UNET + "input_blocks.0.0.weight")
    kind = kind_of(shapes)
    if first is None or (kind is not None and not kind.option):
        raise ExportError(f"{path}: {_otherwise(shapes)}")
    context = next(
        (s[1] for k, s in shapes.items() if k.endswith("attn2.to_k.weight") and _UNET in k), None
    )
    xl = _UNET + "label_emb.0.0.weight" in shapes
    if _starts(shapes, _REFINER) or (xl and context == 1280):
        raise ExportError(
            f"{path}: an SDXL refiner, which only finishes another model's images: give SDXL's base"
            " model or a model made from it"
        )
    if context is None:
        raise ExportError(
            f"{path}: its UNet takes no text, only an image or a class: give a checkpoint of"
            f" {FAMILIES}"
        )
    if first[1] not in (4, 9):
        what = _CHANNELS.get(first[1], "a model of another kind")
        raise ExportError(
            f"{path}: is {what}, whose UNet takes {first[1]} channels: edgediff feeds 4, or 9 for"
            " inpainting: give a text-to-image or an inpainting model"
        )
    linear = any(
        k.endswith(".1.proj_in.weight") and len(s) == 2
        for k, s in shapes.items()
        if k.startswith(_UNET)
    )
    base = "sdxl" if xl else "sd2" if _starts(shapes, _OPEN_CLIP) or linear else "sd1"
    needed: dict[str, tuple[str, ...]] = {"vae": _VAE}
    if base == "sdxl":
        needed |= {"text_encoder": _CLIP_L[1:], "text_encoder_2": (_OPEN_CLIP_2,)}
    else:
        needed |= {"text_encoder": (*_CLIP_L[:1], _OPEN_CLIP)}
    for component, prefixes in needed.items():
        if component not in replaced and not _starts(shapes, *prefixes):
            flag = "--" + component.replace("_", "-")
            called = {"vae": "VAE", "text_encoder_2": "second text encoder"}.get(
                component, "text encoder"
            )
            raise ExportError(
                f"{path}: holds no {called}: give one with {flag}, a folder or a .safetensors file"
            )
    known: Mapping[tuple[str, int], Kind] = {
        ("sd1", 4): "sd1",
        ("sd1", 9): "sd1-inpaint",
        ("sd2", 4): "sd2",
        ("sd2", 9): "sd2-inpaint",
        ("sdxl", 4): "sdxl",
        ("sdxl", 9): "sdxl-inpaint",
    }
    return known[base, first[1]]


def _otherwise(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The contents of a file that is not a checkpoint."""
    if not shapes:
        return "holds no tensors: download it again"
    kind = kind_of(shapes)
    if kind is None:
        return f"holds no checkpoint of a pipeline (but {min(shapes)}, …): give one of {FAMILIES}"
    if not kind.option:
        return f"is {kind.called}, {kind.why}: give a checkpoint of {FAMILIES}"
    only = " and nothing else" if kind.option in ("--unet", "--vae", "--text-encoder") else ""
    return f"is {kind.called}{only}: give a pipeline as {SOURCE} and this file as {kind.option}"


def _starts(names: Collection[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _cached_configs(kind: Kind) -> Path | None:
    """The folder of a pipeline's configs in the hub's local cache; None unless all of them are
    there."""
    with quiet():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(REPOSITORIES[kind], local_files_only=True))
        except Exception:  # the hub's client raises a dozen unrelated classes
            return None
    encoders = list(TEXT_ENCODERS) if kind.startswith("sdxl") else ["text_encoder"]
    needed = ["model_index.json", "scheduler/scheduler_config.json"]
    needed += [f"{part}/config.json" for part in ("unet", "vae", *encoders)]
    needed += [
        f"{TEXT_ENCODERS[encoder]}/{name}"
        for encoder in encoders
        for name in ("vocab.json", "merges.txt")
    ]
    return folder if all((folder / name).is_file() for name in needed) else None
