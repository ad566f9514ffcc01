"""Write numerics.npz: what torch and diffusers compute, for tests that run without them.

    python tests/golden/make_numerics.py

Latents are stored in variance-preserving form, one row for each step.
"""

import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
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
}


def model(x: np.ndarray, timestep: float) -> np.ndarray:
    """As in test_numerics_golden.py."""
    pattern = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    return np.float32(0.3) * np.sin(x + np.float32(timestep * 0.001)) + np.float32(1.5) * pattern


def trajectory(scheduler: Any, stochastic: bool, steps: int) -> np.ndarray:
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    extra = {"generator": generator} if stochastic else {}
    euler = isinstance(scheduler, (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler))
    rows = []
    for i, t in enumerate(scheduler.timesteps):
        out = model(scheduler.scale_model_input(x, t).numpy(), float(t))
        x = scheduler.step(torch.from_numpy(out), t, x, **extra).prev_sample
        level = float(scheduler.sigmas[i + 1]) if euler else 0.0
        rows.append(x.numpy() / math.hypot(1.0, level))
    return np.concatenate(rows).astype(np.float32)


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
            scheduler = cls(**CONFIG, **extra, prediction_type=prediction)
            for steps in STEPS if prediction == "epsilon" else STEPS[2:3]:
                rows = trajectory(scheduler, name in ("euler_a", "lcm"), steps)
                arrays[f"latents/{name}/{prediction}/{steps}"] = rows
        for spacing in ("leading", "linspace", "trailing"):
            scheduler = cls(**CONFIG, **extra, timestep_spacing=spacing)
            for steps in STEPS:
                scheduler.set_timesteps(steps)
                arrays[f"timesteps/{name}/{spacing}/{steps}"] = scheduler.timesteps.numpy()
    embed = StableDiffusionPipeline.get_guidance_scale_embedding
    arrays["guidance/7.5/32"] = embed(None, torch.tensor([6.5]), embedding_dim=32).numpy()
    arrays["versions"] = np.array([torch.__version__, diffusers.__version__])
    np.savez_compressed(Path(__file__).with_name("numerics.npz"), **arrays)


if __name__ == "__main__":
    main()
