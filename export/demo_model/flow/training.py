"""Train the denoiser on latents of scenes, then teach it to leap."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from demo_model import checkpoint, device
from demo_model.flow.few_steps import INSTANTS, Pupil, mean_flow_loss
from demo_model.flow.forward_process import draw_intervals, draw_times
from demo_model.flow.learning import flow_matching_loss, without_some
from demo_model.flow.networks import Denoiser
from demo_model.replicas import Replicas
from demo_model.text_encoder.model import tokenize
from demo_model.training_run import Log, TrainingRun

SAMPLES, BATCH, LR = 8_000_000, 64, 8e-4
FEW_STEP_SAMPLES, FEW_STEP_LR = 1_500_000, 2e-4
EMA, EMA_EVERY = 0.9995, 4  # steps


class Average(nn.Module):
    """The exponential moving average of a network's weights, which is what ships."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move by EMA_EVERY steps' worth, faster at the beginning."""
        decay = min(EMA, (1 + step) / (10 + step)) ** EMA_EVERY
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        for mine, theirs in pairs:
            mine.lerp_(theirs, 1 - decay)


class Latents:
    """Latents of the shards, each with its captions; drawn at random."""

    def __init__(
        self, parts: Sequence[NDArray[np.float16]], captions: Sequence[Sequence[str]], factor: float
    ) -> None:
        """parts: (n, c, h, w) of each shard; captions: of each scene, in the same order.

        factor: gives them unit deviation.
        """
        self._parts, self._captions, self._factor = parts, captions, factor
        self._ends = np.cumsum([len(part) for part in parts])
        if int(self._ends[-1]) != len(captions):
            raise ValueError(f"{self._ends[-1]} latents but {len(captions)} scenes with captions")

    def batch(self, n: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """n latents (n, c, h, w) float32, and a caption of each."""
        latents, texts = [], []
        for k in rng.integers(len(self._captions), size=n):
            part = int(np.searchsorted(self._ends, k, side="right"))
            start = int(self._ends[part - 1]) if part else 0
            latents.append(np.asarray(self._parts[part][k - start], np.float32))
            texts.append(self._captions[k][rng.integers(len(self._captions[k]))])
        return torch.from_numpy(np.stack(latents)) * self._factor, texts


def train(
    latents: Latents,
    denoiser: Denoiser,
    tokenizer: CLIPTokenizer,
    path: Path,
    *,
    samples: int = SAMPLES,
    log: Log,
    pause: Path | None = None,
    processes: int = 2,
    batch: int = BATCH,
    snapshot: Callable[[Denoiser], None] | None = None,
    snapshot_every: int = 5000,
) -> Denoiser:
    """Flow matching on so many samples in all, resuming `path` → the average, for 20 steps.

    snapshot: called with the average every so many steps.
    """
    processes = device.prepare(denoiser, processes)
    average = Average(denoiser)
    optimizer = _optimizer(denoiser, LR)
    parts = {"denoiser": denoiser, "average": average, "optimizer": optimizer}
    run = TrainingRun(path, parts, samples=samples, log=log, pause=pause)
    rng, random = np.random.default_rng(run.step), torch.Generator().manual_seed(run.step)
    replicas = Replicas(denoiser, flow_matching_loss, processes, seed=run.step)
    for step in run.steps():
        run.set_rate(optimizer, LR, warm_up=500)
        x, texts = latents.batch(batch, rng)
        ids = tokenize(tokenizer, without_some(texts, random))
        e, t = torch.randn(x.shape, generator=random), draw_times(batch, random)
        value = replicas.backward(tuple(part.numpy() for part in (x, e, t, ids)))
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        _after(step, denoiser, average, snapshot, snapshot_every)
        run.note(batch, loss=value)
    replicas.close()
    return average.network.cpu()


def train_few_steps(
    latents: Latents,
    teacher: Denoiser,
    tokenizer: CLIPTokenizer,
    path: Path,
    *,
    samples: int = FEW_STEP_SAMPLES,
    log: Log,
    pause: Path | None = None,
    processes: int = 2,
    batch: int = BATCH,
    snapshot: Callable[[Denoiser], None] | None = None,
    snapshot_every: int = 2000,
) -> Denoiser:
    """MeanFlow from the teacher's weights, resuming `path` → the average, for 1 to 8 steps."""
    pupil = copy.deepcopy(teacher)
    pupil.unet.requires_grad_(True).train()
    networks = Pupil(pupil, teacher)
    processes = device.prepare(networks, processes)
    average = Average(pupil)
    optimizer = _optimizer(pupil, FEW_STEP_LR)
    parts = {"denoiser": pupil, "average": average, "optimizer": optimizer}
    run = TrainingRun(path, parts, samples=samples, log=log, pause=pause)
    rng, random = np.random.default_rng(run.step), torch.Generator().manual_seed(run.step)
    empty = tokenize(tokenizer, [""]).expand(batch, -1)
    replicas = Replicas(networks, mean_flow_loss, processes, seed=run.step)
    for step in run.steps():
        run.set_rate(optimizer, FEW_STEP_LR)
        x, texts = latents.batch(batch, rng)
        ids = tokenize(tokenizer, without_some(texts, random))
        e = torch.randn(x.shape, generator=random)
        r, t = draw_intervals(batch, random, instants=INSTANTS)
        value = replicas.backward(tuple(part.numpy() for part in (x, e, r, t, ids, empty)))
        nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
        optimizer.step()
        _after(step, pupil, average, snapshot, snapshot_every)
        run.note(batch, loss=value)
    replicas.close()
    networks.cpu()
    return average.network.cpu()


def load(path: Path, denoiser: Denoiser) -> Denoiser:
    """The average of the checkpoint at `path`, in a network of the same shape as `denoiser`."""
    state = checkpoint.load(path)
    if state is None:
        raise FileNotFoundError(f"{path}: run the stage `{path.stem}` first")
    average = Average(denoiser)
    average.load_state_dict(state["average"])
    return average.network


def _optimizer(denoiser: Denoiser, rate: float) -> torch.optim.Optimizer:
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)


def _after(
    step: int,
    denoiser: Denoiser,
    average: Average,
    snapshot: Callable[[Denoiser], None] | None,
    every: int,
) -> None:
    if step % EMA_EVERY == 0:
        average.update(denoiser, step)
    if snapshot is not None and step and step % every == 0:
        snapshot(average.network)
