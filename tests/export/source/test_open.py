"""Sources that can be exported, and those that are refused, with reason and remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgediff_export.source.open import open_source
from edgediff_export.source.weights import find_weights

from edgediff.errors import ExportError


@pytest.fixture
def folder(small_pipeline: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a small pipeline, to be damaged."""
    return Path(shutil.copytree(small_pipeline("sd1"), tmp_path / "pipeline"))


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_opens_and_loads(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder), work=tmp_path)
    assert (source.name, source.description) == ("pipeline", "pipeline")
    unet = source.load("unet")
    assert next(unet.parameters()).dtype is torch.float32
    assert not unet.training
    assert not any(p.requires_grad for p in unet.parameters())


def test_the_model_card_states_the_license(folder: Path, tmp_path: Path) -> None:
    assert open_source(str(folder), work=tmp_path).license is None
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags: []\n---\n# It\n")
    assert open_source(str(folder), work=tmp_path).license == "creativeml-openrail-m"


def test_half_weights_alone_will_do(folder: Path, tmp_path: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert find_weights(folder / "unet").variant == "fp16"
    open_source(str(folder), work=tmp_path).load("unet")


@pytest.mark.parametrize(
    ("names", "chosen", "variant"),
    [
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], 2, None),
        (["model.safetensors", "model.fp16.safetensors", "model.non_ema.safetensors"], 1, None),
        (["model.fp16-00001-of-00001.safetensors"], 1, "fp16"),
        (["model-00001-of-00001.fp16.safetensors"], 1, "fp16"),
        (["model.bf16.safetensors", "model.non_ema.safetensors"], 1, "bf16"),
        (["model.non_ema.safetensors"], 1, "non_ema"),
        (["model.safetensors", "model-00001-of-00002.safetensors"], 1, None),
        (["model.safetensors", "._model.safetensors", ".DS_Store"], 1, None),
    ],
)
def test_the_files_that_are_opened(
    names: list[str], chosen: int, variant: str | None, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"?")
    found = find_weights(tmp_path)
    assert [p.name for p in found.paths] == names[:chosen]
    assert found.variant == variant


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model-00001-of-00002.safetensors"], "piece 2 of 2 is missing"),
        (["model.safetensors.index.json"], "piece 1 of its weights is missing"),
        (["._model.safetensors"], "holds no weights"),
    ],
)
def test_a_piece_that_is_missing(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ExportError, match=message):
        find_weights(tmp_path)


def test_a_pointer_of_git_lfs(folder: Path, tmp_path: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n")
    with pytest.raises(ExportError, match=r"a Git LFS pointer, not the weights: run `git lfs pull"):
        open_source(str(folder), work=tmp_path).load("unet")
    with pytest.raises(ExportError, match="a Git LFS pointer"):
        open_source(str(weights), work=tmp_path)


def test_files_beside_the_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    for component in ("unet", "vae", "text_encoder"):
        for name in ("._model.safetensors", "._diffusion_pytorch_model.safetensors", "._config"):
            (folder / component / name).write_bytes(b"\0\5\26\7")
    source = open_source(str(folder), work=tmp_path)
    for component in ("unet", "vae", "text_encoder"):
        source.load(component)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/place", "no such folder or file: give a diffusers folder"),
        ("/no/place", "no such folder or file"),
        ("", "model_index.json: missing"),
    ],
)
def test_an_absent_source(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        open_source(source, work=tmp_path)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x02")
    with pytest.raises(ExportError, match=r"a pickle.*safetensors only.*from_single_file"):
        open_source(str(path), work=tmp_path)


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    with pytest.raises(ExportError, match=r"a GGUF file.*give the \.safetensors file"):
        open_source(str(path), work=tmp_path)


def test_a_safetensors_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ExportError, match="not a safetensors file"):
        open_source(str(path), work=tmp_path)


def test_a_component_that_is_a_pickle(folder: Path, tmp_path: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    source = open_source(str(folder), work=tmp_path)
    with pytest.raises(ExportError, match=r"\.bin: a pickle.*save_pretrained"):
        source.load("unet")


def test_a_component_without_weights(folder: Path, tmp_path: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    source = open_source(str(folder), work=tmp_path)
    with pytest.raises(ExportError, match="holds no weights"):
        source.load("vae")


def test_a_damaged_weights_file(folder: Path, tmp_path: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    source = open_source(str(folder), work=tmp_path)
    with pytest.raises(
        ExportError, match=r"is cut off: it has 100000 of \d{6,} bytes: download it again"
    ):
        source.load("unet")


def test_a_weight_that_is_missing(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_in.bias"]
    save_file(tensors, weights)
    source = open_source(str(folder), work=tmp_path)
    with pytest.raises(ExportError, match=r"1 weights are missing, such as conv_in\.bias"):
        source.load("unet")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline.*SD 1.x"),
        ("model_index.json", {"_class_name": None}, "has no _class_name.*SD 1.x"),
        ("model_index.json", {"vae": ["diffusers", "Vq"]}, "vae is Vq, expected AutoencoderKL or"),
        ("model_index.json", {"unet": None}, "unet is None, expected UNet2DConditionModel"),
        ("unet/config.json", {"in_channels": 8}, "takes 8 channels, expected 4, or 9 for inpainti"),
        ("unet/config.json", {"addition_embed_type": "image"}, "addition_embed_type 'image'"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "an embedding of the whole pro"),
        ("unet/config.json", {"cross_attention_dim": 64}, "gives 32 values a token, .* takes 64"),
        ("vae/config.json", {"latent_channels": 16}, "4 latent channels, the VAE 16"),
        ("vae/config.json", {"latents_mean": [0.0]}, "expected 4 numbers in each"),
        ("vae/config.json", {"_class_name": "VQModel"}, "is a VQModel, expected AutoencoderKL"),
    ],
)
def test_what_the_runtime_could_not_run(
    file: str, changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    change(folder / file, **changes)
    with pytest.raises(ExportError, match=message):
        open_source(str(folder), work=tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"text_encoder": [None, None]}, "text_encoder is None, expected CLIP"),
        ("model_index.json", {"text_encoder_2": None}, "text_encoder_2 is None, expected CLIPText"),
        ("unet/config.json", {"cross_attention_dim": 32}, "encoders give 80 values a token, .* 32"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 64}, "64 .* 72: refiners"),
    ],
)
def test_what_is_not_sdxl(
    file: str,
    changes: dict[str, Any],
    message: str,
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(small_pipeline("xl"), tmp_path / "pipeline"))
    open_source(str(folder), work=tmp_path)
    change(folder / file, **changes)
    with pytest.raises(ExportError, match=message):
        open_source(str(folder), work=tmp_path)


@pytest.mark.parametrize(
    ("shape", "pipeline"),
    [("sd1", "StableDiffusionInpaintPipeline"), ("xl", "StableDiffusionXLInpaintPipeline")],
)
def test_an_inpainting_pipeline(
    shape: str, pipeline: str, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_pipeline(shape), tmp_path / "pipeline"))
    change(folder / "model_index.json", _class_name=pipeline)
    change(folder / "unet" / "config.json", in_channels=9)
    assert open_source(str(folder), work=tmp_path).pipeline == pipeline


def test_a_text_embedding_added_to_the_timestep_needs_no_input(
    folder: Path, tmp_path: Path
) -> None:
    change(folder / "unet" / "config.json", addition_embed_type="text")
    open_source(str(folder), work=tmp_path)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json"])
def test_a_config_that_is_missing_or_damaged(file: str, folder: Path, tmp_path: Path) -> None:
    (folder / file).write_text("{")
    with pytest.raises(ExportError, match="cannot be read"):
        open_source(str(folder), work=tmp_path)
    (folder / file).write_text("[]")
    with pytest.raises(ExportError, match="expected a JSON object"):
        open_source(str(folder), work=tmp_path)
    (folder / file).unlink()
    with pytest.raises(ExportError, match="missing: give a whole diffusers folder"):
        open_source(str(folder), work=tmp_path)


def test_another_vae(folder: Path, small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    tiny = small_pipeline("tiny-vae")
    for path in (tiny, tiny / "vae"):
        source = open_source(str(folder), work=tmp_path, vae=path)
        assert type(source.load("vae")).__name__ == "AutoencoderTiny"
    with pytest.raises(ExportError, match="no VAE there"):
        open_source(str(folder), work=tmp_path, vae=tmp_path / "nowhere")


def test_another_unet(folder: Path, small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    other = small_pipeline("sd2")
    for path in (other, other / "unet"):
        source = open_source(str(folder), work=tmp_path, unet=path)
        assert source.unet["use_linear_projection"] is True
        assert source.load("unet").config.upcast_attention is True
    assert open_source(str(folder), work=tmp_path, unet=other).description == (
        "pipeline with the UNet sd2"
    )
    with pytest.raises(ExportError, match=r"--unet .*nowhere: no UNet there"):
        open_source(str(folder), work=tmp_path, unet=tmp_path / "nowhere")


def test_the_weights_of_a_unet_alone(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    tensors["conv_in.bias"] = torch.full_like(tensors["conv_in.bias"], 0.5)
    path = tmp_path / "few_steps.safetensors"
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path)
    source = open_source(str(folder), work=tmp_path, unet=path)
    unet = source.load("unet")
    assert unet.conv_in.bias.dtype is torch.float32
    assert bool((unet.conv_in.bias == 0.5).all())
    assert not any(p.is_meta for p in unet.parameters())
    del tensors["conv_in.bias"]
    save_file(tensors, path)
    with pytest.raises(ExportError, match=r"--unet .*lacks conv_in\.bias, which .* UNet has:"):
        source.load("unet")
    save_file({**tensors, "conv_in.bias": torch.zeros(3)}, path)
    with pytest.raises(ExportError, match=r"of another shape than this pipeline's UNet"):
        source.load("unet")
    save_file({**tensors, "other": torch.zeros(1)}, path)
    with pytest.raises(ExportError, match=r"holds other, which this pipeline's UNet has not"):
        source.load("unet")
    path.rename(path.with_suffix(".ckpt"))
    with pytest.raises(ExportError, match=r"--unet .*a pickle"):
        open_source(str(folder), work=tmp_path, unet=path.with_suffix(".ckpt")).load("unet")
