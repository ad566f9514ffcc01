"""The search for a plan, on stages whose quality and size are made up."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from edgediff_export.search.budget import Budget, Formats, Measured, Search, stored_bytes
from edgediff_export.targets.cpu.dense import Layer

from edgediff.errors import ExportError

COUNT = 64
REST = 1000
"""Bytes of everything that is not a layer."""


def layer(name: str, *shape: int) -> Layer:
    weight = np.ones(shape, np.float32)
    x = ir.val("x", ir.DataType.FLOAT, ["b", "s", shape[0]])
    node = ir.node("Dense", [x])
    pads = (1, 1, 1, 1) if len(shape) == 4 else (0, 0, 0, 0)
    return Layer(node=node, name=name, x=x, weight=weight, bias=None, strides=(1, 1), pads=pads)


@dataclass
class World:
    """Stages whose error adds up layer by layer: cost for int8, a part of it for int8 weights.

    unseen: by how many dB other images are worse. tried: (layers out of int8, unseen)."""

    cost: Mapping[str, float]
    weights: float = 0.01
    half: float = 0.0001
    unseen: float = 0.0
    found: Mapping[str, list[Layer]] = field(
        default_factory=lambda: {
            "unet": [layer(f"w{k}", 64, 64) for k in range(COUNT)] + [layer("small", 8, 8)],
            "vae_decoder": [layer("conv", 64, 64, 3, 3)],
        }
    )
    tried: list[tuple[int, bool]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def start(self) -> Formats:
        return {
            stage: {y.name: "fp32" if y.name == "small" else "int8" for y in layers}
            for stage, layers in self.found.items()
        }

    def psnr(self, plans: Formats) -> float:
        share = {
            "int8": 1.0,
            "int8-weights": self.weights,
            "int4": 2.0,
            "fp16": self.half,
            "fp32": 0,
        }
        error = sum(
            self.cost.get(f"{stage}/{name}", 1e-9) * share[form]
            for stage, plan in plans.items()
            for name, form in plan.items()
        )
        return -10 * math.log10(error) if error else math.inf

    def measure(self, plans: Formats, unseen: bool) -> Measured:
        out = sum(f != "int8" for p in plans.values() for f in p.values()) - 1
        self.tried.append((out, unseen))
        median = self.psnr(plans) - (self.unseen if unseen else 0)
        return Measured(median=median, lowest=median - 3)

    def size(self, plans: Formats) -> int:
        return REST + sum(
            stored_bytes(y, plans[stage][y.name])
            for stage, layers in self.found.items()
            for y in layers
        )

    def search(
        self, measure: Callable[[Formats, bool], Measured] | None = None, **wanted: Any
    ) -> tuple[Formats, Measured, Measured]:
        found = Search(
            layers=self.found,
            cost=self.cost,
            budget=Budget(**wanted),
            measure=measure or self.measure,
            size_of=self.size,
            report=self.said.append,
        ).run(self.start())
        return found.formats, found.calibration, found.unseen


@pytest.fixture
def world() -> Callable[..., World]:
    """Layer k costs 2^-k·1e-3: half of the error is the first one's. 27 dB in int8."""
    cost = {f"unet/w{k}": 1e-3 * 2.0**-k for k in range(COUNT)} | {"vae_decoder/conv": 1e-6}
    return lambda **how: World(**{"cost": cost, **how})


def out_of_int8(plans: Formats) -> list[str]:
    return [n for p in plans.values() for n, f in p.items() if f != "int8" and n != "small"]


def test_int8_stays_where_it_suffices(world: Any) -> None:
    w = world()
    plans, calibration, unseen = w.search(min_psnr=26.0)
    assert plans == w.start()
    assert w.tried == [(0, False), (0, True)]
    assert calibration.median == unseen.median == pytest.approx(w.psnr(plans))


def test_the_dearest_are_raised_first_and_no_more_than_needed(world: Any) -> None:
    w = world()
    plans, calibration, unseen = w.search(min_psnr=36.0)
    raised = out_of_int8(plans)
    assert raised == [f"w{k}" for k in range(len(raised))]
    # 3 dB for each layer, and 1/32, 1/16, … of 65 are raised.
    assert len(raised) == math.ceil(65 / 16)
    assert {plans["unet"][n] for n in raised} == {"int8-weights"}
    assert [n for n, unseen in w.tried if not unseen] == [0, 3, 5]
    assert w.tried[-1] == (5, True)
    assert min(calibration.median, unseen.median) >= 36


def test_cost_decides_across_stages(world: Any) -> None:
    w = world(cost={"vae_decoder/conv": 1e-3, "unet/w40": 1e-4, "unet/w7": 1e-5})
    plans, _, _ = w.search(min_psnr=45.0)
    assert out_of_int8(plans) == ["w7", "w40", "conv"]


def test_unseen_images_have_the_last_word(world: Any) -> None:
    w = world(unseen=6.0)
    plans, calibration, unseen = w.search(min_psnr=36.0)
    assert unseen.median == pytest.approx(calibration.median - 6)
    assert unseen.median >= 36
    assert len(out_of_int8(plans)) == 9
    # Int8 weights of five layers did on calibration images; others said no.
    assert w.tried[-3:] == [(5, True), (9, False), (9, True)]


def test_float16_where_int8_weights_do_not_do(world: Any) -> None:
    w = world()
    plans, calibration, _ = w.search(min_psnr=60.0)
    formats = [*plans["unet"].values(), *plans["vae_decoder"].values()]
    assert "fp16" in formats
    assert "int8" not in formats
    assert calibration.median >= 60
    raised = [n for n, f in plans["unet"].items() if f == "fp16"]
    assert raised == [f"w{k}" for k in range(len(raised))]
    assert plans["unet"]["small"] == "fp32"


def test_an_impossible_quality(world: Any) -> None:
    w = world(unseen=1.0)
    with pytest.raises(ExportError) as e:
        w.search(min_psnr=90.0)
    everything = {
        s: {n: f if n == "small" else "fp16" for n, f in p.items()} for s, p in w.start().items()
    }
    reached = w.psnr(everything) - 1
    assert f"--min-psnr 90: the best that int8 reached is {reached:.1f} dB" in str(e.value)
    assert "--precision fp32" in str(e.value)
    assert "--max-size" not in str(e.value)  # it did not limit the search
    assert "nothing was written" in str(e.value)
    assert "\n" not in str(e.value)


def test_what_was_reached_is_less_than_what_was_asked(world: Any) -> None:
    """The search passes on one set of images and fails on the other, and back."""
    w = world()
    medians = {False: 41.0, True: 38.0}

    def turn(_plans: Formats, unseen: bool) -> Measured:
        median = medians[unseen]
        medians[False], medians[True] = (39.0, 45.0) if unseen else (medians[False], medians[True])
        return Measured(median=median, lowest=median)

    with pytest.raises(ExportError, match=r"--min-psnr 40: .* is 39\.0 dB"):
        w.search(turn, min_psnr=40)


@pytest.mark.parametrize("kept", [1, 10, 30])
def test_int4_until_the_size_fits(kept: int, world: Any) -> None:
    """The least sensitive first, and no more of them than needed; convolutions stay int8."""
    w = world()
    most = REST + 64 * 4 + (64 * 64 * 9 + 64 * 4) + kept * (4096 + 256) + (COUNT - kept) * 2560
    plans, _, _ = w.search(max_size=most)
    assert w.size(plans) == most
    small = [n for n, f in plans["unet"].items() if f == "int4"]
    assert small == [f"w{k}" for k in range(kept, COUNT)]
    assert plans["vae_decoder"] == {"conv": "int8"}
    assert w.size(w.search(max_size=most - 1)[0]) < most


def test_a_size_that_fits_already(world: Any) -> None:
    w = world()
    plans, _, _ = w.search(max_size=w.size(w.start()))
    assert plans == w.start()
    assert w.tried == [(0, False), (0, True)]


def test_an_impossible_size(world: Any) -> None:
    w = world()
    with pytest.raises(ExportError) as e:
        w.search(max_size=100_000)
    smallest = REST + 64 * 4 + (64 * 64 * 9 + 64 * 4) + COUNT * 2560
    megabytes = math.ceil(smallest / 1e5) / 10
    assert f"--max-size 0.1: the smallest that int8 and int4 reach is {megabytes} MB" in str(
        e.value
    )
    assert "nothing was written" in str(e.value)
    assert w.tried == []
    # The size that it names is possible.
    w.search(max_size=int(megabytes * 1e6))


def test_quality_within_a_size(world: Any) -> None:
    """Int8 weights cost no bytes: quality is found, and the size is kept."""
    w = world()
    most = w.size(w.start()) - 20_000
    plans, calibration, unseen = w.search(min_psnr=36.0, max_size=most)
    assert min(calibration.median, unseen.median) >= 36
    assert w.size(plans) <= most
    assert "int4" in plans["unet"].values()


def test_no_quality_beyond_a_size(world: Any) -> None:
    w = world()
    most = w.size(w.start()) + 5000
    with pytest.raises(ExportError, match=r"--min-psnr 60: .* is ") as e:
        w.search(min_psnr=60.0, max_size=most)
    assert f" within {most / 1e6:g} MB is " in str(e.value)
    assert "allow more with --max-size" in str(e.value)
    plans = [n for n, unseen in w.tried if unseen]
    assert len(plans) == len(set(plans))


def test_equal_images_are_good_enough_for_anything() -> None:
    assert Measured.of([None, 40.0, None]) == Measured(median=math.inf, lowest=40.0)
    assert Measured.of([30.0, 40.0]) == Measured(median=35.0, lowest=30.0)


def test_each_try_is_reported(world: Any) -> None:
    w = world()
    w.search(min_psnr=36.0)
    assert w.said[0].startswith("int8: 27.0 dB on calibration images")
    assert w.said[1:] == [
        f"{n} layers kept out of int8: {text} dB" for n, text in ((4, "35.7"), (6, "40.8"))
    ]


def test_bytes_of_each_format() -> None:
    linear, conv = layer("w", 64, 32), layer("c", 16, 8, 3, 3)
    assert stored_bytes(linear, "fp32") == 8192
    assert stored_bytes(linear, "fp16") == 4096
    assert stored_bytes(linear, "int8") == stored_bytes(linear, "int8-weights") == 2048 + 4 * 32
    assert stored_bytes(linear, "int4") == 1024 + 4 * 64
    assert stored_bytes(conv, "int8") == 16 * 8 * 9 + 4 * 16
