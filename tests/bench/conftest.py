"""Results of made-up timings."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgediff.bench.machine import Conditions, Machine
from edgediff.bench.results import Cold, Config, Model, Quality, Result, Run, TimedImage

MODEL = Model(
    name="emoji",
    id="a" * 64,
    source="demo",
    target="cpu",
    precision="int8",
    plan={"int8": 3},
    bytes=15_000_000,
)
CONFIG = Config(
    label="emoji",
    model=MODEL,
    provider="cpu",
    threads=None,
    width=128,
    height=128,
    steps=4,
    sampler="ddim",
    guidance_scale=1.0,
    batch=1,
    prompt="a red apple",
    seed=0,
)
MACHINE = Machine(
    cpu="Abacus",
    cpu_flags=("avx2",),
    cores=2,
    memory_bytes=8_000_000_000,
    system="Linux",
    python="3.11.7",
    power="mains",
    gpus=(),
)
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"


def image(seconds: float) -> TimedImage:
    return TimedImage(
        total=seconds,
        text_encoder=0.1 * seconds,
        steps=(0.4 * seconds, 0.4 * seconds),
        decoder=0.1 * seconds,
    )


@pytest.fixture
def config() -> Config:
    return CONFIG


@pytest.fixture
def measured() -> Callable[..., Run]:
    """Seconds of each image, and what differs from CONFIG → a run."""

    def make(seconds: list[float], **changes: Any) -> Run:
        model = replace(MODEL, **changes.pop("model", {}))
        return Run(
            config=replace(CONFIG, model=model, **changes),
            status="measured",
            narrow=True,
            warm=tuple(image(s) for s in seconds),
            cold=tuple(
                Cold(
                    first_image=10 * s,
                    interpreter=0.1 * s,
                    imports=s,
                    load=5 * s,
                    stages={"unet": 4 * s},
                )
                for s in seconds[:3]
            ),
            peak_bytes=120_000_000,
            memory=((0.0, 1e6), (1.0, 120e6)),
            quality=Quality(psnr_db=42.5),
            image_png=PNG,
        )

    return make


@pytest.fixture
def result() -> Callable[..., Result]:
    """Runs → a result."""

    def make(*runs: Run, **changes: Any) -> Result:
        made = Result(
            started="2026-01-01T00:00:00+00:00",
            complete=True,
            missing=(),
            interleaved=len(runs) > 1,
            machine=MACHINE,
            conditions=Conditions(frequency_mhz=(1000.0, 2000.0, 3000.0), throttled=0, others=0.01),
            versions={"edgediff": "0.1.0", "onnxruntime": "1.32.0"},
            runs=runs,
        )
        return replace(made, **changes)

    return make
