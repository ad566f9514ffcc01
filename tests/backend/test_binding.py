"""Buffers on the device, tested with the processor as the device: values are the same as without
buffers, only changed inputs are copied, and each set of shapes has its own CUDA graph."""

import dataclasses
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

import edgediff
from edgediff import Control
from edgediff.backend import available
from edgediff.backend.options import Observe, SessionOptions
from edgediff.backend.providers import PROVIDERS
from edgediff.backend.session import Session
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import GraphSpec
from edgediff.errors import ProviderError

ONE_THREAD = SessionOptions(threads=1)


@pytest.fixture(scope="module")
def spec(tiny_bundle: Path) -> GraphSpec:
    return Bundle.open(tiny_bundle).manifest.graphs["unet"]


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path, spec: GraphSpec) -> Session:
    """A session without buffers on the device."""
    session = Session(tiny_bundle / spec.file, spec, ONE_THREAD)
    assert session._provider.device is None
    return session


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the provider cpu compute in buffers, as providers with a device do. It ignores the
    option to capture a CUDA graph."""
    cpu = dataclasses.replace(PROVIDERS["cpu"], device="cpu", graph_option="enable_cuda_graph")
    monkeypatch.setitem(PROVIDERS, "cpu", cpu)


@pytest.fixture
def bound(on_device: None, tiny_bundle: Path, spec: GraphSpec) -> Session:  # noqa: ARG001
    return Session(tiny_bundle / spec.file, spec, ONE_THREAD)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, ...]]:
    """Shape → how many arrays of it were copied to the device."""
    counted: Counter[tuple[int, ...]] = Counter()

    class Value(ort.OrtValue):  # type: ignore[misc, valid-type]
        def update_inplace(self, data: np.ndarray) -> None:
            counted[data.shape] += 1
            super().update_inplace(data)

    monkeypatch.setattr(ort, "OrtValue", Value)
    return counted


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """For each run, the CUDA graph that it captures or replays."""
    seen: list[str] = []
    run = ort.InferenceSession.run_with_iobinding

    def record(self: Any, binding: Any, options: ort.RunOptions) -> None:
        try:
            seen.append(options.get_run_config_entry("gpu_graph_id"))
        except RuntimeError:
            seen.append("none")
        run(self, binding, options)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", record)
    return seen


def inputs(side: int = 8, rows: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((rows, 4, side, side)).astype(np.float32),
        "timestep": np.array(float(seed), np.float32),
        "encoder_hidden_states": rng.standard_normal((rows, 16, 16)).astype(np.float32),
    }


def test_values_are_the_same_as_without_buffers(plain: Session, bound: Session) -> None:
    for seed in range(3):
        given = inputs(seed=seed)
        (expected,) = plain.run(**given).values()
        (found,) = bound.run(**given).values()
        np.testing.assert_array_equal(found, expected)


def test_results_belong_to_the_caller(bound: Session) -> None:
    (first,) = bound.run(**inputs(seed=1)).values()
    kept = first.copy()
    bound.run(**inputs(seed=2))
    np.testing.assert_array_equal(first, kept)
    assert first.flags.owndata
    assert first.flags.writeable


def test_alternating_shapes_keep_their_buffers(plain: Session, bound: Session) -> None:
    addresses = []
    for seed in range(3):
        for rows, side in ((1, 8), (2, 8), (1, 12)):
            given = inputs(side, rows, seed)
            (found,) = bound.run(**given).values()
            (expected,) = plain.run(**given).values()
            np.testing.assert_array_equal(found, expected)
        addresses.append(
            [
                [value.data_ptr() for value in (*b._inputs.values(), *b._outputs)]
                for b in bound._bindings.values()
            ]
        )
    assert addresses[0] == addresses[1] == addresses[2]
    assert len({pointer for buffers in addresses[0] for pointer in buffers}) == 3 * 4


def test_more_shapes_than_buffers_are_kept_for(plain: Session, bound: Session) -> None:
    sides = [4 * k for k in range(1, 12)]
    for side in [*sides, *sides[:3]]:
        (found,) = bound.run(**inputs(side)).values()
        (expected,) = plain.run(**inputs(side)).values()
        np.testing.assert_array_equal(found, expected)
    assert len(bound._bindings) == 8


def test_a_read_only_array_is_copied_once(
    bound: Session, plain: Session, copies: Counter[tuple[int, ...]]
) -> None:
    given = inputs()
    states = given["encoder_hidden_states"]
    states.flags.writeable = False
    for seed in range(3):
        changed = {**inputs(seed=seed), "encoder_hidden_states": states}
        (found,) = bound.run(**changed).values()
        (expected,) = plain.run(**changed).values()
        np.testing.assert_array_equal(found, expected)
    assert copies == {(1, 4, 8, 8): 3, (): 3, (1, 16, 16): 1}


def test_an_array_that_may_have_changed_is_copied(bound: Session, plain: Session) -> None:
    given = inputs()
    bound.run(**given)
    given["encoder_hidden_states"] *= 2  # in place: the same array
    (found,) = bound.run(**given).values()
    (expected,) = plain.run(**given).values()
    np.testing.assert_array_equal(found, expected)
    other = inputs(seed=5)
    other["encoder_hidden_states"].flags.writeable = False
    (found,) = bound.run(**other).values()
    (expected,) = plain.run(**other).values()
    np.testing.assert_array_equal(found, expected)


def test_a_run_that_fails_leaves_the_session_usable(
    bound: Session, plain: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound.run(**inputs())
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise RuntimeError("CUDA failure 700\nat somewhere")

        patch.setattr(ort.InferenceSession, "run_with_iobinding", fail)
        with pytest.raises(ProviderError, match=r"unet\.onnx: the run failed: CUDA failure 700$"):
            bound.run(**inputs())
    (found,) = bound.run(**inputs(seed=4)).values()
    (expected,) = plain.run(**inputs(seed=4)).values()
    np.testing.assert_array_equal(found, expected)


def test_threads_take_turns(bound: Session, plain: Session) -> None:
    expected = [plain.run(**inputs(seed=s))["out_sample"] for s in range(4)]
    found: dict[int, list[np.ndarray]] = {s: [] for s in range(4)}

    def work(seed: int) -> None:
        for _ in range(5):
            found[seed].append(bound.run(**inputs(seed=seed))["out_sample"])

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert len(found[seed]) == 5
        for one in found[seed]:
            np.testing.assert_array_equal(one, expected[seed])


OPTIONS: list[dict[str, Any]] = [
    {"steps": 1},
    {"steps": 3, "seed": [1, 2]},
    {"steps": 4, "guidance_scale": 3.0, "guidance_interval": (0.0, 0.5)},
    {"steps": 2, "sampler": "heun", "size": (96, 64)},
]


def test_whole_images(tiny_bundle: Path) -> None:
    pipe = edgediff.load(tiny_bundle, threads=1)
    expected = [pipe.generate("a fox", **{"seed": 0, **options}) for options in OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROVIDERS, "cpu", dataclasses.replace(PROVIDERS["cpu"], device="cpu"))
        pipe = edgediff.load(tiny_bundle, threads=1)
        for _ in range(2):  # the second round finds the buffers of the first
            for options, result in zip(OPTIONS, expected, strict=True):
                found = pipe.generate("a fox", **{"seed": 0, **options})
                for one, other in zip(found.images, result.images, strict=True):
                    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.usefixtures("on_device")
def test_inputs_that_stay_the_same_for_an_image_are_copied_once(
    tiny_bundle: Path, copies: Counter[tuple[int, ...]]
) -> None:
    pipe = edgediff.load(tiny_bundle, threads=1)
    pipe.generate("a fox", seed=0, steps=5, guidance_scale=3.0)
    assert copies[2, 4, 8, 8] == copies[()] == 5
    assert copies[2, 77, 16] == 1


@pytest.mark.usefixtures("on_device")
def test_control(copies: Counter[tuple[int, ...]]) -> None:
    bundle = Path(__file__).parents[1] / "golden" / "tiny_control"
    image = Image.new("RGB", (64, 64), "teal")
    options: dict[str, Any] = {
        "seed": 0,
        "steps": 4,
        "guidance_scale": 2.0,
        "control": {"canny": Control(image, end=0.5)},
    }
    found = edgediff.load(bundle, threads=1).generate("a fox", **options)
    assert copies[2, 3, 64, 64] == 1  # the control image, which two steps take
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROVIDERS, "cpu", dataclasses.replace(PROVIDERS["cpu"], device=None))
        expected = edgediff.load(bundle, threads=1).generate("a fox", **options)
    np.testing.assert_array_equal(np.asarray(found.images[0]), np.asarray(expected.images[0]))


@pytest.mark.usefixtures("on_device")
def test_verify_uses_buffers_and_graphs_too(tiny_bundle: Path, graphs: list[str]) -> None:
    assert edgediff.verify(tiny_bundle, provider="cpu").ok
    assert graphs


@pytest.mark.usefixtures("on_device")
def test_each_set_of_shapes_gets_a_graph_after_its_first_run(
    tiny_bundle: Path, spec: GraphSpec, graphs: list[str]
) -> None:
    session = Session(tiny_bundle / spec.file, spec, ONE_THREAD, every_step=True)
    for rows in (1, 1, 1, 2, 2, 1, 2):
        session.run(**inputs(rows=rows))
    assert graphs == ["-1", "1", "1", "-1", "2", "1", "2"]
    graphs.clear()
    for side in (4, 12, 16, 20, 24, 28, 32):
        session.run(**inputs(side))
        session.run(**inputs(side))
    # Sets of shapes beyond the eighth run, but are not captured.
    assert graphs[1::2] == ["3", "4", "5", "6", "7", "8", "-1"]


@pytest.mark.usefixtures("on_device")
def test_profiled_runs_are_not_captured(
    tiny_bundle: Path, spec: GraphSpec, graphs: list[str], tmp_path: Path
) -> None:
    options = SessionOptions(threads=1, observe=Observe(profile=tmp_path))
    session = Session(tiny_bundle / spec.file, spec, options, every_step=True)
    session.run(**inputs())
    session.run(**inputs())
    assert graphs == ["none", "none"]
    assert session.end_profiling().parent == tmp_path


@pytest.mark.usefixtures("on_device")
def test_stages_that_run_once_per_image_are_not_captured(
    tiny_bundle: Path, graphs: list[str]
) -> None:
    pipe = edgediff.load(tiny_bundle, threads=1)
    pipe.generate("a fox", seed=0, steps=3, guidance_scale=1.0)
    assert graphs == ["none", "-1", "1", "1", "none"]


class Refusing(ort.InferenceSession):  # type: ignore[misc]
    """Like onnxruntime-gpu with a graph that it cannot capture whole."""

    asked: tuple[tuple[str, dict[str, str]], ...] = ()

    def __init__(self, path: Path, options: object, *, providers: Any, **_: object) -> None:
        type(self).asked = (*self.asked, *providers)
        option = PROVIDERS["cuda"].graph_option
        if any(given.get(option) == "1" for _, given in providers):
            raise RuntimeError("This session cannot use the graph capture feature\nas asked")
        super().__init__(path, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in self.get_providers()]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Refusing]:
    monkeypatch.setattr(Refusing, "asked", ())
    monkeypatch.setattr(ort, "InferenceSession", Refusing)
    monkeypatch.setattr(ort, "get_available_providers", lambda: Refusing.get_providers(None))
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcudart.so"))
    available.load_cuda.cache_clear()
    return Refusing


def test_a_graph_that_cannot_be_captured_runs_without_and_is_noted(
    gpu: type[Refusing],
    tiny_bundle: Path,
    spec: GraphSpec,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = SessionOptions(provider="cuda")
    session = Session(tiny_bundle / spec.file, spec, options, every_step=True)
    name = "CUDAExecutionProvider"
    assert gpu.asked == ((name, {"enable_cuda_graph": "1"}), (name, {}))
    (note,) = session.notes
    assert note.startswith("unet.onnx: runs without a CUDA graph (")
    assert "cannot use the graph capture feature" in note
    assert capsys.readouterr() == ("", "")


def test_options_decide_whether_a_graph_is_captured(
    gpu: type[Refusing], tiny_bundle: Path, spec: GraphSpec
) -> None:
    def load(value: str) -> Session:
        options = SessionOptions(provider="cuda", provider_options={"enable_cuda_graph": value})
        return Session(tiny_bundle / spec.file, spec, options, every_step=True)

    with pytest.raises(ProviderError, match="cannot use the graph capture feature"):
        load("1")
    assert load("0").notes == ()
    assert len(gpu.asked) == 2


def test_tensorrt_falls_back_to_cuda(
    gpu: type[Refusing], tiny_bundle: Path, spec: GraphSpec
) -> None:
    half = dataclasses.replace(spec, precision="fp16")
    options = SessionOptions(provider="tensorrt", provider_options={"device_id": "1"})
    Session(tiny_bundle / spec.file, half, options)
    assert gpu.asked == (
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "1", "device_id": "1"}),
        ("CUDAExecutionProvider", {"device_id": "1"}),
    )
