"""Whole trajectories against diffusers' own pipeline, with a small random network."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)

from edgediff.sampling.denoiser import Conditioning, Denoiser
from edgediff.sampling.guidance import Guidance
from edgediff.sampling.noise import TorchGenerator
from edgediff.sampling.plan import make_plan
from edgediff.sampling.samplers import initial_latents, sample
from edgediff.sampling.schedule import DiscreteSchedule

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:__array_wrap__ must accept:DeprecationWarning",
    "ignore::FutureWarning",
)

CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "lcm": (LCMScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "deis": (DEISMultistepScheduler, {}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "tcd": (TCDScheduler, {}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "lms": (LMSDiscreteScheduler, {}),
    "dpmpp_2s": (DPMSolverSinglestepScheduler, {}),
    "dpmpp_2s_sde": (DPMSolverSinglestepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
}
FAST = [name for name in SCHEDULERS if name not in ("ddpm", "lms", "dpmpp_2s", "dpmpp_2s_sde")]
SAMPLERS = [s if s in FAST else pytest.param(s, marks=pytest.mark.slow) for s in SCHEDULERS]
"""But for dpmpp_sde, whose noise comes from a tree of torchsde's in diffusers."""
EMBEDDING_DIM = 32


def make_unet(time_cond_proj_dim: int | None) -> UNet2DConditionModel:
    torch.manual_seed(3)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        time_cond_proj_dim=time_cond_proj_dim,
    ).eval()


def pipeline_latents(
    sampler: str,
    prediction: str,
    steps: int,
    guidance: float,
    dim: int | None,
    seeds: list[int],
    rescale: float,
) -> tuple[np.ndarray, UNet2DConditionModel, np.ndarray, np.ndarray]:
    cls, extra = SCHEDULERS[sampler]
    unet = make_unet(dim)
    torch.manual_seed(4)
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        scheduler=cls.from_config(CONFIG, **extra, prediction_type=prediction),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(100)
    prompt, negative = torch.randn(2, 1, 7, 16, generator=generator)
    out = pipe(
        prompt_embeds=prompt.repeat(len(seeds), 1, 1),
        negative_prompt_embeds=negative.repeat(len(seeds), 1, 1),
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_rescale=rescale,
        generator=[torch.Generator("cpu").manual_seed(s) for s in seeds],
        height=64,
        width=64,
        output_type="latent",
    )
    return out.images.numpy(), unet, prompt.numpy(), negative.numpy()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("prediction", "steps", "guidance", "dim", "rescale"),
    [
        ("epsilon", 1, 7.5, None, 0.0),
        ("epsilon", 8, 7.5, None, 0.0),
        ("epsilon", 8, 1.0, None, 0.0),
        ("epsilon", 8, 0.0, None, 0.0),
        ("v_prediction", 5, 3.0, None, 0.0),
        ("v_prediction", 5, 7.5, None, 0.7),
        ("epsilon", 5, 7.5, None, 1.0),
        ("epsilon", 4, 8.5, EMBEDDING_DIM, 0.0),
    ],
)
def test_latents_equal_the_pipelines(
    sampler: str, prediction: str, steps: int, guidance: float, dim: int | None, rescale: float
) -> None:
    seeds = [0, 5]
    theirs, unet, prompt, negative = pipeline_latents(
        sampler, prediction, steps, guidance, dim, seeds, rescale
    )

    def run(
        x: np.ndarray, timestep: float, states: np.ndarray, extra: dict[str, np.ndarray]
    ) -> np.ndarray:
        further = {name: torch.tensor(value) for name, value in extra.items()}
        with torch.no_grad():
            out = unet(torch.from_numpy(x), timestep, torch.tensor(states), **further)
        return out.sample.numpy()

    # The pipeline samples TCD at eta 0 where it is told nothing.
    schedule = DiscreteSchedule(
        **CONFIG, prediction_type=prediction, set_alpha_to_one=False, eta=0.0
    )
    plan = make_plan(schedule, sampler, steps)
    generators = [TorchGenerator(seed) for seed in seeds]

    def draw(index: int) -> np.ndarray:  # noqa: ARG001
        return np.concatenate([g.randn((1, 4, 8, 8)) for g in generators])

    denoise = Denoiser(
        run,
        plan=plan,
        prompt=Conditioning(encoder_hidden_states=prompt),
        negative=Conditioning(encoder_hidden_states=negative),
        guidance=Guidance(scale=guidance, embedding_dim=dim, rescale=rescale),
    )
    *_, last = sample(denoise, initial_latents(draw(0), plan), plan, draw)
    assert np.abs(last.latents - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("dim", [4, 5, 32, 256, 512])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5, 7.5, 20.0])
def test_guidance_embedding(guidance: float, dim: int) -> None:
    pipe = StableDiffusionPipeline.get_guidance_scale_embedding
    theirs = pipe(None, torch.tensor(guidance - 1).repeat(1), embedding_dim=dim).numpy()
    ours = Guidance(scale=guidance, embedding_dim=dim).embedding()
    assert ours is not None
    assert ours.dtype == np.float32
    # A phase of w·1000 in float32 is uncertain by its last bits, on both sides.
    atol = 1e-6 + abs(guidance - 1) * 1000 * 2.0**-22
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
