"""Bundles that were made to do harm: a bundle is data, never authority."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgediff
from edgediff.bundle.folder import MAX_MANIFEST, Bundle
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import BundleError, EdgediffError

Manifest = dict[str, Any]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def read(bundle: Path) -> Manifest:
    found: Manifest = json.loads((bundle / MANIFEST).read_text())
    return found


def write(bundle: Path, manifest: Manifest, *changed: str) -> None:
    """Write bundle.json, with the hashes of the changed files put right."""
    for name in changed:
        content = (bundle / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"size": len(content), "sha256": digest}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def draw(pipe: edgediff.Pipeline) -> bytes:
    return pipe.generate("a fox", seed=1, steps=1).images[0].tobytes()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("session.collect_node_memory_stats_to_file", "VICTIM"),
        ("session.optimized_model_filepath", "VICTIM"),
        ("session.load_model_format", "ORT"),
        ("session.model_external_initializers_file_folder_path", "/"),
        ("ep.context_enable", "1"),
        ("session.x64quantprecision", "2"),
        ("session.disable_quant_qdq", ""),
        ("a\x1b[2J", "1"),
    ],
)
def test_a_session_option_from_a_bundle_is_refused_by_name(
    bundle: Path, tmp_path: Path, key: str, value: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("text")
    manifest = read(bundle)
    config = {key: value.replace("VICTIM", str(victim))}
    manifest["graphs"]["unet"]["session_config"] = config
    write(bundle, manifest)
    for act in (edgediff.load, edgediff.verify, Bundle.open):
        with pytest.raises(BundleError, match="session_config") as e:
            act(bundle)
        assert "\x1b" not in str(e.value)
    assert victim.read_text() == "text"


def test_provider_options_may_not_come_from_a_bundle(bundle: Path) -> None:
    manifest = read(bundle)
    manifest["graphs"]["unet"]["provider_options"] = {"ep_library": "/tmp/x.so"}
    write(bundle, manifest)
    with pytest.raises(BundleError, match="unknown key 'provider_options'"):
        edgediff.load(bundle)


def rename_weights(bundle: Path, name: str, *, listed: bool) -> Manifest:
    """The UNet's graph names its weights file `name` instead."""
    graph = onnx.load(bundle / "unet.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    (bundle / "unet.onnx").write_bytes(graph.SerializeToString())
    manifest = read(bundle)
    if listed:
        del manifest["files"]["unet.onnx.data"]
        manifest["graphs"]["unet"]["data"] = [name]
        manifest["files"][name] = {"size": 0, "sha256": "0" * 64}
    write(bundle, manifest, "unet.onnx")
    return manifest


def test_weights_that_are_not_listed_are_refused(bundle: Path) -> None:
    rename_weights(bundle, "other.data", listed=False)
    shutil.copy(bundle / "unet.onnx.data", bundle / "other.data")
    with pytest.raises(BundleError, match=r"'other\.data', which bundle.json does not list"):
        edgediff.load(bundle)
    with pytest.raises(BundleError, match=r"'other\.data', which bundle.json does not list"):
        edgediff.verify(bundle)
    with pytest.raises(BundleError, match="does not list"):
        edgediff.load(bundle, check_hashes=False)


@pytest.mark.parametrize(
    "name", ["../outside.data", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "sub/a", "a\\b", "a\0b", ".."]
)
@pytest.mark.parametrize("listed", [True, False])
def test_weights_outside_the_bundle_are_refused(bundle: Path, name: str, listed: bool) -> None:
    (bundle.parent / "outside.data").write_bytes(b"x" * 1000)
    rename_weights(bundle, name, listed=listed)
    with pytest.raises(BundleError, match=r"plain name of a|characters that are not shown"):
        edgediff.load(bundle, check_hashes=False)


def test_weights_of_another_stage_are_refused(bundle: Path) -> None:
    rename_weights(bundle, "vae_decoder.onnx.data", listed=False)
    with pytest.raises(BundleError, match="does not list for it"):
        edgediff.load(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    for name in ("unet.onnx.data", "unet.onnx", "tokenizer.json", MANIFEST):
        outside = tmp_path / "outside"
        (bundle / name).rename(outside)
        (bundle / name).symlink_to(outside)
        if name != MANIFEST:
            with pytest.raises(BundleError, match="links to a place outside"):
                edgediff.load(bundle)
        (bundle / name).unlink()
        outside.rename(bundle / name)


def cached(bundle: Path, tmp_path: Path) -> Path:
    """The bundle as the Hugging Face cache lays it out: each file a link into blobs."""
    repository = tmp_path / "cache" / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in bundle.iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, repository / "blobs" / blob)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob))
    return snapshot


def test_a_bundle_in_the_hugging_face_cache_loads(bundle: Path, tmp_path: Path) -> None:
    snapshot = cached(bundle, tmp_path)
    with edgediff.load(bundle) as plain, edgediff.load(snapshot) as linked:
        assert draw(plain) == draw(linked)
    assert edgediff.verify(snapshot).ok


def test_a_cache_gives_no_other_place(bundle: Path, tmp_path: Path) -> None:
    snapshot = cached(bundle, tmp_path)
    blob = (snapshot / "unet.onnx.data").resolve()
    for place in (tmp_path / "outside", blob.parent / "sub" / "a", blob.parent.parent / "a"):
        place.parent.mkdir(exist_ok=True)
        shutil.copy(blob, place)
        (snapshot / "unet.onnx.data").unlink()
        (snapshot / "unet.onnx.data").symlink_to(place)
        with pytest.raises(BundleError, match="links to a place outside"):
            edgediff.load(snapshot)


def test_a_loop_of_links_is_refused(bundle: Path) -> None:
    (bundle / "unet.onnx").unlink()
    (bundle / "unet.onnx").symlink_to("unet.onnx")
    with pytest.raises(BundleError, match=r"unet\.onnx"):
        edgediff.load(bundle)


def alter(path: Path) -> None:
    """Another file of the same size in its place."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)


@pytest.mark.parametrize("name", ["unet.onnx.data", "unet.onnx", "vae_decoder.onnx.data"])
def test_a_stage_that_loads_again_is_checked_again(bundle: Path, name: str) -> None:
    pipe = edgediff.load(bundle)
    draw(pipe)
    pipe.close()
    alter(bundle / name)
    with pytest.raises(BundleError, match=f"{name}: sha256 .* but bundle.json says"):
        draw(pipe)


@pytest.mark.parametrize("name", ["unet.onnx.data", "unet.onnx", "vae_decoder.onnx.data"])
def test_under_a_memory_limit_each_load_is_checked(bundle: Path, name: str) -> None:
    with edgediff.load(bundle, max_memory="40MB") as pipe:
        alter(bundle / name)
        with pytest.raises(BundleError, match=f"{name}: sha256 .* but bundle.json says"):
            draw(pipe)


def test_the_encoder_is_checked_when_it_loads(bundle: Path) -> None:
    with edgediff.load(bundle) as pipe:
        alter(bundle / "vae_encoder.onnx.data")
        with pytest.raises(BundleError, match=r"vae_encoder\.onnx\.data: sha256"):
            pipe.generate("a fox", steps=2, init_image=np.zeros((64, 64, 3), np.uint8))


def test_a_file_that_changes_while_it_loads_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = edgediff.backend.session.Session

    def load_and_replace(*arguments: Any, **options: Any) -> Any:
        made = session(*arguments, **options)
        path = bundle / "text_encoder.onnx.data"
        shutil.copy(path, bundle / "same")
        (bundle / "same").replace(path)  # the same bytes, another file
        return made

    monkeypatch.setattr("edgediff.backend.pool.Session", load_and_replace)
    with pytest.raises(BundleError, match="was changed while it was loaded"):
        edgediff.load(bundle)


def test_a_loaded_model_outlives_its_replaced_file(bundle: Path) -> None:
    with edgediff.load(bundle) as pipe:
        before = draw(pipe)
        alter(bundle / "unet.onnx.data")
        assert draw(pipe) == before


def test_a_graph_in_another_format_is_refused(bundle: Path) -> None:
    """Bytes that are an ONNX message of one unknown field, and say that they are onnxruntime's."""
    body = b"\0ORTM" + bytes(200)
    (bundle / "unet.onnx").write_bytes(bytes([15 << 3 | 2, 0x80 | (len(body) & 0x7F), 1]) + body)
    write(bundle, read(bundle), "unet.onnx")
    with pytest.raises(EdgediffError, match=r"unet\.onnx"):
        edgediff.load(bundle)


def set_in(*path: str | int, value: Any) -> Callable[[Manifest], None]:
    def act(manifest: Manifest) -> None:
        place: Any = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return act


BIG = 2**63
VALUES = [
    ("files", "unet.onnx", "size", -1),
    ("files", "unet.onnx", "size", 2**60),
    ("files", "unet.onnx", "sha256", "xyz"),
    ("files", "unet.onnx", "sha256", "A" * 64),
    ("files", "a/b", {"size": 1, "sha256": "0" * 64}),
    ("files", "bundle.json", {"size": 1, "sha256": "0" * 64}),
    ("files", "a\x1b[2J", {"size": 1, "sha256": "0" * 64}),
    ("files", "x" * 300, {"size": 1, "sha256": "0" * 64}),
    ("name", "a\x1b]0;title\x07"),
    ("name", "a\x9b2J"),
    ("name", "a\0"),
    ("name", "a\ud800"),
    ("name", "a\u202egpj.exe"),
    ("name", "a on cpu: all checks ok\nb"),
    ("name", "a\rb"),
    ("pipeline", "a\nb"),
    ("target", "a\nb"),
    ("providers", []),
    ("providers", ["cpu", "a\nb"]),
    ("provenance", "versions", {"a\nb": "1"}),
    ("graphs", "unet", "inputs", 0, "name", "a\nb"),
    ("provenance", "license", "\x1b[31mred"),
    ("provenance", "versions", {"a\x1b[2J": "1"}),
    ("graphs", "unet", "loaded_bytes", -1),
    ("graphs", "unet", "loaded_bytes", BIG),
    ("graphs", "unet", "inputs", 0, "shape", [0] * 9),
    ("graphs", "unet", "inputs", 0, "shape", [-1]),
    ("graphs", "unet", "inputs", 0, "shape", [BIG]),
    ("graphs", "unet", "inputs", 0, "shape", [""]),
    ("graphs", "unet", "inputs", 0, "name", ""),
    ("graphs", "unet", "inputs", 0, "name", "x" * 1000),
    ("graphs", "unet", "inputs", []),
    ("graphs", "unet", "outputs", []),
    ("graphs", "unet", "outputs", 0, "name", "other"),
    ("graphs", "vae_decoder", "outputs", [{"name": "a", "dtype": "float32", "shape": []}] * 2),
    ("tokenizers", "text_encoder", "max_length", BIG),
    ("tokenizers", "text_encoder", "max_length", 0),
    ("tokenizers", "text_encoder", "pad_token_id", BIG),
    ("tokenizers", "text_encoder", "bos_token_id", -1),
    ("tokenizers", "text_encoder", "embeddings", {"a": [BIG]}),
    ("latent", "channels", BIG),
    ("latent", "downscale", 0),
    ("latent", "scaling_factor", 1e-320),
    ("latent", "scaling_factor", 1e300),
    ("latent", "shift_factor", 1e300),
    ("schedule", "beta_start", 5e-324),
    ("schedule", "beta_start", -0.5),
    ("schedule", "beta_end", 1.0),
    ("schedule", "num_train_timesteps", 10**9),
    ("schedule", "num_train_timesteps", 1),
    ("schedule", "clip_sample_range", 0),
    ("defaults", "steps", BIG),
    ("defaults", "width", 10**9),
    ("defaults", "height", 0),
    ("fidelity", "stages", "unet", "tolerance", -1.0),
    ("fidelity", "images", "x"),
    ("format_version", True),
    ("format_version", 10**15),
]


@pytest.mark.parametrize("given", VALUES, ids=lambda given: "-".join(map(str, given))[:60])
def test_values_are_bounded(bundle: Path, given: tuple[Any, ...]) -> None:
    *path, value = given
    manifest = read(bundle)
    set_in(*path, value=value)(manifest)
    write(bundle, manifest)
    with pytest.raises(BundleError) as e:
        edgediff.load(bundle)
    assert str(e.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 1e999}', "too large a number"),
        ('{"format_version": -Infinity}', "not a JSON number"),
        ('{"format_version": ' + "9" * 5000 + "}", "too large a number"),
        ('{"format_version": 2, "format_version": 2}', "comes twice"),
        ("[" * 100_000, "nests too deep"),
        ('{"a":' * 100_000, "nests too deep"),
        ('"' + "a" * MAX_MANIFEST + '"', "larger than 8000000 bytes"),
        ("", "not JSON"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_json_that_no_export_wrote(bundle: Path, text: str, message: str) -> None:
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=message):
        edgediff.load(bundle)


@pytest.mark.parametrize("name", [MANIFEST, "unet.onnx", "unet.onnx.data", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_not_a_file_is_refused_at_once(bundle: Path, name: str, kind: str) -> None:
    (bundle / name).unlink()
    if kind == "fifo":
        os.mkfifo(bundle / name)
    elif kind == "folder":
        (bundle / name).mkdir()
    else:
        (bundle / name).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        edgediff.load(bundle)


@pytest.mark.parametrize("text", ["{", "1", "[" * 100_000, '{"version": "1.0", "model": {}}'])
def test_a_tokenizer_that_cannot_be_read(bundle: Path, text: str) -> None:
    (bundle / "tokenizer.json").write_text(text)
    write(bundle, read(bundle), "tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read"):
        edgediff.load(bundle)


def test_a_panic_of_the_tokenizer_is_an_error_of_the_bundle(bundle: Path) -> None:
    class PanicException(BaseException):
        """As pyo3 has it."""

    PanicException.__module__ = "pyo3_runtime"

    class Panics:
        def encode(self, *_: Any, **__: Any) -> None:
            raise PanicException("index out of bounds")

    with edgediff.load(bundle) as pipe:
        (tokenizer,) = pipe._text._tokenizers.values()
        tokenizer._tokenizer = Panics()  # type: ignore[assignment]
        with pytest.raises(BundleError, match=r"fails on a prompt .index out of bounds"):
            draw(pipe)

        class Interrupts:
            def encode(self, *_: Any, **__: Any) -> None:
                raise KeyboardInterrupt

        tokenizer._tokenizer = Interrupts()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            draw(pipe)


def commands(bundle: Path) -> Iterator[list[str]]:
    yield ["info", str(bundle)]
    yield ["verify", str(bundle)]
    yield ["generate", "a", "-m", str(bundle), "-o", "a.png"]


@pytest.mark.parametrize(
    "change",
    [
        set_in("name", value="a\x1b[2Jb"),
        set_in("provenance", "attribution", value=["\x1b]0;title\x07"]),
        set_in("graphs", "unet", "session_config", value={"\x1b[31m": "\x1b[31m"}),
        set_in("\x1b[31m", value=1),
        set_in("tokenizers", "\x1b[31m", value={}),
        set_in("provenance", "source", value="a\nb\rc\td"),
        set_in("name", value="tiny on cpu: all checks ok\n\rx"),
        set_in("pipeline", value="a\ntiny on cpu: all checks ok"),
    ],
)
def test_no_command_writes_an_escape_of_a_bundle(
    bundle: Path, tmp_path: Path, change: Callable[[Manifest], None]
) -> None:
    manifest = read(bundle)
    change(manifest)
    write(bundle, manifest)
    for command in commands(bundle):
        done = subprocess.run(
            [sys.executable, "-m", "edgediff", *command],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "FORCE_COLOR": "1"},
        )
        for character in b"\x1b\x07\x9b\r":
            assert character not in done.stdout
            assert character not in done.stderr.replace(b"\xc2", b"")
        verdicts = done.stdout.splitlines().count(b"tiny on cpu: all checks ok")
        assert verdicts == (command[0] == "verify" and done.returncode == 0)
        assert b"tiny on cpu: all checks ok" not in done.stderr.splitlines()
        assert b"Traceback" not in done.stderr
