"""Merged LoRAs against diffusers' `load_lora_weights` and `fuse_lora`, which peft carries out.

Each way to name layers is written out here from diffusers' own names, for every layer that such
files hold, and read by both sides.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from edgediff_export.lora import Lora
from edgediff_export.sources import open_source
from safetensors.torch import save_file

pytestmark = [  # of diffusers, transformers and peft themselves
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

RANK = 4
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def their(small_pipeline: Callable[[str], Path]) -> Callable[[str], Any]:
    """Shape → the diffusers pipeline, loaded anew."""

    def load(shape: str) -> Any:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            small_pipeline(shape), safety_checker=None, local_files_only=True
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def targets(module: Any, words: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Layer → weight of the layers whose names end in one of `words`."""
    return {
        name: child.weight
        for name, child in module.named_modules()
        if isinstance(child, torch.nn.Linear | torch.nn.Conv2d) and name.endswith(words)
    }


def matrices(weight: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) of a layer, as kohya-ss and PEFT shape them."""
    down = torch.randn((RANK, *weight.shape[1:]), generator=generator)
    up = torch.randn((len(weight), RANK, *(1,) * (weight.ndim - 2)), generator=generator)
    return 0.1 * down, 0.1 * up


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
EVERYTHING = (
    *ATTENTION,
    *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv"),
    *("upsamplers.0.conv", "conv_in", "conv_out", "time_embedding.linear_1"),
)


def kohya(pipe: Any, *, text: str = "lora_te_", alpha: float | None = 3.0) -> State:
    """Underscores for dots, down, up and alpha; convolutions as LoCon has them."""
    generator = torch.Generator().manual_seed(1)
    state: State = {}
    found = {f"lora_unet_{n}": w for n, w in targets(pipe.unet, EVERYTHING).items()}
    words = (*TEXT_ATTENTION, "fc1", "fc2")
    found |= {f"{text}{n}": w for n, w in targets(pipe.text_encoder, words).items()}
    for name, weight in found.items():
        key = name.replace(".", "_")
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = matrices(
            weight, generator
        )
        if alpha is not None:
            state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


def peft(pipe: Any) -> State:
    """unet.X.lora_A.weight, as diffusers writes since PEFT."""
    generator = torch.Generator().manual_seed(2)
    state: State = {}
    found = {f"unet.{n}": w for n, w in targets(pipe.unet, EVERYTHING).items()}
    words = (*TEXT_ATTENTION, "fc1", "fc2")
    found |= {f"text_encoder.{n}": w for n, w in targets(pipe.text_encoder, words).items()}
    for name, weight in found.items():
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = matrices(weight, generator)
    return state


def processors(pipe: Any) -> State:
    """unet.X.attn1.processor.to_q_lora.down.weight, as diffusers wrote at first."""
    generator = torch.Generator().manual_seed(3)
    state: State = {}
    for name, weight in targets(pipe.unet, ATTENTION).items():
        parent, _, leaf = name.removesuffix(".0").rpartition(".")
        key = f"unet.{parent}.processor.{leaf}_lora"
        state[f"{key}.down.weight"], state[f"{key}.up.weight"] = matrices(weight, generator)
    for name, weight in targets(pipe.text_encoder, TEXT_ATTENTION).items():
        parent, _, leaf = name.rpartition(".")
        key = f"text_encoder.{parent}.to_{leaf.removesuffix('_proj')}_lora"
        state[f"{key}.down.weight"], state[f"{key}.up.weight"] = matrices(weight, generator)
    return state


def dotted(pipe: Any) -> State:
    """unet.X.to_q.lora.down.weight and text_encoder.X.lora_linear_layer.down.weight."""
    generator = torch.Generator().manual_seed(4)
    state: State = {}
    for name, weight in targets(pipe.unet, ATTENTION).items():
        key = f"unet.{name}.lora"
        state[f"{key}.down.weight"], state[f"{key}.up.weight"] = matrices(weight, generator)
    for name, weight in targets(pipe.text_encoder, TEXT_ATTENTION).items():
        key = f"text_encoder.{name}.lora_linear_layer"
        state[f"{key}.down.weight"], state[f"{key}.up.weight"] = matrices(weight, generator)
    return state


FORMS: dict[str, Callable[[Any], State]] = {
    "kohya": kohya,
    "kohya-te1": lambda pipe: kohya(pipe, text="lora_te1_"),
    "kohya-without-alpha": lambda pipe: kohya(pipe, alpha=None),
    "peft": peft,
    "processors": processors,
    "dotted": dotted,
}


def fused(pipe: Any, *loras: Lora) -> Any:
    """The same pipeline with LoRAs fused by diffusers."""
    for lora in loras:
        name = lora.path.stem
        pipe.load_lora_weights(lora.path.parent, weight_name=lora.path.name, adapter_name=name)
        pipe.fuse_lora(lora_scale=lora.scale, adapter_names=[name])
        pipe.unload_lora_weights()
    return pipe


def assert_equal_weights(theirs: Any, folder: Path, work: Path, *loras: Lora) -> None:
    source = open_source(str(folder), work=work).merged(loras, ())
    for component in ("unet", *source.text_encoders):
        ours = source.load(component).state_dict()
        expected = getattr(theirs, component).state_dict()
        assert ours.keys() == expected.keys()
        for key, weight in expected.items():
            torch.testing.assert_close(ours[key], weight, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_every_form(
    form: str,
    their: Callable[[str], Any],
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    pipe = their("sd1")
    before = pipe.unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    before = before.clone()
    save_file(FORMS[form](pipe), tmp_path / "it.safetensors")
    lora = Lora(path=tmp_path / "it.safetensors", scale=0.5)
    pipe = fused(pipe, lora)
    after = pipe.unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    assert (after - before).abs().max() > 1e-3
    assert_equal_weights(pipe, small_pipeline("sd1"), tmp_path, lora)
