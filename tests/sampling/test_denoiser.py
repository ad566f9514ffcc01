import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgediff.errors import InputError
from edgediff.sampling.denoiser import Conditioning, Denoiser
from edgediff.sampling.guidance import Guidance
from edgediff.sampling.noise import TorchGenerator
from edgediff.sampling.plan import Plan, make_plan
from edgediff.sampling.planned_step import PlannedStep
from edgediff.sampling.schedule import DiscreteSchedule


def schedule_of(prediction: Any = "epsilon") -> DiscreteSchedule:
    return DiscreteSchedule(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
    )


def make_plan_for(prediction: Any = "epsilon", sampler: str = "euler") -> Plan:
    return make_plan(schedule_of(prediction), sampler, 4)


def text(value: float, rows: int = 1, **extra: Any) -> Conditioning:
    return Conditioning(encoder_hidden_states=np.full((rows, 3, 5), value, np.float32), extra=extra)


class Recorder:
    """A network that predicts sample·0.5 + the mean of its text, and writes down its inputs."""

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray, float, np.ndarray, dict[str, np.ndarray]]] = []

    def __call__(
        self,
        sample: np.ndarray,
        timestep: float,
        states: np.ndarray,
        extra: Mapping[str, np.ndarray],
        /,
    ) -> np.ndarray:
        self.calls.append((sample.copy(), timestep, states, dict(extra)))
        shift = states.mean(axis=(1, 2))[:, None, None, None]
        out: np.ndarray = sample * np.float32(0.5) + shift
        return out


X = TorchGenerator(0).randn((1, 4, 6, 6))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_true_prediction_gives_back_x0(prediction: Any) -> None:
    plan = make_plan_for(prediction)
    x0, eps = TorchGenerator(1).randn((2, 4, 6, 6)), TorchGenerator(2).randn((2, 4, 6, 6))
    for step in plan.steps:
        alpha, sigma_t = plan.alpha_sigma(step.sigma)
        v = alpha * eps - sigma_t * x0
        truth = {"epsilon": eps, "v_prediction": v, "sample": x0}[prediction]
        rows = iter(truth)
        denoise = Denoiser(
            lambda *_, rows=rows: next(rows)[None],
            plan=plan,
            prompt=text(0.0),
        )
        got = denoise(alpha * x0 + sigma_t * eps, step.sigma)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, x0, atol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sigma_zero(prediction: Any) -> None:
    plan = Plan(
        sampler="euler",
        steps=(PlannedStep(0.0, 0.0, 0.0),),
        spacing=None,
        total=1,
        noise_scale=1.0,
        clip_range=None,
        timestep_scaling=10.0,
        zero_signal=False,
        schedule=schedule_of(prediction),
    )
    denoise = Denoiser(Recorder(), plan=plan, prompt=text(0.0))
    np.testing.assert_array_equal(denoise(X, 0.0), X)


def test_infinite_sigma() -> None:
    plan = Plan(
        sampler="ddim",
        steps=(PlannedStep(math.inf, 0.0, 999.0),),
        spacing=None,
        total=1,
        noise_scale=1.0,
        clip_range=None,
        timestep_scaling=10.0,
        zero_signal=True,
        schedule=schedule_of("v_prediction"),
    )
    denoise = Denoiser(Recorder(), plan=plan, prompt=text(0.0))
    np.testing.assert_array_equal(denoise(X, math.inf), -0.5 * X)


@pytest.mark.parametrize("guidance_scale", [-1.0, 0.0, 0.5, 1.0])
def test_no_guidance_costs_one_evaluation(guidance_scale: float) -> None:
    unet, plan = Recorder(), make_plan_for()
    denoise = Denoiser(
        unet,
        plan=plan,
        prompt=text(1.0),
        negative=text(-1.0),
        guidance=Guidance(scale=guidance_scale),
    )
    denoise(X, plan.steps[0].sigma)
    ((sample, timestep, states, extra),) = unet.calls
    np.testing.assert_array_equal(sample, X)
    assert timestep == plan.steps[0].timestep == 999.0
    assert states.shape == (1, 3, 5)
    assert extra == {}
    assert not Guidance(scale=guidance_scale).needs_negative


def test_guidance_is_one_batch_of_two() -> None:
    unet, plan = Recorder(), make_plan_for("sample")
    denoise = Denoiser(
        unet,
        plan=plan,
        prompt=text(1.0),
        negative=text(-1.0),
        guidance=Guidance(scale=7.5),
    )
    got = denoise(X, plan.steps[1].sigma)
    ((sample, _, states, _),) = unet.calls
    np.testing.assert_array_equal(sample, np.concatenate([X, X]))
    assert states[:, 0, 0].tolist() == [-1.0, 1.0]
    uncond, cond = 0.5 * X - 1.0, 0.5 * X + 1.0
    np.testing.assert_allclose(got, uncond + 7.5 * (cond - uncond), rtol=1e-5, atol=1e-5)


def guided(unet: Recorder, plan: Plan, **changes: Any) -> Denoiser:
    arguments: dict[str, Any] = {
        "plan": plan,
        "prompt": text(1.0),
        "negative": text(-1.0),
        "guidance": Guidance(scale=7.5),
    }
    return Denoiser(unet, **(arguments | changes))


@pytest.mark.parametrize(
    ("interval", "rows"),
    [
        ((0.0, 1.0), [2, 2, 2, 2]),
        ((0.0, 0.5), [2, 2, 1, 1]),
        ((0.25, 0.75), [1, 2, 2, 1]),
        ((0.0, 0.01), [2, 1, 1, 1]),
        ((0.3, 0.4), [1, 1, 1, 1]),
        ([0.75, 1], [1, 1, 1, 2]),
    ],
)
def test_guidance_on_part_of_the_steps(interval: Any, rows: list[int]) -> None:
    unet, plan = Recorder(), make_plan_for()
    denoise = guided(unet, plan, guidance=Guidance(scale=7.5, interval=interval))
    alone = guided(Recorder(), plan, guidance=Guidance(scale=1.0))
    whole = guided(Recorder(), plan)
    for step, count in zip(plan.steps, rows, strict=True):
        expected = (whole if count == 2 else alone)(X, step.sigma)
        np.testing.assert_array_equal(denoise(X, step.sigma), expected)
    assert [len(call[0]) for call in unet.calls] == rows


def test_the_interval_holds_for_a_steps_second_evaluation_too() -> None:
    plan = make_plan_for("epsilon", "dpmpp_sde")
    unet = Recorder()
    denoise = guided(unet, plan, guidance=Guidance(scale=7.5, interval=(0.0, 0.5)))
    for sigma in plan.timesteps:
        denoise(X, sigma)
    assert [len(call[0]) for call in unet.calls] == [2, 2, 2, 2, 1, 1, 1]


def test_rescaled_guidance_has_the_deviation_of_the_prompts_prediction() -> None:
    plan = make_plan_for("sample")
    sigma = plan.steps[1].sigma
    answers = np.concatenate([X, 2.0 * X + np.float32(0.3)])

    def run(rescale: float) -> np.ndarray:
        return Denoiser(
            lambda *_: answers,
            plan=plan,
            prompt=text(1.0),
            negative=text(-1.0),
            guidance=Guidance(scale=5.0, rescale=rescale),
        )(X, sigma)

    plain, half, full = run(0.0), run(0.5), run(1.0)
    assert full.std() == pytest.approx(answers[1].std(), rel=1e-5)
    np.testing.assert_allclose(half, 0.5 * (plain + full), rtol=1e-5)
    assert full.dtype == np.float32


def test_rescaling_a_prediction_that_is_the_same_everywhere() -> None:
    plan = make_plan_for("sample")
    flat = np.ones_like(X)
    denoise = Denoiser(
        lambda *_: np.concatenate([flat, flat]),
        plan=plan,
        prompt=text(1.0),
        negative=text(-1.0),
        guidance=Guidance(scale=5.0, rescale=1.0),
    )
    np.testing.assert_array_equal(denoise(X, plan.steps[0].sigma), flat)


def test_guidance_embedding_replaces_the_second_evaluation() -> None:
    unet, plan = Recorder(), make_plan_for()
    guidance = Guidance(scale=8.5, embedding_dim=16)
    denoise = Denoiser(
        unet,
        plan=plan,
        prompt=text(1.0),
        guidance=guidance,
    )
    denoise(X, plan.steps[0].sigma)
    ((sample, _, _, extra),) = unet.calls
    assert sample.shape == X.shape
    np.testing.assert_array_equal(extra["timestep_cond"], guidance.embedding())
    assert not guidance.needs_negative
    assert Guidance(scale=8.5).needs_negative


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_batch_equals_single_runs_bit_for_bit(guidance_scale: float) -> None:
    plan, unet = make_plan_for(), Recorder()
    x = TorchGenerator(3).randn((4, 4, 6, 6))

    def denoiser(rows: slice) -> Denoiser:
        states = np.arange(4, dtype=np.float32)[rows].repeat(15).reshape(-1, 3, 5)
        return Denoiser(
            unet,
            plan=plan,
            prompt=Conditioning(encoder_hidden_states=states),
            negative=text(0.0),
            guidance=Guidance(scale=guidance_scale),
        )

    sigma = plan.steps[0].sigma
    together = denoiser(slice(4))(x, sigma)
    assert all(len(call[0]) == (1 if guidance_scale == 1.0 else 2) for call in unet.calls)
    for k in range(4):
        one = slice(k, k + 1)
        np.testing.assert_array_equal(together[one], denoiser(one)(x[one], sigma))


def test_further_inputs_go_with_their_prompt() -> None:
    unet, plan = Recorder(), make_plan_for()
    denoise = Denoiser(
        unet,
        plan=plan,
        prompt=text(1.0, rows=2, pooled=np.float32([[1], [2]]), ids=np.float32([[9]])),
        negative=text(0.0, pooled=np.float32([[-1]]), ids=np.float32([[8]])),
        guidance=Guidance(scale=2.0),
    )
    denoise(np.concatenate([X, X]), plan.steps[0].sigma)
    extras = [call[3] for call in unet.calls]
    assert [e["pooled"].tolist() for e in extras] == [[[-1.0], [1.0]], [[-1.0], [2.0]]]
    assert [e["ids"].tolist() for e in extras] == [[[8.0], [9.0]]] * 2


@pytest.mark.parametrize(
    ("prompt", "negative", "message"),
    [
        (text(0.0), None, "no negative prompt"),
        (text(0.0, rows=2), text(0.0, rows=3), "3 negative prompts for 2 prompts"),
        (text(0.0), text(0.0, pooled=np.zeros((1, 1), np.float32)), "the same way"),
        (text(0.0, rows=0), text(0.0), "no rows"),
        (text(0.0, rows=3, pooled=np.zeros((2, 1), np.float32)), text(0.0), "pooled has 2 rows"),
    ],
)
def test_inputs_that_do_not_go_together(prompt: Any, negative: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Denoiser(
            Recorder(),
            plan=make_plan_for(),
            prompt=prompt,
            negative=negative,
            guidance=Guidance(scale=2.0),
        )


def test_bad_calls() -> None:
    plan = make_plan_for()
    kwargs: dict[str, Any] = {"plan": plan}
    denoise = Denoiser(Recorder(), **kwargs, prompt=text(0.0, rows=2))
    with pytest.raises(InputError, match="not a noise level of the plan"):
        denoise(X, 1.25)
    with pytest.raises(InputError, match="1 latents for 2 prompts"):
        denoise(X, plan.steps[0].sigma)
    doubled = Denoiser(lambda x, *_: np.repeat(x, 2, axis=1), **kwargs, prompt=text(0.0))
    with pytest.raises(InputError, match="also predict a variance"):
        doubled(X, plan.steps[0].sigma)
