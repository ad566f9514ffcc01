"""LoRA (Hu et al. 2021, arXiv:2106.09685): low-rank changes of weights, merged before tracing.

W ← W + scale · (alpha / rank) · up · down   (section 4.1)

Files name layers in many ways. Here each layer of the pipeline is written in all of them, and the
file's names are looked up there; so nothing is guessed of a name, and what is not found is counted.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediff.bundle.folder import hash_file
from edgediff.bundle.manifest import MergedLora
from edgediff.errors import ExportError, InputError, first_line
from edgediff_export.source.safetensors_file import open_tensors, split_argument

Layers = Mapping[str, tuple[int, ...]]
"""The layers of a component that a LoRA can change: name → the shape of its weight."""

_PREFIXES = {
    "unet": ("unet.", "", "lora_unet_"),
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
}
# kohya-ss: X.lora_down.weight; PEFT: X.lora_A.weight, with the adapter's name or without; diffusers
# before it: X.lora.down.weight, X_lora.down.weight and X.lora_linear_layer.down.weight.
_DOWN, _UP = (
    re.compile(
        rf"(.+?)(?:\.lora_{short}|\.lora_{letter}(?:\.\w+)?|[._]lora\.{short}"
        rf"|\.lora_linear_layer\.{short})\.weight"
    )
    for short, letter in (("down", "A"), ("up", "B"))
)
# What changes weights by another formula, and would be wrong if it were left out.
_OTHER_KINDS = {
    "DoRA": re.compile(r"dora_scale$|lora_magnitude_vector"),
    "LoHa": re.compile(r"\.hada_"),
    "LoKr": re.compile(r"\.lokr_"),
    "OFT": re.compile(r"\.oft_"),
    "a LoRA with Tucker decomposition": re.compile(r"\.lora_mid\."),
    "a LoRA with biases": re.compile(r"\.lora_B(\.\w+)?\.bias$"),
}
_PEFT_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A .safetensors file, and how much of its change to add: 0 none, 1 all of it."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"--lora {self.path}: SCALE is {self.scale}: give a finite number")


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of one layer: the file's keys of `down` (rank, in, …) and `up` (out, rank, …), and
    alpha / rank."""

    down: str
    up: str
    factor: float


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A LoRA whose layers were found in the pipeline: component → layer → its change.

    `note`: how many were not found, "" where all were."""

    lora: Lora
    changes: Mapping[str, Mapping[str, Change]]
    note: str = ""

    def merge(self, component: str, module: Any) -> None:
        """Add the change to a component's weights, in place; each sum is taken in float32.

        Raises ExportError where it is not finite."""
        import torch

        changes = self.changes.get(component, {})
        if not changes or self.lora.scale == 0:
            return
        with open_tensors(self.lora.path, flag="--lora") as tensors:
            for layer, change in changes.items():
                weight = module.get_submodule(layer).weight
                up, down = (tensors.get_tensor(k).float() for k in (change.up, change.down))
                delta = up.flatten(1) @ down.flatten(1)
                delta *= self.lora.scale * change.factor
                if not torch.isfinite(delta).all():
                    raise ExportError(
                        f"--lora {self.lora.path}: {change.down}: the change is not finite: is the"
                        " file damaged?"
                    )
                with torch.no_grad():
                    weight.copy_(weight.float() + delta.reshape(weight.shape))

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
    """The linear layers and convolutions of a torch module."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {
        name: tuple(child.weight.shape)
        for name, child in module.named_modules()
        if isinstance(child, kinds)
    }


def match(lora: Lora, pipeline: Mapping[str, Layers]) -> Matched:
    """Find the layers that a LoRA changes.

    pipeline: component ("unet", "text_encoder", "text_encoder_2") → its layers.

    Raises ExportError where there is no such file, where it is no LoRA, of another family, or of a
    shape that does not fit."""
    where = f"--lora {lora.path}"
    names = {
        name: (component, layer)
        for component, its in pipeline.items()
        for name, layer in _names(component, its)
    }
    with open_tensors(lora.path, flag="--lora") as tensors:
        keys = sorted(tensors.keys())
        for kind, pattern in _OTHER_KINDS.items():
            found = next((k for k in keys if pattern.search(k)), None)
            if found is not None:
                raise ExportError(f"{where}: {found}: is {kind}, which edgediff cannot merge")
        downs, ups = (
            {m[1]: k for k in keys if (m := pattern.fullmatch(k))} for pattern in (_DOWN, _UP)
        )
        if not downs and not ups:
            example = f" (it holds {keys[0]})" if keys else ""
            raise ExportError(f"{where}: holds no LoRA{example}: give a LoRA's weights")
        lonely = sorted(downs.keys() ^ ups.keys())
        if lonely:
            raise ExportError(
                f"{where}: {lonely[0]}: one of its two matrices is missing: download it again"
            )
        alphas = _Alphas(where, tensors)
        changes: dict[str, dict[str, Change]] = {}
        absent = []
        for name, down in downs.items():
            target = names.get(name.replace(".processor.", "."))
            if target is None:
                absent.append(name)
                continue
            component, layer = target
            inner, outer = (tuple(tensors.get_slice(k).get_shape()) for k in (down, ups[name]))
            _check_shapes(where, name, inner, outer, pipeline[component][layer])
            factor = alphas.factor(name, component, layer, rank=inner[0])
            # A file that names a layer twice, as diffusers does and as the original, means one.
            changes.setdefault(component, {}).setdefault(
                layer, Change(down=down, up=ups[name], factor=factor)
            )
    others = [k for k in keys if not (_DOWN.fullmatch(k) or _UP.fullmatch(k) or _is_alpha(k))]
    if not changes:
        raise ExportError(
            f"{where}: none of its {len(downs)} layers, such as {absent[0]}, is in this pipeline:"
            " give a LoRA that was trained for this family of models"
        )
    return Matched(lora=lora, changes=changes, note=_note(lora, len(downs), absent, others))


def _note(lora: Lora, total: int, absent: Sequence[str], others: Sequence[str]) -> str:
    parts = []
    if absent:
        parts.append(
            f"{total - len(absent)} of its {total} layers were merged; the pipeline lacks the"
            f" others, such as {absent[0]}"
        )
    if others:
        parts.append(f"tensors that are no LoRA were left out ({len(others)}, such as {others[0]})")
    return f"{lora.path.name}: {'; '.join(parts)}" if parts else ""


def _check_shapes(
    where: str, name: str, down: tuple[int, ...], up: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    fits = (
        len(down) >= 2
        and len(up) >= 2
        and up[:2] == (weight[0], down[0])
        and math.prod(up[2:]) == 1
        and down[1] == weight[1]
        and math.prod(down[2:]) == math.prod(weight[2:])
    )
    if not fits:
        raise ExportError(
            f"{where}: {name}: up {up} times down {down} does not fit the pipeline's weight"
            f" {weight}: give a LoRA that was trained for this family of models"
        )


def _is_alpha(key: str) -> bool:
    return key.endswith(".alpha")


class _Alphas:
    """Where a file says alpha: beside the matrices, or in its header as PEFT's configuration."""

    def __init__(self, where: str, tensors: Any) -> None:
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

    def factor(self, name: str, component: str, layer: str, *, rank: int) -> float:
        """alpha / rank, or alpha / √rank where PEFT's configuration asks for it (Kalajdzievski
        2023, arXiv:2312.03732). Without an alpha it is 1."""
        key = f"{name}.alpha"
        if key in self._keys:
            return float(self._tensors.get_tensor(key)) / rank
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
    """All names that files give to layers, without what tells `down` from `up`, each with the layer
    that it means."""
    original = _original_names(layers) if component == "unet" else {}
    for prefix in _PREFIXES[component]:
        for layer in layers:
            if prefix.startswith("lora_"):
                yield prefix + layer.replace(".", "_"), layer
                if layer in original:
                    yield prefix + original[layer].replace(".", "_"), layer
                continue
            yield prefix + layer, layer
            # diffusers before PEFT: to_out_lora, and in text encoders to_q_lora for q_proj.
            if component == "unet":
                yield prefix + layer.removesuffix(".0"), layer
            elif projection := re.fullmatch(r"(.+\.self_attn\.)(q|k|v|out)_proj", layer):
                yield f"{prefix}{projection[1]}to_{projection[2]}", layer


_ORIGINAL_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ORIGINAL_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def _original_names(layers: Collection[str]) -> dict[str, str]:
    """UNet layers → their names in the original code, which numbers the resnets, downsamplers and
    upsamplers of all blocks in one row: "down_blocks.1.attentions.0.proj_in" →
    "input_blocks.4.1.proj_in"."""
    found = {name: _ORIGINAL_LAYERS[name] for name in layers if name in _ORIGINAL_LAYERS}
    split = {name: name.split(".") for name in layers}
    resnets = Counter(
        (p[0], int(p[1])) for p in split.values() if p[2:3] == ["resnets"] and p[4:] == ["conv1"]
    )
    attending = {(p[0], int(p[1])) for p in split.values() if p[2:3] == ["attentions"]}
    for name, (side, *parts) in split.items():
        if side == "mid_block":
            kind, number, *inner = parts
            place = f"middle_block.{2 * int(number) if kind == 'resnets' else 1}"
        elif side in ("down_blocks", "up_blocks"):
            block, (kind, number, *inner) = int(parts[0]), parts[1:]
            before = sum(resnets[side, b] for b in range(block))
            column = int(kind == "attentions")
            if kind == "downsamplers":
                place, inner = f"input_blocks.{before + block + 1 + resnets[side, block]}.0", ["op"]
            elif kind == "upsamplers":
                column = 1 + ((side, block) in attending)
                place = f"output_blocks.{before + resnets[side, block] - 1}.{column}"
            elif side == "down_blocks":
                place = f"input_blocks.{before + block + 1 + int(number)}.{column}"
            else:
                place = f"output_blocks.{before + int(number)}.{column}"
        else:
            continue
        if kind == "resnets":
            inner = [_ORIGINAL_RESNET[inner[0]]]
        found[name] = ".".join([place, *inner])
    return found
