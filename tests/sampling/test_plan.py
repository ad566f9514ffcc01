import dataclasses
import math
import re
from typing import Any

import pytest

from edgediff.errors import InputError
from edgediff.sampling.discrete import SPACED
from edgediff.sampling.plan import make_plan
from edgediff.sampling.samplers import SAMPLERS
from edgediff.sampling.schedule import (
    DiscreteSchedule,
    alphas_cumprod,
)

SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}

BY_TIMESTEP = ("ddim", "ddpm", "pndm", "lcm", "tcd")
"""Whose levels are those of whole timesteps, also at zero signal."""


def make(**changes: Any) -> DiscreteSchedule:
    return DiscreteSchedule(**(SD | changes))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("timestep_spacing", ["leading", "linspace", "trailing", None])
def test_one_step(sampler: str, timestep_spacing: str | None) -> None:
    plan = make_plan(make(timestep_spacing=timestep_spacing), sampler, 1)
    (step,) = plan.steps
    assert step.sigma >= step.sigma_next >= 0.0
    assert 0.0 <= step.timestep <= 999.0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("timestep_spacing", ["leading", "linspace", "trailing", None])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
def test_noise_goes_down_and_all_numbers_are_python_floats(
    sampler: str, timestep_spacing: str | None, zero_snr: bool, steps: int
) -> None:
    schedule = make(
        timestep_spacing=timestep_spacing,
        rescale_betas_zero_snr=zero_snr,
        prediction_type="v_prediction",
    )
    plan = make_plan(schedule, sampler, steps)
    assert len(plan.steps) == plan.total == steps
    assert len(plan.timesteps) == (2 * steps - 1 if sampler == "dpmpp_sde" else steps)
    *numbers, orders = zip(*plan.steps, strict=True)
    assert all(type(n) is float for column in numbers for n in column if n is not None)
    assert all(type(order) is int for order in orders)
    assert type(plan.noise_scale) is float
    sigmas = [step.sigma for step in plan.steps]
    assert sigmas == sorted(sigmas, reverse=True)
    # ddim and pndm may end where set_alpha_to_one=False has them end already, at timestep 0.
    assert all(step.sigma_next < step.sigma for step in plan.steps[:-1])
    assert plan.steps[-1].sigma_next <= plan.steps[-1].sigma


def test_sigma_max_of_stable_diffusion() -> None:
    plan = make_plan(make(timestep_spacing="trailing"), "euler", 4)
    assert plan.steps[0].sigma == pytest.approx(14.6146, abs=1e-4)


def test_ends_of_ddim() -> None:
    schedule = make()
    (*_, last) = make_plan(schedule, "ddim", 10).steps
    assert last.sigma_next == pytest.approx(0.0292, abs=1e-4)
    (*_, last) = make_plan(make(set_alpha_to_one=True), "ddim", 10).steps
    assert last.sigma_next == 0.0


@pytest.mark.parametrize("sampler", sorted({*SAMPLERS} - {*BY_TIMESTEP}))
def test_zero_terminal_snr_stays_finite(sampler: str) -> None:
    schedule = make(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert alphas_cumprod(schedule)[-1] == 0.0
    assert make_plan(schedule, sampler, 3).steps[0].sigma == pytest.approx(4096.0)


@pytest.mark.parametrize("sampler", BY_TIMESTEP)
def test_zero_terminal_snr_starts_at_infinity(sampler: str) -> None:
    schedule = make(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(InputError, match="zero signal"):
        make_plan(schedule, sampler, 3)
    schedule = dataclasses.replace(schedule, prediction_type="v_prediction")
    assert make_plan(schedule, sampler, 3).steps[0].sigma == math.inf


def test_unset_spacing_is_the_samplers_own() -> None:
    unset = make()
    for sampler in {*SAMPLERS} - {"lcm", "tcd"}:
        timestep_spacing = "leading" if sampler in ("ddim", "ddpm", "pndm") else "linspace"
        explicit = make(timestep_spacing=timestep_spacing)
        assert make_plan(unset, sampler, 7) == make_plan(explicit, sampler, 7)


def test_noise_scale() -> None:
    for sampler in SAMPLERS:
        for timestep_spacing in ("leading", "linspace", "trailing"):
            plan = make_plan(make(timestep_spacing=timestep_spacing), sampler, 5)
            pure = sampler in ("euler", "euler_a", "heun", "lms", "dpmpp_sde")
            starts_pure = pure and timestep_spacing != "leading"
            assert (plan.noise_scale < 1.0) == starts_pure
            assert plan.noise_scale > 0.99


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_zero_signal_is_told_where_a_run_begins_there(sampler: str, zero_snr: bool) -> None:
    schedule = make(
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )
    assert make_plan(schedule, sampler, 4).zero_signal == zero_snr
    assert not make_plan(schedule, sampler, 4, strength=0.75).zero_signal
    if sampler in SPACED:
        assert make_plan(schedule, sampler, 4, spacing="karras").zero_signal == zero_snr


def test_lcm_takes_steps_of_its_own_grid() -> None:
    plan = make_plan(make(), "lcm", 4)
    assert [step.timestep for step in plan.steps] == [999.0, 759.0, 499.0, 259.0]
    assert make_plan(make(), "lcm", 1).steps[0].timestep == 999.0
    assert len(make_plan(make(), "lcm", 50).steps) == 50


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, None, True, "4"])
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m_karras"])
def test_bad_steps(sampler: str, steps: Any) -> None:
    with pytest.raises(InputError, match=r"`steps` is .*: \w+ takes a whole number from 1 to 1000"):
        make_plan(make(), sampler, steps)


def test_lcm_has_fewer_steps() -> None:
    with pytest.raises(InputError, match="`steps` is 51: lcm takes a whole number from 1 to 50"):
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
    for timestep_spacing in ("leading", "linspace", "trailing"):
        try:
            plan = make_plan(make(timestep_spacing=timestep_spacing), sampler, steps)
        except InputError:
            assert sampler in ("lcm", "tcd")
            assert steps > 50
        else:
            assert len(plan.steps) == steps


def test_unknown_sampler() -> None:
    with pytest.raises(InputError, match="'plms': choose one of euler, euler_a"):
        make_plan(make(), "plms", 4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_leaves_the_last_steps(sampler: str) -> None:
    whole = make_plan(make(), sampler, 10)
    for strength, kept in ((0.1, 1), (0.25, 2), (0.5, 5), (0.99, 9), (1.0, 10), (1, 10)):
        plan = make_plan(make(), sampler, 10, strength=strength)
        assert plan.steps == whole.steps[10 - kept :]
        assert plan.total == 10
        assert plan.start == plan.steps[0].sigma
    assert make_plan(make(), sampler, 10, strength=None) == whole


@pytest.mark.parametrize("strength", [0.0, 0, -0.5, 1.01, math.nan, math.inf, True, "0.5"])
def test_bad_strength(strength: Any) -> None:
    with pytest.raises(InputError, match=r"`strength` is .*: give a number above 0"):
        make_plan(make(), "euler", 10, strength=strength)


@pytest.mark.parametrize(("steps", "strength"), [(1, 0.5), (4, 0.01), (3, 0.33), (49, 0.02)])
def test_a_strength_that_leaves_no_step_names_those_that_leave_one(
    steps: int, strength: float
) -> None:
    with pytest.raises(InputError, match="it leaves none") as e:
        make_plan(make(), "euler", steps, strength=strength)
    match = re.search(r"a strength of ([\d.]+) or more, or (\d+) steps or more", str(e.value))
    assert match is not None
    assert len(make_plan(make(), "euler", steps, strength=float(match[1])).steps) == 1
    assert len(make_plan(make(), "euler", int(match[2]), strength=strength).steps) == 1


def test_every_number_of_steps_has_a_least_strength() -> None:
    for steps in range(1, 999):
        with pytest.raises(InputError) as e:
            make_plan(make(), "euler", steps, strength=1e-9)
        match = re.search(r"a strength of ([\d.]+) or more", str(e.value))
        assert match is not None
        assert len(make_plan(make(), "euler", steps, strength=float(match[1])).steps) >= 1


def test_spacing_changes_the_levels_and_keeps_their_ends() -> None:
    plain = make_plan(make(), "euler", 8)
    for spacing in ("karras", "exponential", "beta"):
        plan = make_plan(make(), "euler", 8, spacing=spacing)
        assert plan.start == pytest.approx(plain.start)
        assert plan.steps[-1].sigma == pytest.approx(plain.steps[-1].sigma)
        assert plan.steps[3].sigma != pytest.approx(plain.steps[3].sigma)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "pndm", "euler_a", "lcm", "tcd"])
def test_samplers_without_spacing(sampler: str) -> None:
    with pytest.raises(InputError, match=f"sampler {sampler} takes none: use euler, heun"):
        make_plan(make(), sampler, 4, spacing="karras")


def test_bad_spacing() -> None:
    with pytest.raises(InputError, match="'linear': choose one of karras, exponential, beta"):
        make_plan(make(), "euler", 4, spacing="linear")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dpmpp_2m_karras is fixed: use dpmpp_2m"):
        make_plan(make(), "dpmpp_2m_karras", 4, spacing="beta")


def test_what_is_asked_of_the_network() -> None:
    first, last = make_plan(make(), "dpmpp_sde", 2).steps
    assert first.sigma_mid == pytest.approx(math.sqrt(first.sigma * first.sigma_next))
    assert first.timestep > (first.timestep_mid or 0.0) > last.timestep
    assert list(first.timesteps) == [first.sigma, first.sigma_mid]
    assert last.timesteps == {last.sigma: last.timestep}
    (tcd, _) = make_plan(make(), "tcd", 2).steps
    assert tcd.timesteps == {tcd.sigma: tcd.timestep}


@pytest.mark.parametrize(("steps", "middles"), [(3, 0), (4, 3), (20, 3)])
def test_runge_kutta_steps_of_pndm(steps: int, middles: int) -> None:
    plan = make_plan(make(skip_prk_steps=False), "pndm", steps)
    found = [step for step in plan.steps if step.sigma_mid is not None]
    assert found == list(plan.steps[:middles])
    for step, after in zip(found, plan.steps[1:], strict=False):
        assert step.timestep_mid == (step.timestep + after.timestep) / 2
        assert plan.timesteps[step.sigma_mid] == step.timestep_mid
    assert make_plan(make(), "pndm", steps).steps[middles:] == plan.steps[middles:]
