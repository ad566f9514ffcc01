"""A component's weights: which files hold them, and the torch module with them."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from edgediff.errors import ExportError, first_line
from edgediff_export.quiet import quiet
from edgediff_export.source.safetensors_file import PICKLES, open_tensors

LARGE = 1.5e9
"""Weights, of which a float32 copy would take 6 GB: SDXL's UNet has 2.6e9."""


def load_weights(folder: Path, cls: Any) -> Any:
    """A component's folder as a torch module of a class of diffusers or transformers, in eval mode:
    in float32, or in the half precision that the file has where there are more than LARGE weights.

    Raises ExportError where weights are missing, damaged or only there as a pickle."""
    variant = find_weights(folder)
    with quiet():
        import torch
        from safetensors import SafetensorError

        try:
            count, stored = _stored(folder, variant)
            large = count > LARGE and stored in ("F16", "BF16")
            half = torch.float16 if stored == "F16" else torch.bfloat16
            module, report = cls.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                torch_dtype=half if large else torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as e:
            raise ExportError(
                f"{folder}: the weights cannot be loaded ({first_line(e)}):"
                " download or save the pipeline again"
            ) from e
    missing = sorted(report["missing_keys"])
    if missing:
        raise ExportError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}:"
            " download or save the pipeline again"
        )
    return module.eval().requires_grad_(False)


def _stored(folder: Path, variant: str | None) -> tuple[int, str]:
    """How many numbers the weights in a component's folder are, and what most of them are stored
    as: "F32", "F16", "BF16"…"""
    from safetensors import safe_open

    counts: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        if (".fp16" in path.name) == (variant == "fp16"):
            with safe_open(path, framework="numpy") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(key)
                    counts[part.get_dtype()] += math.prod(part.get_shape())
    return counts.total(), counts.most_common(1)[0][0]


def load_file_weights(path: Path, module: Any) -> Any:
    """The weights alone of a UNet in a .safetensors file, under diffusers' names → the module with
    them, which came without any, as `load_weights` has it. Raises ExportError."""

    with open_tensors(path, flag="--unet") as tensors:
        weights = {k: tensors.get_tensor(k) for k in tensors.keys()}  # noqa: SIM118
    if sum(tensor.numel() for tensor in weights.values()) <= LARGE:
        weights = {k: tensor.float() for k, tensor in weights.items()}
    wanted = module.state_dict()
    unknown, missing = sorted(weights.keys() - wanted), sorted(wanted.keys() - weights)
    if unknown or missing:
        what = f"holds {unknown[0]}, which" if unknown else f"lacks {missing[0]}, which"
        has = "has not" if unknown else "has"
        raise ExportError(
            f"--unet {path}: {what} this pipeline's UNet {has}: give a UNet of this family under"
            " diffusers' names, or a folder with its config.json"
        )
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as e:
        raise ExportError(
            f"--unet {path}: of another shape than this pipeline's UNet ({first_line(e)}): give a"
            " folder with its config.json"
        ) from e
    return module.eval().requires_grad_(False)


def find_weights(folder: Path) -> str | None:
    """The variant of the safetensors weights in a component's folder: None, or "fp16".

    Raises ExportError where there are none."""
    names = {p.name for p in folder.glob("*")} if folder.is_dir() else set()
    for variant in (None, "fp16"):
        mark = "" if variant is None else f"\\.{variant}"
        pattern = re.compile(
            rf"(diffusion_pytorch_model|model)(\.safetensors\.index{mark}\.json"
            rf"|{mark}(-\d+-of-\d+)?\.safetensors|-\d+-of-\d+{mark}\.safetensors)"
        )
        if any(pattern.fullmatch(name) for name in names):
            return variant
    pickles = sorted(n for n in names if n.endswith(PICKLES))
    if pickles:
        raise ExportError(
            f"{folder / pickles[0]}: a pickle, which can run any code when it is read; edgediff"
            " reads safetensors only: where you trust it, convert it with"
            " DiffusionPipeline.from_pretrained(folder, use_safetensors=False)"
            ".save_pretrained(new_folder)"
        )
    raise ExportError(f"{folder}: holds no weights (*.safetensors): download the pipeline again")
