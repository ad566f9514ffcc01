"""Prompt weights, chunks and clip skip against transformers' CLIPTextModel and diffusers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from edgediff_export.export import Options, export
from transformers import CLIPTextModel, CLIPTokenizer

import edgediff
from edgediff.errors import InputError
from edgediff.networks.text_encoder import TextConditioner

pytestmark = [  # of diffusers itself
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]

NEGATIVE = "blurry, low quality"


class Both(NamedTuple):
    """One pipeline: diffusers' with its tokenizer and text encoder, and ours."""

    diffusers: Any
    tokenizer: Any
    text_encoder: Any
    ours: edgediff.Pipeline


@pytest.fixture(scope="module")
def both(small_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Of Stable Diffusion 1.x's shape, with four layers and, unlike a random one, hidden states
    whose mean is not 0."""
    folder = Path(shutil.copytree(small_pipeline("sd1"), tmp_path_factory.mktemp("text") / "sd1"))
    config = CLIPTextModel.config_class.from_pretrained(folder / "text_encoder")
    config.num_hidden_layers = 4
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(config).eval()
    with torch.no_grad():
        text_encoder.text_model.final_layer_norm.bias.normal_(0.3)
        text_encoder.text_model.final_layer_norm.weight.normal_(1, 0.2)
    text_encoder.save_pretrained(folder / "text_encoder")
    out = folder.parent / "bundle"
    export(Options(source=str(folder), out=out, steps=2))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    with edgediff.load(out, threads=1) as ours:
        yield Both(theirs, tokenizer, text_encoder, ours)


def encode(both: Both, fragments: list[tuple[str, float]]) -> torch.Tensor:
    """One chunk, by hand: framed ids, the last hidden states, times weights, the mean restored."""
    ids, weights = [both.tokenizer.bos_token_id], [1.0]
    for text, weight in fragments:
        found = both.tokenizer(text, add_special_tokens=False).input_ids
        ids += found
        weights += [weight] * len(found)
    assert len(ids) <= 76
    rest = 77 - len(ids)
    ids += [both.tokenizer.eos_token_id] + [both.tokenizer.pad_token_id] * (rest - 1)
    with torch.inference_mode():
        states = both.text_encoder(torch.tensor([ids])).last_hidden_state
    weighted = states * torch.tensor(weights + [1.0] * rest)[None, :, None]
    return weighted * (states.mean() / weighted.mean())


def ours(both: Both, prompt: str, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Our hidden states of the prompt and of the negative one."""
    settings = both.ours.resolve(prompt, **{"guidance_scale": 5.0, **options}).settings
    _, positive, negative = TextConditioner(both.ours.bundle)(settings, both.ours.run_stage)
    assert negative is not None
    return positive.encoder_hidden_states, negative.encoder_hidden_states


def their_latents(both: Both, *, guidance: float = 5.0, **arguments: Any) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(1)
    result = both.diffusers(
        num_inference_steps=2,
        guidance_scale=guidance,
        generator=generator,
        output_type="latent",
        **arguments,
    )
    latents: np.ndarray = result.images.numpy()
    return latents


def their_pixels(both: Both, latents: np.ndarray) -> np.ndarray:
    vae = both.diffusers.vae
    with torch.no_grad():
        image = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor).sample
    pixels: np.ndarray = both.diffusers.image_processor.postprocess(image, output_type="np")
    return (255 * pixels).round().astype(int)


def our_latents(both: Both, prompt: str, *, guidance: float = 5.0, **options: Any) -> np.ndarray:
    steps = both.ours.stream(
        prompt, seed=1, steps=2, sampler="ddim", guidance_scale=guidance, **options
    )
    return list(steps)[-1].latents


WEIGHTED = "a (red:1.3) fox, [[blue]] (sky, ((fog)) at:0.5) night\\)"
FRAGMENTS = [
    ("a ", 1.0),
    ("red", 1.3),
    (" fox, ", 1.0),
    ("blue", 1 / 1.1**2),
    (" ", 1.0),
    ("sky, ", 0.5),
    ("fog", 0.5 * 1.1**2),
    (" at", 0.5),
    (" night)", 1.0),
]


def test_weights_multiply_the_states_and_keep_their_mean(both: Both) -> None:
    expected = encode(both, FRAGMENTS).numpy()
    plain = ours(both, WEIGHTED)[0]
    found, negative = ours(both, WEIGHTED, prompt_weights=True, negative_prompt="(fog:1.5)")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(negative, encode(both, [("fog", 1.5)]).numpy(), atol=1e-4)
    assert np.abs(found - plain).max() > 0.1


def test_weights_of_one_are_exactly_the_plain_states(both: Both) -> None:
    plain = ours(both, "a red fox")[0]
    for prompt in ("a red fox", "(a red fox:1.0)", "a (red:1) fox", "([a red] fox:1)"):
        found = ours(both, prompt, prompt_weights=True)[0]
        assert (found == plain).all() == ("[" not in prompt)


def test_images_of_weights_and_chunks(both: Both) -> None:
    """Two chunks and a third that BREAK begins; the negative prompt has one and is filled up."""
    text = "a (b:1.4) " + "c " * 58 + ", " + "d " * 20 + "(e:0.7) BREAK [f]"
    chunks = [
        [("a", 1.0), ("b", 1.4), ("c " * 58 + ",", 1.0)],
        [("d " * 20, 1.0), ("e", 0.7)],
        [("f", 1 / 1.1)],
    ]
    empty = encode(both, [])
    prompt = torch.cat([encode(both, chunk) for chunk in chunks], dim=1)
    negative = torch.cat([encode(both, [("fog", 1.5)]), empty, empty], dim=1)
    expected = their_latents(both, prompt_embeds=prompt, negative_prompt_embeds=negative)
    options = {"prompt_weights": True, "long_prompts": True, "negative_prompt": "(fog:1.5)"}
    assert ours(both, text, **options)[0].shape == (1, 3 * 77, 32)
    latents = our_latents(both, text, **options)
    assert np.abs(latents - expected).max() <= 1e-3
    (image,) = both.ours.decode(latents)
    (pixels,) = their_pixels(both, expected)
    assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 1
    plain = our_latents(both, text, negative_prompt="(fog:1.5)")
    assert np.abs(latents - plain).max() > 0.01


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("clip_skip", [None, 1, 2])
def test_clip_skip(both: Both, clip_skip: int | None, guidance: float) -> None:
    expected = their_latents(
        both,
        prompt="a red fox",
        negative_prompt=NEGATIVE,
        clip_skip=clip_skip,
        guidance=guidance,
    )
    latents = our_latents(
        both, "a red fox", negative_prompt=NEGATIVE, clip_skip=clip_skip, guidance=guidance
    )
    assert np.abs(latents - expected).max() <= 1e-3
    (image,) = both.ours.decode(latents)
    (pixels,) = their_pixels(both, expected)
    assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 1
    if clip_skip is not None:
        last = our_latents(both, "a red fox", negative_prompt=NEGATIVE, guidance=guidance)
        assert np.abs(latents - last).max() > 0.01


def test_clip_skip_goes_with_weights_and_chunks(both: Both) -> None:
    options = {"clip_skip": 1, "prompt_weights": True, "long_prompts": True}
    found = ours(both, "a (red:1.5) fox BREAK fog", **options)[0]
    single = ours(both, "fog", clip_skip=1)[0]
    assert (found[:, 77:] == single).all()


def test_layers_that_the_graph_does_not_give(both: Both) -> None:
    with pytest.raises(InputError, match=r"`clip_skip` is 3: .* can leave out 1 or 2 of its"):
        both.ours.generate("a fox", clip_skip=3)
