"""The report page, as text and in a browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgediff.bench.page import page, write
from edgediff.bench.results import Result, Run

SECONDS = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98]


@pytest.fixture
def two(measured: Callable[..., Run], result: Callable[..., Result]) -> dict[str, Result]:
    fast = measured([s / 2 for s in SECONDS], label="emoji <fast>")
    failed = Run(
        config=measured([], label="lost").config, status="failed", error="killed by SIGKILL"
    )
    slow = replace(
        measured(SECONDS),
        caches={"unet": {"engine": "miss", "timing": "hit"}},
        notes=("unet.onnx: runs without a CUDA graph",),
        gpu_peak_bytes=340_000_000,
    )
    return {"a & b": result(slow, fast, failed, missing=("lost: killed by SIGKILL",))}


def test_the_page_holds_plots_images_and_what_is_missing(two: dict[str, Result]) -> None:
    text = page(two)
    assert text.count("<svg") == 4
    assert text.count("data:image/png;base64,") == 2
    assert "lost: killed by SIGKILL" in text
    assert "a &amp; b" in text
    assert "emoji &lt;fast&gt;" in text
    assert "42.5 dB" in text
    assert "emoji aaaaaaaaaaaa" in text
    assert "3 int8" in text
    assert "<li>emoji: unet.onnx: runs without a CUDA graph</li>" in text
    assert "unet: engine miss, timing hit" in text
    assert "340 MB" in text
    assert "load unet" in text
    # Nothing is loaded from anywhere.
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?!data:)\w+:", text)
    assert "default-src 'none'" in text


def test_a_page_of_nothing_measured(
    measured: Callable[..., Run], result: Callable[..., Result]
) -> None:
    run = Run(config=measured([]).config, status="failed", error="refused")
    assert "refused" in page({"a": result(run)})


@pytest.mark.slow
def test_a_browser_shows_it_and_asks_for_nothing(two: dict[str, Result], tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    assert browser, "needs Chromium: apt-get install chromium"
    write(tmp_path / "report.html", two)
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--log-net-log={log}", "--window-size=1000,2400"),
            *(f"--screenshot={tmp_path / 'page.png'}", "--virtual-time-budget=2000"),
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    from PIL import Image

    shown = Image.open(tmp_path / "page.png").convert("RGB")
    colours = {colour for _, colour in shown.getcolors(1 << 24) or []}
    for hexadecimal in ("4269d0", "efb118", "ff725c"):  # the plots' first colours
        assert tuple(bytes.fromhex(hexadecimal)) in colours
    text = log.read_text(errors="replace")
    names = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")
    asked = {
        event["params"]["url"]
        for event in names["events"]
        if "url" in event.get("params", {})
        and event["params"].get("initiator", "not an origin") != "not an origin"
    }
    assert not {url for url in asked if not url.startswith(("file:", "data:"))}
