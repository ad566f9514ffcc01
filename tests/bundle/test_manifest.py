"""The bundle's schema, and errors in bundles on disk."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgediff.bundle.folder import Bundle, describe_files, write_manifest
from edgediff.bundle.manifest import FORMAT_VERSION, MANIFEST, parse_manifest
from edgediff.errors import BundleError


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small golden bundle, to be damaged."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((bundle / MANIFEST).read_text())
    change(raw)
    (bundle / MANIFEST).write_text(json.dumps(raw))


def test_opens_and_survives_a_round_trip(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest.format_version == FORMAT_VERSION
    assert parse_manifest(opened.manifest.to_json()) == opened.manifest
    write_manifest(bundle, opened.manifest)
    assert Bundle.open(bundle) == opened


def test_timesteps_are_only_written_if_they_are_set(bundle: Path) -> None:
    """Older versions know no such key."""
    manifest = Bundle.open(bundle).manifest
    assert '"timesteps"' not in manifest.to_json()
    schedule = dataclasses.replace(manifest.schedule, timesteps=(800,))
    one_step = dataclasses.replace(manifest, schedule=schedule)
    assert parse_manifest(one_step.to_json()) == one_step


def test_a_network_of_the_prompt_is_only_marked_if_it_is_one(bundle: Path) -> None:
    """Older versions know no such key."""
    manifest = Bundle.open(bundle).manifest
    assert '"conditional_only"' not in manifest.to_json()
    graph = dataclasses.replace(manifest.graphs["unet"], conditional_only=True)
    marked = dataclasses.replace(manifest, graphs={**manifest.graphs, "unet": graph})
    assert marked.to_json().count('"conditional_only": true') == 1
    assert parse_manifest(marked.to_json()) == marked


def test_describe_files_agrees_with_the_manifest(bundle: Path) -> None:
    files = Bundle.open(bundle).manifest.files
    assert describe_files(bundle, files) == files


def test_a_manifest_that_would_not_read_back_is_not_written(bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    with pytest.raises(BundleError, match="not listed under files"):
        write_manifest(tmp_path, dataclasses.replace(manifest, files={}))
    assert not (tmp_path / MANIFEST).exists()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.open(tmp_path / "absent")


def test_a_file_instead_of_a_folder(bundle: Path) -> None:
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(bundle / "unet.onnx")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1, 2]", "expected an object"),
        ("{}", "format_version is None"),
        ('{"format_version": "1"}', "format_version is '1'"),
        ('{"format_version": true}', "format_version is True"),
        ('{"format_version": 0}', "format_version is 0"),
        (f'{{"format_version": {FORMAT_VERSION + 1}, "new": 1}}', "pip install -U edgediff"),
        ('{"format_version": 1}', "name is missing"),
        ("\udcff", "cannot be read"),
    ],
)
def test_files_that_are_not_manifests(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(flavour=1), "unknown key 'flavour': expected one of format_version"),
        (lambda m: m["latent"].update(scale=1), "latent: unknown key 'scale'"),
        (lambda m: m["latent"].pop("channels"), "latent: channels is missing"),
        (lambda m: m["latent"].update(channels="4"), 'channels: expected a whole number.*"4"'),
        (lambda m: m["latent"].update(channels=4.0), "channels: expected a whole number"),
        (lambda m: m["defaults"].update(steps=True), "steps: expected a whole number, found true"),
        (lambda m: m["defaults"].update(steps=None), "steps: expected a whole number, found null"),
        (lambda m: m.update(providers="cpu"), "providers: expected a list"),
        (lambda m: m.update(files=[]), "files: expected an object"),
        (lambda m: m["graphs"]["unet"].update(precision="int9"), "expected one of fp32, fp16"),
        (lambda m: m["graphs"].pop("unet"), "graphs: denoiser is missing"),
        (lambda m: m["tokenizers"].clear(), "tokenizers: text_encoder is missing"),
        (lambda m: m["files"].pop("unet.onnx"), r"unet\.onnx' is not listed under files"),
        (lambda m: m["schedule"].update(beta_schedule="wavy"), "beta_schedule"),
        (lambda m: m["latent"].update(downscale=0), "latent: downscale is 0"),
        (lambda m: m["latent"].update(scaling_factor=0), "latent: scaling_factor is 0"),
        (lambda m: m["latent"].update(shift_factor=float("nan")), "NaN is not a JSON number"),
        (lambda m: m["defaults"].update(steps=0), "defaults: steps is 0"),
        (lambda m: m["tokenizers"]["text_encoder"].update(max_length=-1), "max_length is -1"),
        (lambda m: m["schedule"].update(num_train_timesteps=0), "num_train_timesteps"),
    ],
)
def test_a_manifest_with_a_wrong_value(
    bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../evil", "..\\evil", "C:evil"])
def test_a_path_that_leaves_the_bundle(bundle: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"size": 1, "sha256": "0" * 64}

    edit(bundle, change)
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(bundle)


def test_a_link_that_leaves_the_bundle(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (bundle / "unet.onnx").rename(outside)
    (bundle / "unet.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="links to a place outside"):
        Bundle.open(bundle)


def test_a_missing_file(bundle: Path) -> None:
    (bundle / "unet.onnx").unlink()
    with pytest.raises(BundleError, match=r"unet\.onnx: missing"):
        Bundle.open(bundle)


def test_a_truncated_file(bundle: Path) -> None:
    data = (bundle / "unet.onnx").read_bytes()
    (bundle / "unet.onnx").write_bytes(data[:-1])
    with pytest.raises(BundleError, match=f"{len(data) - 1} bytes, but bundle.json says"):
        Bundle.open(bundle)


def test_a_file_altered_by_one_byte(bundle: Path) -> None:
    data = bytearray((bundle / "unet.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "unet.onnx").write_bytes(data)
    opened = Bundle.open(bundle)  # sizes are right
    with pytest.raises(BundleError, match=r"unet\.onnx: sha256 .* but bundle\.json says"):
        opened.check_hash("unet.onnx")


def test_a_file_that_cannot_be_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    opened = Bundle.open(bundle)
    monkeypatch.setattr(os, "open", refuse)  # root may read anything
    with pytest.raises(BundleError, match=r"unet\.onnx: cannot be read \(Permission denied\)"):
        opened.check_hash("unet.onnx")


def test_an_invalid_path() -> None:
    for path in ("x" * 300, "a\0b"):
        with pytest.raises(BundleError, match=r"is not a path to a bundle|no such bundle"):
            Bundle.open(path)


def test_two_files_swapped(bundle: Path) -> None:
    unet, vae = bundle / "unet.onnx", bundle / "vae_decoder.onnx"
    a, b = unet.read_bytes(), vae.read_bytes()
    unet.write_bytes(b)
    vae.write_bytes(a)
    with pytest.raises(BundleError, match=r"\.onnx: \d+ bytes, but"):
        Bundle.open(bundle)


def test_errors_keep_bundle_and_schedule_apart(bundle: Path) -> None:
    """A wrong value in bundle.json is the bundle's fault, not that of the call's arguments."""
    edit(bundle, lambda m: m["schedule"].update(beta_start=2.0))
    with pytest.raises(BundleError, match="beta_start"):
        Bundle.open(bundle)
