"""Single-file checkpoints of small pipelines, under the names of the original code."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgediff_export.source import configs, single_file
from edgediff_export.source.original_names import unet_names, vae_names
from safetensors.torch import load_file

State = dict[str, torch.Tensor]


def _component(folder: Path, name: str) -> State:
    (path,) = (folder / name).glob("*.safetensors")
    return load_file(path)


def _renamed(state: State, names: Callable[..., dict[str, str]], prefix: str) -> State:
    found = names({key.rpartition(".")[0] for key in state})
    renamed = {}
    for key, tensor in state.items():
        layer, _, end = key.rpartition(".")
        renamed[f"{prefix}{found.get(layer, layer)}.{end}"] = tensor
    return renamed


def _convolutions(state: State) -> State:
    """The VAE's attention is made of 1×1 convolutions in the original."""
    return {
        k: v[:, :, None, None].contiguous() if ".mid.attn_1." in k and v.ndim == 2 else v
        for k, v in state.items()
    }


def _open_clip(state: State, prefix: str) -> State:
    layer = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    made: State = {}
    joined: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        inner = key.removeprefix("text_model.")
        if inner == "embeddings.token_embedding.weight":
            made["token_embedding.weight"] = tensor
        elif inner == "embeddings.position_embedding.weight":
            made["positional_embedding"] = tensor
        elif inner.startswith("final_layer_norm."):
            made[f"ln_final.{inner.rpartition('.')[2]}"] = tensor
        elif inner == "text_projection.weight":
            made["text_projection"] = tensor.T.contiguous()
        else:
            number, rest = inner.removeprefix("encoder.layers.").split(".", 1)
            name, _, end = rest.rpartition(".")
            block = f"transformer.resblocks.{number}."
            if name in layer:
                made[f"{block}{layer[name]}.{end}"] = tensor
            else:
                joined.setdefault(f"{block}attn.in_proj_{end}", {})[name[10]] = tensor
    made |= {key: torch.cat([parts[c] for c in "qkv"]) for key, parts in joined.items()}
    return {prefix + key: tensor for key, tensor in made.items()}


def checkpoint(folder: Path, *leave_out: str) -> State:
    """A pipeline's folder → the tensors of a checkpoint, without some components."""
    state: State = {}
    if "unet" not in leave_out:
        unet = _component(folder, "unet")
        state |= _renamed(unet, unet_names, "model.diffusion_model.")
    if "vae" not in leave_out:
        vae = _renamed(_component(folder, "vae"), vae_names, "first_stage_model.")
        state |= _convolutions(vae)
    two = (folder / "text_encoder_2").is_dir()
    if "text_encoder" not in leave_out:
        prefix = "conditioner.embedders.0" if two else "cond_stage_model"
        text = _component(folder, "text_encoder")
        state |= {f"{prefix}.transformer.{key}": tensor for key, tensor in text.items()}
    if two and "text_encoder_2" not in leave_out:
        text = _component(folder, "text_encoder_2")
        state |= _open_clip(text, "conditioner.embedders.1.model.")
    return state


@pytest.fixture(scope="session", name="checkpoint")
def _checkpoint() -> Callable[..., State]:
    return checkpoint


@pytest.fixture
def small_configs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """(a small pipeline's folder) → its configs are those of every kind of checkpoint from now on,
    as if the hub's cache had them."""

    def use(folder: Path) -> None:
        def copy(_: Any) -> Path:
            return folder

        monkeypatch.setattr(single_file, "_cached_configs", copy)

    return use


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[configs.Kind], Path]:
    """Kind → the folder of the configs that edgediff ships, with an empty hub cache."""
    monkeypatch.setattr(single_file, "_cached_configs", lambda _: None)

    def write(kind: configs.Kind) -> Path:
        folder = tmp_path / f"shipped-{kind}"
        shutil.rmtree(folder, ignore_errors=True)
        return configs.write_configs(kind, folder)

    return write
