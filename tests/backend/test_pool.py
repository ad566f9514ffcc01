"""Stages under a memory limit: loading and releasing them, and sizes as text."""

import dataclasses
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.backend import memory, pool
from edgediff.backend.memory import StageMemory, estimate, memory_limit, parse_memory
from edgediff.backend.options import SessionOptions
from edgediff.backend.pool import Stages
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import Manifest
from edgediff.errors import InputError


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def sized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that take 10, 50 and 5 bytes, and 0, 20 and 30 while they run."""
    sizes = {
        "text_encoder": StageMemory(weights=10, work=0),
        "unet": StageMemory(weights=50, work=20),
        "vae_decoder": StageMemory(weights=5, work=30),
    }
    for module in (memory, pool):
        monkeypatch.setattr(module, "estimate", lambda *_: sizes)


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, 1),
        (np.int64(2**31), 2**31),
        ("1400000000", 1_400_000_000),
        ("1.4GB", 1_400_000_000),
        ("900MB", 900_000_000),
        ("1GiB", 2**30),
        ("0.5 gib", 2**29),
        ("12kB", 12_000),
        ("2TB", 2 * 10**12),
        ("7b", 7),
        ("1.9B", 1),
    ],
)
def test_sizes(size: Any, expected: int) -> None:
    assert parse_memory(size) == expected


@pytest.mark.parametrize(
    "size",
    [
        *[0, -1, True, 1.5e9, float("nan"), b"1GB", "", "GB", "0", "0GB", "0.4B", "-1GB", "1,4GB"],
        *["1.4 G B", "1e9", "infGB", "1XB", "1.GB", "٣GB", "9" * 400, "1GB\0"],
    ],
)
def test_sizes_that_are_refused(tiny_bundle: Path, size: Any) -> None:
    with pytest.raises(InputError, match=r"expected bytes .* such as 1\.4GB, 900MB or 1GiB"):
        parse_memory(size)
    with pytest.raises(InputError, match="`max_memory` is"):
        edgediff.load(tiny_bundle, max_memory=size)
    with pytest.raises(InputError, match="`max_memory` is"):
        edgediff.verify(tiny_bundle, max_memory=size)


def test_the_error_names_the_lowest_limit_and_it_works(tiny_bundle: Path, bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"`max_memory` is 1MB: the largest stage, unet") as caught:
        edgediff.load(tiny_bundle, max_memory="1MB")
    named = str(caught.value).split("takes about ")[1].split(":")[0]
    assert memory_limit(bundle.manifest, named) == parse_memory(named)
    with pytest.raises(InputError, match="the largest stage"):
        memory_limit(bundle.manifest, parse_memory(named) - 1_000_000)
    with edgediff.load(tiny_bundle, max_memory=named) as pipe:
        pipe.generate("a fox", seed=0, steps=1)


def test_the_estimate_counts_weights_as_loaded(bundle: Bundle) -> None:
    manifest = bundle.manifest
    graph = manifest.graphs["unet"]
    data = sum(manifest.files[name].size for name in graph.data)

    def unet(manifest: Manifest, **changes: Any) -> StageMemory:
        changed = dataclasses.replace(manifest.graphs["unet"], **changes)
        graphs = {**manifest.graphs, "unet": changed}
        return estimate(dataclasses.replace(manifest, graphs=graphs))["unet"]

    def with_guidance(scale: float) -> Manifest:
        defaults = dataclasses.replace(manifest.defaults, guidance_scale=scale)
        return dataclasses.replace(manifest, defaults=defaults)

    fp32, int8 = (unet(manifest, precision=p) for p in ("fp32", "int8"))
    assert fp32.weights == manifest.files[graph.file].size + data
    assert int8.weights - fp32.weights == 3 * data
    assert unet(with_guidance(5)).work == 2 * unet(with_guidance(1)).work > 0
    embedding = dataclasses.replace(graph.inputs[1], name="timestep_cond")
    distilled = unet(with_guidance(5), inputs=(*graph.inputs, embedding))
    assert distilled.work == unet(with_guidance(1)).work
    assert estimate(manifest)["text_encoder"].work == 0


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize(
    ("limit", "after"),
    [
        # the stages loaded after each of text_encoder, unet, vae_decoder, unet, text_encoder
        (None, ["t", "tu", "tuv", "tvu", "vut"]),
        (85, ["t", "tu", "uv", "vu", "vut"]),
        (84, ["t", "tu", "v", "vu", "vut"]),
        (70, ["t", "u", "v", "u", "ut"]),
        (75, ["t", "u", "v", "vu", "vut"]),
    ],
)
def test_the_least_recently_used_stages_go_first_and_only_if_needed(
    bundle: Bundle, limit: int | None, after: list[str]
) -> None:
    stages = Stages(bundle, SessionOptions(threads=1), limit)
    seen = []
    for stage in ("text_encoder", "unet", "vae_decoder", "unet", "text_encoder"):
        stages.session(stage, {})
        seen.append("".join(name[0] for name in stages.loaded))
    assert seen == after
    stages.close()
    assert stages.loaded == ()


@pytest.mark.usefixtures("sized")
def test_a_loaded_stage_makes_room_for_its_run(bundle: Bundle) -> None:
    stages = Stages(bundle, SessionOptions(threads=1), 70)
    stages.session("unet", {})
    stages.session("text_encoder", {})
    unet = stages.session("unet", {})
    assert stages.loaded == ("unet",)
    assert stages.session("unet", {}) is unet


@pytest.mark.usefixtures("sized", "no_gc")
def test_a_released_session_is_freed_at_once_unless_in_use(bundle: Bundle) -> None:
    stages = Stages(bundle, SessionOptions(threads=1), 70)
    freed = weakref.ref(stages.session("vae_decoder", {})._session)
    held = stages.session("unet", {})
    assert freed() is None
    stages.session("vae_decoder", {})
    assert stages.loaded == ("vae_decoder",)
    assert held.spec.file == "unet.onnx"
    assert held._session.get_inputs()


def test_cache_outcomes_are_reported_by_stage(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that compiles has a session for each set of shapes; one miss makes it a miss."""

    class Compiled:
        def __init__(self, *asked: Any, **_: Any) -> None:
            *_, graph, _options, dimensions = asked
            self.notes = ("unet.onnx: runs without a CUDA graph",) if dimensions else ()
            found = {"engine": "miss", "timing": "hit"}
            hit = {"engine": "hit", "timing": "unused"}
            self._found = {"unet.onnx": found if dimensions else hit}.get(graph.file, {})

        def cached(self) -> dict[str, str]:
            return self._found

    monkeypatch.setattr(pool, "Session", Compiled)
    stages = Stages(bundle, SessionOptions(threads=1), None)
    stages.session("unet", {})
    assert stages.notes() == ["unet: engine cache hit, timing cache unused"]
    stages.session("unet", {"batch": 2})
    stages.session("vae_decoder", {})
    assert stages.caches() == {"unet": {"engine": "miss", "timing": "hit"}}
    assert stages.notes() == [
        "unet: engine cache miss, timing cache hit",
        "unet.onnx: runs without a CUDA graph",
    ]


@pytest.fixture
def least(bundle: Bundle) -> int:
    return max(stage.peak for stage in estimate(bundle.manifest).values())


def test_images_are_the_same_and_stages_load_when_needed(tiny_bundle: Path, least: int) -> None:
    def image(pipe: edgediff.Pipeline) -> np.ndarray:
        return np.asarray(pipe.generate("a fox", seed=3, steps=2).images[0])

    with edgediff.load(tiny_bundle, threads=1) as pipe:
        assert set(pipe.loaded_stages) == {"text_encoder", "unet", "vae_decoder"}
        expected = image(pipe)
    assert pipe.loaded_stages == ()
    with edgediff.load(tiny_bundle, threads=1, max_memory=least) as pipe:
        assert pipe.loaded_stages == ("text_encoder",)
        for _ in range(2):
            assert (image(pipe) == expected).all()
            assert "text_encoder" not in pipe.loaded_stages  # released for the UNet


@pytest.mark.usefixtures("sized")
def test_threads_share_a_limit(tiny_bundle: Path) -> None:
    """Each thread's stages displace the other's while it runs."""
    alone = edgediff.load(tiny_bundle, threads=1)
    expected = {s: np.asarray(alone.generate("a", seed=s, steps=3).images[0]) for s in range(4)}
    pipe = edgediff.load(tiny_bundle, threads=1, max_memory=70)
    made: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        made[seed] = np.asarray(pipe.generate("a", seed=seed, steps=3).images[0])

    workers = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all((made[s] == expected[s]).all() for s in range(4))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_releasing_gives_memory_back() -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    pipe = edgediff.load(threads=1)
    pipe.generate("a red apple", seed=0, steps=1)
    before = resident()
    pipe.close()
    weights = sum(stage.weights for stage in estimate(pipe.bundle.manifest).values())
    assert before - resident() > weights / 2


def test_it_works_without_malloc_trim(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: None) -> None:
        raise TypeError("no library None")  # as on Windows

    monkeypatch.setattr(pool.ctypes, "CDLL", absent)
    pool._malloc_trim.cache_clear()
    stages = Stages(bundle, SessionOptions(threads=1), None)
    stages.session("text_encoder", {})
    stages.close()
    assert stages.loaded == ()
    pool._malloc_trim.cache_clear()
