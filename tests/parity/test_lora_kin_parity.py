"""DoRA, LoHa, LoKr and others, merged as peft merges them into a small UNet, or by their papers'
formulas if peft reads no such files."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from edgediff_export.source.lora import Lora
from edgediff_export.source.open import open_source
from safetensors.torch import save_file

pytestmark = [  # of diffusers, transformers and peft themselves
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LAYERS = ["to_q", "to_out.0", "conv1", "ff.net.2"]
CONFIGS = {
    "DoRA": peft.LoraConfig(
        r=4, lora_alpha=4, use_dora=True, target_modules=["to_q", "to_out.0", "ff.net.2"]
    ),
    "DoRA of convolutions": peft.LoraConfig(  # square ones, and others
        r=4,
        lora_alpha=4,
        use_dora=True,
        target_modules=["conv1", "conv_in", "conv_shortcut", "proj_in"],
    ),
    "LoRA with biases": peft.LoraConfig(
        r=4, lora_alpha=4, lora_bias=True, target_modules=["to_out.0", "ff.net.2"]
    ),
    "LoHa": peft.LoHaConfig(r=4, alpha=4, target_modules=LAYERS),
    "LoHa, Tucker's": peft.LoHaConfig(
        r=4, alpha=4, use_effective_conv2d=True, target_modules=LAYERS
    ),
    "LoKr": peft.LoKrConfig(r=2, alpha=2, target_modules=LAYERS),
    "LoKr, both in two parts": peft.LoKrConfig(
        r=2, alpha=2, decompose_both=True, target_modules=LAYERS
    ),
    "LoKr, Tucker's": peft.LoKrConfig(
        r=2, alpha=2, use_effective_conv2d=True, target_modules=LAYERS
    ),
}


@pytest.fixture(scope="module")
def unet(small_pipeline: Callable[[str], Path], tmp_path_factory: Any) -> Any:
    return open_source(str(small_pipeline("sd1")), work=tmp_path_factory.mktemp("w")).load("unet")


def merged(
    small_pipeline: Callable[[str], Path], path: Path, state: dict[str, Any], scale: float
) -> dict[str, torch.Tensor]:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    lora = Lora(path=path, scale=scale)
    source = open_source(str(small_pipeline("sd1")), work=path.parent).merged([lora], ())
    weights: dict[str, torch.Tensor] = source.load("unet").state_dict()
    return weights


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_are_those_that_peft_merges(
    kind: str, unet: Any, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    adapted = peft.get_peft_model(copy.deepcopy(unet), CONFIGS[kind])
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            moved = 1 + 0.1 * torch.rand(parameter.shape)
            with torch.no_grad():
                if "magnitude" in name:
                    parameter.mul_(moved)
                else:
                    parameter.copy_(0.2 * torch.randn(parameter.shape))
    state = peft.get_peft_model_state_dict(adapted)
    expected = adapted.merge_and_unload().state_dict()
    ours = merged(small_pipeline, tmp_path / "it.safetensors", state, 1.0)
    before = unet.state_dict()
    assert any((expected[key] - before[key]).abs().max() > 1e-3 for key in before)
    for key, weight in expected.items():
        torch.testing.assert_close(ours[key], weight, rtol=1e-5, atol=1e-6, msg=key)


K = "lora_unet_mid_block_resnets_0_conv1"
LAYER = "mid_block.resnets.0.conv1"


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_a_convolution_between_the_matrices(
    scale: float, unet: Any, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    weight = unet.state_dict()[f"{LAYER}.weight"]
    generator = torch.Generator().manual_seed(4)
    down = torch.randn((4, weight.shape[1], 1, 1), generator=generator)
    mid = torch.randn((4, 4, 3, 3), generator=generator)
    up = torch.randn((len(weight), 4, 1, 1), generator=generator)
    state = {f"{K}.lora_down.weight": down, f"{K}.lora_mid.weight": mid, f"{K}.lora_up.weight": up}
    ours = merged(
        small_pipeline,
        tmp_path / "it.safetensors",
        state | {f"{K}.alpha": torch.tensor(2.0)},
        scale,
    )
    # Three convolutions, one after the other, of an image of one pixel's impulse.
    x = torch.zeros(1, weight.shape[1], 5, 5)
    x[0, :, 2, 2] = torch.randn(weight.shape[1], generator=generator)
    conv = torch.nn.functional.conv2d
    expected = conv(x, weight, padding=1)
    expected += scale * 0.5 * conv(conv(conv(x, down), mid, padding=1), up)
    torch.testing.assert_close(
        conv(x, ours[f"{LAYER}.weight"], padding=1), expected, rtol=1e-4, atol=1e-4
    )


def test_differences_of_weights_norms_and_biases(
    unet: Any, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    before = unet.state_dict()
    state = {
        "lora_unet_conv_in.diff": torch.full_like(before["conv_in.weight"], 0.25),
        "lora_unet_conv_in.diff_b": torch.full_like(before["conv_in.bias"], 0.5),
        "lora_unet_conv_norm_out.w_norm": torch.full_like(before["conv_norm_out.weight"], 0.75),
        "lora_unet_out_0.b_norm": torch.full_like(before["conv_norm_out.bias"], 1.0),
    }
    ours = merged(small_pipeline, tmp_path / "it.safetensors", state, 0.5)
    added = {
        "conv_in.weight": 0.125,
        "conv_in.bias": 0.25,
        "conv_norm_out.weight": 0.375,
        "conv_norm_out.bias": 0.5,
    }
    for key, weight in before.items():
        torch.testing.assert_close(ours[key], weight + added.get(key, 0.0), msg=key)
