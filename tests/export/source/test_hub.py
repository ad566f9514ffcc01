"""Pipelines on the hub: of a repository, only the files that an export opens are fetched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgediff_export.source.hub import is_hub_id
from edgediff_export.source.open import open_source

from edgediff.errors import ExportError


def repository(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


EXTRA = (
    *("v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "image.png", ".gitattributes"),
    *("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"),
    *("unet/diffusion_flax_model.msgpack", "unet/diffusion_pytorch_model.non_ema.safetensors"),
    *("vae/diffusion_pytorch_model.fp16.bin", "unet/openvino_model.xml", "unet/model.onnx"),
    *("safety_checker/model.safetensors", "safety_checker/config.json"),
    *("feature_extractor/preprocessor_config.json", "text_encoder/pytorch_model.bin"),
    *("vae_1_0/diffusion_pytorch_model.safetensors", "unet/../../evil.json"),
)
"""Files that repositories have beside those that are read, and a hostile one."""


def test_only_the_files_that_are_opened(
    small_pipeline: Callable[[str], Path], hub: Any, tmp_path: Path
) -> None:
    own = repository(small_pipeline("sd1"))
    card = b"---\nlicense: openrail\n---\n"
    hub.add("owner/small", {**own, **dict.fromkeys(EXTRA, b"x"), "README.md": card})
    seen: list[tuple[int, int]] = []
    source = open_source(
        "hf:owner/small", work=tmp_path, on_download=lambda *numbers: seen.append(numbers)
    )
    assert sorted(hub.fetched()) == sorted([*own, "README.md"])
    assert (source.name, source.description) == ("small", "owner/small")
    assert source.license == "openrail"
    total = sum(map(len, own.values())) + len(card)
    assert seen[-1] == (total, total)
    for component in ("unet", "vae", "text_encoder"):
        source.load(component)
    hub.requests.clear()
    again = open_source("owner/small", work=tmp_path)  # the same, from the cache
    assert hub.fetched() == []
    assert again.folder == source.folder


def test_two_text_encoders(small_pipeline: Callable[[str], Path], hub: Any, tmp_path: Path) -> None:
    own = repository(small_pipeline("xl"))
    hub.add("owner/xl", own)
    source = open_source("hf:owner/xl", work=tmp_path)
    assert repository(source.folder) == own
    source.load("text_encoder_2")


def test_a_variant_where_there_is_no_other(
    small_pipeline: Callable[[str], Path], hub: Any, tmp_path: Path
) -> None:
    own = repository(small_pipeline("sd1"))
    weights = own.pop("unet/diffusion_pytorch_model.safetensors")
    for variant in ("fp16", "bf16", "non_ema"):
        own[f"unet/diffusion_pytorch_model.{variant}.safetensors"] = weights
    hub.add("owner/half", own)
    open_source("hf:owner/half", work=tmp_path).load("unet")
    assert [name for name in hub.fetched() if name.startswith("unet/diffusion")] == [
        "unet/diffusion_pytorch_model.fp16.safetensors"
    ]


def test_pieces_come_with_their_list(
    small_pipeline: Callable[[str], Path], hub: Any, tmp_path: Path
) -> None:
    import diffusers

    folder = small_pipeline("sd1")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.save_pretrained(tmp_path / "unet", max_shard_size="200KB")
    own = {k: v for k, v in repository(folder).items() if not k.startswith("unet/")}
    pieces = {f"unet/{name}": content for name, content in repository(tmp_path / "unet").items()}
    assert len(pieces) > 3
    hub.add("owner/pieces", {**own, **pieces})
    open_source("hf:owner/pieces", work=tmp_path).load("unet")
    assert set(pieces) <= set(hub.fetched())


def test_what_is_replaced_is_not_fetched(
    small_pipeline: Callable[[str], Path], hub: Any, tmp_path: Path
) -> None:
    hub.add("owner/small", repository(small_pipeline("sd1")))
    source = open_source(
        "hf:owner/small", work=tmp_path, vae=small_pipeline("sd2"), unet=small_pipeline("sd1")
    )
    assert source.description == "owner/small with the UNet sd1 with the VAE sd2"
    fetched = [name for name in hub.fetched() if name.endswith(".safetensors")]
    assert fetched == ["text_encoder/model.safetensors"]


def test_a_tiny_vae(small_pipeline: Callable[[str], Path], hub: Any, tmp_path: Path) -> None:
    tiny = repository(small_pipeline("tiny-vae") / "vae")
    hub.add("madebyollin/taesd", {**tiny, "taesd_decoder.safetensors": b"x"})
    source = open_source(str(small_pipeline("sd1")), work=tmp_path, vae=Path("taesd"))
    assert sorted(hub.fetched()) == sorted(tiny)
    assert type(source.load("vae")).__name__ == "AutoencoderTiny"


def test_a_revision(small_pipeline: Callable[[str], Path], hub: Any, tmp_path: Path) -> None:
    hub.add("owner/small", repository(small_pipeline("sd1")), revisions=("main", "v2"))
    source = open_source("owner/small@v2", work=tmp_path)
    assert (source.name, source.description) == ("small", "owner/small@v2")
    with pytest.raises(ExportError, match=r"hf:owner/small@v3: .* has no revision 'v3'"):
        open_source("hf:owner/small@v3", work=tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"bundle.json": b"{}"}, "is a bundle already: run it with edgediff generate --model hf:"),
        ({"a.safetensors": b""}, r"is not a pipeline .* download .*, such as a\.safetensors"),
        ({"config.json": b"{}"}, "is not a pipeline .*: give the repository of a diffusers pipe"),
        (
            {"model_index.json": b"{}", "unet/diffusion_pytorch_model.bin": b""},
            r"owner/x/unet/diffusion_pytorch_model\.bin: a pickle, which can run any code",
        ),
    ],
)
def test_what_is_not_a_pipeline(
    files: dict[str, bytes], message: str, hub: Any, tmp_path: Path
) -> None:
    hub.add("owner/x", files)
    with pytest.raises(ExportError, match=message):
        open_source("hf:owner/x", work=tmp_path)
    assert hub.fetched() == []


def test_errors_are_one_sentence(hub: Any, tmp_path: Path) -> None:
    hub.add("owner/gated", {}, readers="gated")
    for name, message in (
        ("owner/none", "and no such repository on the hub, or a private one"),
        ("owner/gated", "and is gated: accept its terms at"),
    ):
        for typed in (name, f"hf:{name}"):
            with pytest.raises(ExportError) as e:
                open_source(typed, work=tmp_path)
            assert str(e.value).startswith(f"{typed}: no such folder or file here, {message}")
            assert "\n" not in str(e.value)


def test_offline(
    small_pipeline: Callable[[str], Path], hub: Any, offline: Any, tmp_path: Path
) -> None:
    hub.add("owner/small", repository(small_pipeline("sd1")))
    folder = open_source("owner/small", work=tmp_path).folder
    hub.requests.clear()
    offline()
    assert open_source("owner/small", work=tmp_path).folder == folder
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set: unset it once"):
        open_source("owner/other", work=tmp_path)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("owner/name", True),
        ("hf:owner/name", True),
        ("owner/name@v1.0", True),
        ("name", False),
        ("a/b/c", False),
        ("/a/b", False),
    ],
)
def test_names(text: str, is_id: bool) -> None:
    assert is_hub_id(text) == is_id
