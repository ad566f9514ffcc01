"""A component's weights: which files hold them, under which names, and the module with them."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgediff.errors import ExportError, first_line
from edgediff_export.quiet import quiet
from edgediff_export.source.configs import PRUNED, REPOSITORIES, Kind
from edgediff_export.source.file_kinds import kind_of, misplaced
from edgediff_export.source.original_names import (
    controlnet_names,
    old_vae_names,
    unet_names,
    vae_names,
)
from edgediff_export.source.safetensors_file import (
    PICKLES,
    check_content,
    open_tensors,
)
from edgediff_export.source.statements import MARKERS

LARGE = 1.5e9
"""Weights, of which a float32 copy would take 6 GB: SDXL's UNet has 2.6e9."""
_HALF = ("F16", "BF16")
_STEM = r"(?:diffusion_pytorch_model|model)"
_WEIGHTS_FILE = rf"{_STEM}(?:\.([\w-]+?))?(?:-\d+-of-\d+)?(?:(?<=\d)\.([\w-]+))?\.safetensors"
"""A file of weights: NAME, NAME.variant, NAME-1-of-2, NAME.variant-1-of-2, NAME-1-of-2.variant."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a component's weights in its folder. variant: None, or "fp16", "bf16"…"""

    paths: tuple[Path, ...]
    variant: str | None


def load_weights(folder: Path, cls: Any) -> Any:
    """A component's folder as a torch module of a class of diffusers or transformers, in eval mode:
    in float32, or in the half precision that the file has where there are more than LARGE weights.

    Raises ExportError if weights are missing, damaged or only there as a pickle."""
    files = find_weights(folder)
    with quiet():
        import torch
        from safetensors import SafetensorError

        try:
            count, stored = _stored(files.paths)
            large = count > LARGE and stored in _HALF
            half = torch.float16 if stored == "F16" else torch.bfloat16
            module, report = cls.from_pretrained(
                folder,
                variant=files.variant,
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


def _stored(paths: Iterable[Path]) -> tuple[int, str]:
    """How many numbers the weights in files are, and what most of them are stored as: "F32",
    "F16", "BF16"…"""
    from safetensors import safe_open

    counts: Counter[str] = Counter()
    for path in paths:
        with safe_open(path, framework="numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(key)
                counts[part.get_dtype()] += math.prod(part.get_shape())
    return counts.total(), counts.most_common(1)[0][0]


def find_weights(folder: Path) -> Files:
    """The safetensors files that a component is loaded from: whole or in pieces, the plain ones
    before variants, of these fp16 and bf16 first. Others in the folder are never opened.

    Raises ExportError if there are none, or where a piece is missing."""
    names = sorted(p.name for p in folder.glob("*")) if folder.is_dir() else []
    variant, chosen = choose_weights(names, str(folder))
    for name in chosen:
        check_content(folder / name, str(folder / name))
    return Files(paths=tuple(folder / name for name in chosen), variant=variant)


def choose_weights(names: Sequence[str], where: str) -> tuple[str | None, list[str]]:
    """The files that `find_weights` takes, of all in a folder → their variant and their names.

    where: the folder, for messages. Raises ExportError as `find_weights`."""
    found: dict[str | None, list[str]] = {}
    for name in names:
        if m := re.fullmatch(_WEIGHTS_FILE, name):
            found.setdefault(m[1] or m[2], []).append(name)
        elif m := re.fullmatch(rf"{_STEM}\.safetensors\.index(?:\.([\w-]+))?\.json", name):
            found.setdefault(m[1], [])
    first: list[str | None] = [v for v in (None, "fp16", "bf16") if v in found]
    order = [*first, *sorted(v for v in found if v is not None and v not in first)]
    if order:
        return order[0], _whole(where, found[order[0]])
    pickles = sorted(n for n in names if n.endswith(PICKLES))
    if pickles:
        raise ExportError(
            f"{where}/{pickles[0]}: a pickle, which can run any code when it is read; edgediff"
            " reads safetensors only: if you trust it, convert it with"
            " DiffusionPipeline.from_pretrained(folder, use_safetensors=False)"
            ".save_pretrained(new_folder)"
        )
    raise ExportError(f"{where}: holds no weights (*.safetensors): download the pipeline again")


def _whole(where: str, names: list[str]) -> list[str]:
    """The files that are to be opened: the whole one if pieces lie beside it."""
    pieces = {n: m for n in names if (m := re.search(r"-(\d+)-of-(\d+)", n))}
    whole = [n for n in names if n not in pieces]
    chosen = whole or names
    if not whole:
        total = max((int(m[2]) for m in pieces.values()), default=0)
        there = {int(m[1]) for m in pieces.values()}
        absent = next((i for i in range(1, total + 1) if i not in there), None)
        if absent is not None or not pieces:
            raise ExportError(
                f"{where}: piece {absent or 1} of {total or 'its weights'} is missing:"
                " download the pipeline again"
            )
    return chosen


# Single files


class Place(NamedTuple):
    """Where a file has a weight: the tensor's name, and the rows of it if several share one."""

    key: str
    rows: tuple[int, int] | None = None
    transposed: bool = False


_Style = Callable[[Collection[str]], Mapping[str, str]]
_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": ("", "model.diffusion_model.", "diffusion_model.", "unet.", "model."),
    "vae": ("", "first_stage_model.", "vae."),
    "text_encoder": (
        *("", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."),
        *("text_encoders.clip_l.transformer.", "text_encoder.", "cond_stage_model.model."),
    ),
    "text_encoder_2": (
        *("", "conditioner.embedders.1.model.", "conditioner.embedders.1.transformer."),
        *("text_encoders.clip_g.transformer.", "text_encoder_2."),
    ),
    "controlnet": ("", "control_model.", "controlnet."),
}
_STYLES: Mapping[str, tuple[_Style, ...]] = {
    "unet": (lambda names: {n: n for n in names}, unet_names),
    "vae": (lambda names: {n: n for n in names}, vae_names, old_vae_names),
    "controlnet": (lambda names: {n: n for n in names}, controlnet_names),
}
_CALLED = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "controlnet": "control network",
}
_WANTED = {
    "unet": "a UNet",
    "vae": "a VAE",
    "text_encoder": "a text encoder",
    "text_encoder_2": "a text encoder",
    "controlnet": "a control network",
}


def load_file_weights(
    path: Path, component: str, module: Any, *, flag: str = "", kind: Kind | None = None
) -> Any:
    """The weights of a component in a .safetensors file → the module with them, which came without
    any, as `load_weights` has it.

    The file may be of this component only, or a checkpoint of the whole pipeline, under
    diffusers' names, transformers', or those of the original code.

    flag: the option that named the file, or "". kind: the model that a checkpoint was taken for.
    Raises ExportError."""
    where = f"{flag} {path}" if flag else str(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    with open_tensors(path, flag=flag) as tensors:
        keys = set(tensors.keys())
        scaled = next((k for k in keys if k.endswith(("scaled_fp8", ".scale_weight"))), None)
        if scaled is not None:
            raise ExportError(
                f"{where}: {scaled}: its weights are float8 with scales: give the float16 file"
            )
        places, prefix = _locate(component, wanted, keys)
        shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in keys}
        held = kind_of(shapes)
        there = [place.key in keys for place in places.values()]
        foreign = held is not None and not held.option
        # A model of another kind may have a whole text encoder or VAE of this one.
        whole = all(there) and component not in ("unet", "controlnet")
        if (foreign and not whole) or not any(there):
            what = misplaced(shapes, _WANTED[component])
            if what is not None:
                raise ExportError(f"{where}: {what}")
        _check_complete(where, component, wanted, keys, places, prefix, None if flag else kind)
        weights = {name: _take(tensors, places[name], shape) for name, shape in wanted.items()}
    import torch

    count = sum(tensor.numel() for tensor in weights.values())
    halves = {torch.float16, torch.bfloat16}
    keep = count > LARGE and {t.dtype for t in weights.values()} <= halves
    if not keep:
        to = torch.float32 if count <= LARGE else torch.bfloat16
        weights = {k: tensor.to(to) for k, tensor in weights.items()}
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as e:
        called = _CALLED[component]
        if kind is None or flag:
            raise ExportError(
                f"{where}: of another shape than this pipeline's {called} ({_reason(e)}): give a"
                " folder with its config.json"
            ) from e
        raise ExportError(
            f"{where}: its {called} is of another shape ({_reason(e)}) than that of"
            f" {REPOSITORIES[kind]}: {_needs(kind, component)}"
        ) from e
    for name, buffer in module.named_buffers():
        if buffer.is_meta and name.endswith("position_ids"):  # 0, 1, 2…, never in a file
            owner, _, own = name.rpartition(".")
            ids = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            module.get_submodule(owner).register_buffer(own, ids, persistent=False)
    return module.eval().requires_grad_(False)


def _reason(e: RuntimeError) -> str:
    """torch's own line for the first weight that does not fit."""
    lines = [line.strip() for line in str(e).splitlines()]
    return next((line for line in lines if line.startswith("size mismatch")), first_line(e))[:200]


def _locate(
    component: str, wanted: Mapping[str, tuple[int, ...]], keys: Collection[str]
) -> tuple[dict[str, Place], str]:
    """Weight → where the file has it, under the names by which it has the most of them."""
    candidates = []
    for prefix in _PREFIXES[component]:
        if component in _STYLES:
            layers = {name.rpartition(".")[0] for name in wanted}
            for style in _STYLES[component]:
                names = style(layers)
                places = {}
                for name in wanted:
                    layer, _, end = name.rpartition(".")
                    places[name] = Place(f"{prefix}{names.get(layer, layer)}.{end}")
                candidates.append((places, prefix))
        else:
            candidates += [
                ({name: Place(prefix + name) for name in wanted}, prefix),
                ({n: Place(prefix + n.removeprefix("text_model.")) for n in wanted}, prefix),
                ({n: _open_clip(n, shape, prefix) for n, shape in wanted.items()}, prefix),
            ]
    return max(candidates, key=lambda c: sum(p.key in keys for p in c[0].values()))


_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}


def _open_clip(name: str, shape: tuple[int, ...], prefix: str) -> Place:
    """transformers' name of a CLIP text encoder's weight → where open_clip has it, which keeps
    queries, keys and values in one matrix and the projection transposed."""
    inner = name.removeprefix("text_model.")
    if inner in _OPEN_CLIP_ENDS:
        return Place(prefix + _OPEN_CLIP_ENDS[inner], transposed=inner.startswith("text_proj"))
    if m := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", inner):
        block = f"{prefix}transformer.resblocks.{m[1]}."
        if m[2] in _OPEN_CLIP_LAYER:
            return Place(f"{block}{_OPEN_CLIP_LAYER[m[2]]}.{m[3]}")
        if q := re.fullmatch(r"self_attn\.([qkv])_proj", m[2]):
            first = "qkv".index(q[1]) * shape[0]
            return Place(f"{block}attn.in_proj_{m[3]}", rows=(first, first + shape[0]))
    return Place(prefix + name)


def _check_complete(
    where: str,
    component: str,
    wanted: Mapping[str, Any],
    keys: Collection[str],
    places: Mapping[str, Place],
    prefix: str,
    kind: Kind | None,
) -> None:
    """Refuse a file that lacks a weight, or holds one of this component that would be left out.

    kind: of a checkpoint, whose configs come from elsewhere."""
    used = {place.key for place in places.values()}
    missing = sorted(name for name in wanted if places[name].key not in keys)
    unknown = []
    if component in ("unet", "controlnet"):
        unknown = sorted(k for k in set(keys) - used if k.startswith(prefix) and k not in MARKERS)
        if prefix == "" and any(k.startswith("model_ema.") for k in keys):
            unknown = [k for k in unknown if not k.startswith("model_ema.")]
    if not unknown and not missing:
        return
    called = _CALLED[component]
    if len(missing) == len(wanted):
        what = f"holds no {called} ({min(keys)}, …)" if keys else "holds nothing"
        raise ExportError(f"{where}: {what}: give a .safetensors file of a {called}")
    what = f"holds {unknown[0]}, which" if unknown else f"lacks {missing[0]}, which"
    has = "has not" if unknown else "has"
    if kind is None:
        raise ExportError(
            f"{where}: {what} this pipeline's {called} {has}: give a {called} of this family under"
            " diffusers' names, or a folder with its config.json"
        )
    raise ExportError(
        f"{where}: {what} a {called} of this kind {has} ({REPOSITORIES[kind]}):"
        f" {_needs(kind, component)}"
    )


def _needs(kind: Kind, component: str) -> str:
    """The remedy for a checkpoint that is not of the kind that it looks like."""
    others = f", such as {PRUNED[kind]}" if kind in PRUNED else ""
    flag = "--" + component.replace("_", "-")
    return (
        f"it needs the configs of the repository that it was published in{others}: give that, or"
        f" its folder, as SOURCE and this file as {flag}"
    )


def _take(tensors: Any, place: Place, shape: tuple[int, ...]) -> Any:
    """A weight as the module has it: a 1×1 convolution may be a matrix in the file, or the other
    way round."""
    tensor = tensors.get_tensor(place.key)
    if place.rows is not None:
        tensor = tensor[slice(*place.rows)]
    if place.transposed:
        tensor = tensor.T.contiguous()
    given = tuple(tensor.shape)
    if given != shape and _squeezed(given) == _squeezed(shape):
        tensor = tensor.reshape(shape)
    return tensor


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones at its end."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
