"""EDM's schedule, in units of sigma_data, against the formulas of Karras et al. 2022
(arXiv:2206.00364)."""

import math
from typing import Any

import numpy as np
import pytest

from edgediff.arrays import Array
from edgediff.errors import BundleError, InputError
from edgediff.sampling.denoiser import Conditioning, Denoiser
from edgediff.sampling.edm import EDM_SAMPLERS
from edgediff.sampling.noise import TorchGenerator
from edgediff.sampling.plan import Plan, make_plan
from edgediff.sampling.samplers import SAMPLERS, initial_latents, sample
from edgediff.sampling.schedule import EDMSchedule

SHAPE = (1, 4, 8, 8)


def make(**changes: Any) -> EDMSchedule:
    return EDMSchedule(**({"prediction_type": "edm"} | changes))


def our_denoiser(plan: Plan, network: Any) -> Denoiser:
    return Denoiser(
        lambda x, timestep, states, extra: network(x, timestep),  # noqa: ARG005
        plan=plan,
        prompt=Conditioning(encoder_hidden_states=np.zeros((1, 1, 1), np.float32)),
    )


@pytest.mark.parametrize("sampler", EDM_SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_levels_fall_from_sigma_max_to_zero(sampler: str, steps: int) -> None:
    plan = make_plan(make(), sampler, steps)
    assert plan.start == pytest.approx(80.0 / 0.5)
    assert plan.steps[-1].sigma_next == 0.0
    levels = [step.sigma for step in plan.steps]
    assert levels == sorted(levels, reverse=True)
    if steps > 1:
        assert levels[-1] == pytest.approx(0.002 / 0.5)
    for step in plan.steps:
        assert step.timestep == pytest.approx(math.log(0.5 * step.sigma) / 4)
        assert type(step.sigma) is type(step.timestep) is float


def test_a_run_may_end_at_sigma_min() -> None:
    for steps in range(2, 30):
        plan = make_plan(make(final_sigmas_type="sigma_min"), "euler", steps)
        assert plan.steps[-1].sigma == pytest.approx(0.004)
        assert plan.steps[-1].sigma_next == pytest.approx(0.004)


def test_spacings() -> None:
    """A call's spacing goes before the schedule's own; rho is that of Karras."""
    exponential = make_plan(make(sigma_schedule="exponential"), "euler", 5)
    assert make_plan(make(), "euler", 5, spacing="exponential").steps == exponential.steps
    ratios = [a.sigma / b.sigma for a, b in zip(exponential.steps, exponential.steps[1:])]  # noqa: B905
    assert ratios == pytest.approx([ratios[0]] * 4)
    even = make_plan(make(rho=1.0), "euler", 3).steps
    assert even[1].sigma == pytest.approx((even[0].sigma + even[2].sigma) / 2)


@pytest.mark.parametrize(("prediction", "sign"), [("edm", 1.0), ("v_prediction", -1.0)])
def test_x0_is_that_of_equation_7(prediction: str, sign: float) -> None:
    """Over latents as they are, with c_in before the network and c_skip and c_out after it."""
    plan = make_plan(make(prediction_type=prediction), "euler", 4)
    x = 30.0 * TorchGenerator(0).randn(SHAPE).astype(np.float64)
    sigma, data = 0.5 * plan.steps[1].sigma, 0.5
    scale = math.hypot(sigma, data)
    f = np.sin(x / scale + plan.steps[1].timestep)
    expected = (data / scale) ** 2 * x + sign * sigma * data / scale * f
    denoise = our_denoiser(plan, lambda x, t: np.sin(x + np.float32(t)))
    ours = denoise((x / scale).astype(np.float32), plan.steps[1].sigma)
    np.testing.assert_allclose(ours * data, expected, atol=1e-5)


@pytest.mark.parametrize("sampler", EDM_SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_network_that_knows_the_image_yields_it(sampler: str, steps: int) -> None:
    image = TorchGenerator(9).randn(SHAPE)
    plan = make_plan(make(), sampler, steps)

    def network(x: Array, timestep: float) -> Array:
        alpha, sigma_t = plan.alpha_sigma(math.exp(4.0 * timestep) / 0.5)
        return (image - alpha * x) / np.float32(sigma_t)

    noise = TorchGenerator(1)
    x = initial_latents(noise.randn(SHAPE), plan)
    *_, last = sample(our_denoiser(plan, network), x, plan, lambda _: noise.randn(SHAPE))
    np.testing.assert_allclose(last.latents, image, atol=1e-4)


@pytest.mark.parametrize("sampler", sorted({*SAMPLERS} - {*EDM_SAMPLERS}))
def test_samplers_that_have_no_edm(sampler: str) -> None:
    with pytest.raises(InputError, match=f"'{sampler}', which cannot sample a model of EDM"):
        make_plan(make(), sampler, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prediction_type", "epsilon"),
        ("sigma_min", 0.0),
        ("sigma_min", 90.0),
        ("sigma_max", math.inf),
        ("sigma_max", math.nan),
        ("sigma_data", 0.0),
        ("rho", 0.5),
        ("rho", math.nan),
        ("sigma_schedule", "beta"),
        ("final_sigmas_type", "none"),
        ("solver_order", 4),
        ("solver_type", "bh2"),
        ("num_train_timesteps", 1),
    ],
)
def test_values_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(BundleError, match="schedule: "):
        make(**{field: value})
