"""LoRA (Hu et al. 2021, arXiv:2106.09685) and its kin: changes of weights, merged before tracing.

W ← W + scale · (alpha / rank) · up · down   (section 4.1)

Files name layers in many ways. Here each layer of the pipeline is written in all of them, and the
file's names are looked up there; so no name is guessed, and names that are not found are counted.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgediff.bundle.folder import hash_file
from edgediff.bundle.manifest import MergedLora
from edgediff.errors import ExportError, InputError, first_line
from edgediff_export.source.config_file import read_config
from edgediff_export.source.few_steps import find_few_steps
from edgediff_export.source.file_kinds import lora_of_another, misplaced
from edgediff_export.source.lora_forms import (
    OTHER_KINDS,
    Change,
    find_role,
    fits,
    is_of_rows,
    lacking,
    rank_of,
    rivals,
)
from edgediff_export.source.origin import origin
from edgediff_export.source.original_names import unet_names
from edgediff_export.source.safetensors_file import open_tensors, read_header, split_argument
from edgediff_export.source.statements import Statements, read_statements

Layers = Mapping[str, tuple[int, ...]]
"""The layers of a component that a LoRA can change: name → the shape of its weight, and
name.bias → that of its bias."""

_PREFIXES = {
    "unet": (
        *("unet.", "", "lora_unet_", "lycoris_", "lycoris_unet_", "diffusion_model."),
        *("model.diffusion_model.", "base_model.model.", "base_model.model.unet."),
        "unet.base_model.model.",
    ),
    "text_encoder": (
        *("text_encoder.", "lora_te_", "lora_te1_", "text_encoders.clip_l.transformer."),
        *("text_encoder.base_model.model.", "base_model.model.text_encoder.", "base_model.model."),
        *("text_encoders.clip_l.", "text_encoders.clip_h.", "text_encoders.clip_h.transformer."),
        *("lycoris_", "lycoris_te_", "lycoris_te1_", "lycoris_text_encoder_"),
        "cond_stage_model.transformer.",
    ),
    "text_encoder_2": (
        *("text_encoder_2.", "lora_te2_", "text_encoders.clip_g.transformer."),
        *("text_encoders.clip_g.", "lycoris_te2_", "lycoris_text_encoder_2_"),
        *("text_encoder_2.base_model.model.", "base_model.model.text_encoder_2."),
    ),
}
_PEFT_METADATA = "lora_adapter_metadata"
_PEFT_FILE = "adapter_config.json"
_LISTED = 5
"""How many layers that cannot be merged an error names."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A .safetensors file, and how much of its change to add: 0 none, 1 all of it."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"--lora {self.path}: SCALE is {self.scale}: give a finite number")


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A LoRA whose layers were found in the pipeline: component → layer → its change.

    `note`: the tensors left out, and an unusual model that it was trained for; "" if neither.
    `names`: all names that it goes by."""

    lora: Lora
    changes: Mapping[str, Mapping[str, Change]]
    note: str = ""
    names: tuple[str, ...] = ()

    @property
    def few_steps(self) -> bool:
        """Whether its names say that it makes a model one of few steps, if any of it is added."""
        return self.lora.scale != 0 and find_few_steps(self.names, lora=True) is not None

    def merge(self, component: str, module: Any) -> None:
        """Add the change to a component's weights, in place; each sum is taken in float32.

        Raises ExportError if it is not finite."""
        import torch

        changes = self.changes.get(component, {})
        if not changes or self.lora.scale == 0:
            return
        with open_tensors(self.lora.path, flag="--lora") as tensors, torch.no_grad():
            for layer, change in changes.items():
                its = module.get_submodule(layer)
                if change.changes_weight:
                    self._add(its.weight, change.weight_delta(tensors), change, tensors)
                if change.changes_bias:
                    self._add(its.bias, change.bias_delta(tensors), change)

    def _add(self, weight: Any, delta: Any, change: Change, tensors: Any = None) -> None:
        import torch

        delta = (delta * self.lora.scale).reshape(weight.shape)
        if tensors is None:
            changed = weight.float() + delta
        else:
            changed = change.decomposed(weight.float(), delta, tensors)
        if not torch.isfinite(changed).all():
            raise ExportError(
                f"--lora {self.lora.path}: {min(change.keys.values())}: the change is not finite:"
                " download it again"
            )
        weight.copy_(changed)

    def record(self) -> MergedLora:
        """What bundle.json says of it."""
        path = self.lora.path
        return MergedLora(file=path.name, scale=self.lora.scale, sha256=hash_file(path))


def parse_lora(text: str) -> Lora:
    """FILE[:SCALE] as the command line has it. Raises InputError."""
    path, scale = split_argument(text)
    if scale is None:
        return Lora(path=path)
    try:
        return Lora(path=path, scale=float(scale))
    except ValueError as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"--lora {text}: SCALE is {scale!r}: give a number, such as 0.8") from e


def layers(module: Any) -> dict[str, tuple[int, ...]]:
    """The linear layers, convolutions and norms of a torch module, and their biases."""
    import torch

    nn = torch.nn
    found: dict[str, tuple[int, ...]] = {}
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
            for key, parameter in ((name, child.weight), (f"{name}.bias", child.bias)):
                if parameter is not None:
                    found[key] = tuple(parameter.shape)
    return found


def match(lora: Lora, pipeline: Mapping[str, Layers], *, allow_partial: bool = False) -> Matched:
    """Find the layers that a LoRA changes.

    pipeline: component ("unet", "text_encoder", "text_encoder_2") → its layers.
    allow_partial: whether to leave out what cannot be merged, which `Matched.note` then names.

    Raises ExportError if there is no such file, or if it is not a LoRA, of another family, of a
    shape that does not fit, or holds a change that cannot be merged."""
    where = f"--lora {lora.path}"
    names = {
        name: (component, layer)
        for component, its in pipeline.items()
        for name, layer in _names(component, [n for n in its if not n.endswith(".bias")])
    }
    header = read_header(lora.path, flag="--lora")
    shapes, keys = header.shapes, sorted(header.shapes)
    for kind, pattern in OTHER_KINDS.items():
        found = next((k for k in keys if pattern.search(k)), None)
        if found is not None:
            raise ExportError(
                f"{where}: {found}: is {kind}, which edgediff cannot merge: give a LoRA, LoHa, LoKr"
                " or DoRA"
            )
    grouped: dict[str, dict[str, str]] = {}
    others = []
    for key in keys:
        role = find_role(key)
        if role is not None:
            grouped.setdefault(role[1], {})[role[0]] = key
        else:
            others.append(key)
    others = [k for k in others if not (_is_alpha(k) and k.removesuffix(".alpha") in grouped)]
    if not grouped:
        example = f" (it holds {keys[0]})" if keys else ""
        what = misplaced(shapes, "a LoRA") if keys else None
        raise ExportError(f"{where}: {what or f'holds no LoRA{example}: give a LoRA'}")
    another = lora_of_another(shapes, pipeline.get("unet", {}))
    if another is not None:
        raise ExportError(f"{where}: {another}: give a LoRA of this pipeline's family")
    lonely = next((name for name, roles in grouped.items() if lacking(roles)), None)
    if lonely is not None:
        raise ExportError(
            f"{where}: {lonely}: one of its two matrices is missing: download it again"
        )
    changes: dict[str, dict[str, Change]] = {}
    absent = []
    with open_tensors(lora.path, flag="--lora") as tensors:
        alphas = _Alphas(where, tensors, lora.path.parent / _PEFT_FILE)
        for name, roles in grouped.items():
            target = names.get(name.replace(".processor.", "."))
            if target is None:
                absent.append(name)
                continue
            component, layer = target
            its = pipeline[component]
            change = Change(keys=roles)
            if change.changes_bias and f"{layer}.bias" not in its:
                absent.append(next(roles[r] for r in roles if r in ("up_bias", "diff_b", "b_norm")))
                continue
            rank = rank_of(roles, shapes)
            _check_shapes(where, name, roles, shapes, its, layer)
            if rank is not None:
                # A layer that was resized to rank 0 has matrices without values.
                factor = alphas.factor(name, component, layer, rank=rank) if rank else 0.0
                change = Change(keys=roles, factor=factor)
            # A file that names a layer twice, as diffusers does and as the original, means one.
            known = changes.setdefault(component, {}).setdefault(layer, change)
            if known is not change:
                both = change if rank_of(known.keys, shapes) is None else known
                both = replace(both, keys={**change.keys, **known.keys})
                _check_shapes(where, name, both.keys, shapes, its, layer)
                changes[component][layer] = both
    if not changes:
        raise ExportError(
            f"{where}: none of its {len(grouped)} layers, such as {absent[0]}, is in this pipeline:"
            " give a LoRA that was trained for this family of models"
        )
    left_out = [*absent, *others]
    if left_out and not allow_partial:
        listed = ", ".join(left_out[:_LISTED])
        more = f" and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
        raise ExportError(
            f"{where}: {len(left_out)} of its {len(grouped) + len(others)} changes cannot be merged"
            f" into this pipeline: {listed}{more}: give a LoRA that was trained for this model, or"
            " --allow-partial to merge the rest"
        )
    statements = read_statements(header)
    return Matched(
        lora=lora,
        changes=changes,
        note=_note(lora, len(grouped), absent, others, statements),
        names=(*origin(lora.path).names, *statements.names),
    )


def _note(
    lora: Lora,
    total: int,
    absent: Sequence[str],
    others: Sequence[str],
    statements: Statements,
) -> str:
    parts = []
    if absent:
        parts.append(
            f"{total - len(absent)} of its {total} layers were merged; the pipeline lacks the"
            f" others, such as {absent[0]}"
        )
    if others:
        parts.append(
            f"tensors that change no layer were left out ({len(others)}, such as {others[0]})"
        )
    # Trainers write "epsilon" into most files, but these only where it holds.
    unusual = {
        "prediction_type": statements.prediction_type == "v_prediction",
        "zero_terminal_snr": statements.zero_terminal_snr,
    }
    if words := [statements.why[field] for field, holds in unusual.items() if holds]:
        parts.append(
            f"was trained for a model that {' and '.join(words)}: merge it only into such a model"
        )
    return f"{lora.path.name}: {'; '.join(parts)}" if parts else ""


def _check_shapes(
    where: str,
    name: str,
    roles: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    its: Layers,
    layer: str,
) -> None:
    two = rivals(roles)
    if two is not None:
        raise ExportError(
            f"{where}: {two[0]} and {two[1]} change the same weights in two ways: give a LoRA with"
            " one of them"
        )
    weight = its[layer]
    if not fits(roles, shapes, weight):
        if "down" in roles:
            what = f"up {shapes[roles['up']]} times down {shapes[roles['down']]}"
        else:
            matrices = sorted(r for r in roles if r.startswith(("hada_", "lokr_", "diff", "w_n")))
            what = " with ".join(f"{r} {shapes[roles[r]]}" for r in matrices if r != "diff_b")
        raise ExportError(
            f"{where}: {name}: {what} does not fit the pipeline's weight {weight}: give a LoRA that"
            " was trained for this family of models"
        )
    magnitude = roles.get("magnitude")
    if magnitude is not None and is_of_rows(magnitude, shapes[magnitude], weight) is None:
        raise ExportError(
            f"{where}: {magnitude}: {shapes[magnitude]} does not fit the pipeline's weight"
            f" {weight}: give a LoRA that was trained for this family of models"
        )
    for role in ("up_bias", "diff_b", "b_norm"):
        if role in roles and shapes[roles[role]] != its[f"{layer}.bias"]:
            raise ExportError(
                f"{where}: {roles[role]}: {shapes[roles[role]]} does not fit the pipeline's bias"
                f" {its[f'{layer}.bias']}: give a LoRA that was trained for this family of models"
            )


def _is_alpha(key: str) -> bool:
    return key.endswith(".alpha")


class _Alphas:
    """Where a file says alpha: beside the matrices, or as PEFT's configuration, in its header or in
    a file beside it."""

    def __init__(self, where: str, tensors: Any, beside: Path) -> None:
        self._where = where
        self._tensors = tensors
        self._keys = set(tensors.keys())
        try:
            config = json.loads((tensors.metadata() or {}).get(_PEFT_METADATA, "{}"))
        except ValueError as e:
            raise ExportError(
                f"{where}: {_PEFT_METADATA} in its header is not JSON ({first_line(e)})"
            ) from e
        self._config: dict[str, Any] = config if isinstance(config, dict) else {}
        # diffusers' own files, "unet.…", carry their configuration in the header only.
        peft = any(
            re.search(r"\.lora_A(\.\w+)?\.weight$", k) and not k.startswith(("unet.", "text_enc"))
            for k in self._keys
        )
        if not self._config and peft and beside.is_file():
            self._config = read_config(beside)

    def factor(self, name: str, component: str, layer: str, *, rank: int) -> float:
        """alpha / rank, or alpha / √rank where PEFT's configuration asks for it (Kalajdzievski
        2023, arXiv:2312.03732). Without an alpha it is 1."""
        key = f"{name}.alpha"
        if key in self._keys:
            alpha = self._tensors.get_tensor(key)
            if alpha.numel() != 1:
                raise ExportError(
                    f"{self._where}: {key}: has the shape {tuple(alpha.shape)}, and must hold one"
                    " number: download it again"
                )
            return float(alpha) / rank
        prefix = f"{component}." if f"{component}.lora_alpha" in self._config else ""
        alpha = self._config.get(f"{prefix}lora_alpha")
        if alpha is None:
            return 1.0
        for pattern, its in (self._config.get(f"{prefix}alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                alpha = its
                break
        root = self._config.get(f"{prefix}use_rslora")
        return float(alpha) / (math.sqrt(rank) if root else rank)


def _names(component: str, layers: Collection[str]) -> Iterator[tuple[str, str]]:
    """All names that files give to layers, without the part that distinguishes `down` from `up`,
    each with the layer that it means."""
    original = unet_names(layers) if component == "unet" else {}
    for prefix in _PREFIXES[component]:
        for layer in layers:
            spelled = [layer, *([original[layer]] if layer in original else [])]
            if component != "unet":
                spelled.append(layer.removeprefix("text_model."))
            if prefix.endswith("_"):
                for name in spelled:
                    yield prefix + name.replace(".", "_"), layer
                continue
            for name in spelled:
                yield prefix + name, layer
            # diffusers before PEFT: to_out_lora, and in text encoders to_q_lora for q_proj.
            if component == "unet":
                yield prefix + layer.removesuffix(".0"), layer
            elif projection := re.fullmatch(r"(.+\.self_attn\.)(q|k|v|out)_proj", layer):
                yield f"{prefix}{projection[1]}to_{projection[2]}", layer
