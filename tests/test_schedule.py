import dataclasses
import itertools
import math
from typing import Any

import pytest

from edgediff.errors import BundleError, InputError
from edgediff.samplers import SAMPLERS
from edgediff.schedule import (
    NoiseSchedule,
    alpha_sigma,
    alphas_cumprod,
    betas,
    karras_sigmas,
    make_plan,
    sigma_to_timestep,
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


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", None])
def test_one_step(sampler: str, spacing: str | None) -> None:
    plan = make_plan(make(timestep_spacing=spacing), sampler, 1)
    (step,) = plan.steps
    assert step.sigma >= step.sigma_next >= 0.0
    assert 0.0 <= step.timestep <= 999.0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", None])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
def test_noise_goes_down_and_all_numbers_are_python_floats(
    sampler: str, spacing: str | None, zero_snr: bool, steps: int
) -> None:
    schedule = make(
        timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction"
    )
    plan = make_plan(schedule, sampler, steps)
    assert len(plan.steps) == len(plan.timesteps) == steps
    assert all(type(number) is float for step in plan.steps for number in step)
    assert type(plan.noise_scale) is float
    sigmas = [step.sigma for step in plan.steps]
    assert sigmas == sorted(sigmas, reverse=True)
    # ddim may end where set_alpha_to_one=False has it end already, at timestep 0.
    assert all(step.sigma_next < step.sigma for step in plan.steps[:-1])
    assert plan.steps[-1].sigma_next <= plan.steps[-1].sigma


def test_tables_are_python_floats_that_fall() -> None:
    table = alphas_cumprod(make())
    assert all(type(a) is float for a in table)
    assert table == sorted(table, reverse=True)
    assert all(type(b) is float for b in betas(make()))
    assert betas(make())[0] == pytest.approx(0.00085)
    assert betas(make())[-1] == pytest.approx(0.012)


def test_sigma_max_of_stable_diffusion() -> None:
    plan = make_plan(make(timestep_spacing="trailing"), "euler", 4)
    assert plan.steps[0].sigma == pytest.approx(14.6146, abs=1e-4)


def test_ends_of_ddim() -> None:
    schedule = make()
    (*_, last) = make_plan(schedule, "ddim", 10).steps
    assert last.sigma_next == pytest.approx(0.0292, abs=1e-4)
    (*_, last) = make_plan(make(set_alpha_to_one=True), "ddim", 10).steps
    assert last.sigma_next == 0.0


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras"])
def test_zero_terminal_snr_stays_finite(sampler: str) -> None:
    schedule = make(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert alphas_cumprod(schedule)[-1] == 0.0
    assert make_plan(schedule, sampler, 3).steps[0].sigma == pytest.approx(4096.0)


@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
def test_zero_terminal_snr_starts_at_infinity(sampler: str) -> None:
    schedule = make(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(InputError, match="zero signal"):
        make_plan(schedule, sampler, 3)
    schedule = dataclasses.replace(schedule, prediction_type="v_prediction")
    assert make_plan(schedule, sampler, 3).steps[0].sigma == math.inf


def test_unset_spacing_is_the_samplers_own() -> None:
    unset = make()
    for sampler, spacing in (("ddim", "leading"), ("euler", "linspace"), ("dpmpp_2m", "linspace")):
        explicit = make(timestep_spacing=spacing)
        assert make_plan(unset, sampler, 7) == make_plan(explicit, sampler, 7)


def test_noise_scale() -> None:
    for sampler in SAMPLERS:
        for spacing in ("leading", "linspace", "trailing"):
            plan = make_plan(make(timestep_spacing=spacing), sampler, 5)
            starts_pure = sampler in ("euler", "euler_a") and spacing != "leading"
            assert (plan.noise_scale < 1.0) == starts_pure
            assert plan.noise_scale > 0.99


def test_lcm_takes_steps_of_its_own_grid() -> None:
    plan = make_plan(make(), "lcm", 4)
    assert [step.timestep for step in plan.steps] == [999.0, 759.0, 499.0, 259.0]
    assert make_plan(make(), "lcm", 1).steps[0].timestep == 999.0
    assert len(make_plan(make(), "lcm", 50).steps) == 50


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, None, True, "4"])
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m_karras"])
def test_bad_steps(sampler: str, steps: Any) -> None:
    with pytest.raises(InputError, match=r"steps is .*: \w+ takes a whole number from 1 to 1000"):
        make_plan(make(), sampler, steps)


def test_lcm_has_fewer_steps() -> None:
    with pytest.raises(InputError, match="steps is 51: lcm takes a whole number from 1 to 50"):
        make_plan(make(), "lcm", 51)


def test_steps_that_repeat_a_timestep() -> None:
    with pytest.raises(InputError, match="use 999 or fewer"):
        make_plan(make(), "dpmpp_2m", 1000)
    with pytest.raises(InputError, match="leave 0 … 999: use 999 or fewer"):
        make_plan(make(), "ddim", 1000)
    assert len(make_plan(make(steps_offset=0), "ddim", 1000).steps) == 1000


@pytest.mark.parametrize("steps", range(1, 991, 23))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_number_of_steps_works_or_says_why(sampler: str, steps: int) -> None:
    for spacing in ("leading", "linspace", "trailing"):
        try:
            plan = make_plan(make(timestep_spacing=spacing), sampler, steps)
        except InputError:
            assert sampler == "lcm"
            assert steps > 50
        else:
            assert len(plan.steps) == steps


def test_unknown_sampler() -> None:
    with pytest.raises(InputError, match="'heun': choose one of euler, euler_a"):
        make_plan(make(), "heun", 4)


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


def test_karras_sigmas() -> None:
    assert karras_sigmas(0.1, 10.0, 1) == pytest.approx([10.0])
    sigmas = karras_sigmas(0.1, 10.0, 5)
    assert sigmas[0] == pytest.approx(10.0)
    assert sigmas[-1] == pytest.approx(0.1)
    seventh = [s ** (1 / 7) for s in sigmas]
    gaps = [a - b for a, b in itertools.pairwise(seventh)]
    assert gaps == pytest.approx([gaps[0]] * 4)
    assert all(type(s) is float for s in sigmas)


def test_sigma_to_timestep_inverts_the_table() -> None:
    schedule = make()
    for plan_step in make_plan(schedule, "ddim", 20).steps:
        (t,) = sigma_to_timestep(schedule, [plan_step.sigma])
        assert t == pytest.approx(plan_step.timestep, abs=1e-3)


def test_sigma_to_timestep_stops_at_the_ends() -> None:
    assert sigma_to_timestep(make(), [1e9, 1e-9, 0.0]) == [999.0, 0.0, 0.0]
