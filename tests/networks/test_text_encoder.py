"""Encoding a call's prompts: chunks, weights, clip skip, and their record. Without torch."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgediff
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import InputError
from edgediff.networks.text_encoder import TextConditioner
from edgediff.pipeline import Pipeline
from edgediff.sampling.denoiser import Conditioning
from edgediff.text.tokenizer import PromptReport

LONG = ", ".join(f"a {colour} thing" for colour in ("red", "green", "blue", "grey") * 15)


@pytest.fixture(scope="module", params=["tiny", "emoji"])
def pipe(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Pipeline]:
    """A float32 bundle with random weights, and the built-in bundle, whose graphs are int8."""
    with edgediff.load(tiny_bundle if request.param == "tiny" else "emoji", threads=1) as pipe:
        yield pipe


def condition(
    pipe: Pipeline, prompt: str, **options: Any
) -> tuple[PromptReport, Conditioning, Conditioning | None]:
    settings = pipe.resolve(prompt, **{"guidance_scale": 5, **options}).settings
    return TextConditioner(pipe.bundle)(settings, pipe.run_stage)


def states(pipe: Pipeline, prompt: str, **options: Any) -> np.ndarray:
    return condition(pipe, prompt, **options)[1].encoder_hidden_states


def last_latents(pipe: Pipeline, prompt: str, **options: Any) -> np.ndarray:
    return list(pipe.stream(prompt, seed=0, steps=2, **options))[-1].latents


def test_options_that_are_off_change_nothing(pipe: Pipeline) -> None:
    prompt = "a (red:1.3) [fox] BREAK " + LONG
    plain = last_latents(pipe, prompt)
    off = {"prompt_weights": False, "long_prompts": False, "clip_skip": None}
    assert (last_latents(pipe, prompt, **off) == plain).all()
    report, conditioning, _ = condition(pipe, prompt)
    assert report.chunks == 1
    assert report.truncated != ""
    assert conditioning.encoder_hidden_states.shape[:2] == (1, report.limit + 2)


@pytest.mark.parametrize("prompt", ["a red fox, running", ""])
def test_options_without_effect_change_nothing(pipe: Pipeline, prompt: str) -> None:
    on = {"prompt_weights": True, "long_prompts": True}
    plain = states(pipe, prompt)
    assert (states(pipe, prompt, **on) == plain).all()
    assert (states(pipe, f"({prompt}:1.0)", **on) == plain).all()


def test_weights_change_both_prompts(pipe: Pipeline) -> None:
    options = {"prompt_weights": True, "negative_prompt": "[blue] (fog:1.4)"}
    _, weighted, negative = condition(pipe, "a (red:1.5) fox", **options)
    options["prompt_weights"] = False
    _, plain, plain_negative = condition(
        pipe, "a red fox", **{**options, "negative_prompt": "blue fog"}
    )
    assert negative is not None
    assert plain_negative is not None
    for a, b in ((weighted, plain), (negative, plain_negative)):
        assert a.encoder_hidden_states.shape == b.encoder_hidden_states.shape
        assert (a.encoder_hidden_states != b.encoder_hidden_states).any()


def test_chunks_are_encoded_one_by_one_and_padded_with_empty_chunks(pipe: Pipeline) -> None:
    report, prompt, negative = condition(
        pipe, "a fox BREAK a dog BREAK fog", long_prompts=True, negative_prompt="blue"
    )
    assert negative is not None
    assert report.chunks == 3
    assert (report.truncated, report.negative_truncated) == ("", "")
    singles = [states(pipe, text) for text in ("a fox", "a dog", "fog")]
    assert (prompt.encoder_hidden_states == np.concatenate(singles, axis=1)).all()
    padded = [states(pipe, text) for text in ("blue", "", "")]
    assert (negative.encoder_hidden_states == np.concatenate(padded, axis=1)).all()
    _, prompt, negative = condition(
        pipe, "a fox", long_prompts=True, negative_prompt="blue BREAK fog"
    )
    assert (
        prompt.encoder_hidden_states
        == np.concatenate([states(pipe, text) for text in ("a fox", "")], axis=1)
    ).all()


def test_every_chunk_of_a_long_prompt_has_an_effect(pipe: Pipeline) -> None:
    options = {"long_prompts": True, "guidance_scale": 5}
    whole = last_latents(pipe, LONG, **options)
    assert np.isfinite(whole).all()
    assert (whole != last_latents(pipe, LONG, guidance_scale=5)).any()
    assert (whole != last_latents(pipe, LONG + " at night", **options)).any()
    result = pipe.generate(LONG, seed=0, steps=1, **options)
    assert result.prompt.chunks >= result.prompt.tokens / result.prompt.limit > 1
    assert result.prompt.truncated == ""


def test_the_record_has_the_options_of_prompts(pipe: Pipeline, tmp_path: Path) -> None:
    plain = pipe.generate("a fox (red)", seed=0, steps=1).settings
    assert (plain.prompt_weights, plain.long_prompts, plain.clip_skip) == (False, False, None)
    result = pipe.generate("a fox (red)", seed=0, steps=1, prompt_weights=True, long_prompts=True)
    result.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        record = json.loads(image.info["edgediff"])
        assert "Emphasis" not in image.info["parameters"]
    assert (record["prompt_weights"], record["long_prompts"]) == (True, True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompt_weights": 1}, "`prompt_weights` is 1: expected True or False"),
        ({"prompt_weights": "yes"}, "`prompt_weights` is 'yes': expected True or False"),
        ({"long_prompts": 0}, "`long_prompts` is 0: expected True or False"),
        ({"clip_skip": 0}, "`clip_skip` is 0: expected a whole number from 1 up"),
        ({"clip_skip": -1}, "`clip_skip` is -1: expected a whole number"),
        ({"clip_skip": 1.0}, "`clip_skip` is 1.0: expected a whole number"),
        ({"clip_skip": True}, "`clip_skip` is True: expected a whole number"),
        ({"clip_skip": "2"}, "`clip_skip` is '2': expected a whole number"),
        ({"clip_skip": 12}, "`clip_skip` is 12: this bundle's text encoder"),
        ({"prompt_weights": True, "prompt": "(fox:1000)"}, "the weight of 'fox' is 1000: at most"),
        ({"long_prompts": True, "prompt": "BREAK a " * 99}, "in 100 chunks: at most 32"),
    ],
    ids=str,
)
def test_bad_input(pipe: Pipeline, options: dict[str, Any], match: str) -> None:
    options = dict(options)
    prompt = options.pop("prompt", "a fox")
    with pytest.raises(InputError, match=match):
        pipe.generate(prompt, seed=0, steps=1, **options)


def test_a_unet_with_a_fixed_number_of_tokens_refuses_long_prompts(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "fixed"))
    raw = json.loads((bundle / MANIFEST).read_text())
    states = next(i for i in raw["graphs"]["unet"]["inputs"] if i["name"].startswith("encoder"))
    states["shape"][1] = 77
    (bundle / MANIFEST).write_text(json.dumps(raw))
    with edgediff.load(bundle, threads=1) as pipe:
        assert np.isfinite(last_latents(pipe, LONG)).all()
        with pytest.raises(InputError, match="`long_prompts`: the UNet of this bundle takes 77"):
            pipe.generate(LONG, seed=0, long_prompts=True)
