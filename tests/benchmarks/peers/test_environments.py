"""The contents of an environment, and errors if one cannot be made."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers import environments
from benchmarks.peers.__main__ import ready
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.conversion import Place
from benchmarks.peers.environments import HERE, PeerError
from benchmarks.peers.results import Settings
from edgediff.bench import machine

SETTINGS = Settings(
    shape="sd1",
    prompt="a fox",
    seed=0,
    width=64,
    height=64,
    steps=1,
    rounds=1,
    warm=1,
    clear=3.0,
)


def test_every_peer_has_its_requirements_all_pinned_and_its_worker() -> None:
    for name, peer in PEERS.items():
        for line in environments.requirements(peer.environment).splitlines():
            assert "==" in line, (name, line)
        assert (HERE / "workers" / f"{peer.worker}.py").is_file()


def test_requirements_include_others() -> None:
    ours = environments.requirements("edgediff")
    assert environments.requirements("edgediff-openvino").startswith(ours)


def test_an_environment_counts_as_there_while_its_requirements_are_the_same(tmp_path: Path) -> None:
    assert not environments.installed(tmp_path, "edgediff")
    (tmp_path / "requirements").write_text(environments.requirements("edgediff"))
    assert environments.installed(tmp_path, "edgediff")
    assert not environments.installed(tmp_path, "diffusers")


def test_a_command_that_fails_says_its_last_line() -> None:
    with pytest.raises(PeerError, match=r"ended with status 1: no wheel for this machine$"):
        environments.run(sys.executable, "-c", "import sys; sys.exit('no wheel for this machine')")
    with pytest.raises(PeerError, match="cannot be started"):
        environments.run("/no/such/pip")


def test_a_provider_that_is_not_there_is_told_before_anything_is_made_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environments, "python", lambda _: Path(sys.executable))
    monkeypatch.setattr(environments, "variables", lambda: dict(os.environ))
    environments.check_provider(Path(), "cpu")
    with pytest.raises(PeerError, match=r"^this onnxruntime .* was built without it"):
        environments.check_provider(Path(), "coreml" if sys.platform != "darwin" else "cuda")


@pytest.mark.parametrize(("flags", "told"), [(("avx2",), True), (("avx2", "avx512f"), False)])
def test_a_processor_that_a_peer_cannot_do_with(
    flags: tuple[str, ...], told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(machine.describe(), cpu_flags=flags)
    monkeypatch.setattr(machine, "describe", lambda: here)
    monkeypatch.setattr(environments, "install", lambda *_: sys.exit("installs"))
    name = "diffusers bfloat16"
    with pytest.raises(PeerError if told else SystemExit, match="bfloat16" if told else "installs"):
        ready(name, PEERS[name], Place(work=tmp_path, shape="sd1"), SETTINGS)


def test_variables_that_set_threads_or_modules_are_taken_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert not {"OMP_NUM_THREADS", "PYTHONPATH"} & environments.variables().keys()
    assert environments.variables()["HF_HUB_OFFLINE"] == "1"


def test_installed_size_is_of_packages_without_pip_and_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "_site_packages", lambda folder: folder)
    for path, size in (("picture/a.py", 10), ("picture/__pycache__/a.pyc", 99), ("pip/b.py", 99)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(bytes(size))
    assert environments.installed_bytes(tmp_path) == 10


def test_a_peer_is_ready_when_its_environment_and_model_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(work=tmp_path, shape="sd1")
    monkeypatch.setattr(environments, "install", lambda *_: None)
    monkeypatch.setattr(environments, "versions", lambda _: {"openvino": "1"})
    monkeypatch.setattr(environments, "installed_bytes", lambda _: 7)
    model = place.model("openvino-export-fp16")
    model.mkdir()
    (model / "unet.bin").write_bytes(bytes(5))
    (tmp_path / "sd1").mkdir()
    found = ready("OpenVINO GenAI fp16", PEERS["OpenVINO GenAI fp16"], place, SETTINGS)
    assert found.inputs["model"] == str(model)
    assert Path(found.inputs["cache"]).is_dir()
    assert found.known.model_bytes == 5
    assert found.compiles
    assert found.command[1].endswith("with_openvino.py")
