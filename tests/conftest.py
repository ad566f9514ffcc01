"""What all tests share."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """A bundle of random weights, a megabyte, made by tests/golden/make_bundle.py."""
    return Path(__file__).parent / "golden" / "tiny"


class Pipelines(NamedTuple):
    """A small random pipeline as diffusers has it, and the float32 bundle exported from it.

    controlnets: its control networks by name, as diffusers has them."""

    diffusers: Path
    bundle: Path
    controlnets: dict[str, Path] = {}  # noqa: RUF012


def _module(folder: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sd15_shape() -> Any:
    """The module benchmarks/sd15_shape.py, which writes pipelines and tokenizers."""
    return _module(ROOT / "benchmarks", "sd15_shape")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on this machine, see tests/hub_server.py, which the hub's client uses with an empty
    cache; also in other processes."""
    from huggingface_hub import constants, file_download

    server = _module(Path(__file__).parent, "hub_server").HubServer()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # the latter reads its own copy before version 1
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    yield from server.running()


@pytest.fixture
def offline(hub: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it, and the hub's client is offline from then on."""
    from huggingface_hub import constants, utils

    assert hub.endpoint == constants.ENDPOINT
    # Its connections know whether it is offline; before version 1 they are called sessions.
    forget = getattr(utils, "close_session", None) or utils.reset_sessions

    def switch() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        forget()

    yield switch
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    forget()


@pytest.fixture(scope="session")
def small_pipeline(
    sd15_shape: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Shape → a diffusers folder of it, written once: "sd1", "sd2", "lcm", "turbo", "tiny-vae"."""
    folders: dict[str, Path] = {}

    def write(shape: str) -> Path:
        if shape not in folders:
            folder = tmp_path_factory.mktemp("pipelines") / shape
            folders[shape] = sd15_shape.write_pipeline(folder, shape)
        return folders[shape]

    return write


@pytest.fixture(scope="session")
def exported(
    small_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Pipelines]:
    """Shape → the pipeline and its float32 bundle, exported once."""
    from edgediff_export.export import Options, export

    done: dict[str, Pipelines] = {}

    def run(shape: str) -> Pipelines:
        if shape not in done:
            folder = small_pipeline(shape)
            out = tmp_path_factory.mktemp("bundles") / shape
            export(Options(source=str(folder), out=out, steps=2, with_encoder=True))
            done[shape] = Pipelines(folder, out)
        return done[shape]

    return run


@pytest.fixture(scope="session")
def sd1(exported: Callable[[str], Pipelines]) -> Pipelines:
    """Of Stable Diffusion 1.x's shape: predicts epsilon, PNDM."""
    return exported("sd1")


@pytest.fixture(scope="session")
def sd2(exported: Callable[[str], Pipelines]) -> Pipelines:
    """Of Stable Diffusion 2.x's shape: predicts v, linear projections, pads with "!"."""
    return exported("sd2")


@pytest.fixture(scope="session")
def lcm(exported: Callable[[str], Pipelines]) -> Pipelines:
    """Of a latent consistency model's shape: takes the guidance scale as an input."""
    return exported("lcm")


@pytest.fixture(scope="session")
def controlled(
    sd15_shape: Any,
    small_pipeline: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Pipelines]:
    """Shape → the pipeline, two control networks for it, "canny" and "depth", and the float32
    bundle with both, exported once."""
    from edgediff_export.export import Options, export

    done: dict[str, Pipelines] = {}

    def run(shape: str) -> Pipelines:
        if shape not in done:
            folder = tmp_path_factory.mktemp("controlnets")
            networks = {
                name: sd15_shape.write_controlnet(folder / name, shape, seed=seed)
                for seed, name in enumerate(("canny", "depth"), 1)
            }
            source, out = small_pipeline(shape), tmp_path_factory.mktemp("bundles") / "controlled"
            requests = tuple(f"{name}={path}" for name, path in networks.items())
            how = {"steps": 2, "with_encoder": True, "controlnets": requests}
            export(Options(source=str(source), out=out, **how))
            done[shape] = Pipelines(source, out, networks)
        return done[shape]

    return run
