"""Textual inversions against diffusers' `load_textual_inversion` and `maybe_convert_prompt`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from edgediff_export.export import Options, export
from edgediff_export.source.open import open_source
from edgediff_export.source.textual_inversion import Embedding
from edgediff_export.source.tokenizer import write_tokenizer
from safetensors.torch import save_file

import edgediff
from edgediff.text.tokenizer import Tokenizer

pytestmark = [  # of diffusers itself
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`local_dir_use_symlinks`:UserWarning"),
]

PROMPTS = [
    "",
    "<cat-toy>",
    "a photo of <cat-toy> on a beach",
    "a <cat-toy>, and another <cat-toy>",
    "a<cat-toy>b",
    "<cat-toy><cat-toy>",
    "<CAT-TOY> is another word",
    "< cat-toy >",
    "<cat-toy>5",
    "only <cat-toy>_1 of them",
    "MyStyle, a fox",
    "a fox in MyStyle",
    "a fox in mystyle MYSTYLE",
    "MyStyles anti-MyStyle MyStyle.",
    "bad hands!",
    "no bad hands, bad  hands, badhands",
    "MyStyle <cat-toy> bad hands",
    "漢MyStyle字 é<cat-toy>é",
    "<|endoftext|>MyStyle<|startoftext|>",
    "word " * 73 + "<cat-toy>",
    "word " * 74 + "<cat-toy>",
    "word " * 75 + "<cat-toy>",
    "<cat-toy> " * 40,
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Embedding]:
    """One of three vectors in diffusers' form, one of one vector, and one whose name is the
    file's."""
    folder = tmp_path_factory.mktemp("embeddings")
    generator = torch.Generator().manual_seed(0)

    def vectors(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    save_file({"<cat-toy>": vectors(3, 32)}, folder / "learned_embeds.safetensors")
    save_file({"<style>": vectors(32)}, folder / "style.safetensors")
    save_file({"emb_params": vectors(12, 32)}, folder / "bad hands.safetensors")
    return [
        Embedding(path=folder / "learned_embeds.safetensors"),
        Embedding(path=folder / "style.safetensors", token="MyStyle"),
        Embedding(path=folder / "bad hands.safetensors"),
    ]


@pytest.fixture(scope="module")
def their(small_pipeline: Callable[[str], Path], files: list[Embedding]) -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        small_pipeline("sd1"), safety_checker=None, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    for file, token in zip(files, (None, "MyStyle", "bad hands"), strict=True):
        pipe.load_textual_inversion(file.path.parent, weight_name=file.path.name, token=token)
    return pipe


@pytest.fixture(scope="module")
def ours(
    small_pipeline: Callable[[str], Path], files: list[Embedding], tmp_path_factory: Any
) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    source = open_source(str(small_pipeline("sd1")), work=folder).merged((), files)
    tokens = [learned.tokens for learned in source.embeddings]
    spec = write_tokenizer(source.folder / "tokenizer", folder, tokens)
    return Tokenizer(folder / spec.file, spec)


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_ids(prompt: str, ours: Tokenizer, their: Any) -> None:
    converted = their.maybe_convert_prompt(prompt, their.tokenizer)
    whole = their.tokenizer(converted, add_special_tokens=False).input_ids
    expected = their.tokenizer(
        converted, padding="max_length", truncation=True, return_tensors="np"
    ).input_ids
    encoded = ours.encode(prompt)
    np.testing.assert_array_equal(encoded.ids, expected)
    assert encoded.tokens == len(whole)
    assert bool(encoded.truncated) == (len(whole) > encoded.limit)


def test_the_table_has_the_same_rows(
    small_pipeline: Callable[[str], Path], files: list[Embedding], their: Any, tmp_path: Path
) -> None:
    source = open_source(str(small_pipeline("sd1")), work=tmp_path).merged((), files)
    encoder = source.load("text_encoder")
    expected = their.text_encoder.get_input_embeddings().weight
    assert torch.equal(encoder.get_input_embeddings().weight, expected)
    assert encoder.config.vocab_size == len(expected)


@pytest.fixture(scope="module")
def bundle(
    small_pipeline: Callable[[str], Path], files: list[Embedding], tmp_path_factory: Any
) -> Path:
    out: Path = tmp_path_factory.mktemp("bundles") / "out"
    source = str(small_pipeline("sd1"))
    export(Options(source=source, out=out, steps=2, embeddings=tuple(files)))
    return out


@pytest.mark.slow
def test_latents_and_pixels_of_a_bundle(bundle: Path, their: Any) -> None:
    prompt, negative = "a <cat-toy> in MyStyle", "bad hands, blurry"
    options: dict[str, Any] = {"seed": 7, "steps": 3, "guidance_scale": 5.0, "sampler": "ddim"}

    def run(output: str) -> Any:
        return their(
            prompt,
            negative_prompt=negative,
            num_inference_steps=3,
            guidance_scale=5.0,
            generator=torch.Generator("cpu").manual_seed(7),
            output_type=output,
        ).images

    with edgediff.load(bundle, threads=1) as pipe:
        *_, last = pipe.stream(prompt, negative_prompt=negative, **options)
        assert np.abs(last.latents - run("latent").numpy()).max() <= 1e-3
        *_, plain = pipe.stream("a cat in style", negative_prompt=negative, **options)
        assert np.abs(plain.latents - last.latents).max() > 1e-2
        image = pipe.generate(prompt, negative_prompt=negative, **options).images[0]
        difference = np.asarray(image).astype(int) - np.asarray(run("pil")[0])
        assert np.abs(difference).max() <= 1


@pytest.mark.slow
def test_int8_for_a_cpu(
    small_pipeline: Callable[[str], Path], files: list[Embedding], bundle: Path, tmp_path: Path
) -> None:
    """The new rows are quantized as the others, and the fixtures look at them."""
    exported = export(
        Options(
            source=str(small_pipeline("sd1")),
            out=tmp_path / "out",
            steps=2,
            precision="int8",
            embeddings=tuple(files),
        )
    )
    assert exported.manifest.graphs["text_encoder"].precision == "int8"
    assert exported.manifest.fidelity.stages["text_encoder"].error < 0.02
    assert edgediff.verify(tmp_path / "out").ok
    fixtures = np.load(tmp_path / "out" / "fixtures.npz")
    ids = fixtures["text_encoder/embeddings/in/input_ids"]
    with edgediff.load(bundle, threads=1) as pipe:
        tokens = pipe.bundle.manifest.tokenizers["text_encoder"].embeddings
    assert {i for its in tokens.values() for i in its} <= set(ids[0].tolist())
