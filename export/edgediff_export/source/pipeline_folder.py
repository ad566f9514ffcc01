"""Folders that are given in the place of a pipeline's: what each is, and what to give instead."""

from collections.abc import Mapping
from pathlib import Path

from edgediff.errors import ExportError
from edgediff_export.source.config_file import read_config
from edgediff_export.source.safetensors_file import PICKLES

_INDEX = "model_index.json"
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "UNet2DConditionModel": ("a UNet", "--unet"),
    "AutoencoderKL": ("a VAE", "--vae"),
    "AutoencoderTiny": ("a VAE", "--vae"),
    "ControlNetModel": ("a control network", "--controlnet"),
    "CLIPTextModel": ("a text encoder", "--text-encoder"),
    "CLIPTextModelWithProjection": ("a text encoder", "--text-encoder-2"),
}
"""Class of a component → its name, and the option that takes it."""


def check_pipeline_folder(source: str, folder: Path) -> None:
    """Refuse a folder that is clearly of another kind than a pipeline. Raises
    ExportError."""
    if (folder / _INDEX).is_file():
        return
    reason = _reason(folder)
    if reason is not None:
        raise ExportError(f"{source or folder}: {reason}")


def component_class(config: Mapping[str, object]) -> str | None:
    """The class of a component by its config.json, as diffusers and transformers write it."""
    named = config.get("_class_name")
    architectures = config.get("architectures")
    if named is None and isinstance(architectures, list) and architectures:
        named = architectures[0]
    return None if named is None else str(named)


def place_of(name: str | None) -> str:
    """Which option takes a component of a class, for messages; "" for none."""
    called, option = _OPTIONS.get(str(name), ("", ""))
    return f": {called} is given as {option}" if option else ""


def _reason(folder: Path) -> str | None:
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if not names:
        return "is empty: download the pipeline again"
    if "bundle.json" in names:
        return f"is a bundle already: run it with edgediff generate --model {folder}"
    inside = sorted(p.parent for p in folder.glob(f"*/{_INDEX}"))
    snapshots = sorted(p.parent for p in folder.glob(f"snapshots/*/{_INDEX}"))
    if snapshots:
        return f"is the hub's cache of a model: give the snapshot in it, {snapshots[-1]}"
    if inside:
        listed = ", ".join(str(p) for p in inside[:3])
        return f"is not a pipeline but holds one: give {listed}"
    parent = Path(folder.resolve().parent)
    if (parent / _INDEX).is_file():
        return f"is one part of a pipeline: give the folder that it lies in, {parent}"
    if "config.json" in names:
        found = component_class(read_config(folder / "config.json"))
        called, option = _OPTIONS.get(str(found), ("", ""))
        if option:
            return f"is {called} and nothing else: give a pipeline as SOURCE and it as {option}"
        return (
            f"is a {found or 'model without _class_name'} and not a pipeline, which has a"
            f" {_INDEX}: give the folder of the whole pipeline"
        )
    return _loose_files(folder, names)


def _loose_files(folder: Path, names: list[str]) -> str | None:
    weights = [name for name in names if name.endswith(".safetensors")]
    if "adapter_config.json" in names or "pytorch_lora_weights.safetensors" in names:
        file = weights[0] if weights else "its .safetensors file"
        return f"holds a LoRA: give a pipeline as SOURCE and {folder / file} as --lora"
    if weights:
        return (
            f"holds loose files and not a pipeline: give one of them, such as {folder / weights[0]}"
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"holds {pickles[0]}, a pickle, which can run any code when it is read; edgediff reads"
            " safetensors only: look for the model in that form"
        )
    stages = (folder, folder / "unet", folder / "vae_decoder")
    if any((stage / "model.onnx").is_file() for stage in stages):
        return "holds ONNX files, which are exported already: give the pipeline of PyTorch weights"
    return None
