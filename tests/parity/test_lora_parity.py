"""Merged LoRAs against diffusers' `load_lora_weights` and `fuse_lora`, which peft carries out.

Each way to name layers is written out here from diffusers' own names, for every layer that such
files hold, and read by both sides.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from edgediff_export.cli import export as export_command
from edgediff_export.export import Options, export
from edgediff_export.source.lora import Lora
from edgediff_export.source.open import open_source
from edgediff_export.source.textual_inversion import Embedding
from safetensors.torch import load_file, save_file

import edgediff
from edgediff.bundle.folder import hash_file
from edgediff.cli.inspect import info

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
            small_pipeline(shape), local_files_only=True
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
    "kohya-in-half": lambda pipe: {k: v.half() for k, v in kohya(pipe).items()},
    "peft": peft,
    "processors": processors,
    "dotted": dotted,
}


ORIGINAL = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_3_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_3_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_3_1_transformer_blocks_1_attn2_to_k": (
        "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
    ),
    "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
    "middle_block_1_transformer_blocks_0_attn1_to_out_0": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    ),
    "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
    "output_blocks_0_1_transformer_blocks_0_ff_net_0_proj": (
        "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
    ),
    "output_blocks_1_1_proj_out": "up_blocks.0.attentions.1.proj_out",
    "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_3_0_in_layers_2": "up_blocks.1.resnets.1.conv1",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}


def original(pipe: Any) -> State:
    """The UNet's layers as the original code names them, with kohya-ss's prefix."""
    generator = torch.Generator().manual_seed(5)
    state: State = {}
    for name, layer in ORIGINAL.items():
        key = f"lora_unet_{name}"
        weight = pipe.unet.get_submodule(layer).weight
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = matrices(
            weight, generator
        )
        state[f"{key}.alpha"] = torch.tensor(2.0)
    return state


def second_encoder(pipe: Any, prefix: str, *, underscores: bool) -> State:
    """What is added to `kohya` or `peft` for SDXL's second text encoder."""
    generator = torch.Generator().manual_seed(6)
    state: State = {}
    for name, weight in targets(pipe.text_encoder_2, (*TEXT_ATTENTION, "fc1", "fc2")).items():
        key = prefix + (name.replace(".", "_") if underscores else name)
        down, up = ("lora_down", "lora_up") if underscores else ("lora_A", "lora_B")
        state[f"{key}.{down}.weight"], state[f"{key}.{up}.weight"] = matrices(weight, generator)
    return state


XL_FORMS: dict[str, Callable[[Any], State]] = {
    "kohya": lambda pipe: (
        kohya(pipe, text="lora_te1_", alpha=None)
        | second_encoder(pipe, "lora_te2_", underscores=True)
    ),
    "original": original,
    "peft": lambda pipe: peft(pipe) | second_encoder(pipe, "text_encoder_2.", underscores=False),
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


@pytest.mark.parametrize("form", XL_FORMS)
def test_weights_of_sdxl(
    form: str,
    their: Callable[[str], Any],
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Both text encoders, and the names of the original code."""
    pipe = their("xl")
    save_file(XL_FORMS[form](pipe), tmp_path / "it.safetensors")
    lora = Lora(path=tmp_path / "it.safetensors", scale=0.5)
    assert_equal_weights(fused(pipe, lora), small_pipeline("xl"), tmp_path, lora)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, -0.5])
def test_scales(
    scale: float, their: Callable[[str], Any], small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe = their("sd2")  # linear projections around its attention
    save_file(kohya(pipe), tmp_path / "it.safetensors")
    lora = Lora(path=tmp_path / "it.safetensors", scale=scale)
    assert_equal_weights(fused(pipe, lora), small_pipeline("sd2"), tmp_path, lora)


def test_at_scale_zero_no_bit_changes(
    their: Callable[[str], Any], small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe = their("sd1")
    save_file(kohya(pipe), tmp_path / "it.safetensors")
    source = open_source(str(small_pipeline("sd1")), work=tmp_path)
    merged = source.merged([Lora(path=tmp_path / "it.safetensors", scale=0)], ())
    before, after = source.load("unet").state_dict(), merged.load("unet").state_dict()
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


def test_two_at_once(
    their: Callable[[str], Any], small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe = their("sd1")
    save_file(kohya(pipe), tmp_path / "one.safetensors")
    save_file(peft(pipe), tmp_path / "two.safetensors")
    loras = (
        Lora(path=tmp_path / "one.safetensors", scale=0.5),
        Lora(path=tmp_path / "two.safetensors", scale=0.25),
    )
    assert_equal_weights(fused(pipe, *loras), small_pipeline("sd1"), tmp_path, *loras)


def test_a_file_that_diffusers_wrote_with_its_configuration(
    their: Callable[[str], Any], small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    """alpha is in the header, and another for some layers; scaled by the root of the rank."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = their("sd1")
    config = LoraConfig(
        r=RANK,
        lora_alpha=6,
        alpha_pattern={"attn2.to_k": 2.0},
        use_rslora=True,
        init_lora_weights=False,
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
    )
    torch.manual_seed(0)
    pipe.unet.add_adapter(config)
    pipe.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
    )
    lora = Lora(path=tmp_path / "pytorch_lora_weights.safetensors", scale=0.5)
    theirs = fused(their("sd1"), lora)
    assert_equal_weights(theirs, small_pipeline("sd1"), tmp_path, lora)


@pytest.fixture(scope="module")
def bundle(
    their: Callable[[str], Any],
    small_pipeline: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Lora, Path]:
    """A LoRA at half its strength, and a bundle with it."""
    folder = tmp_path_factory.mktemp("lora")
    save_file(kohya(their("sd1")), folder / "it.safetensors")
    lora = Lora(path=folder / "it.safetensors", scale=0.5)
    export(Options(source=str(small_pipeline("sd1")), out=folder / "out", steps=2, loras=(lora,)))
    return lora, folder / "out"


@pytest.mark.slow
def test_latents_and_pixels_of_a_bundle(
    bundle: tuple[Lora, Path], their: Callable[[str], Any]
) -> None:
    lora, folder = bundle
    plain, pipe = their("sd1"), fused(their("sd1"), lora)
    asked = {"prompt": "a red fox", "num_inference_steps": 3, "guidance_scale": 5.0}

    def run(pipe: Any, output: str) -> Any:
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
        generator = torch.Generator("cpu").manual_seed(7)
        return pipe(**asked, generator=generator, output_type=output).images

    options: dict[str, Any] = {"seed": 7, "steps": 3, "guidance_scale": 5.0, "sampler": "ddim"}
    with edgediff.load(folder, threads=1) as ours:
        *_, last = ours.stream("a red fox", **options)
        expected = run(pipe, "latent").numpy()
        assert np.abs(last.latents - expected).max() <= 1e-3
        assert np.abs(run(plain, "latent").numpy() - expected).max() > 0.1
        image = np.asarray(ours.generate("a red fox", **options).images[0]).astype(int)
        assert np.abs(image - np.asarray(run(pipe, "pil")[0])).max() <= 1
    merged = json.loads((folder / "bundle.json").read_text())["provenance"]["loras"]
    assert merged == [{"file": "it.safetensors", "scale": 0.5, "sha256": hash_file(lora.path)}]


@pytest.mark.slow
def test_the_report_and_info_say_what_was_merged(
    bundle: tuple[Lora, Path], small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    lora, _ = bundle
    embedding = tmp_path / "word.safetensors"
    save_file({"emb_params": torch.zeros(2, 32)}, embedding)
    state = {f"lora_unet_nothing.lora_{k}.weight": torch.ones(2, 2) for k in ("down", "up")}
    save_file(load_file(lora.path) | state, tmp_path / "more.safetensors")
    done = CliRunner().invoke(
        export_command,
        [
            *[str(small_pipeline("sd1")), str(tmp_path / "out"), "--steps", "1"],
            *["--lora", f"{lora.path}:0.5", "--lora", f"{tmp_path / 'more.safetensors'}:0"],
            *["--embedding", f"{embedding}:<word>", "--allow-partial"],
        ],
    )
    assert done.exit_code == 0, done.output
    hashes = [hash_file(p)[:16] for p in (lora.path, tmp_path / "more.safetensors", embedding)]
    merged = [
        f"it.safetensors, scale 0.5, sha256 {hashes[0]}",
        f"more.safetensors, scale 0, sha256 {hashes[1]}",
        f"word.safetensors as '<word>', sha256 {hashes[2]}",
    ]
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("merged")] == [f"merged {m}" for m in merged]
    count = len({key.split(".")[0] for key in load_file(lora.path)})
    assert (
        f"note: more.safetensors: {count} of its {count + 1} layers were merged; the pipeline lacks"
        " the others, such as lora_unet_nothing"
    ) in lines
    shown = CliRunner().invoke(info, [str(tmp_path / "out")]).output
    assert [s.partition("  ")[2].strip() for s in shown.splitlines() if s.startswith("merged")] == (
        merged
    )


@pytest.mark.slow
def test_sdxl_with_a_lora_and_a_textual_inversion(
    their: Callable[[str], Any], small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe = their("xl")
    save_file(XL_FORMS["kohya"](pipe), tmp_path / "it.safetensors")
    generator = torch.Generator().manual_seed(7)
    vectors = {
        "clip_l": 0.1 * torch.randn((2, 32), generator=generator),
        "clip_g": 0.1 * torch.randn((2, 48), generator=generator),
    }
    save_file(vectors, tmp_path / "word.safetensors")
    lora = Lora(path=tmp_path / "it.safetensors", scale=0.5)
    export(
        Options(
            source=str(small_pipeline("xl")),
            out=tmp_path / "out",
            steps=2,
            loras=(lora,),
            embeddings=(Embedding(path=tmp_path / "word.safetensors", token="<word>"),),
        )
    )
    pipe = fused(pipe, lora)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        pipe.load_textual_inversion(
            vectors[key],
            token="<word>",
            text_encoder=getattr(pipe, f"text_encoder{suffix}"),
            tokenizer=getattr(pipe, f"tokenizer{suffix}"),
        )
    prompt, negative = "a photo of <word>, a red fox", "<word>, blurry"

    def run(output: str) -> Any:
        return pipe(
            prompt,
            negative_prompt=negative,
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=torch.Generator("cpu").manual_seed(7),
            output_type=output,
        ).images

    options: dict[str, Any] = {"negative_prompt": negative, "seed": 7, "guidance_scale": 5.0}
    with edgediff.load(tmp_path / "out", threads=1) as ours:
        *_, last = ours.stream(prompt, **options)
        assert np.abs(last.latents - run("latent").numpy()).max() <= 1e-3
        image = np.asarray(ours.generate(prompt, **options).images[0]).astype(int)
        assert np.abs(image - np.asarray(run("pil")[0])).max() <= 1
