"""Figures of a denoiser without any judge: how well it points back, how close its leaps land."""

import numpy as np
import torch
from transformers import CLIPTokenizer

from demo_model.flow.few_steps import SCALE
from demo_model.flow.forward_process import draw_times
from demo_model.flow.learning import flow_matching_loss
from demo_model.flow.networks import Denoiser
from demo_model.flow.reverse_process import sample
from demo_model.flow.training import Latents
from demo_model.text_encoder.model import tokenize

TEACHER_STEPS = 20


@torch.no_grad()
def loss(denoiser: Denoiser, latents: Latents, tokenizer: CLIPTokenizer, n: int = 256) -> float:
    """The flow matching loss of n latents, always the same ones."""
    x, texts = latents.batch(n, np.random.default_rng(0))
    random = torch.Generator().manual_seed(0)
    e, t = torch.randn(x.shape, generator=random), draw_times(n, random)
    return float(flow_matching_loss(denoiser, (x, e, t, tokenize(tokenizer, texts))))


def landing_errors(
    pupil: Denoiser, teacher: Denoiser, latents: Latents, tokenizer: CLIPTokenizer, n: int = 32
) -> dict[str, float]:
    """Mean squared distance from the teacher's end, at 20 guided steps from the same noise.

    In units of the latents' variance, by the pupil's number of steps. 2 would be two images that
    have nothing to do with each other.
    """
    x, texts = latents.batch(n, np.random.default_rng(0))
    e = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    hidden = teacher.encode(tokenize(tokenizer, texts))
    nothing = teacher.encode(tokenize(tokenizer, [""]))
    end = sample(teacher, e, hidden, steps=TEACHER_STEPS, scale=SCALE, other=nothing, leaps=False)
    return {
        f"{steps} steps": float((sample(pupil, e, hidden, steps=steps) - end).square().mean())
        for steps in (1, 2, 4, 8)
    }
