"""Which layers a LoRA's file means, and files that are refused; that the sums are diffusers' is
tests/parity/test_lora_parity.py."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgediff_export.source.lora import Lora, layers, match, parse_lora
from safetensors.torch import save_file

from edgediff.errors import ExportError, InputError

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
UNET = {
    Q: (8, 8),
    "conv_in": (8, 4, 3, 3),
    "conv_in.bias": (8,),
    "mid_block.attentions.0.proj_in": (8, 8, 1, 1),
}
TEXT = {"text_model.encoder.layers.0.self_attn.q_proj": (6, 6)}
PIPELINE = {"unet": UNET, "text_encoder": TEXT}
ORIGINAL_Q = "middle_block.1.transformer_blocks.0.attn1.to_q"
KOHYA_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def pair(name: str, down: tuple[int, ...] = (2, 8), up: tuple[int, ...] = (8, 2)) -> dict[str, Any]:
    return {
        f"{name}.lora_down.weight": torch.ones(down),
        f"{name}.lora_up.weight": torch.ones(up),
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Lora]:
    def save(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Lora:
        path = tmp_path / "it.safetensors"
        save_file(tensors, path, metadata=metadata)
        return Lora(path=path)

    return save


@pytest.mark.parametrize(
    ("text", "scale"),
    [("a.safetensors", 1.0), ("a.safetensors:0", 0.0), ("a.safetensors:-.5", -0.5)],
)
def test_a_flag(text: str, scale: float) -> None:
    assert parse_lora(text) == Lora(path=Path("a.safetensors"), scale=scale)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("half", "SCALE is 'half': give a number"),
        ("", "SCALE is ''"),
        ("nan", "SCALE is nan: give a finite number"),
        ("inf", "SCALE is inf"),
        ("-1e999", "SCALE is -inf"),
    ],
)
def test_no_scale(scale: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_lora(f"a.safetensors:{scale}")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("lora_unet_input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
        ("lora_unet_input_blocks_1_0_emb_layers_1", "down_blocks.0.resnets.0.time_emb_proj"),
        ("lora_unet_input_blocks_1_1_proj_in", "down_blocks.0.attentions.0.proj_in"),
        ("lora_unet_input_blocks_2_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_input_blocks_3_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
        ("lora_unet_middle_block_0_out_layers_3", "mid_block.resnets.0.conv2"),
        ("lora_unet_middle_block_1_proj_out", "mid_block.attentions.0.proj_out"),
        ("lora_unet_middle_block_2_in_layers_2", "mid_block.resnets.1.conv1"),
        ("lora_unet_output_blocks_1_0_skip_connection", "up_blocks.0.resnets.1.conv_shortcut"),
        ("lora_unet_output_blocks_1_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_output_blocks_3_1_proj_in", "up_blocks.1.attentions.1.proj_in"),
        ("lora_unet_input_blocks_0_0", "conv_in"),
        ("lora_unet_out_2", "conv_out"),
        ("lora_unet_time_embed_0", "time_embedding.linear_1"),
        (
            "lora_unet_output_blocks_2_1_transformer_blocks_0_attn2_to_out_0",
            "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
        ),
    ],
)
def test_names_of_the_original_code(
    name: str, layer: str, small_unet: Any, write: Callable[..., Lora]
) -> None:
    """One resnet a block on the way down, two on the way up; attention in the outer blocks."""
    its = layers(small_unet)
    out, *inner = its[layer]
    lora = write(pair(name, (2, *inner), (out, 2, *(1 for _ in inner[1:]))))
    assert list(match(lora, {"unet": its}).changes["unet"]) == [layer]


@pytest.fixture(scope="module")
def small_unet(sd15_shape: Any) -> Any:
    import diffusers

    with torch.device("meta"):
        return diffusers.UNet2DConditionModel.from_config(sd15_shape.SHAPES["sd1"].unet)


def test_alpha_over_rank(write: Callable[..., Lora]) -> None:
    tensors = pair(KOHYA_Q)
    assert match(write(tensors), PIPELINE).changes["unet"][Q].factor == 1
    tensors[f"{KOHYA_Q}.alpha"] = torch.tensor(0.0)
    assert match(write(tensors), PIPELINE).changes["unet"][Q].factor == 0
    tensors[f"{KOHYA_Q}.alpha"] = torch.tensor(3.0, dtype=torch.float16)
    matched = match(write(tensors), PIPELINE)
    assert matched.changes["unet"][Q].factor == 1.5
    assert matched.note == ""


def test_a_layer_that_is_named_twice_changes_once(write: Callable[..., Lora]) -> None:
    original = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    matched = match(write(pair(KOHYA_Q) | pair(original)), PIPELINE)
    assert matched.changes["unet"].keys() == {Q}
    assert matched.note == ""


def test_a_partial_match_says_how_many_of_how_many(write: Callable[..., Lora]) -> None:
    tensors = pair(KOHYA_Q) | pair("lora_unet_other") | pair("lora_te2_x")
    tensors["lora_unet_norm.diff"] = torch.ones(3)
    lora = write(tensors)
    with pytest.raises(
        ExportError, match=r"3 of its 4 changes cannot be merged .*: lora_te2_x, lor"
    ):
        match(lora, PIPELINE)
    note = match(lora, PIPELINE, allow_partial=True).note
    assert note == (
        "it.safetensors: 1 of its 4 layers were merged; the pipeline lacks the others, such as"
        " lora_te2_x"
    )


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no layer of this pipeline": (
        pair("lora_unet_other_blocks_0_attn_qkv"),
        r"none of its 1 layers, such as lora_unet_other_blocks.*trained for this family",
    ),
    "a checkpoint": ({"conv_in.weight": torch.ones(8, 4, 3, 3)}, "holds no LoRA .*conv_in.weight"),
    "nothing": ({}, "holds no LoRA: give"),
    "wider layers": (pair(KOHYA_Q, (2, 16), (16, 2)), r"\(16, 2\) times down \(2, 16\) .*\(8, 8\)"),
    "another rank in each": (pair(KOHYA_Q, (2, 8), (8, 4)), "does not fit"),
    "another kernel": (pair("lora_unet_conv_in", (2, 4, 1, 1), (8, 2, 1, 1)), "does not fit"),
    "a vector": (pair(KOHYA_Q, (2,), (8,)), "does not fit"),
    "no up": (
        {f"{KOHYA_Q}.lora_down.weight": torch.ones(2, 8)},
        "one of its two matrices is missing",
    ),
    "half a LoHa": ({f"{KOHYA_Q}.hada_w1_a": torch.ones(8, 2)}, "matrices is missing"),
    "half a LoKr": ({f"{KOHYA_Q}.lokr_w1": torch.ones(8, 2)}, "matrices is missing"),
    "a smaller LoKr": (
        {f"{KOHYA_Q}.lokr_w1": torch.ones(2, 2), f"{KOHYA_Q}.lokr_w2": torch.ones(2, 2)},
        r"lokr_w1 \(2, 2\) with lokr_w2 \(2, 2\) does not fit",
    ),
    "a magnitude and no matrices": ({f"{KOHYA_Q}.dora_scale": torch.ones(8)}, "missing"),
    "a middle of another kernel": (
        pair("lora_unet_conv_in", (2, 4, 1, 1), (8, 2, 1, 1))
        | {"lora_unet_conv_in.lora_mid.weight": torch.ones(2, 2, 5, 5)},
        "does not fit",
    ),
    "a bias of a layer without one": (
        {**pair(KOHYA_Q), f"{KOHYA_Q}.lora_up.bias": torch.ones(8)},
        r"is in this pipeline",
    ),
    "a difference of another shape": (
        {"lora_unet_conv_in.diff": torch.ones(8, 5, 3, 3)},
        r"diff \(8, 5, 3, 3\) does not fit",
    ),
    "a LoHa of two ranks": (
        {
            f"{KOHYA_Q}.hada_{part}": torch.ones(shape)
            for part, shape in {"w1_a": (8, 2), "w1_b": (2, 8), "w2_a": (8, 2)}.items()
        }
        | {f"{KOHYA_Q}.hada_w2_b": torch.ones(3, 8)},
        rf"{KOHYA_Q}: .*hada_w2_a \(8, 2\) with hada_w2_b \(3, 8\) does not fit",
    ),
    "a LoKr of two ranks": (
        {
            f"{KOHYA_Q}.lokr_w1_a": torch.ones(2, 2),
            f"{KOHYA_Q}.lokr_w1_b": torch.ones(1, 2),
            f"{KOHYA_Q}.lokr_w2": torch.ones(4, 4),
        },
        rf"{KOHYA_Q}: lokr_w1_a \(2, 2\) with lokr_w1_b \(1, 2\) .*does not fit",
    ),
    "a LoHa of vectors": (
        {f"{KOHYA_Q}.hada_w{i}_{ab}": torch.ones(8) for i in (1, 2) for ab in "ab"},
        "does not fit",
    ),
    "a LoKr of numbers": (
        {f"{KOHYA_Q}.lokr_w{i}": torch.tensor(1.0) for i in (1, 2)},
        "does not fit",
    ),
    "a LoRA of numbers": (pair(KOHYA_Q, (), ()), "does not fit"),
    "a magnitude of another size": (
        {**pair(KOHYA_Q), f"{KOHYA_Q}.dora_scale": torch.ones(7)},
        rf"{KOHYA_Q}.dora_scale: \(7,\) does not fit",
    ),
    "PEFT's magnitude of columns": (
        {
            **pair("lora_unet_conv_in", (2, 4, 3, 3), (8, 2, 1, 1)),
            "lora_unet_conv_in.lora_magnitude_vector": torch.ones(1, 4, 1, 1),
        },
        r"lora_magnitude_vector: \(1, 4, 1, 1\) does not fit",
    ),
    "a LoRA and a difference": (
        {**pair(KOHYA_Q), f"{KOHYA_Q}.diff": torch.ones(8, 8)},
        rf"{KOHYA_Q}.lora_up.weight and {KOHYA_Q}.diff change the same weights in two ways",
    ),
    "a LoRA and a difference under another name": (
        {**pair(KOHYA_Q), f"diffusion_model.{ORIGINAL_Q}.diff": torch.ones(8, 8)},
        "change the same weights in two ways",
    ),
    "two changes of a bias": (
        {
            **pair("lora_unet_conv_in", (2, 4, 3, 3), (8, 2, 1, 1)),
            "lora_unet_conv_in.lora_up.bias": torch.ones(8),
            "lora_unet_conv_in.diff_b": torch.ones(8),
        },
        r"conv_in.diff_b and lora_unet_conv_in.lora_up.bias change the same",
    ),
    "an alpha of two numbers": (
        {**pair(KOHYA_Q), f"{KOHYA_Q}.alpha": torch.ones(2)},
        rf"{KOHYA_Q}.alpha: has the shape \(2,\), and must hold one number",
    ),
    "an alpha of no layer": (
        {**pair(Q), f"{Q}.lora.alpha": torch.tensor(1.0)},
        rf"1 of its 2 changes cannot be merged .*: {Q}.lora.alpha",
    ),
    "GLoRA": ({f"{KOHYA_Q}.a1.weight": torch.ones(8, 2)}, "is GLoRA"),
    "OFT": ({f"{KOHYA_Q}.oft_blocks": torch.ones(8, 2)}, "is OFT"),
    "IA3": ({f"{KOHYA_Q}.on_input": torch.tensor(False)}, r"is \(IA\)³"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_merged(case: str, write: Callable[..., Lora]) -> None:
    tensors, message = BAD[case]
    with pytest.raises(ExportError, match=message):
        match(write(tensors), PIPELINE)


def test_a_damaged_header(write: Callable[..., Lora]) -> None:
    with pytest.raises(ExportError, match="lora_adapter_metadata in its header is not JSON"):
        match(write(pair(KOHYA_Q), {"lora_adapter_metadata": "{"}), PIPELINE)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value: float, write: Callable[..., Lora]) -> None:
    tensors = pair(KOHYA_Q)
    tensors[f"{KOHYA_Q}.lora_up.weight"][0, 0] = value
    with pytest.raises(ExportError, match="the change is not finite"):
        match(write(tensors), PIPELINE).merge("unet", _nested(Q))


def test_a_layer_of_rank_zero_changes_nothing(write: Callable[..., Lora]) -> None:
    tensors = pair(KOHYA_Q, (0, 8), (8, 0)) | {f"{KOHYA_Q}.alpha": torch.tensor(4.0)}
    module = _nested(Q)
    before = module.get_submodule(Q).weight.clone()
    matched = match(write(tensors), PIPELINE)
    matched.merge("unet", module)
    assert torch.equal(module.get_submodule(Q).weight, before)
    assert matched.note == ""


def test_a_layer_of_rank_zero_keeps_its_bias(write: Callable[..., Lora]) -> None:
    module = _nested(Q)
    before = module.get_submodule(Q).bias.clone()
    lora = write(pair(KOHYA_Q, (0, 8), (8, 0)) | {f"{KOHYA_Q}.diff_b": torch.ones(8)})
    match(lora, {"unet": {Q: (8, 8), f"{Q}.bias": (8,)}}).merge("unet", module)
    torch.testing.assert_close(module.get_submodule(Q).bias, before + 1)


@pytest.mark.parametrize(
    ("metadata", "note"),
    [
        (
            {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"},
            "it.safetensors: was trained for a model that predicts v, as ss_v_parameterization says"
            " and has zero terminal SNR, as ss_zero_terminal_snr says: merge it only into such a"
            " model",
        ),
        ({"ss_v_parameterization": "False", "modelspec.prediction_type": "epsilon"}, ""),
    ],
)
def test_a_lora_of_an_unusual_model_is_noted(
    metadata: dict[str, str], note: str, write: Callable[..., Lora]
) -> None:
    assert match(write(pair(KOHYA_Q), metadata), PIPELINE).note == note


@pytest.mark.parametrize(
    "prefix",
    [
        *("unet.", "", "lora_unet_", "lycoris_", "diffusion_model.", "base_model.model."),
        *("base_model.model.unet.", "unet.base_model.model."),
    ],
)
def test_prefixes(prefix: str, write: Callable[..., Lora]) -> None:
    name = prefix + (Q.replace(".", "_") if prefix.endswith("_") else Q)
    assert list(match(write(pair(name)), PIPELINE).changes["unet"]) == [Q]


@pytest.mark.parametrize(
    "name",
    [
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoders.clip_l.transformer.encoder.layers.0.self_attn.q_proj",
        "text_encoders.clip_l.text_model.encoder.layers.0.self_attn.q_proj",
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lycoris_text_model_encoder_layers_0_self_attn_q_proj",
        "lycoris_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lycoris_text_encoder_text_model_encoder_layers_0_self_attn_q_proj",
    ],
)
def test_prefixes_of_text_encoders(name: str, write: Callable[..., Lora]) -> None:
    lora = write(pair(name, (2, 6), (6, 2)))
    assert match(lora, PIPELINE).changes["text_encoder"].keys() == TEXT.keys()


def test_an_alpha_of_no_layer_is_noted(write: Callable[..., Lora]) -> None:
    lora = write({**pair(Q), f"{Q}.lora.alpha": torch.tensor(1.0)})
    note = match(lora, PIPELINE, allow_partial=True).note
    assert note == (
        f"it.safetensors: tensors that change no layer were left out (1, such as {Q}.lora.alpha)"
    )


def test_a_layer_named_twice_keeps_all_of_its_parts(write: Callable[..., Lora]) -> None:
    original = f"diffusion_model.{ORIGINAL_Q}"
    lora = write({**pair(KOHYA_Q), **pair(original), f"{original}.diff_b": torch.ones(8)})
    its = {"unet": {Q: (8, 8), f"{Q}.bias": (8,)}}
    assert match(lora, its).changes["unet"][Q].keys.keys() == {"down", "up", "diff_b"}


ROWS = {"row": (8, 1), "column": (1, 8)}


@pytest.mark.parametrize("kind", ROWS)
def test_dora_scale_says_its_axis_by_its_shape(kind: str, write: Callable[..., Lora]) -> None:
    """LyCORIS's of a square weight: of rows, (out, 1), or of columns, (1, in)."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.rand(8, generator=generator) + 0.5
    lokr = {
        f"{KOHYA_Q}.lokr_w1": torch.randn((2, 2), generator=generator),
        f"{KOHYA_Q}.lokr_w2": torch.randn((4, 4), generator=generator),
        f"{KOHYA_Q}.dora_scale": lengths.reshape(ROWS[kind]),
    }
    module = _nested(Q)
    layer = module.get_submodule(Q)
    summed = layer.weight.detach() + torch.kron(*list(lokr.values())[:2])
    match(write(lokr), PIPELINE).merge("unet", module)
    axis = 1 if kind == "row" else 0
    torch.testing.assert_close(layer.weight.norm(dim=axis), lengths)
    unit = torch.nn.functional.normalize(summed, dim=axis)
    torch.testing.assert_close(torch.nn.functional.normalize(layer.weight, dim=axis), unit)


def test_the_configuration_beside_a_file_says_alpha(write: Callable[..., Lora]) -> None:
    lora = write({f"{Q}.lora_A.weight": torch.ones(2, 8), f"{Q}.lora_B.weight": torch.ones(8, 2)})
    (lora.path.parent / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 6}')
    assert match(lora, PIPELINE).changes["unet"][Q].factor == 3


def _nested(name: str) -> Any:
    """A module with one linear layer of that name."""
    module: Any = torch.nn.Linear(8, 8)
    for part in reversed(name.split(".")):
        parent = torch.nn.Module()
        parent.add_module(part, module)
        module = parent
    return module
