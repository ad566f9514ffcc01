import dataclasses
import math
from typing import Any

import pytest

from edgediff.errors import BundleError
from edgediff.sampling.plan import make_plan
from edgediff.sampling.schedule import (
    DiscreteSchedule,
    DynamicShift,
    FlowSchedule,
    alphas_cumprod,
    sigma_of,
    sigma_to_timestep,
    sigmas,
)

SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def make(**changes: Any) -> DiscreteSchedule:
    return DiscreteSchedule(**(SD | changes))


def test_tables_are_python_floats_that_fall() -> None:
    table = alphas_cumprod(make())
    assert all(type(a) is float for a in table)
    assert table == sorted(table, reverse=True)
    assert 1.0 - table[0] == pytest.approx(0.00085, rel=1e-4)  # the first beta
    assert 1.0 - table[-1] / table[-2] == pytest.approx(0.012, rel=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 1),
        ("beta_start", 0.0),
        ("beta_start", math.nan),
        ("beta_end", 0.0001),
        ("beta_end", 1.0),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "flow"),
        ("timestep_spacing", "even"),
        ("steps_offset", -1),
        ("steps_offset", 1000),
        ("clip_sample_range", 0.0),
        ("clip_sample_range", math.inf),
        ("sigma_min", 0.0),
        ("sigma_max", math.nan),
        ("final_sigmas_type", "none"),
        ("solver_order", 0),
        ("solver_order", 4),
        ("solver_type", "bh2"),
        ("variance_type", "learned"),
        ("original_inference_steps", 0),
        ("original_inference_steps", 1001),
        ("timesteps", ()),
        ("timesteps", (1000,)),
        ("timesteps", (500, -1)),
        ("timesteps", (500, 500)),
        ("timesteps", (499, 500)),
        ("timesteps", tuple(range(50, -1, -1))),
        ("timestep_scaling", 0.0),
        ("eta", -0.1),
        ("eta", 1.1),
        ("eta", math.nan),
    ],
)
def test_bad_fields(field: str, value: Any) -> None:
    with pytest.raises(BundleError, match=f"schedule: {field} is .*expected .*: export"):
        make(**{field: value})


def test_a_schedule_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().steps_offset = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        DiscreteSchedule(1000)  # type: ignore[call-arg]
    assert DiscreteSchedule(**dataclasses.asdict(make())) == make()


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 0.03, 1.0, 14.6, 4096.0, 1e200, math.inf])
def test_alpha_sigma(sigma: float) -> None:
    discrete, flow = make(), FlowSchedule()
    alpha, sigma_t = discrete.alpha_sigma(sigma)
    assert alpha**2 + sigma_t**2 == pytest.approx(1.0)
    assert sum(flow.alpha_sigma(sigma)) == pytest.approx(1.0)
    for schedule in (discrete, flow):
        alpha, sigma_t = schedule.alpha_sigma(sigma)
        if 0.0 < sigma < math.inf:
            assert sigma_t / alpha == pytest.approx(sigma)
        assert schedule.alpha_sigma(0.0) == (1.0, 0.0)
        assert schedule.alpha_sigma(math.inf) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prediction_type", "epsilon"),
        ("timestep_spacing", "leading"),
        ("num_train_timesteps", 1),
        ("shift", 0.0),
        ("shift", -1.0),
        ("shift", math.nan),
        ("shift", math.inf),
        ("shift_terminal", 0.0),
        ("shift_terminal", 1.0),
        ("shift_terminal", math.nan),
    ],
)
def test_bad_fields_of_a_flow(field: str, value: Any) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(BundleError, match=f"schedule: {field} is .*expected .*: export"):
        FlowSchedule(**changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time_shift_type", "none"),
        ("patch_size", 0),
        ("base_image_seq_len", 0),
        ("max_image_seq_len", 256),
        ("base_shift", -0.1),
        ("base_shift", math.nan),
        ("max_shift", 0.4),
        ("max_shift", math.inf),
    ],
)
def test_bad_fields_of_a_dynamic_shift(field: str, value: Any) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(BundleError, match=f"schedule: {field} is .*expected .*: export"):
        DynamicShift(**changes)


def test_a_linear_shift_of_0_would_leave_no_noise() -> None:
    assert DynamicShift(base_shift=0.0).shift(256) == 1.0
    with pytest.raises(BundleError, match=r"base_shift is 0\.0"):
        DynamicShift(time_shift_type="linear", base_shift=0.0)


def test_sigma_to_timestep_inverts_the_table() -> None:
    schedule = make()
    for plan_step in make_plan(schedule, "ddim", 20).steps:
        (t,) = sigma_to_timestep(schedule, [plan_step.sigma])
        assert t == pytest.approx(plan_step.timestep, abs=1e-3)


def test_sigma_of_is_the_level_that_sigmas_lists() -> None:
    assert [sigma_of(a) for a in alphas_cumprod(make())] == pytest.approx(sigmas(make()), rel=1e-6)
    assert sigma_of(0.0) == math.inf
    assert sigma_of(1.0) == 0.0
    assert sigmas(make(rescale_betas_zero_snr=True))[-1] == pytest.approx(4096.0)


def test_sigma_to_timestep_stops_at_the_ends() -> None:
    assert sigma_to_timestep(make(), [1e9, 1e-9, 0.0]) == [999.0, 0.0, 0.0]
