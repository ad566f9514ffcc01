"""Bundles on the hub: only what bundle.json lists is fetched, resumed, checked and kept."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

import edgediff
from edgediff.bundle import hub as hub_module
from edgediff.bundle.folder import MAX_MANIFEST
from edgediff.bundle.hub import fetch_bundle
from edgediff.bundle.hub_client import client
from edgediff.bundle.hub_name import parse_hub_name
from edgediff.cli import edgediff as command
from edgediff.errors import BundleError
from edgediff.pipeline import find_bundle


@pytest.fixture
def files(tiny_bundle: Path) -> dict[str, bytes]:
    """Those of the tiny bundle."""
    return {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tries again at once, and not after seconds."""
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, time=time.time))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = [sys.executable, "-m", "edgediff", *arguments]
    return subprocess.run(code, capture_output=True, text=True, check=False)


def test_a_bundle_loads_from_the_hub(hub: Any, files: dict[str, bytes], tiny_bundle: Path) -> None:
    hub.add("owner/tiny", {**files, "README.md": b"# tiny", "notes.onnx": b"unlisted"})
    with edgediff.load("hf:owner/tiny", threads=1) as pipe:
        image = pipe.generate("a fox", seed=1, steps=1).images[0]
    with edgediff.load(tiny_bundle, threads=1) as pipe:
        assert pipe.generate("a fox", seed=1, steps=1).images[0] == image
    assert hub.fetched()[0] == "bundle.json"
    assert sorted(hub.fetched()) == sorted(files)  # nothing else, and each once
    hub.requests.clear()
    with edgediff.load("hf:owner/tiny", threads=1):
        pass
    assert hub.fetched() == []
    assert {method for method, _, _ in hub.requests} == {"HEAD"}


def test_progress_reaches_the_end(hub: Any, files: dict[str, bytes]) -> None:
    hub.add("owner/tiny", files)
    seen: list[tuple[int, int]] = []
    fetch_bundle("hf:owner/tiny", lambda *numbers: seen.append(numbers))
    total = sum(len(content) for name, content in files.items() if name != "bundle.json")
    assert {t for _, t in seen} == {total}
    assert [there for there, _ in seen] == sorted(there for there, _ in seen)
    assert seen[-1] == (total, total)
    seen.clear()
    fetch_bundle("hf:owner/tiny", lambda *numbers: seen.append(numbers))
    assert seen == []  # nothing to download, nothing to show


def test_a_revision(hub: Any, files: dict[str, bytes]) -> None:
    repository = hub.add("owner/tiny", files, revisions=("main", "v1.0", "refs/pr/2"))
    first = repository.commit
    assert find_bundle("hf:owner/tiny@v1.0").name == first
    repository.files["README.md"] = b"changed"
    assert fetch_bundle("hf:owner/tiny").name == repository.commit != first
    assert parse_hub_name("hf:owner/tiny@refs/pr/2").revision == "refs/pr/2"
    with pytest.raises(BundleError, match=r"hf:owner/tiny@v9: has no revision 'v9': give a branch"):
        fetch_bundle("hf:owner/tiny@v9")


def test_an_interrupted_download_goes_on(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add("owner/tiny", files)
    name = max(files, key=lambda n: len(files[n]))
    hub.breaks[name] = 20_500
    # Later versions of the client go on by themselves.
    fails = int(huggingface_hub.__version__.partition(".")[0]) < 1
    message = r"failed .*: try again, and the download goes on where it stopped$"
    with pytest.raises(BundleError, match=message) if fails else contextlib.nullcontext():
        fetch_bundle("hf:owner/tiny")
    assert len([*Path(constants.HF_HUB_CACHE).rglob("*.incomplete")]) == fails
    folder = fetch_bundle("hf:owner/tiny")
    assert (folder / name).read_bytes() == files[name]
    got = [r for method, path, r in hub.requests if method == "GET" and path.endswith(name)]
    first, second = got
    assert first is None
    assert 1000 <= int(second.removeprefix("bytes=").removesuffix("-")) <= 20_500


def test_a_wrong_hash_is_refused_and_not_kept(hub: Any, files: dict[str, bytes]) -> None:
    repository = hub.add("owner/tiny", files)
    right = files["unet.onnx.data"]
    repository.files["unet.onnx.data"] = bytes([right[0] ^ 1]) + right[1:]
    for _ in range(2):
        with pytest.raises(BundleError, match=r"^hf:owner/tiny: unet\.onnx\.data has sha256"):
            edgediff.load("hf:owner/tiny")
    repository.files["unet.onnx.data"] = right
    assert fetch_bundle("hf:owner/tiny").name == repository.commit


@pytest.mark.parametrize("readers", ["all", "token"])
def test_a_wrong_size_is_refused_before_anything_is_downloaded(
    readers: str, hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    name = max(files, key=lambda n: len(files[n]))
    hub.add("owner/tiny", {**files, name: files[name] + b"0"}, readers=readers)
    size = len(files[name])
    message = rf"hf:owner/tiny: {name} has {size + 1} bytes on the hub but bundle\.json says {size}"
    with pytest.raises(BundleError, match=message):
        edgediff.load("hf:owner/tiny")
    assert hub.fetched() == ["bundle.json"]


def test_a_large_bundle_json_is_not_downloaded(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/large", {"bundle.json": b" " * (MAX_MANIFEST + 1)})
    message = rf"^hf:owner/large: bundle\.json has {MAX_MANIFEST + 1} bytes, but at most"
    with pytest.raises(BundleError, match=message):
        fetch_bundle("hf:owner/large")
    assert hub.fetched() == []
    # One that is in the cache already, and is found without a connection, is removed from there.
    huggingface_hub.hf_hub_download("owner/large", "bundle.json")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    with pytest.raises(BundleError, match=message):
        fetch_bundle("hf:owner/large")
    kept = [path for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < 1000
    assert "bundle.json" not in {path.name for path in kept}


@pytest.mark.parametrize("name", ["bundle.json", "unet.onnx.data"])
def test_a_cut_file_in_the_cache_is_downloaded_again(
    name: str, hub: Any, files: dict[str, bytes]
) -> None:
    hub.add("owner/tiny", files)
    folder = fetch_bundle("hf:owner/tiny")
    (folder / name).resolve().write_bytes(files[name][:100])
    hub.requests.clear()
    with edgediff.load("hf:owner/tiny") as pipe:
        assert pipe.bundle.root == folder
    assert hub.fetched() == [name]
    assert (folder / name).read_bytes() == files[name]


def test_a_damaged_file_in_the_cache_can_be_repaired(hub: Any, files: dict[str, bytes]) -> None:
    hub.add("owner/tiny", files)
    path = fetch_bundle("hf:owner/tiny") / "unet.onnx.data"
    content = files[path.name]
    path.resolve().write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(BundleError) as e:
        edgediff.load("hf:owner/tiny")
    assert str(e.value).endswith(
        f": delete {path.resolve()}, and load the bundle by its hf: name, which downloads it again"
    )
    path.resolve().unlink()
    with edgediff.load("hf:owner/tiny"):
        assert path.read_bytes() == content


def test_a_bundle_json_that_differs_is_fetched_again(hub: Any, files: dict[str, bytes]) -> None:
    hub.add("owner/tiny", files)
    folder = fetch_bundle("hf:owner/tiny")
    own = folder / "bundle.json"
    raw = json.loads(own.read_bytes())
    raw["files"]["unet.onnx.data"]["sha256"] = "0" * 64
    own.resolve().write_text(json.dumps(raw))
    (folder / "unet.onnx.data").resolve().unlink()
    with pytest.raises(
        BundleError, match=r"unet\.onnx\.data has sha256 .* says 00000000…: try again"
    ):
        fetch_bundle("hf:owner/tiny")
    with edgediff.load("hf:owner/tiny"):
        assert own.read_bytes() == files["bundle.json"]


def test_bundle_json_is_checked_before_anything_is_fetched(
    hub: Any, files: dict[str, bytes]
) -> None:
    raw = json.loads(files["bundle.json"])
    raw["files"]["../evil"] = {"size": 1, "sha256": "0" * 64}
    hub.add("owner/tiny", {**files, "bundle.json": json.dumps(raw).encode()})
    with pytest.raises(BundleError, match="leaves the bundle"):
        edgediff.load("hf:owner/tiny")
    hub.add("owner/text", {"bundle.json": b"not JSON"})
    with pytest.raises(BundleError, match="not JSON"):
        edgediff.load("hf:owner/text")
    assert set(hub.fetched()) == {"bundle.json"}


@pytest.mark.parametrize(
    ("how", "token", "message"),
    [
        (
            {"readers": "gated"},
            None,
            "is gated: accept its terms at https://huggingface.co/owner/x",
        ),
        ({"readers": "refused"}, "hf_right", "is gated: accept its terms"),
        ({"readers": "token"}, None, "no such repository on the hub, or a private one: check"),
        ({"readers": "token"}, "hf_wrong", "no such repository on the hub, or a private one"),
    ],
)
def test_who_may_read(
    how: dict[str, Any],
    token: str | None,
    message: str,
    hub: Any,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add("owner/x", files, **how)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BundleError, match=f"^hf:owner/x: {message}"):
        fetch_bundle("hf:owner/x")
    if how["readers"] != "refused":
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        fetch_bundle("hf:owner/x")


@pytest.mark.usefixtures("impatient")
def test_what_is_not_there(hub: Any, files: dict[str, bytes]) -> None:
    with pytest.raises(BundleError, match=r"^hf:no/one: no such repository on the hub"):
        fetch_bundle("hf:no/one")
    hub.add("owner/pipeline", {"model_index.json": b"{}"})
    with pytest.raises(BundleError, match=r"holds no bundle\.json, .* `edgediff export hf:owner/p"):
        fetch_bundle("hf:owner/pipeline")
    hub.add("owner/part", {k: v for k, v in files.items() if k != "unet.onnx"})
    with pytest.raises(BundleError, match=r"holds no unet\.onnx, so that it is incomplete"):
        fetch_bundle("hf:owner/part")
    hub.broken = True
    with pytest.raises(BundleError, match="the hub answered 503"):
        fetch_bundle("hf:owner/other")


@pytest.mark.parametrize(
    "name",
    [
        *("hf:", "hf:bundle", "hf:/etc/passwd", "hf:a/b/c", "hf:../b", "hf:a/b@", "hf:a/b@../../c"),
        *("hf:a/b.git", "hf:a/b--c", "hf:a--b/c", "hf:a/b.", "hf:a/b-", "hf:a-/b"),
        "hf:a/" + "b" * 97,
    ],
)
def test_what_is_not_a_name(name: str) -> None:
    with pytest.raises(BundleError, match="is not a name on the hub: give hf:owner/name"):
        edgediff.load(name)


def test_a_path_is_never_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("hf:owner/name"), "./hf:owner/name"):
        with pytest.raises(BundleError, match="no such bundle"):
            edgediff.load(path)


def test_offline(hub: Any, files: dict[str, bytes], offline: Any) -> None:
    hub.add("owner/tiny", files)
    hub.add("owner/other", files)
    folder = fetch_bundle("hf:owner/tiny")
    hub.requests.clear()
    offline()
    assert fetch_bundle("hf:owner/tiny") == folder
    with pytest.raises(BundleError, match=r"is not in the local cache, .* HF_HUB_OFFLINE is set"):
        fetch_bundle("hf:owner/other")
    assert hub.requests == []


def test_without_a_connection(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/tiny", files)
    folder = fetch_bundle("hf:owner/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nothing listens there
    started = time.monotonic()
    assert fetch_bundle("hf:owner/tiny") == folder
    with pytest.raises(BundleError, match=r"the hub cannot be reached \(.*\), and the local"):
        fetch_bundle("hf:owner/other")
    assert time.monotonic() - started < 5  # the client would try again for half a minute


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_ends_after_the_first_answer(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/tiny", files)
    folder = fetch_bundle("hf:owner/tiny")
    nowhere = "http://127.0.0.1:1/{repo_id}/{revision}/{filename}"  # nothing listens there
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere, raising=False)
    assert fetch_bundle("hf:owner/tiny") == folder
    with pytest.raises(BundleError, match=r"the hub cannot be reached \(.*\), and the local"):
        fetch_bundle("hf:owner/other")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk of the hub's cache is full: free some space, or set HF_HOME else"),
        (errno.EROFS, r"the hub's cache cannot be written \(.*x'\): set HF_HOME elsewhere"),
    ],
)
def test_a_cache_that_cannot_be_written(
    number: int,
    message: str,
    hub: Any,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "x")

    hub.add("owner/tiny", files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(BundleError, match=f"^hf:owner/tiny: {message}"):
        fetch_bundle("hf:owner/tiny")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match=r'^hf:owner/x: needs huggingface_hub: pip install "edge'):
        edgediff.load("hf:owner/x")


def test_an_app_sees_no_output_and_keeps_its_settings(
    hub: Any, files: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    import logging

    from huggingface_hub import utils

    hub.add("owner/tiny", files)
    before = (logging.getLogger("huggingface_hub").level, utils.are_progress_bars_disabled())
    fetch_bundle("hf:owner/tiny")
    assert capfd.readouterr() == ("", "")
    after = (logging.getLogger("huggingface_hub").level, utils.are_progress_bars_disabled())
    assert after == before


def test_overlapping_downloads_keep_an_apps_settings(hub: Any, files: dict[str, bytes]) -> None:
    import logging

    from huggingface_hub import utils

    hub.add("owner/first", files)
    hub.add("owner/second", files)
    logger = logging.getLogger("huggingface_hub")
    bars = "huggingface_hub"
    before = (logger.level, utils.are_progress_bars_disabled(bars))
    begun, second_done = threading.Event(), threading.Event()
    levels: list[tuple[int, bool]] = []

    def wait(*_: int) -> None:
        begun.set()
        assert second_done.wait(20)

    with ThreadPoolExecutor() as pool:
        # The first begins before the second, which begins before the first ends, and ends last.
        with client(parse_hub_name("owner/second")):
            first = pool.submit(fetch_bundle, "hf:owner/first", wait)
            assert begun.wait(20)
            with client(parse_hub_name("owner/third")):
                second_done.set()
                first.result()
                levels.append((logger.level, utils.are_progress_bars_disabled(bars)))
        assert levels == [(logging.CRITICAL, True)]

        def overlap(_: int) -> None:
            for _ in range(50):
                with client(parse_hub_name("owner/second")):
                    time.sleep(0.0005)

        list(pool.map(overlap, range(4)))
    assert (logger.level, utils.are_progress_bars_disabled(bars)) == before


class _FromTheAppError(Exception):
    pass


@pytest.mark.parametrize("error", [_FromTheAppError("stop"), OSError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 2])
def test_an_error_of_on_download_reaches_the_app(
    call: int,
    error: BaseException,
    hub: Any,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.add("owner/tiny", files)
    monkeypatch.setattr(hub_module, "_INTERVAL", 0.001)
    original = huggingface_hub.hf_hub_download
    threads: list[threading.Thread] = []

    def slow(repository: str, path: str, **how: Any) -> Any:
        """Its partial file grows for a while, as that of a large one does."""
        if path != "bundle.json":
            blob = json.loads(files["bundle.json"])["files"][path]["sha256"]
            blobs = Path(constants.HF_HUB_CACHE) / "models--owner--tiny" / "blobs"
            (blobs / f"{blob}.incomplete").write_bytes(b"")
            time.sleep(0.1)
        return original(repository, path, **how)

    def report(*_: int) -> None:
        threads.append(threading.current_thread())
        if len(threads) == call:
            raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", slow)
    with pytest.raises(type(error)) as e:
        fetch_bundle("hf:owner/tiny", report)
    assert e.value is error
    assert len(threads) == call
    assert (threads[-1] is threading.current_thread()) == (call == 1)
    assert capfd.readouterr() == ("", "")


def test_the_command_line(hub: Any, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add("owner/tiny", files)
    info = run("info", "hf:owner/tiny")
    assert info.returncode == 0, info.stderr
    assert "tiny (StableDiffusionPipeline)" in info.stdout
    assert hub.fetched() == ["bundle.json"]  # a description needs no weights
    out = tmp_path / "fox.png"
    made = run("generate", "a fox", "-m", "hf:owner/tiny", "--steps", "1", "-o", str(out))
    assert made.returncode == 0, made.stderr
    assert out.is_file()
    assert sorted(hub.fetched()) == sorted(files)
    failed = run("generate", "a fox", "-m", "hf:owner/none", "-o", str(out))
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: hf:owner/none: no such repository on the hub")
    assert len(failed.stderr.splitlines()) == 1


def test_verify_and_bench(
    hub: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgediff.bench import runner

    hub.add("owner/tiny", files)
    done = CliRunner().invoke(command, ["verify", "hf:owner/tiny", "--threads", "1"])
    assert done.exit_code == 0, done.output
    asked: list[Path] = []

    def stop(self: Any) -> Any:
        asked.extend(job.bundle for job in self.jobs)
        raise BundleError("enough")

    monkeypatch.setattr(runner.Bench, "run", stop)
    done = CliRunner().invoke(command, ["bench", "hf:owner/tiny"])
    assert isinstance(done.exception, BundleError)
    assert [path.parent.name for path in asked] == ["snapshots"]


def test_only_a_name_on_the_hub_imports_its_client(tiny_bundle: Path) -> None:
    code = (
        "import sys, edgediff\n"
        f"edgediff.load({str(tiny_bundle)!r}).generate('a fox', steps=1)\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "assert not {'requests', 'httpx', 'urllib3'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr


def test_a_progress_bar_on_a_terminal(hub: Any, files: dict[str, bytes]) -> None:
    pty = pytest.importorskip("pty")
    hub.add("owner/tiny", files)
    leader, follower = pty.openpty()
    code = [
        sys.executable,
        "-c",
        "from edgediff.cli.running import *; local_bundle('hf:owner/tiny')",
    ]
    done = subprocess.run(code, stderr=follower, stdout=subprocess.PIPE, text=True, check=False)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's end of a terminal
        while part := os.read(leader, 10_000):
            shown += part
    os.close(leader)
    assert (done.returncode, done.stdout) == (0, "")
    assert b"downloading" in shown
    assert b"100%" in shown
