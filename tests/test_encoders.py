"""Text encoders of other kinds than CLIP: variable lengths, templates, masks, and how they join.

The bundles are hand-made: a tokenizer of words, and functions in place of graphs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers

from edgediff.bundle.folder import Bundle, describe_files
from edgediff.bundle.manifest import (
    ConditioningSpec,
    GraphSpec,
    Manifest,
    TensorSpec,
    TokenizerSpec,
    parse_manifest,
)
from edgediff.errors import BundleError, InputError
from edgediff.networks.text_encoder import TextConditioner
from edgediff.request.request import resolve
from edgediff.sampling.denoiser import Conditioning
from edgediff.text.tokenizer import Tokenizer

WORDS = ["<pad>", "</s>", "<s>", "user", ":", "end", ",", *"abcdefgh"]
PAD, EOS, BOS, USER, COLON, END = range(6)
A, B, C = (WORDS.index(letter) for letter in "abc")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tokenizer that splits at spaces and signs."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    vocabulary = {word: k for k, word in enumerate(WORDS)}
    tokenizer = RustTokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def tokenizer(words: Path, **spec: Any) -> Tokenizer:
    given = {"file": words.name, "max_length": 6, "pad_token_id": PAD, **spec}
    return Tokenizer(words, TokenizerSpec(**given))


@pytest.mark.parametrize(
    ("spec", "ids", "limit"),
    [
        ({}, [A, B], 6),  # as Qwen's
        ({"eos_token_id": EOS}, [A, B, EOS], 5),  # as T5's
        ({"bos_token_id": BOS}, [BOS, A, B], 5),  # as Gemma's
        ({"bos_token_id": BOS, "eos_token_id": EOS}, [BOS, A, B, EOS], 4),
        ({"eos_token_id": EOS, "min_length": 5}, [A, B, EOS, PAD, PAD], 5),
        ({"min_length": 6}, [A, B, PAD, PAD, PAD, PAD], 6),
        ({"template": "user: {prompt}"}, [USER, COLON, A, B], 4),
        ({"template": "user: {prompt} end", "eos_token_id": EOS}, [USER, COLON, A, B, END, EOS], 2),
    ],
)
def test_framing(words: Path, spec: dict[str, Any], ids: list[int], limit: int) -> None:
    encoded = tokenizer(words, **spec).encode("a b")
    assert encoded.ids.tolist() == [ids]
    assert (encoded.ids.dtype, encoded.weights.dtype) == (np.int64, np.float32)
    assert encoded.mask.tolist() == [[id != PAD for id in ids]]
    assert encoded.weights.shape == encoded.ids.shape
    assert (encoded.limit, encoded.tokens, encoded.truncated) == (limit, 2, "")


def test_the_prompt_is_cut_and_the_template_is_not(words: Path) -> None:
    encoded = tokenizer(words, template="user: {prompt} end").encode("a b c a, b")
    assert encoded.ids.tolist() == [[USER, COLON, A, B, C, END]]
    assert (encoded.limit, encoded.tokens, encoded.truncated) == (3, 6, "a, b")


def test_nothing_is_one_token_at_least(words: Path) -> None:
    encoded = tokenizer(words).encode("")
    assert encoded.ids.tolist() == [[PAD]]
    assert not encoded.mask.any()
    assert tokenizer(words, eos_token_id=EOS).encode("").ids.tolist() == [[EOS]]


def test_chunks_of_variable_length_are_padded_alike(words: Path) -> None:
    t = tokenizer(words, eos_token_id=EOS, template="user: {prompt}", max_length=5)
    encoded = t.encode("a (b:2) BREAK c", weighted=True, chunked=True)
    assert encoded.ids.tolist() == [[USER, COLON, A, B, EOS], [USER, COLON, C, EOS, PAD]]
    assert encoded.weights.tolist() == [[1, 1, 1, 2, 1], [1, 1, 1, 1, 1]]
    assert encoded.mask.tolist() == [[True] * 5, [True] * 4 + [False]]
    extended = t.extended(encoded, 3, 6)
    assert extended.ids[:2, :5].tolist() == encoded.ids.tolist()
    assert extended.ids[:, 5].tolist() == [PAD] * 3
    assert extended.ids[2].tolist() == [USER, COLON, EOS, PAD, PAD, PAD]
    assert extended.mask.sum(axis=1).tolist() == [5, 4, 3]
    assert extended.weights[2].tolist() == [1] * 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"min_length": 7}, "min_length is 7, expected from 0 to max_length"),
        ({"max_length": 0}, "max_length is 0, expected 1 or more"),
        ({"max_length": 1, "eos_token_id": EOS}, "max_length is 1, expected 2 or more"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"template": "user:"}, "template is 'user:', expected text with one {prompt}"),
        ({"template": "{prompt}{prompt}"}, "expected text with one {prompt}"),
        ({"template": "user: {prompt} end", "max_length": 3}, "leaves no room for a prompt in 3"),
    ],
)
def test_specs_that_do_not_go_together(words: Path, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        tokenizer(words, **spec)


def tensor(name: str, dtype: Any = "float32", *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape or ("batch", "sequence"))


def encoder(*inputs: str, outputs: tuple[str, ...] = ("states",), dtype: Any = "int64") -> Any:
    return {"inputs": [tensor(n, dtype) for n in ("input_ids", *inputs)], "outputs": outputs}


class Model:
    """A bundle of text encoders, and what each gives: of id k in an encoder of width w, k in every
    one of w values; and for all the prompt `text_embeds`, the number of ids that are not masked."""

    def __init__(
        self,
        tiny: Manifest,
        words: Path,
        encoders: dict[str, tuple[TokenizerSpec, Any, int]],
        conditioning: ConditioningSpec,
        denoiser: tuple[TensorSpec, ...] = (),
    ) -> None:
        graph = tiny.denoiser.graph
        graphs: dict[str, GraphSpec] = {
            name: replace(
                tiny.text_encoders[0].graph,
                inputs=tuple(made["inputs"]),
                outputs=tuple(tensor(n, "float32", 1, "sequence", 1) for n in made["outputs"]),
            )
            for name, (_, made, _) in encoders.items()
        }
        manifest = replace(
            tiny,
            files={**tiny.files, **describe_files(words.parent, [words.name])},
            graphs={
                **graphs,
                "transformer": replace(graph, inputs=(*graph.inputs, *denoiser)),
                "vae": tiny.decoder.graph,
            },
            tokenizers={name: spec for name, (spec, _, _) in encoders.items()},
            conditioning=conditioning,
        )
        # The manifest is one that a bundle may have.
        self.bundle = Bundle(root=words.parent, manifest=parse_manifest(manifest.to_json()), id="x")
        self.widths = {name: width for name, (_, _, width) in encoders.items()}
        self.runs: list[tuple[str, dict[str, NDArray[Any]]]] = []

    def run_stage(self, stage: str, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.runs.append((stage, inputs))
        ids = inputs["input_ids"].astype(np.float32)
        mask = inputs.get("attention_mask", np.ones_like(ids))
        return {
            "states": np.repeat(ids[:, :, None], self.widths[stage], axis=2),
            "text_embeds": np.full((1, self.widths[stage]), mask.sum(), np.float32),
        }

    def condition(
        self, prompt: str, **options: Any
    ) -> tuple[Any, Conditioning, Conditioning | None]:
        request = resolve(self.bundle, prompt, {"guidance_scale": 5.0, **options})
        return TextConditioner(self.bundle)(request.settings, self.run_stage)


Make = Callable[..., Model]


@pytest.fixture
def make(tiny_bundle: Path, words: Path) -> Make:
    tiny = Bundle.open(tiny_bundle).manifest

    def model(*args: Any, **options: Any) -> Model:
        return Model(tiny, words, *args, **options)

    return model


def spec(**changes: Any) -> TokenizerSpec:
    return TokenizerSpec(
        **{"file": "tokenizer.json", "max_length": 6, "pad_token_id": PAD, **changes}
    )


CLIP = {"min_length": 6, "bos_token_id": BOS, "eos_token_id": EOS}
T5 = {"max_length": 8, "eos_token_id": EOS}


def test_prompts_that_run_together_are_as_long_as_each_other(make: Make) -> None:
    """And an encoder that takes a mask gets one, in its own dtype, as the denoiser does."""
    model = make(
        {"t5": (spec(**T5), encoder("attention_mask", dtype="int32"), 2)},
        ConditioningSpec(states=(("t5",),)),
        denoiser=(tensor("encoder_attention_mask", "bool"),),
    )
    report, prompt, negative = model.condition("a b c", negative_prompt="a")
    assert negative is not None
    assert prompt.encoder_hidden_states[0, :, 0].tolist() == [A, B, C, EOS]
    assert negative.encoder_hidden_states[0, :, 0].tolist() == [A, EOS, PAD, PAD]
    for name, conditioning, mask in (
        ("prompt", prompt, [1, 1, 1, 1]),
        ("negative", negative, [1, 1, 0, 0]),
    ):
        found = conditioning.extra["encoder_attention_mask"]
        assert (found.dtype, found.tolist()) == (np.bool_, [[bool(m) for m in mask]]), name
    (first, second) = (inputs for _, inputs in model.runs)
    assert {v.dtype for v in (*first.values(), *second.values())} == {np.dtype("int32")}
    assert second["attention_mask"].tolist() == [[1, 1, 0, 0]]
    assert (report.limit, report.tokens) == (7, 3)


def test_a_prompt_that_runs_by_itself_is_as_long_as_it_is(make: Make) -> None:
    model = make({"t5": (spec(**T5), encoder(), 2)}, ConditioningSpec(states=(("t5",),)))
    _, prompt, negative = model.condition("a b", guidance_scale=1.0)
    assert negative is None
    assert prompt.encoder_hidden_states.shape == (1, 3, 2)
    assert prompt.extra == {}
    assert [sorted(inputs) for _, inputs in model.runs] == [["input_ids"]]


def test_features_then_tokens(make: Make) -> None:
    """As Stable Diffusion 3 joins them: two encoders side by side, filled up with zeros, then T5;
    the embedding of the whole prompt of the first two."""
    pooled = encoder(outputs=("states", "text_embeds"))
    model = make(
        {
            "clip_l": (spec(**CLIP), pooled, 1),
            "clip_g": (spec(**CLIP), pooled, 2),
            "t5": (spec(**T5, min_length=8), encoder("attention_mask"), 5),
        },
        ConditioningSpec(states=(("clip_l", "clip_g"), ("t5",)), pooled=("clip_l", "clip_g")),
        denoiser=(tensor("text_embeds"), tensor("encoder_attention_mask", "int64")),
    )
    report, prompt, _ = model.condition("a b")
    states = prompt.encoder_hidden_states
    assert states.shape == (1, 6 + 8, 5)
    clip, t5 = [BOS, A, B, EOS, PAD, PAD], [A, B, EOS, *[PAD] * 5]
    for feature in range(5):
        first = clip if feature < 3 else [0] * 6
        assert states[0, :, feature].tolist() == [*first, *t5]
    assert prompt.extra["text_embeds"].tolist() == [[6.0] * 3]
    mask = prompt.extra["encoder_attention_mask"]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]]
    assert report.limit == 4  # the first encoder's


def test_an_encoder_may_give_the_whole_prompt_only(make: Make) -> None:
    """As in FLUX: the states are T5's, and CLIP gives one embedding."""
    model = make(
        {
            "clip": (spec(**CLIP), encoder(outputs=("text_embeds",)), 3),
            "t5": (spec(**T5), encoder(), 2),
        },
        ConditioningSpec(states=(("t5",),), pooled=("clip",)),
        denoiser=(tensor("text_embeds"),),
    )
    report, prompt, negative = model.condition("a b c a b c a", negative_prompt="a")
    assert negative is not None
    assert prompt.encoder_hidden_states.shape == negative.encoder_hidden_states.shape == (1, 8, 2)
    assert prompt.extra["text_embeds"].shape == (1, 3)
    assert (report.limit, report.truncated) == (7, "")
    with pytest.raises(InputError, match="`clip_skip` is 1"):
        model.condition("a", clip_skip=1)


def test_equal_chunks_run_once(make: Make) -> None:
    model = make({"clip": (spec(**CLIP), encoder(), 2)}, ConditioningSpec(states=(("clip",),)))
    report, prompt, negative = model.condition(
        "a BREAK a BREAK b", negative_prompt="c", long_prompts=True
    )
    assert negative is not None
    assert prompt.encoder_hidden_states.shape == negative.encoder_hidden_states.shape == (1, 18, 2)
    assert report.chunks == 3
    assert len(model.runs) == 2 + 2  # a and b; c and nothing


def test_the_template_is_in_what_the_encoder_sees(make: Make) -> None:
    model = make(
        {"qwen": (spec(template="user: {prompt} end", max_length=9), encoder(), 1)},
        ConditioningSpec(states=(("qwen",),)),
    )
    _, prompt, negative = model.condition("a (b:2)", prompt_weights=True)
    assert negative is not None
    states = prompt.encoder_hidden_states[0, :, 0]
    # Weights keep the mean.
    plain = np.array([USER, COLON, A, B, END], np.float32)
    weighted = plain * [1, 1, 1, 2, 1]
    np.testing.assert_allclose(states, weighted * plain.mean() / weighted.mean(), rtol=1e-6)
    assert negative.encoder_hidden_states[0, :, 0].tolist() == [USER, COLON, END, PAD, PAD]


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        (ConditioningSpec(states=()), "conditioning: states: expected groups"),
        (ConditioningSpec(states=((),)), "conditioning: states: expected groups"),
        (ConditioningSpec(states=(("vae",),)), "conditioning: 'vae' is not a text encoder"),
        (ConditioningSpec(states=(("t5",),), pooled=("x",)), "conditioning: 'x' is not a text"),
        (ConditioningSpec(states=(("t5", "clip"),)), "one and the same length of prompts"),
        (ConditioningSpec(states=(("t5", "t5"),)), "one and the same length of prompts"),
    ],
)
def test_encoders_that_do_not_join(
    make: Make, conditioning: ConditioningSpec, message: str
) -> None:
    encoders = {"t5": (spec(**T5), encoder(), 2), "clip": (spec(**CLIP), encoder(), 2)}
    with pytest.raises(BundleError, match=message):
        make(encoders, conditioning)
