"""`edgediff verify` proves a bundle, and fails what it should."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import edgediff
from edgediff.bundle.folder import Bundle, describe_files
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import BundleError, ProviderError
from edgediff.verification import relative_error


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def change_fixtures(bundle: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Edit fixtures.npz, and bundle.json so that its hash still fits."""
    with np.load(bundle / "fixtures.npz") as arrays:
        edited = dict(arrays)
    change(edited)
    np.savez(bundle / "fixtures.npz", **edited)
    manifest = json.loads((bundle / MANIFEST).read_text())
    spec = describe_files(bundle, ["fixtures.npz"])["fixtures.npz"]
    manifest["files"]["fixtures.npz"] = {"size": spec.size, "sha256": spec.sha256}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def test_a_sound_bundle(bundle: Path) -> None:
    outcome = edgediff.verify(bundle)
    assert outcome.ok
    assert outcome.provider == "cpu"
    names = [check.name for check in outcome.checks]
    assert {"unet.onnx", "text_encoder", "unet", "vae_decoder"} <= set(names)
    images = Bundle.open(bundle).manifest.fidelity.images
    assert sum(name.startswith("image ") for name in names) == len(images) > 0
    for check in outcome.checks:
        if check.unit == "error":
            assert check.measured is not None
            assert check.limit is not None
            assert 0 <= check.measured <= check.limit


def test_a_byte_that_changed(bundle: Path) -> None:
    data = bytearray((bundle / "unet.onnx").read_bytes())
    data[1000] ^= 1
    (bundle / "unet.onnx").write_bytes(data)
    outcome = edgediff.verify(bundle)
    assert [c.name for c in outcome.checks if not c.ok] == ["unet.onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "edgediff", "verify", str(bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "FAIL  unet.onnx" in done.stdout
    assert "1 of " in done.stdout


@pytest.mark.parametrize("stage", ["text_encoder", "unet", "vae_decoder"])
def test_a_stage_that_gives_other_values(bundle: Path, stage: str) -> None:
    def scale(arrays: dict[str, np.ndarray]) -> None:
        for key in arrays:
            if key.startswith(f"{stage}/") and "/out/" in key:
                arrays[key] = arrays[key] * np.float32(1.5)

    change_fixtures(bundle, scale)
    outcome = edgediff.verify(bundle)
    assert not outcome.ok
    (failed,) = [c for c in outcome.checks if not c.ok]
    assert failed.name == stage
    assert failed.measured == pytest.approx(1 / 3, rel=1e-2)
    assert "too far from the float model" in failed.problem


def test_a_stage_that_is_not_finite(bundle: Path) -> None:
    def poison(arrays: dict[str, np.ndarray]) -> None:
        key = next(k for k in arrays if k.startswith("vae_decoder/") and "/in/" in k)
        arrays[key] = np.full_like(arrays[key], np.nan)

    change_fixtures(bundle, poison)
    failed = [c for c in edgediff.verify(bundle).checks if not c.ok]
    assert [(c.name, c.problem) for c in failed] == [("vae_decoder", "values not finite")]


def test_a_image_that_differs(bundle: Path) -> None:
    def invert(arrays: dict[str, np.ndarray]) -> None:
        for key in [k for k in arrays if k.startswith("image/")]:
            arrays[key] = 255 - arrays[key]

    change_fixtures(bundle, invert)
    failed = [c for c in edgediff.verify(bundle).checks if not c.ok]
    assert failed
    assert all(c.name.startswith("image ") and c.unit == "dB" for c in failed)


def test_fixtures_without_a_stage(bundle: Path) -> None:
    def drop(arrays: dict[str, np.ndarray]) -> None:
        for key in [k for k in arrays if k.startswith("unet/")]:
            del arrays[key]

    change_fixtures(bundle, drop)
    (failed,) = [c for c in edgediff.verify(bundle).checks if not c.ok]
    assert failed.name == "unet"
    assert "no case of this stage" in failed.problem


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_that_is_absent(
    provider: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    expected = rf'provider \'{provider}\': .*built without it: .*pip install "onnxruntime-gpu'
    with pytest.raises(ProviderError, match=expected):
        edgediff.verify(tiny_bundle, provider=provider)


def test_a_bundle_without_fixtures(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["fixtures"] = None
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="has no fixtures"):
        edgediff.verify(bundle)


def test_relative_error() -> None:
    a = np.array([3.0, 4.0])
    assert relative_error(a, a) == 0
    assert relative_error(a * 2, a) == 1
    assert relative_error(np.zeros(2), np.zeros(2)) == 0


def spoil(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    return lambda bundle: change_fixtures(bundle, change)


def replace_fixtures(content: bytes) -> Callable[[Path], None]:
    def act(bundle: Path) -> None:
        change_fixtures(bundle, lambda _: None)
        (bundle / "fixtures.npz").write_bytes(content)
        manifest = json.loads((bundle / MANIFEST).read_text())
        spec = describe_files(bundle, ["fixtures.npz"])["fixtures.npz"]
        manifest["files"]["fixtures.npz"] = {"size": spec.size, "sha256": spec.sha256}
        (bundle / MANIFEST).write_text(json.dumps(manifest))

    return act


def drop_fidelity(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["fidelity"]["stages"]["vae_encoder"]
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def zip_bomb() -> bytes:
    """An array whose entry says that it holds two gigabytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("image/0.npy", b"x" * 100)
    return out.getvalue().replace((100).to_bytes(4, "little"), (2**31).to_bytes(4, "little"))


def pickled() -> bytes:
    out = io.BytesIO()
    np.savez(out, **{"image/0": np.array([{}], object)})
    return out.getvalue()


OUT = "unet/t981/out/out_sample"


@pytest.mark.parametrize(
    ("act", "check", "problem"),
    [
        (
            spoil(lambda a: a.update({k: v * np.nan for k, v in a.items() if "/out/" in k})),
            "unet",
            "the reference of out_sample has values that are not finite",
        ),
        (
            spoil(lambda a: [a.pop(k) for k in list(a) if "/out/" in k]),
            "unet",
            "has references of []",
        ),
        (spoil(lambda a: a.pop(OUT)), "unet", "has references of []"),
        (spoil(lambda a: a.update({OUT + "x": a[OUT]})), "unet", "has references of ['out_s"),
        (spoil(lambda a: a.update({OUT: np.zeros(7, np.float32)})), "unet", "is (7,), and the"),
        (spoil(lambda a: a.update({OUT: a[OUT][:, :, :1]})), "unet", "the reference of out_sample"),
        (spoil(lambda a: a.update({OUT: np.full_like(a[OUT], 3e38)})), "unet", "too far"),
        (spoil(lambda a: a.pop("unet/t981/in/sample")), "unet", "given"),
        (
            spoil(lambda a: [a.pop(k) for k in list(a) if k.startswith("vae_encoder/")]),
            "vae_encoder",
            "has no case of this stage",
        ),
        (drop_fidelity, "vae_encoder", "does not say how far"),
        (spoil(lambda a: a.update({"other/c/out/x": np.zeros(1)})), "fixtures", "is of nothing"),
        (spoil(lambda a: a.update({"unet/t981/foo/x": np.zeros(1)})), "fixtures", "is of nothing"),
        (spoil(lambda a: a.update({"unet/t981": np.zeros(1)})), "fixtures", "is of nothing"),
        (spoil(lambda a: a.update({"unet/t981/in/x": np.zeros(1)})), "unet", "x"),
        (spoil(lambda a: a.update({"image/99": np.zeros(1)})), "fixtures", "is of nothing"),
        (spoil(lambda a: a.pop("image/1")), "image 1", "not in fixtures.npz"),
        (spoil(lambda a: a.update({"image/1": a["image/1"][:4]})), "image 1", "expected u"),
        (
            spoil(lambda a: a.update({"image/1": a["image/1"].astype(np.float32)})),
            "image 1",
            "the reference is float32",
        ),
        (replace_fixtures(b""), "fixtures", "cannot be read"),
        (replace_fixtures(b"hello"), "fixtures", "cannot be read"),
        (replace_fixtures(b"PK\5\6" + bytes(18)), "unet", "has no case"),
        (replace_fixtures(zip_bomb()), "fixtures", "more than is read"),
        (replace_fixtures(pickled()), "fixtures", "Object arrays cannot be loaded"),
        (spoil(lambda a: a.update({"unet": np.zeros(1)})), "fixtures", "is not named as"),
        (spoil(lambda a: a.update({OUT: a[OUT].astype("U")})), "fixtures", "not an array of num"),
    ],
)  # fmt: skip
def test_what_could_not_be_checked_fails(
    bundle: Path, act: Callable[[Path], None], check: str, problem: str
) -> None:
    act(bundle)
    outcome = edgediff.verify(bundle)
    assert not outcome.ok
    failed = {c.name: c.problem for c in outcome.checks if not c.ok}
    assert problem in failed[check]


def test_damaged_fixtures_are_not_an_interruption(bundle: Path) -> None:
    replace_fixtures(b"")(bundle)
    done = subprocess.run(
        [sys.executable, "-m", "edgediff", "verify", str(bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "FAIL  fixtures" in done.stdout
    assert "Interrupted" not in done.stderr
