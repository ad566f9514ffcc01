"""The memory that is left, read from files like the system's."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import edgediff
from edgediff.backend import left_memory as module
from edgediff.backend.left_memory import Left, left_memory
from edgediff.backend.memory import estimate, fit
from edgediff.bundle.folder import Bundle
from edgediff.errors import ProviderError
from edgediff.pipeline import find_bundle

MB = 10**6


class System:
    """A fake /proc and fake cgroups in a folder."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.mount = folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.mount.mkdir()
        self.free(10**6)

    def free(self, megabytes: int) -> None:
        text = f"MemTotal: 99 kB\nMemAvailable:   {megabytes * 1000} kB\n"
        (self.proc / "meminfo").write_text(text)

    def in_cgroup(self, version: int, path: str, root: str = "/") -> None:
        kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,memory"
        line = f"35 31 0:32 {root} {self.mount} rw,relatime shared:9 - {kind}\n"
        (self.proc / "self" / "mountinfo").write_text("1 2 0:3 / / rw - ext4 /dev/a rw\n" + line)
        entry = f"0::{path}\n" if version == 2 else f"9:cpu:/x\n4:memory:{path}\n0::/\n"
        (self.proc / "self" / "cgroup").write_text(entry)

    def limit(self, version: int, path: str, limit: str, used: int, cache: int) -> None:
        folder = self.mount / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        names = ("memory.max", "memory.current", "")
        if version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        (folder / names[0]).write_text(limit + "\n")
        (folder / names[1]).write_text(f"{used * MB}\n")
        stat = f"anon 5\n{names[2]}inactive_file {cache * MB}\n{names[2]}active_file {MB}\n"
        (folder / "memory.stat").write_text(stat)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_the_page_cache_counts_as_left(system: System, version: int) -> None:
    system.in_cgroup(version, "/app")
    system.limit(version, "/app", f"{500 * MB}", 300, 99)
    assert left_memory(system.proc) == Left(left=300 * MB, limit="memory cgroup", hard=True)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_an_ancestor_counts(system: System, version: int) -> None:
    system.in_cgroup(version, "/pod/app")
    no_limit = "max" if version == 2 else str(2**63 - 4096)
    system.limit(version, "/pod/app", no_limit, 100, 0)
    system.limit(version, "/pod", f"{200 * MB}", 151, 0)
    found = left_memory(system.proc)
    assert found is not None
    assert (found.left, found.hard) == (50 * MB, True)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_sees_only_its_own_cgroup(system: System, version: int) -> None:
    system.in_cgroup(version, "/docker/1234", root="/docker/1234")
    system.limit(version, "/", f"{256 * MB}", 57, 0)
    found = left_memory(system.proc)
    assert found is not None
    assert found.left == 200 * MB


def test_a_path_outside_the_mount_is_the_mount(system: System) -> None:
    system.in_cgroup(2, "/../../elsewhere", root="/docker/1234")
    system.limit(2, "/", f"{256 * MB}", 57, 0)
    found = left_memory(system.proc)
    assert found is not None
    assert found.left == 200 * MB


def test_more_taken_than_allowed_leaves_nothing(system: System) -> None:
    system.in_cgroup(2, "/app")
    system.limit(2, "/app", f"{100 * MB}", 300, 0)
    found = left_memory(system.proc)
    assert found is not None
    assert found.left == 0


def test_free_memory_is_not_a_hard_limit(system: System) -> None:
    system.free(700)
    found = left_memory(system.proc)
    assert found == Left(left=700_000 * 1024, limit="free memory", hard=False)


@pytest.mark.parametrize("text", ["", "many", "-1 x", "\0", "0:"])
def test_files_that_make_no_sense_are_no_limit(system: System, text: str) -> None:
    system.in_cgroup(2, "/app")
    system.limit(2, "/app", text, 1, 1)
    found = left_memory(system.proc)
    assert found is not None
    assert not found.hard
    for name in ("mountinfo", "cgroup"):
        (system.proc / "self" / name).write_text(text)
    (system.proc / "meminfo").write_text(text)
    assert left_memory(system.proc) is None


def test_a_system_without_these_files_has_no_limit(tmp_path: Path) -> None:
    assert left_memory(tmp_path) is None


def test_stages_that_fit_together_have_no_limit(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert fit(manifest, left=hard(10**12)) == (None, None)


def test_stages_that_fit_one_by_one_get_a_limit_and_a_note(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    largest = max(stage.peak for stage in estimate(manifest).values())
    limit, note = fit(manifest, left=hard(largest))
    assert limit == largest
    assert note is not None
    assert note.endswith("each is loaded when it runs")


def test_weights_that_do_not_fit_are_refused_only_under_a_hard_limit(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    stages = estimate(manifest).values()
    weights = max(stage.weights for stage in stages)
    with pytest.raises(
        ProviderError, match=r"needs about \d+MB more, but the memory cgroup leaves"
    ):
        fit(manifest, left=hard(weights - 1))
    for left in (hard(weights), Left(left=1, limit="free memory", hard=False)):
        limit, _ = fit(manifest, left=left)
        assert limit == max(stage.peak for stage in stages)


def test_a_larger_image_is_refused_before_it_begins(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edgediff.load(tiny_bundle, threads=1) as pipe:
        pipe.generate("a fox", seed=1, steps=1)
        monkeypatch.setattr("edgediff.pipeline.left_memory", lambda: hard(10 * MB))
        pipe.generate("a fox", seed=1, steps=1)  # the work space of the first image serves it
        with pytest.raises(ProviderError, match="an image of 2048x2048 by tiny needs about"):
            pipe.generate("a fox", seed=1, steps=1, size=2048)
        with pytest.raises(ProviderError, match="an image of 256x256"):
            pipe.generate("a fox", seed=1, steps=1, size=64, hires=4.0, hires_mode="latent")
    with edgediff.load(tiny_bundle, threads=1, max_memory=None) as pipe:
        pipe.generate("a fox", seed=1, steps=1, size=128)


def test_a_smaller_image_may_fit(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    work = max(stage.work for stage in estimate(manifest).values())
    monkeypatch.setattr("edgediff.pipeline.left_memory", lambda: hard(work - 1))
    with edgediff.load(tiny_bundle, threads=1) as pipe:
        with pytest.raises(ProviderError, match="choose a smaller size"):
            pipe.generate("a fox", seed=1, steps=1)
        assert pipe.generate("a fox", seed=1, steps=1, size=32).images[0].size == (32, 32)


def test_a_bundle_with_control_networks_is_counted_with_them(
    tiny_bundle: Path,
) -> None:
    manifest = Bundle.open(tiny_bundle.parent / "tiny_control").manifest
    roles = {graph.role for graph in manifest.graphs.values()}
    assert {"denoiser", "controlled_denoiser", "controlnet"} <= roles
    stages = estimate(manifest)
    networks = [
        stages[name].weights
        for name, graph in manifest.graphs.items()
        if graph.role in ("controlled_denoiser", "controlnet")
    ]
    together = sum(networks) + max(stage.work for stage in stages.values())
    limit, note = fit(manifest, left=hard(together))  # the text encoder and the decoder do not fit
    assert limit is not None
    assert note is not None


def test_a_stage_above_the_limit_is_loaded_by_itself(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of free memory may be below a stage, such as an encoder that the plan did not
    count."""
    left = Left(left=MB, limit="free memory", hard=False)
    monkeypatch.setattr("edgediff.backend.memory.left_memory", lambda: left)
    with edgediff.load(tiny_bundle, threads=1) as pipe:
        assert pipe._stages._max_memory is not None
        monkeypatch.setattr(pipe._stages, "_max_memory", 1)
        photo = Image.new("RGB", (64, 64), "red")
        options: dict[str, Any] = {"seed": 1, "steps": 2, "init_image": photo}
        image = pipe.generate("a fox", **options).images[0]
        assert "each is loaded when it runs" in pipe.load_notes[0]
    with edgediff.load(tiny_bundle, threads=1, max_memory=None) as pipe:
        assert pipe.generate("a fox", **options).images[0].tobytes() == image.tobytes()


def test_small_networks_take_less_work_space() -> None:
    built_in = Bundle.open(find_bundle("emoji")).manifest
    work = estimate(built_in, size=(512, 512))["vae_decoder"].work
    assert 175 * MB < work < 350 * MB  # measured: 175 MB


def hard(left: int) -> Left:
    return Left(left=left, limit="memory cgroup", hard=True)


def test_the_address_space_of_this_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50 * MB, 50 * MB))
    found = module.left_memory()
    assert found is not None
    assert found.left == 0  # this process has more by now
    assert found.limit.startswith("address space")
