"""Sessions check their inputs; the provider that was asked for runs, or an error says why not."""

import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from edgediff.backend import available
from edgediff.backend.available import why_missing
from edgediff.backend.options import SessionOptions
from edgediff.backend.providers import PROVIDERS
from edgediff.backend.session import Session, free_dimensions
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import GraphSpec
from edgediff.errors import BundleError, InputError, ProviderError


@pytest.fixture(scope="module")
def spec(tiny_bundle: Path) -> GraphSpec:
    return Bundle.open(tiny_bundle).manifest.graphs["vae_decoder"]


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Path, spec: GraphSpec) -> Session:
    return Session(tiny_bundle / spec.file, spec, SessionOptions(threads=1))


def test_runs_by_name(decoder: Session) -> None:
    outputs = decoder.run(latent_sample=np.zeros((1, 4, 8, 8), np.float32))
    assert outputs["sample"].shape == (1, 3, 64, 64)
    assert outputs["sample"].dtype == np.float32


def test_outputs_do_not_keep_the_session_alive(decoder: Session) -> None:
    outputs = decoder.run(latent_sample=np.zeros((1, 4, 8, 8), np.float32))
    assert outputs["sample"].flags.owndata
    assert outputs["sample"].flags.writeable


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"given \[\], expected \['latent_sample'\]"),
        ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, r"given \['latents'\]"),
        ({"latent_sample": np.zeros((1, 4, 8, 8))}, "latent_sample is float64"),
        ({"latent_sample": np.zeros((1, 3, 8, 8), np.float32)}, r"\(1, 3, 8, 8\), expected"),
        ({"latent_sample": np.zeros((4, 8, 8), np.float32)}, r"\(4, 8, 8\), expected"),
    ],
)
def test_wrong_inputs_are_named(
    decoder: Session, inputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        decoder.run(**inputs)


def test_fixed_dimensions_give_the_same_values(tiny_bundle: Path, spec: GraphSpec) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 6, 10)).astype(np.float32)
    dimensions = free_dimensions(spec.inputs[0], latents.shape)
    fixed = Session(tiny_bundle / spec.file, spec, SessionOptions(), dimensions)
    free = Session(tiny_bundle / spec.file, spec, SessionOptions())
    np.testing.assert_allclose(
        fixed.run(latent_sample=latents)["sample"],
        free.run(latent_sample=latents)["sample"],
        atol=1e-5,
    )


def test_a_graph_of_another_stage_is_refused(tiny_bundle: Path, spec: GraphSpec) -> None:
    with pytest.raises(BundleError, match="the files of two bundles were mixed"):
        Session(tiny_bundle / "text_encoder.onnx", spec, SessionOptions())


def test_a_file_that_is_not_a_graph(tmp_path: Path, spec: GraphSpec) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"vae_decoder\.onnx: is not an ONNX graph"):
        Session(tmp_path / "bad.onnx", spec, SessionOptions())
    (tmp_path / "bad.onnx").write_bytes(b"")  # a message of no fields
    with pytest.raises(ProviderError, match="provider 'cpu' refused it"):
        Session(tmp_path / "bad.onnx", spec, SessionOptions())


def test_a_run_that_fails_names_the_graph(decoder: Session) -> None:
    with pytest.raises(ProviderError, match="the run failed"):
        decoder.run(latent_sample=np.zeros((1, 4, 0, 8), np.float32)[:, :, :0])


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads(threads: int) -> None:
    with pytest.raises(InputError, match="`threads` is"):
        SessionOptions(threads=threads)


def test_an_unknown_provider_lists_the_valid_ones() -> None:
    with pytest.raises(InputError, match="cpu, cuda, tensorrt, coreml, openvino"):
        SessionOptions(provider="gpu")


@pytest.mark.parametrize("name", [n for n in PROVIDERS if n != "cpu"])
def test_a_provider_that_is_absent_says_what_to_install(
    name: str, tiny_bundle: Path, spec: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ProviderError, match=rf"provider '{name}': .*pip install"):
        Session(tiny_bundle / spec.file, spec, SessionOptions(provider=name))


def test_a_silent_fallback_is_an_error(
    tiny_bundle: Path, spec: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-gpu without a GPU: the provider is listed, but the CPU silently takes over."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda path, options, **_: real(path, options, providers=names[1:]),
    )
    with pytest.raises(ProviderError, match=r"did not start .onnxruntime fell back to CPU"):
        Session(tiny_bundle / spec.file, spec, SessionOptions(provider="cuda"))


def test_a_provider_that_takes_no_node_is_an_error(
    tiny_bundle: Path, spec: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CoreML or TensorRT if it knows none of the operators: listed, but all are on the CPU."""
    names = ["CoreMLExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    real = ort.InferenceSession

    class Idle(real):  # type: ignore[misc, valid-type]
        def __init__(self, path: Path, options: object, **_: object) -> None:
            super().__init__(path, options, providers=names[1:])

        def get_providers(self) -> list[str]:
            return names

    monkeypatch.setattr(ort, "InferenceSession", Idle)
    with pytest.raises(ProviderError, match="takes no node of this graph"):
        Session(tiny_bundle / spec.file, spec, SessionOptions(provider="coreml"))


def test_the_cpu_takes_no_options() -> None:
    with pytest.raises(InputError, match="`provider_options` speed: the provider cpu takes none"):
        SessionOptions(provider_options={"speed": "high"})


def test_a_plug_in_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise FileNotFoundError("plugin.so")

    install_plugin(monkeypatch, get_library_path=broken)
    assert why_missing("openvino") == (
        f"its plug-in onnxruntime-ep-openvino (of unknown version) does not load in onnxruntime"
        f" {ort.__version__} (plugin.so):"
        " pip install --upgrade onnxruntime onnxruntime-ep-openvino"
    )


def install_plugin(monkeypatch: pytest.MonkeyPatch, **contents: object) -> None:
    """A package with the plug-in's name, and an onnxruntime without OpenVINO built in."""
    fake = SimpleNamespace(__spec__=SimpleNamespace(), **contents)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", fake)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    available._register.cache_clear()


@pytest.mark.parametrize("api", ["missing", "refuses"])
def test_a_plug_in_that_does_not_match_onnxruntime_names_both_versions(
    api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_name: str, _path: str) -> None:
        raise RuntimeError("ONNX Runtime version '1.22.1' is below the minimum supported\nat ...")

    install_plugin(monkeypatch, get_library_path=lambda: "plugin.so")
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: "1.8.1" if "openvino" in n else real(n)
    )
    monkeypatch.setattr(ort, "__version__", "1.22.1")
    if api == "missing":  # before 1.23
        monkeypatch.delattr(ort, "register_execution_provider_library")
    else:
        monkeypatch.setattr(ort, "register_execution_provider_library", refuse)
    reason = why_missing("openvino") or ""
    assert reason.startswith(
        "its plug-in onnxruntime-ep-openvino 1.8.1 does not load in onnxruntime 1.22.1 ("
    )
    assert "\n" not in reason
    assert reason.endswith("): pip install --upgrade onnxruntime onnxruntime-ep-openvino")


def test_a_plug_in_that_is_absent_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda _: None)
    assert why_missing("openvino") == 'not installed: pip install "edgediff[openvino]"'


class OptionsOfASession:
    """Accepts the settings of edgediff, and records those for the plug-in's device."""

    given: tuple[object, dict[str, str]]

    def __getattr__(self, _name: str) -> object:
        return lambda *_: None

    def add_provider_for_devices(self, devices: object, options: dict[str, str]) -> None:
        type(self).given = (devices, options)


@pytest.mark.parametrize(
    ("device", "expected"),
    [("CPU", {"INFERENCE_NUM_THREADS": "2"}), ("GPU", {})],
)
def test_openvino_gets_its_cache_and_threads_as_device_properties(
    device: str,
    expected: dict[str, str],
    tiny_bundle: Path,
    spec: GraphSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plug-in ignores `cache_dir` and `num_of_threads`, with only a line in its log."""
    kind = getattr(ort.OrtHardwareDeviceType, device)
    found = SimpleNamespace(ep_name="OpenVINOExecutionProvider", device=SimpleNamespace(type=kind))
    install_plugin(monkeypatch, get_library_path=lambda: "plugin.so")
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *_: None)
    monkeypatch.setattr(ort, "get_ep_devices", lambda: [found])
    monkeypatch.setattr(ort, "SessionOptions", OptionsOfASession)
    cache = tmp_path / "new" / "cache"
    options = SessionOptions(provider="openvino", threads=2, cache_dir=cache)
    assert not cache.exists()
    with pytest.raises(ProviderError, match="refused it"):
        Session(tiny_bundle / spec.file, spec, options)
    devices, given = OptionsOfASession.given
    assert devices == [found]
    folder = cache / "vae_decoder"
    assert json.loads(given["load_config"]) == {device: {**expected, "CACHE_DIR": str(folder)}}
    assert folder.is_dir()


def test_a_cache_that_cannot_be_created_is_named(
    tiny_bundle: Path, spec: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    options = SessionOptions(provider="tensorrt", cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(InputError, match=r"file/cache: cannot be made .*cache_dir=False"):
        Session(tiny_bundle / spec.file, spec, options)


def test_the_cpu_makes_no_cache(tiny_bundle: Path, spec: GraphSpec, tmp_path: Path) -> None:
    Session(tiny_bundle / spec.file, spec, SessionOptions(cache_dir=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_plug_in_without_a_device_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "_register", lambda _: None)
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "finds no device here" in (why_missing("openvino") or "")


def test_provider_options_override_the_defaults(
    tiny_bundle: Path, spec: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def record(_path: object, _options: object, providers: object, **_: object) -> None:
        seen.append(providers)
        raise RuntimeError("stop here\nsecond line")

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", record)
    options = SessionOptions(
        provider="tensorrt",
        cache_dir=tmp_path,
        provider_options={"trt_fp16_enable": "1", "trt_timing_cache_enable": "0"},
    )
    with pytest.raises(ProviderError, match=r"refused it: stop here$"):
        Session(tiny_bundle / spec.file, spec, options)
    ((name, given),) = seen[0]  # type: ignore[misc]
    assert name == "TensorrtExecutionProvider"
    assert given["trt_engine_cache_path"] == str(tmp_path / "vae_decoder")
    assert given["trt_timing_cache_path"] == str(tmp_path)
    assert given["trt_timing_cache_enable"] == "0"
    assert given["trt_fp16_enable"] == "1"
