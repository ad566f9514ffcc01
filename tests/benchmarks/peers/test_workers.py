"""Workers speak the lines that `edgediff.bench.runner.Worker` waits for."""

import base64
import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.peers.environments import HERE
from edgediff.bench.runner import Worker, WorkerError

WORKERS = HERE / "workers"
CONFIG = {"prompt": "a fox", "seed": 0, "width": 64, "height": 32, "steps": 2}
CHATTY = f"""
import sys
sys.path.insert(0, {str(WORKERS)!r})
from lines import Stopwatch, serve

def load(config):
    print("loading", config["model"])
    watch = Stopwatch()
    stages = [watch.around(s, lambda: None) for s in ("text_encoder", "unet", "decoder")]

    def draw():
        print("drawing")
        for stage in stages:
            stage()
        return "red", watch.take()

    return draw

def to_pil(colour):
    from PIL import Image
    return Image.new("RGB", (1, 1), colour)

serve(("json",), load, to_pil)
"""


def test_edgediff_draws_in_steps(tiny_bundle: Path) -> None:
    config = {**CONFIG, "model": str(tiny_bundle), "provider": "cpu"}
    command = (sys.executable, str(WORKERS / "with_edgediff.py"))
    with Worker(command, config, answer=60.0) as worker:
        worker.wait("started")
        assert worker.wait("loaded")["load"] > 0
        for _ in range(2):
            image = worker.ask("image", "image")
            assert len(image["steps"]) == 2
            assert image["total"] >= image["text_encoder"] + image["decoder"]
            assert image["peak_bytes"] > 1e6
        shown = worker.ask("show", "shown")
    assert Image.open(io.BytesIO(base64.b64decode(shown["png"]))).size == (64, 32)


def test_what_a_peer_prints_does_not_come_between_the_lines(tmp_path: Path) -> None:
    script = tmp_path / "chatty.py"
    script.write_text(CHATTY)
    with Worker((sys.executable, str(script)), {**CONFIG, "model": "M"}, answer=60.0) as worker:
        worker.wait("started")
        worker.wait("loaded")
        image = worker.ask("image", "image")
        assert len(image["steps"]) == 1
        assert worker.ask("show", "shown")["png"]


def test_a_peer_that_is_not_there_says_so(tmp_path: Path) -> None:
    script = tmp_path / "absent.py"
    script.write_text(CHATTY.replace('"json"', '"no_such_peer"'))
    with Worker((sys.executable, str(script)), {**CONFIG, "model": "M"}, answer=60.0) as worker:
        worker.wait("started")
        with pytest.raises(WorkerError, match="No module named 'no_such_peer'"):
            worker.wait("loaded")
