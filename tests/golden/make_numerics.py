"""Write numerics.npz: what torch and diffusers compute, for tests that run without them.

    python tests/golden/make_numerics.py

Latents are stored in variance-preserving form, one row for each step.
"""

import inspect
import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
    UniPCMultistepScheduler,
)

SHAPE = (1, 4, 4, 4)
STEPS = (1, 2, 4, 20)
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
    "dpmpp_sde": (DPMSolverSDEScheduler, {}),
    "tcd": (TCDScheduler, {}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "lms": (LMSDiscreteScheduler, {}),
    "dpmpp_2s": (DPMSolverSinglestepScheduler, {}),
    "dpmpp_2s_sde": (DPMSolverSinglestepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
}
STOCHASTIC = ("euler_a", "ddpm", "lcm", "dpmpp_2m_sde", "dpmpp_2s_sde", "tcd")


def model(x: np.ndarray, timestep: float) -> np.ndarray:
    """As in test_numerics_golden.py."""
    pattern = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    return np.float32(0.3) * np.sin(x + np.float32(timestep * 0.001)) + np.float32(1.5) * pattern


def trajectory(scheduler: Any, sampler: str, steps: int) -> np.ndarray:
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    extra = {"generator": generator} if sampler in STOCHASTIC else {}
    if sampler == "dpmpp_sde":
        scheduler.noise_sampler = Brownian(generator)
    over_sigma = sampler in ("euler", "euler_a", "heun", "lms", "dpmpp_sde")
    rows = []
    for i, t in enumerate(scheduler.timesteps):
        out = model(scheduler.scale_model_input(x, t).numpy(), float(t))
        x = scheduler.step(torch.from_numpy(out), t, x, **extra).prev_sample
        level = float(scheduler.sigmas[i + 1]) if over_sigma else 0.0
        rows.append(x.numpy() / math.hypot(1.0, level))
    return np.concatenate([rows[i] for i in whole_steps(sampler, len(rows))]).astype(np.float32)


def whole_steps(sampler: str, evaluations: int) -> list[int]:
    """Of diffusers' evaluations, those that end a step: the second of two, and the last."""
    last = evaluations - 1
    if sampler in ("heun", "dpmpp_sde"):
        return [*range(1, last, 2), last]
    return [*range(1 if sampler == "pndm" else 0, last), last]


class Brownian:
    """A path over sigma, asked for half a step and then for all of it, in unit variance."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.half: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        length = sigma - sigma_next
        fresh = torch.randn(SHAPE, generator=self.generator)
        if self.half is None:
            self.half = fresh, length
            return fresh
        (first, half), self.half = self.half, None
        return (first * half.sqrt() + fresh * (length - half).sqrt()) / length.sqrt()


def make(cls: Any, **options: Any) -> Any:
    """A scheduler, without the options that its class does not have."""
    known = inspect.signature(cls.__init__).parameters
    return cls(**{k: v for k, v in (CONFIG | options).items() if k in known})


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for seed in (0, 7, -1, 2**63 + 5):
        generator = torch.Generator("cpu").manual_seed(seed)
        for i, size in enumerate((1, 15, 16, 1, 17, 31, 256)):
            arrays[f"noise/{seed}/{i}"] = torch.randn(size, generator=generator).numpy()
    for name in ("scaled_linear", "linear", "squaredcos_cap_v2"):
        table = DDIMScheduler(**CONFIG | {"beta_schedule": name}).alphas_cumprod
        arrays[f"alphas_cumprod/{name}"] = table.numpy()[::37]
    for name, (cls, extra) in SCHEDULERS.items():
        for prediction in ("epsilon", "v_prediction"):
            scheduler = make(cls, **extra, prediction_type=prediction)
            for steps in STEPS if prediction == "epsilon" else STEPS[2:3]:
                rows = trajectory(scheduler, name, steps)
                arrays[f"latents/{name}/{prediction}/{steps}"] = rows
        for spacing in ("leading", "linspace", "trailing"):
            scheduler = make(cls, **extra, timestep_spacing=spacing)
            for steps in STEPS:
                scheduler.set_timesteps(steps)
                t = scheduler.timesteps.numpy()
                if name in ("heun", "dpmpp_sde"):
                    t = t[::2]  # a step's first evaluation
                elif name == "pndm" and steps > 1:
                    t = np.concatenate([t[:1], t[2:]])  # which has its second one twice
                arrays[f"timesteps/{name}/{spacing}/{steps}"] = t
    embed = StableDiffusionPipeline.get_guidance_scale_embedding
    arrays["guidance/7.5/32"] = embed(None, torch.tensor([6.5]), embedding_dim=32).numpy()
    arrays["versions"] = np.array([torch.__version__, diffusers.__version__])
    np.savez_compressed(Path(__file__).with_name("numerics.npz"), **arrays)


if __name__ == "__main__":
    main()
