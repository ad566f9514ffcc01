"""Version 1 of bundle.json is upgraded to the present version before it is parsed."""

import copy
import json
from typing import Any

import pytest

from edgediff.bundle.manifest import FORMAT_VERSION, MANIFEST, parse_manifest
from edgediff.bundle.upgrade import upgraded
from edgediff.errors import BundleError
from tests.golden import make_format1


@pytest.fixture
def raw() -> dict[str, Any]:
    """A manifest in version 1, with a control network."""
    text = (make_format1.OUT / MANIFEST).read_text(encoding="utf-8")
    made: dict[str, Any] = json.loads(text)
    return made


def test_every_stage_gets_its_role(raw: dict[str, Any]) -> None:
    manifest = parse_manifest(json.dumps(raw))
    assert manifest.format_version == FORMAT_VERSION
    assert [stage.name for stage in manifest.text_encoders] == ["text_encoder"]
    assert manifest.denoiser.name == "unet"
    assert manifest.decoder.name == "vae_decoder"
    assert manifest.encoder is not None
    assert manifest.encoder.name == "vae_encoder"
    assert manifest.controlled_denoiser is not None
    assert manifest.controlled_denoiser.name == "unet_controlled"
    assert {name: s.name for name, s in manifest.controlnets.items()} == {
        "canny": "controlnet.canny"
    }
    assert manifest.conditioning.states == (("text_encoder",),)
    assert manifest.conditioning.pooled == ()
    tokenizer = manifest.tokenizers["text_encoder"]
    assert tokenizer.min_length == tokenizer.max_length == 77
    assert (manifest.latent.type, manifest.schedule.type) == ("image", "discrete")
    assert parse_manifest(manifest.to_json()) == manifest


def test_two_text_encoders_join_as_in_sdxl(raw: dict[str, Any]) -> None:
    pooled = {"name": "text_embeds", "dtype": "float32", "shape": ["batch", 24]}
    for of in (raw["graphs"], raw["tokenizers"]):
        of["text_encoder_2"] = copy.deepcopy(of["text_encoder"])
    raw["graphs"]["text_encoder_2"]["outputs"].append(pooled)
    assert upgraded(raw, 1)["conditioning"]["pooled"] == []  # the UNet takes none
    raw["graphs"]["unet"]["inputs"].append(pooled)
    conditioning = parse_manifest(json.dumps(raw)).conditioning
    assert conditioning.states == (("text_encoder", "text_encoder_2"),)
    assert conditioning.pooled == ("text_encoder_2",)


def test_the_present_version_is_unchanged(raw: dict[str, Any]) -> None:
    present = upgraded(raw, 1)
    assert upgraded(present, FORMAT_VERSION) is present


def test_the_argument_is_not_changed(raw: dict[str, Any]) -> None:
    before = copy.deepcopy(raw)
    upgraded(raw, 1)
    assert raw == before


@pytest.mark.parametrize("key", ["graphs", "tokenizers", "latent", "schedule"])
@pytest.mark.parametrize("value", [None, 1, "text", [], [1], {}, {"a": 1}, {"a": {"outputs": 1}}])
def test_wrong_values_are_left_to_the_parser(raw: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(BundleError, match=rf"bundle\.json: {key}"):
        parse_manifest(json.dumps({**raw, key: value}))


def test_a_stage_with_an_unknown_name(raw: dict[str, Any]) -> None:
    raw["graphs"]["refiner"] = raw["graphs"]["unet"]
    with pytest.raises(BundleError, match=r"graphs\.refiner: role: expected one of text_encoder"):
        parse_manifest(json.dumps(raw))
