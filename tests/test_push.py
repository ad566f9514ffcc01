"""`edgediff push`: to a hub on this machine, and back."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import edgediff
from edgediff.bundle.folder import Bundle
from edgediff.cli import edgediff as command
from edgediff.errors import BundleError


def push(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["push", *map(str, arguments)])


@pytest.fixture
def token(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", "hf_right")


@pytest.mark.usefixtures("token")
def test_a_pushed_bundle_comes_back(hub: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "notes.txt").write_text("not of the bundle")
    done = push(bundle, "owner/tiny")
    assert done.exit_code == 0, done.output
    repository = hub.repositories["owner/tiny"]
    assert done.stdout == f"{hub.endpoint}/owner/tiny/commit/{repository.commit}\n"
    assert done.stderr == "uploading 12 files, 0.9 MB\n"  # no bars, as this is no terminal
    own = {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
    card = repository.files["README.md"].decode()
    assert repository.files == {**own, "README.md": card.encode()}
    assert card.startswith('---\nlicense: "')
    with edgediff.load("hf:owner/tiny") as pipe:
        assert pipe.bundle.id == Bundle.open(tiny_bundle).id
    assert push(bundle, "hf:owner/tiny").exit_code == 0  # again, over the first


@pytest.mark.usefixtures("token")
def test_a_private_repository(hub: Any, tiny_bundle: Path) -> None:
    assert push(tiny_bundle, "owner/secret", "--private").exit_code == 0
    assert hub.repositories["owner/secret"].readers == "token"
    assert push(tiny_bundle, "owner/secret", "--private").exit_code == 0
    hub.add("owner/open", {})
    done = push(tiny_bundle, "owner/open", "--private")
    assert str(done.exception) == (
        "hf:owner/open: exists and is public: make it private on the hub first, or leave --private"
        " out"
    )
    assert hub.repositories["owner/open"].files == {}


def test_a_dry_run_uploads_nothing(hub: Any, tiny_bundle: Path) -> None:
    done = push(tiny_bundle, "owner/tiny", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "hf:owner/tiny" in done.stdout
    for path in tiny_bundle.iterdir():
        assert path.name in done.stdout
    assert hub.requests == []


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_without_the_right_token(
    token: str | None, hub: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    done = push(tiny_bundle, "owner/tiny")
    assert str(done.exception) == (
        "hf:owner/tiny: may not be written (401): set HF_TOKEN to a token with write access to"
        " owner"
    )
    assert hub.repositories == {}


@pytest.mark.usefixtures("token")
def test_a_damaged_bundle_is_not_pushed(hub: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    content = (bundle / "unet.onnx.data").read_bytes()
    (bundle / "unet.onnx.data").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    done = push(bundle, "owner/tiny")
    assert isinstance(done.exception, BundleError)
    assert "unet.onnx.data: sha256 " in str(done.exception)
    assert hub.requests == []


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("name", ["README.md", "readme.md", ".git", ".gitattributes"])
def test_a_file_that_the_hub_would_replace(
    name: str, hub: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / name).write_bytes(b"mine")
    raw = json.loads((bundle / "bundle.json").read_bytes())
    raw["files"][name] = {"size": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(raw))
    for flags in ((), ("--dry-run",)):
        done = push(bundle, "owner/tiny", *flags)
        assert isinstance(done.exception, BundleError)
        assert str(done.exception).startswith(f"{name}: cannot be pushed, as the hub needs this")
    assert hub.requests == []


@pytest.mark.usefixtures("token")
@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_a_link_to_outside_is_refused_before_anything_is_created(
    hub: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "bundle.json").rename(tmp_path / "elsewhere.json")
    (bundle / "bundle.json").symlink_to(tmp_path / "elsewhere.json")
    done = push(bundle, "owner/tiny")
    assert isinstance(done.exception, BundleError)
    assert str(done.exception).startswith("bundle.json: links to a place outside the bundle")
    assert hub.requests == []


@pytest.mark.usefixtures("token")
def test_without_a_terminal_no_bars_are_shown(hub: Any, tiny_bundle: Path) -> None:
    code = [sys.executable, "-m", "edgediff", "push", str(tiny_bundle), "owner/tiny"]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "uploading 12 files, 0.9 MB\n")
    assert "owner/tiny" in hub.repositories


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("tiny", "tiny: is not a name on the hub"),
        ("owner/tiny@v1", "a push goes to the main branch: leave @v1 out"),
    ],
)
def test_what_is_not_a_repository(
    repository: str, message: str, hub: Any, tiny_bundle: Path
) -> None:
    for flags in ((), ("--dry-run",)):
        done = push(tiny_bundle, repository, *flags)
        assert isinstance(done.exception, BundleError)
        assert message in str(done.exception)
    assert hub.requests == []


@pytest.mark.usefixtures("token")
def test_a_hub_that_fails(hub: Any, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    done = push(tiny_bundle, "owner/tiny")
    assert isinstance(done.exception, BundleError)
    assert str(done.exception).startswith("hf:owner/tiny: the hub cannot be reached (")
    assert str(done.exception).endswith("): check the connection")
    assert hub.repositories == {}
