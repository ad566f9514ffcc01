"""The model card: its figures are bundle.json's, and text from a stranger stays text."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgediff.bundle.card import base_model, model_card
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import Manifest, MergedLora, Provenance

EVIL = 'a"\n---\n# b: [x](javascript:1) <img src=x> | c\\ `d` *e* $f$ https://g www.h.i j@k'


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def front_matter(card: str) -> dict[str, Any]:
    start, front, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front)


def test_figures_are_the_bundles(manifest: Manifest) -> None:
    card = model_card(manifest, "owner/tiny")
    front = front_matter(card)
    assert (front["library_name"], front["pipeline_tag"]) == ("edgediff", "text-to-image")
    assert {"edgediff", "onnx", "fp32", "image-to-image"} <= set(front["tags"])
    assert "base_model" not in front  # a local folder
    assert "| steps | 4 |" in card
    assert "| sampler | euler |" in card
    for stage, found in manifest.fidelity.stages.items():
        assert f"| {stage.replace('_', chr(92) + '_')} | fp32 | {found.error:.1e} |" in card
    assert card.count("equal |") == len(manifest.fidelity.images) > 0
    assert 'edgediff.load("hf:owner/tiny")' in card
    assert "-m hf:owner/tiny" in card


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("creativeml-openrail-m", {"license": "creativeml-openrail-m"}),
        (None, {"license": "unknown"}),
        ("My own: terms", {"license": "other", "license_name": "My own: terms"}),
    ],
)
def test_licenses(license: str | None, expected: dict[str, str], manifest: Manifest) -> None:
    stated = replace(manifest, provenance=replace(manifest.provenance, license=license))
    front = front_matter(model_card(stated, "owner/tiny"))
    assert {k: v for k, v in front.items() if k.startswith("license")} == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", "owner/name"),
        ("owner/name@v1.0", "owner/name"),
        ("owner/name/unet.safetensors", "owner/name"),
        ("owner/name with the VAE madebyollin/taesd", "owner/name"),
        ("folder with the VAE madebyollin/taesd", None),
        ("folder", None),
        ('x"\n/y', None),
    ],
)
def test_the_base_model(source: str, expected: str | None, manifest: Manifest) -> None:
    assert base_model(source) == expected
    stated = replace(
        manifest,
        provenance=Provenance(source=source),
        quantization=replace(manifest.quantization, precision="int8"),
    )
    front = front_matter(model_card(stated, "owner/tiny"))
    assert front.get("base_model") == expected
    assert front.get("base_model_relation") == (None if expected is None else "quantized")


def test_text_of_a_stranger_stays_text(manifest: Manifest) -> None:
    (image, *_) = manifest.fidelity.images
    hostile = replace(
        manifest,
        name=EVIL.replace("\n", " "),  # a manifest takes no other
        defaults=replace(manifest.defaults, sampler=EVIL),
        fidelity=replace(manifest.fidelity, images=(replace(image, prompt=EVIL),)),
        provenance=Provenance(
            source=EVIL,
            license=EVIL,
            attribution=(EVIL, "- a list", "1. another", "= a heading"),
            versions={EVIL: EVIL},
            loras=(MergedLora(file=EVIL, scale=1.0, sha256="0" * 64),),
            controlnets={EVIL: EVIL},
        ),
    )
    card, plain = model_card(hostile, "owner/tiny"), model_card(manifest, "owner/tiny")
    front = front_matter(card)
    assert front["license_name"] == EVIL
    assert set(front) == {*front_matter(plain), "license_name"}
    text = card.split("---\n", 2)[2]
    touched = [line for line in text.splitlines() if "javascript" in line]
    assert len(touched) >= 8
    for line in touched:
        rest = re.sub(r"\\.", "", line)  # without what is escaped
        rest = re.sub(r"^(# |\* |\| )|( \| )|( \|$)", "", rest)  # and without our own
        assert not {*"`*_[]<>#$@|&"} & {*rest}
        assert "://" not in rest
        assert "www." not in rest
    assert text.count("\n## ") == plain.split("---\n", 2)[2].count("\n## ")
    assert "\n* \\- a list\n* 1\\. another\n* \\= a heading\n" in text
