import dataclasses
import math
from typing import Any

import pytest

from edgediff.errors import BundleError
from edgediff.sampling.plan import make_plan
from edgediff.sampling.schedule import (
    NoiseSchedule,
    alpha_sigma,
    alphas_cumprod,
    betas,
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


def make(**changes: Any) -> NoiseSchedule:
    return NoiseSchedule(**(SD | changes))


def test_tables_are_python_floats_that_fall() -> None:
    table = alphas_cumprod(make())
    assert all(type(a) is float for a in table)
    assert table == sorted(table, reverse=True)
    assert all(type(b) is float for b in betas(make()))
    assert betas(make())[0] == pytest.approx(0.00085)
    assert betas(make())[-1] == pytest.approx(0.012)


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
        ("original_inference_steps", 0),
        ("original_inference_steps", 1001),
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
        NoiseSchedule(1000)  # type: ignore[call-arg]
    assert NoiseSchedule(**dataclasses.asdict(make())) == make()


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 0.03, 1.0, 14.6, 4096.0, 1e200, math.inf])
def test_alpha_sigma(sigma: float) -> None:
    alpha, sigma_t = alpha_sigma(sigma)
    assert alpha**2 + sigma_t**2 == pytest.approx(1.0)
    if 0.0 < sigma < math.inf:
        assert sigma_t / alpha == pytest.approx(sigma)
    assert alpha_sigma(0.0) == (1.0, 0.0)
    assert alpha_sigma(math.inf) == (0.0, 1.0)


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
