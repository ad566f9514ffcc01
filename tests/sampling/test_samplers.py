import itertools
import math
from typing import Any

import numpy as np
import pytest

from edgediff.arrays import Array
from edgediff.errors import InputError
from edgediff.sampling.denoiser import Conditioning, Denoiser
from edgediff.sampling.flow import FLOW_SAMPLERS
from edgediff.sampling.guidance import Guidance
from edgediff.sampling.noise import TorchGenerator
from edgediff.sampling.plan import Plan, make_plan
from edgediff.sampling.samplers import (
    DETERMINISTIC,
    SAMPLERS,
    STOCHASTIC,
    initial_latents,
    sample,
)
from edgediff.sampling.schedule import DiscreteSchedule, FlowSchedule, Schedule
from edgediff.sampling.sigmas import Spacing

SHAPE = (2, 4, 8, 8)


RANKS = [(2, 4, 64), (2, 4, 2, 4, 8)]
"""SHAPE's latents as one-dimensional ones and as frames."""


def make_schedule(**changes: Any) -> DiscreteSchedule:
    fields: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    return DiscreteSchedule(**(fields | changes))


def gaussian(plan: Plan, sigma: float, x: Array, mean: Array, spread: float) -> Array:
    """The exact x0 for data of N(mean, spread²): what a perfect network would say."""
    alpha, sigma_t = plan.alpha_sigma(sigma)
    gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma_t**2)
    return (mean + gain * (x - alpha * mean)).astype(np.float32)


def run(plan: Plan, denoise: Any, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[Any]:
    generator = TorchGenerator(seed)
    x = initial_latents(generator.randn(shape), plan)
    return list(sample(denoise, x, plan, lambda _: generator.randn(shape)))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_network_that_knows_the_image_yields_it(sampler: str, steps: int, zero_snr: bool) -> None:
    image = TorchGenerator(9).randn(SHAPE)
    schedule = make_schedule(
        rescale_betas_zero_snr=zero_snr,
        set_alpha_to_one=True,
        prediction_type="v_prediction" if zero_snr else "sample",
    )
    plan = make_plan(schedule, sampler, steps)
    taken = run(plan, lambda x, sigma: image)  # noqa: ARG005
    assert [step.index for step in taken] == list(range(steps))
    left = taken[-1].sigma
    assert left == (pytest.approx(0.0292, abs=1e-4) if sampler in ("deis", "tcd") else 0.0)
    noise = 5.0 * left  # five times its standard deviation
    # With v, pndm is exact only for few or many steps: v turns as eps and x0 stay.
    # lms extrapolates eps, in which a rounding error of small sigma is large.
    inexact = {"lcm": 2e-3, "lms": 1e-5, "pndm": 0.7 if zero_snr else 1e-4}.get(sampler, 1e-6)
    alpha, _ = plan.alpha_sigma(left)
    np.testing.assert_allclose(taken[-1].latents / alpha, image, atol=noise + inexact)
    for step in taken:
        assert step.latents.dtype == step.x0.dtype == np.float32
        assert step.latents.shape == step.x0.shape == SHAPE
        assert type(step.sigma) is float


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_keep_unit_variance(sampler: str) -> None:
    shape = (1, 4, 64, 64)
    mean = np.zeros(shape, np.float32)
    plan = make_plan(make_schedule(), sampler, 25)
    for step in run(plan, lambda x, sigma: gaussian(plan, sigma, x, mean, 1.0), shape=shape):
        # Those take the mean of what an image may be for an image: their latents lose variance.
        least = 0.3 if sampler in ("lcm", "tcd") else 0.9
        if sampler == "dpmpp_2s_sde":  # the same in diffusers: its two noises are not one path's
            least = 0.85
        assert least < step.latents.std() < 1.1


def test_second_order_is_nearer_than_first() -> None:
    """On Gaussian data the ODE has an exact answer: scale each latent by the spreads' ratio."""
    mean = np.full(SHAPE, 0.5, np.float32)
    z = TorchGenerator(0).randn(SHAPE)

    def error(sampler: str, steps: int, spacing: Spacing | None = None) -> float:
        schedule = make_schedule(timestep_spacing="trailing" if spacing is None else "linspace")
        plan = make_plan(schedule, sampler, steps, spacing=spacing)
        x = initial_latents(z, plan)
        alpha, sigma_t = plan.alpha_sigma(plan.steps[0].sigma)
        exact = mean + 0.4 * (x - alpha * mean) / math.hypot(alpha * 0.4, sigma_t)
        *_, last = sample(lambda x, sigma: gaussian(plan, sigma, x, mean, 0.4), x, plan)
        return float(np.abs(last.latents - exact).max())

    assert error("heun", 20, "karras") < 0.2 * error("euler", 20, "karras")
    # Most of the error is that of the last step, to sigma 0, which Karras' spacing makes small.
    assert error("dpmpp_2m", 50) < 0.7 * error("euler", 50)
    assert error("unipc", 50) < 0.7 * error("euler", 50)
    assert error("dpmpp_2m_karras", 20) < 0.1 * error("euler", 20)
    assert error("dpmpp_2m_karras", 50) < (20 / 50) ** 2 * error("dpmpp_2m_karras", 20)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_abandoned_at_any_step(sampler: str) -> None:
    plan = make_plan(make_schedule(), sampler, 6)
    calls: list[float] = []

    def denoise(x: Array, sigma: float) -> Array:
        calls.append(sigma)
        return x

    z = TorchGenerator(0).randn(SHAPE)
    steps = sample(denoise, z, plan, lambda _: z)
    assert calls == []
    list(itertools.islice(steps, 2))
    (first, second, third) = (step.sigma for step in plan.steps[:3])
    middles = [step.sigma_mid for step in plan.steps[:2]]
    expected = {
        "heun": [first, second, second, third],
        "dpmpp_sde": [first, middles[0], second, middles[1]],
        "pndm": [first, second, second],
    }
    assert calls == expected.get(sampler, [first, second])
    steps.close()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_arrays_once_yielded_stay(sampler: str) -> None:
    plan = make_plan(make_schedule(), sampler, 5)
    z = TorchGenerator(0).randn(SHAPE)
    before = z.copy()
    kept, copies = [], []
    for step in sample(lambda x, sigma: np.tanh(x), z, plan, lambda _: z):  # noqa: ARG005
        kept.append(step)
        copies.append((step.latents.copy(), step.x0.copy()))
    for step, (latents, x0) in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(step.latents, latents)
        np.testing.assert_array_equal(step.x0, x0)
    np.testing.assert_array_equal(z, before)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_equals_single_runs_bit_for_bit(sampler: str) -> None:
    plan = make_plan(make_schedule(), sampler, 4)

    def latents(seeds: list[int]) -> Array:
        generators = [TorchGenerator(seed) for seed in seeds]

        def draw(index: int) -> Array:  # noqa: ARG001
            return np.concatenate([g.randn((1, 4, 9, 7)) for g in generators])

        x = initial_latents(draw(0), plan)
        *_, last = sample(lambda x, sigma: x * 0.25, x, plan, draw)  # noqa: ARG005
        return last.latents

    together = latents([0, 1, 2, 3])
    for k in range(4):
        np.testing.assert_array_equal(together[k : k + 1], latents([k]))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_is_drawn_once_a_step_and_not_for_the_last(sampler: str) -> None:
    plan = make_plan(make_schedule(), sampler, 5)
    drawn: list[int] = []
    z = TorchGenerator(0).randn(SHAPE)

    def draw(index: int) -> Array:
        drawn.append(index)
        return z

    list(sample(lambda x, sigma: x, z, plan, draw))  # noqa: ARG005
    each = 2 if sampler == "dpmpp_sde" else 1
    assert drawn == ([i for i in range(4) for _ in range(each)] if sampler in STOCHASTIC else [])


def test_dpmpp_sde_follows_one_brownian_path() -> None:
    """The noise of a whole step is that of its two halves, by their lengths in sigma. Where the
    network says that the image is 0, nothing but noise is left."""
    plan = make_plan(make_schedule(), "dpmpp_sde", 3)
    draws = [TorchGenerator(k).randn(SHAPE) for k in range(4)]
    source = iter(draws)
    x = np.zeros(SHAPE, np.float32)
    zero = np.zeros(SHAPE, np.float32)
    step = next(sample(lambda x, sigma: zero, x, plan, lambda _: next(source)))  # noqa: ARG005
    first = plan.steps[0]
    assert first.sigma_mid is not None
    length = first.sigma - first.sigma_next
    path = draws[0] * math.sqrt((first.sigma - first.sigma_mid) / length)
    path += draws[1] * math.sqrt((first.sigma_mid - first.sigma_next) / length)
    up = (
        math.sqrt(1.0 - (first.sigma_next / first.sigma) ** 2)
        * plan.alpha_sigma(first.sigma_next)[1]
    )
    np.testing.assert_allclose(step.latents, path * up, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_sent_changes_nothing(sampler: str) -> None:
    plan = make_plan(make_schedule(), sampler, 4)
    z = TorchGenerator(0).randn(SHAPE)
    plain = list(sample(lambda x, sigma: np.tanh(x), z, plan, lambda _: z))  # noqa: ARG005
    steered = sample(lambda x, sigma: np.tanh(x), z, plan, lambda _: z)  # noqa: ARG005
    taken = [next(steered), steered.send(None)]
    taken += [steered.send(taken[-1].latents), next(steered)]
    for a, b in zip(plain, taken, strict=True):
        np.testing.assert_array_equal(a.latents, b.latents)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_next_step_starts_from_latents_that_are_sent(sampler: str) -> None:
    plan = make_plan(make_schedule(), sampler, 4)
    seen: list[Array] = []

    def denoise(x: Array, sigma: float) -> Array:  # noqa: ARG001
        seen.append(x)
        return np.tanh(x)

    z = TorchGenerator(0).randn(SHAPE)
    steps = sample(denoise, z, plan, lambda _: z)
    next(steps)
    sent = np.full(SHAPE, 0.25, np.float32)
    before = len(seen)
    steps.send(sent)
    np.testing.assert_array_equal(seen[before], sent)
    np.testing.assert_array_equal(sent, np.float32(0.25))
    for _ in range(2):
        last = next(steps)
    with pytest.raises(StopIteration):
        steps.send(last.latents)


@pytest.mark.parametrize("sent", [np.zeros(SHAPE), np.zeros((1, 4, 8, 8), np.float32)])
def test_bad_latents_sent(sent: Any) -> None:
    z = TorchGenerator(0).randn(SHAPE)
    steps = sample(lambda x, sigma: x, z, make_plan(make_schedule(), "euler", 3))  # noqa: ARG005
    next(steps)
    with pytest.raises(InputError, match=r"latents sent to step 0 are .*: expected float32"):
        steps.send(sent)


def test_clipping() -> None:
    z = TorchGenerator(0).randn(SHAPE)
    for sampler in ("ddim", "heun", "lcm"):
        plan = make_plan(
            make_schedule(clip_sample=True, clip_sample_range=0.5, set_alpha_to_one=True),
            sampler,
            3,
        )
        taken = list(sample(lambda x, sigma: 9.0 * x, z, plan, lambda _: z))  # noqa: ARG005
        assert all(np.abs(step.x0).max() < 0.5001 for step in taken)
    assert make_plan(make_schedule(clip_sample=True), "euler", 3).clip_range is None


def test_initial_latents_are_a_new_float32_array() -> None:
    z = TorchGenerator(0).randn(SHAPE)
    for sampler in SAMPLERS:
        plan = make_plan(make_schedule(), sampler, 3)
        x = initial_latents(z, plan)
        assert x.dtype == np.float32
        assert not np.shares_memory(x, z)
        np.testing.assert_allclose(x, z * np.float32(plan.noise_scale))


@pytest.mark.parametrize(
    "latents",
    [
        np.zeros((1, 4, 8, 8)),
        np.zeros((1, 4), np.float32),
        np.zeros(3, np.float32),
        np.zeros((1, 4, 8, 8), np.float16),
    ],
)
def test_bad_latents(latents: Any) -> None:
    plan = make_plan(make_schedule(), "euler", 2)
    with pytest.raises(InputError, match=r"expected float32 \(n, c, …\), such as \(n, c, h, w\)"):
        sample(lambda x, sigma: x, latents, plan)  # noqa: ARG005


def trajectory(schedule: Schedule, sampler: str, shape: tuple[int, ...]) -> list[Any]:
    """Under guidance that is rescaled, beside a mask, with a network that looks at each number."""
    plan = make_plan(schedule, sampler, 4)
    mask = np.linspace(0.0, 1.0, math.prod(SHAPE[2:]), dtype=np.float32).reshape(1, 1, *shape[2:])

    def network(sample: Array, timestep: float, states: Array, extra: Any) -> Array:  # noqa: ARG001
        assert sample.shape[1:] == (5, *shape[2:])
        text = states.reshape(-1, *[1] * (len(shape) - 1))
        return np.asarray(
            np.tanh(sample[:, :4] + np.float32(timestep * 1e-3)) + sample[:, 4:] * text
        )

    denoise = Denoiser(
        network,
        plan=plan,
        prompt=Conditioning(encoder_hidden_states=np.full((1, 1, 1), 0.5, np.float32)),
        negative=Conditioning(encoder_hidden_states=np.full((1, 1, 1), -0.5, np.float32)),
        guidance=Guidance(scale=4.0, rescale=0.7, interval=(0.0, 0.75)),
        extra_channels=mask,
    )
    return run(plan, denoise, shape=shape)


@pytest.mark.parametrize("shape", RANKS)
@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [(make_schedule(), s) for s in SAMPLERS] + [(FlowSchedule(), s) for s in FLOW_SAMPLERS],
)
def test_latents_of_any_rank_are_the_same_numbers(
    schedule: Schedule, sampler: str, shape: tuple[int, ...]
) -> None:
    expected = trajectory(schedule, sampler, SHAPE)
    taken = trajectory(schedule, sampler, shape)
    for a, b in zip(taken, expected, strict=True):
        assert a.latents.shape == a.x0.shape == shape
        np.testing.assert_allclose(a.latents.reshape(SHAPE), b.latents, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(a.x0.reshape(SHAPE), b.x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_missing_noise_is_noticed_before_the_first_step(sampler: str) -> None:
    plan = make_plan(make_schedule(), sampler, 2)
    with pytest.raises(InputError, match="give a noise source"):
        sample(lambda x, sigma: x, np.zeros(SHAPE, np.float32), plan)  # noqa: ARG005


def test_the_names() -> None:
    assert set(SAMPLERS) == {*DETERMINISTIC, *STOCHASTIC}
    with pytest.raises(InputError) as e:
        make_plan(make_schedule(), "none", 1)
    assert all(name in str(e.value) for name in SAMPLERS)
