"""The names of models on disk, in the hub's cache and behind links."""

from pathlib import Path

import pytest
from edgediff_export.source.few_steps import find_few_steps
from edgediff_export.source.origin import hub_origin, origin

REVISION = "b261bac6fd2cf515557d5d0707481eafa0485ec2"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot as the hub's client leaves it: links to blobs, named by their hashes."""
    root = tmp_path / "hub" / "models--ByteDance--SDXL-Lightning"
    folder = root / "snapshots" / REVISION
    blob = root / "blobs" / ("5" * 64)
    for path in (folder / "unet", blob.parent):
        path.mkdir(parents=True)
    blob.write_bytes(b"")
    (folder / "sdxl_lightning_4step_unet.safetensors").symlink_to(f"../../blobs/{blob.name}")
    return folder


def test_a_file_in_the_hubs_cache_goes_by_its_own_name_and_its_repositorys(snapshot: Path) -> None:
    found = origin(snapshot / "sdxl_lightning_4step_unet.safetensors")
    assert found.name == "sdxl_lightning_4step_unet"
    assert found.hub == "ByteDance/SDXL-Lightning/sdxl_lightning_4step_unet.safetensors"
    assert found.names == ("sdxl_lightning_4step_unet", "ByteDance/SDXL-Lightning")


def test_a_snapshot_goes_by_its_repository(snapshot: Path) -> None:
    found = origin(snapshot)
    assert (found.name, found.hub) == ("SDXL-Lightning", "ByteDance/SDXL-Lightning")
    assert origin(snapshot / "unet").hub == "ByteDance/SDXL-Lightning/unet"
    assert origin(snapshot / "unet").name == "SDXL-Lightning"


def test_every_name_on_the_way_of_a_link_counts(snapshot: Path, tmp_path: Path) -> None:
    link, hyper = tmp_path / "mine.safetensors", tmp_path / "hyper-sd-8step.safetensors"
    link.symlink_to(snapshot / "sdxl_lightning_4step_unet.safetensors")
    found = origin(link)
    assert (found.name, found.hub) == ("mine", "")
    assert found.names == ("mine", "sdxl_lightning_4step_unet", "ByteDance/SDXL-Lightning")
    (tmp_path / "x.safetensors").touch()
    hyper.symlink_to("x.safetensors")
    assert origin(hyper).name == "hyper-sd-8step"
    assert origin(hyper).names == ("hyper-sd-8step", "x")


def test_a_folder_by_a_dot_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sd.turbo").mkdir()
    monkeypatch.chdir(tmp_path / "sd.turbo")
    assert origin(Path()).name == "sd.turbo"
    assert origin(Path("../sd.turbo")).names == ("sd.turbo",)


def test_a_link_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert origin(tmp_path / "loop").name == "loop"


def test_a_hub_id() -> None:
    found = hub_origin("stabilityai/sd-turbo")
    assert (found.name, found.hub, found.names) == (
        "sd-turbo",
        "stabilityai/sd-turbo",
        ("stabilityai/sd-turbo",),
    )


@pytest.mark.parametrize(
    "path",
    [
        "lcm-lora-sdv1-5/pytorch_lora_weights.safetensors",
        "sd-turbo/unet",
        "sdxs-512-0.9/unet",
        "dmd2-sd15/unet",
        "sd-turbo/unet/diffusion_pytorch_model.fp16.safetensors",
        "juggernaut_lightning/model.safetensors",
        "hyper-sd/lora/adapter_model.safetensors",
        "lcm/model",
    ],
)
def test_a_part_goes_by_the_folder_around_it(path: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    if file.suffix:
        file.touch()
    else:
        file.mkdir()
    few = find_few_steps(origin(file).names)
    assert few is not None
    assert few[0] == Path(path).parts[0]
    assert origin(file).name in (Path(path).parts[0], "model")
    (tmp_path / "mine").symlink_to(Path(path).parts[0])
    few = find_few_steps(origin(tmp_path.joinpath("mine", *Path(path).parts[1:])).names)
    assert few is not None
    (tmp_path / "link.safetensors").symlink_to(path)
    assert find_few_steps(origin(tmp_path / "link.safetensors").names) == few


def test_a_file_with_a_name_of_its_own_does_not_go_by_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "turbo" / "dreamshaper.safetensors"
    file.parent.mkdir()
    file.touch()
    assert origin(file).names == ("dreamshaper",)


def test_weights_in_a_snapshot_go_by_the_repository(snapshot: Path) -> None:
    file = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    file.touch()
    assert origin(file).name == "SDXL-Lightning"
    assert "ByteDance/SDXL-Lightning" in origin(file).names
    assert REVISION not in origin(file).names
