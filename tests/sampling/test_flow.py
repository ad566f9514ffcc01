import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import Manifest, parse_manifest
from edgediff.errors import BundleError, InputError
from edgediff.request.request import resolve
from edgediff.sampling.denoiser import Conditioning, Denoiser
from edgediff.sampling.flow import FLOW_SAMPLERS, FLOW_SPACED
from edgediff.sampling.noise import TorchGenerator
from edgediff.sampling.plan import Plan, make_plan
from edgediff.sampling.samplers import SAMPLERS, initial_latents, sample
from edgediff.sampling.schedule import DynamicShift, FlowSchedule

SHAPE = (2, 4, 8, 8)


def fractions(plan: Plan) -> list[float]:
    return [plan.alpha_sigma(step.sigma)[1] for step in plan.steps]


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_network_that_knows_the_image_yields_it(sampler: str, steps: int, shift: float) -> None:
    image = TorchGenerator(9).randn(SHAPE)
    plan = make_plan(FlowSchedule(shift=shift), sampler, steps)
    generator = TorchGenerator(0)
    x = initial_latents(generator.randn(SHAPE), plan)
    taken = list(sample(lambda x, sigma: image, x, plan, lambda _: generator.randn(SHAPE)))  # noqa: ARG005
    assert [step.index for step in taken] == list(range(steps))
    assert taken[-1].sigma == 0.0
    np.testing.assert_allclose(taken[-1].latents, image, atol=1e-6)
    for step in taken:
        assert step.latents.dtype == np.float32
        assert np.isfinite(step.latents).all()


def test_the_true_velocity_gives_back_x0() -> None:
    plan = make_plan(FlowSchedule(), "euler", 5)
    x0, noise = TorchGenerator(1).randn(SHAPE), TorchGenerator(2).randn(SHAPE)
    prompt = Conditioning(encoder_hidden_states=np.zeros((1, 1, 1), np.float32))
    for step in plan.steps:
        rows = iter(noise - x0)
        denoise = Denoiser(lambda *_, rows=rows: next(rows)[None], plan=plan, prompt=prompt)
        alpha, sigma_t = plan.alpha_sigma(step.sigma)
        got = denoise(alpha * x0 + sigma_t * noise, step.sigma)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, x0, atol=1e-6)


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 999])
def test_levels_fall_from_noise_and_timesteps_are_their_multiples(sampler: str, steps: int) -> None:
    schedule = FlowSchedule(num_train_timesteps=1000, shift=2.0)
    plan = make_plan(schedule, sampler, steps)
    s = fractions(plan)
    assert len(s) == plan.total == steps
    assert 0.99 < s[0] <= 1.0
    assert all(a > b for a, b in zip(s, [*s[1:], 0.0], strict=True))
    assert plan.noise_scale == 1.0
    for step, fraction in zip(plan.steps, s, strict=True):
        whole = 0.0 if sampler in FLOW_SPACED else 1.0
        assert 1000 * fraction - whole - 1e-3 < step.timestep < 1000 * fraction + 1e-3


def test_the_first_level_of_euler_is_pure_noise() -> None:
    plan = make_plan(FlowSchedule(timestep_spacing="trailing"), "euler", 4)
    assert plan.start == math.inf
    assert fractions(plan) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert [step.timestep for step in plan.steps] == pytest.approx([1000, 750, 500, 250])


def test_timesteps_are_multiples_of_s() -> None:
    schedule = FlowSchedule(num_train_timesteps=4, timestep_spacing="trailing")
    assert [step.timestep for step in make_plan(schedule, "euler", 4).steps] == [4, 3, 2, 1]


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_the_last_step_begins_at_the_terminal_shift(sampler: str) -> None:
    schedule = FlowSchedule(shift_terminal=0.1)
    for steps in (2, 3, 30):
        assert fractions(make_plan(schedule, sampler, steps))[-1] == pytest.approx(0.1)


def test_a_single_step_of_euler_stays_at_pure_noise_with_a_terminal_shift() -> None:
    plan = make_plan(FlowSchedule(shift_terminal=0.1), "euler", 1)
    assert plan.start == math.inf


def test_a_larger_image_is_shifted_more() -> None:
    dynamic = DynamicShift()
    assert dynamic.shift(256) == pytest.approx(math.exp(0.5))
    assert dynamic.shift(4096) == pytest.approx(math.exp(1.15))
    linear = DynamicShift(time_shift_type="linear")
    assert linear.shift(256) == pytest.approx(0.5)
    assert linear.shift(4096) == pytest.approx(1.15)
    schedule = FlowSchedule(dynamic_shift=dynamic)
    small, large = (
        fractions(make_plan(schedule, "euler", 4, image_seq_len=n)) for n in (256, 4096)
    )
    assert all(a < b for a, b in zip(small[1:], large[1:], strict=True))


def test_a_dynamic_shift_needs_the_size() -> None:
    schedule = FlowSchedule(dynamic_shift=DynamicShift())
    with pytest.raises(InputError, match="image_seq_len is None"):
        make_plan(schedule, "euler", 4)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s not in FLOW_SAMPLERS])
def test_other_samplers_are_refused(sampler: str) -> None:
    with pytest.raises(InputError) as e:
        make_plan(FlowSchedule(), sampler, 4)
    assert f"`sampler` is {sampler!r}" in str(e.value)
    assert all(name in str(e.value) for name in FLOW_SAMPLERS)


@pytest.mark.parametrize("sampler", [s for s in FLOW_SAMPLERS if s not in FLOW_SPACED])
def test_spacings_are_refused_with_those_that_have_none(sampler: str) -> None:
    with pytest.raises(InputError, match="use euler, heun"):
        make_plan(FlowSchedule(), sampler, 4, spacing="karras")


def test_strength_takes_the_last_steps() -> None:
    whole = make_plan(FlowSchedule(shift=3.0), "euler", 20)
    part = make_plan(FlowSchedule(shift=3.0), "euler", 20, strength=0.3)
    assert part.steps == whole.steps[-6:]
    with pytest.raises(InputError, match="leaves none"):
        make_plan(FlowSchedule(), "euler", 3, strength=0.3)


def test_a_bundle_holds_either_schedule(tiny_bundle: Path) -> None:
    raw = json.loads((tiny_bundle / "bundle.json").read_text())

    def parsed(schedule: dict[str, Any]) -> Manifest:
        return parse_manifest(json.dumps(raw | {"schedule": schedule}))

    flow = {"type": "flow", "shift": 3.0, "dynamic_shift": {"time_shift_type": "linear"}}
    found = parsed(flow)
    dynamic = DynamicShift(time_shift_type="linear")
    assert found.schedule == FlowSchedule(shift=3.0, dynamic_shift=dynamic)
    assert parse_manifest(found.to_json()) == found
    untagged = {k: v for k, v in raw["schedule"].items() if k != "type"}
    with pytest.raises(BundleError, match="schedule: type is missing"):
        parsed(untagged)
    with pytest.raises(BundleError, match="schedule: unknown key 'beta_start'"):
        parsed(flow | {"beta_start": 0.1})


def test_a_call_shifts_by_the_size_of_each_pass(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    schedule = FlowSchedule(dynamic_shift=DynamicShift(patch_size=4), timestep_spacing="trailing")
    manifest = replace(opened.manifest, schedule=schedule)
    request = resolve(
        replace(opened, manifest=manifest),
        "a fox",
        {"sampler": "euler", "size": (512, 256), "steps": 4, "hires": 2.0, "hires_strength": 1.0},
    )
    first, second = request.plans
    assert first == make_plan(schedule, "euler", 4, image_seq_len=16 * 8)
    assert second == make_plan(schedule, "euler", 4, strength=1.0, image_seq_len=32 * 16)
    assert first.steps != second.steps


def test_tokens_of_an_image() -> None:
    assert DynamicShift().image_seq_len(128, 128) == 4096
    assert DynamicShift().image_seq_len(65, 32) == 33 * 16
