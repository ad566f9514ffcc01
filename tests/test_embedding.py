"""What an app that embeds edgediff may rely on: forks, memory, logging, its own working folder."""

import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.cores import usable_cores

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of os.fork


def in_child(act: Callable[[], object], seconds: float = 60) -> int:
    """Fork, run `act` in the child, and return how it ended, as os.waitstatus_to_exitcode has it.
    A child that hangs is killed, and gives -9."""
    number = os.fork()
    if number == 0:
        try:
            act()
        except SystemExit as e:
            os._exit(e.code or 0)
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(number, 9)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def drawn(pipe: edgediff.Pipeline, seed: int = 1) -> bytes:
    return pipe.generate("a fox", seed=seed, steps=2).images[0].tobytes()


@pytest.fixture
def pipe(tiny_bundle: Path) -> edgediff.Pipeline:
    loaded = edgediff.load(tiny_bundle, threads=2)
    drawn(loaded)
    return loaded


def test_a_child_of_a_fork_draws_the_same(pipe: edgediff.Pipeline) -> None:
    expected = drawn(pipe)

    def act() -> None:
        assert pipe.loaded_stages == ()
        assert drawn(pipe) == expected
        assert set(pipe.loaded_stages) == {"text_encoder", "unet", "vae_decoder"}

    assert in_child(act) == 0
    assert drawn(pipe) == expected


def test_a_child_of_a_fork_may_let_go_of_a_pipeline(pipe: edgediff.Pipeline) -> None:
    def collect() -> None:
        pipe.__dict__.clear()
        gc.collect()

    def load_anew() -> None:
        with edgediff.load(pipe.bundle.root) as other:
            drawn(other)

    for act in (pipe.close, collect, load_anew, lambda: (pipe.close(), drawn(pipe), pipe.close())):
        assert in_child(act) == 0
    assert in_child(lambda: in_child(lambda: drawn(pipe)) and os.abort()) == 0  # a grandchild


EXITS = """
import os, sys, edgediff
pipe = edgediff.load(sys.argv[1], threads=2)
pipe.generate("a fox", seed=1, steps=1)
number = os.fork()
if number == 0:
    if sys.argv[2] == "draw":
        pipe.generate("a fox", seed=1, steps=1)
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
"""


@pytest.mark.parametrize("act", ["exit", "draw"])
def test_a_child_of_a_fork_may_exit(tiny_bundle: Path, act: str) -> None:
    """All the way through the end of its interpreter, as a worker of a preloading server does."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXITS, str(tiny_bundle), act],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "7\n"
    assert done.stderr == ""


def test_a_fork_in_the_middle_of_a_run(pipe: edgediff.Pipeline) -> None:
    """The child goes on with the run that it was forked out of."""
    expected = drawn(pipe)
    run = pipe.stream("a fox", seed=1, steps=2)
    next(run)

    def act() -> None:
        assert run.result().images[0].tobytes() == expected

    assert in_child(act) == 0
    assert run.result().images[0].tobytes() == expected


def test_a_fork_while_another_thread_draws(pipe: edgediff.Pipeline) -> None:
    expected = drawn(pipe)
    stop = threading.Event()

    def draw_on() -> None:
        while not stop.is_set():
            drawn(pipe)

    thread = threading.Thread(target=draw_on)
    thread.start()
    try:
        for _ in range(5):
            assert in_child(lambda: drawn(pipe) == expected or os.abort()) == 0
    finally:
        stop.set()
        thread.join()


def test_the_last_reference_frees_the_model(tiny_bundle: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        pipe = edgediff.load(tiny_bundle)
        run = pipe.stream("a fox", steps=1)
        run.result()
        sessions = [weakref.ref(session) for _, session in pipe.stages.sessions()]
        assert len(sessions) == 3
        del pipe, run
        assert [session() for session in sessions] == [None, None, None]
    finally:
        gc.enable()


def test_a_relative_bundle_is_found_from_another_folder(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "b")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    pipe = edgediff.load("b")
    expected = drawn(pipe)
    monkeypatch.chdir(tmp_path / "elsewhere")
    photo = np.zeros((64, 64, 3), np.uint8)
    pipe.generate("a fox", steps=2, init_image=photo)  # the encoder loads only now
    pipe.close()
    assert drawn(pipe) == expected


def test_a_pipeline_is_not_pickled(pipe: edgediff.Pipeline) -> None:
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"hand on the bundle's path, '.*tiny', and call"):
            act(pipe)


LOGGING = """
import sys
import onnxruntime
onnxruntime.set_default_logger_severity(1)
if sys.argv[2] == "edgediff":
    import edgediff
    pipe = edgediff.load(sys.argv[1])
    pipe.generate("a fox", steps=1)
print("begin", file=sys.stderr, flush=True)
onnxruntime.InferenceSession(sys.argv[1] + "/vae_encoder.onnx")
"""


def test_an_apps_own_logging_is_left_as_it_was(tiny_bundle: Path) -> None:
    def lines(who: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", LOGGING, str(tiny_bundle), who],
            capture_output=True,
            text=True,
            check=True,
        )
        return len(done.stderr.partition("begin")[2].splitlines())

    ours, own = lines("edgediff"), lines("app")
    assert min(ours, own) > 50
    assert abs(ours - own) <= 2  # what it says once a process


def test_threads_are_bounded(tiny_bundle: Path) -> None:
    with edgediff.load(tiny_bundle, threads=10**6) as pipe:
        drawn(pipe)
        note = f"threads: 1000000 were asked for, {usable_cores()} run, one per processor"
        assert pipe.load_notes.count(note) == 1
    with edgediff.load(tiny_bundle, threads=np.int64(1)) as pipe:
        assert pipe.load_notes == ()
    for wrong in (0, -1, True, 1.5, "2"):
        with pytest.raises(edgediff.InputError, match="`threads` is"):
            edgediff.load(tiny_bundle, threads=wrong)


def test_nothing_is_said_on_stderr(tiny_bundle: Path, tmp_path: Path) -> None:
    code = "import sys, edgediff; edgediff.load(sys.argv[1]).generate('a', steps=1).save('a.png')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle)],
        capture_output=True,
        cwd=tmp_path,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_several_threads_draw_as_one(pipe: edgediff.Pipeline) -> None:
    expected = {seed: drawn(pipe, seed) for seed in range(4)}
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda s=seed: found.update({s: drawn(pipe, s)}))
        for seed in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_no_connection_is_made(tiny_bundle: Path, tmp_path: Path) -> None:
    code = """if True:
        import sys
        seen = []
        def note(event, _):
            if event.startswith("socket."):
                seen.append(event)
        sys.addaudithook(note)
        import edgediff
        edgediff.load(sys.argv[1]).generate("a fox", steps=1).save("a.png")
        print(seen)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_a_name_on_the_hub_is_the_only_reason_to_connect(
    hub: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The hub's own address is connected to, and nothing else; a path that looks alike is not."""
    hub.add("owner/tiny", {path.name: path.read_bytes() for path in tiny_bundle.iterdir()})
    code = """if True:
        import sys
        seen = set()
        def note(event, arguments):
            if event == "socket.connect":
                seen.add(arguments[1][1])
        sys.addaudithook(note)
        import edgediff
        try:
            edgediff.load("./hf:owner/tiny")
        except edgediff.BundleError:
            assert not seen
        edgediff.load("hf:owner/tiny").generate("a fox", steps=1)
        print(seen)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == f"{{{hub.endpoint.rpartition(':')[2]}}}\n"
