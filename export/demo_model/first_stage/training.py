"""Train the autoencoder on crops of rendered scenes."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import nn

from demo_model import checkpoint, device
from demo_model.first_stage import measure
from demo_model.first_stage.losses import first_stage_loss
from demo_model.first_stage.model import FirstStage
from demo_model.replicas import Replicas
from demo_model.training_run import Log, TrainingRun

CROP, BATCH = 64, 16  # pixels a side; convolutions learn as much from a quarter of an image
SAMPLES = 800_000  # crops
LR, OPPONENT_LR = 1.2e-3, 3e-4
# The opponent counts once colours and shapes are there: from this share of the samples on, then
# more and more.
OPPONENT_FROM, OPPONENT_FULL = 0.3, 0.45
MEASURED = 256  # images, every MEASURE_EVERY steps
MEASURE_EVERY = 1500
Images = NDArray[np.uint8]


def crops(images: Images, rng: np.random.Generator, n: int) -> Images:
    """n crops (n, CROP, CROP, 3) of random images (m, 128, 128, 3).

    Of two crops of an image, the one of more contrast is taken.
    """
    _, height, width, _ = images.shape
    found = []
    for k in rng.integers(len(images), size=n):
        image = np.asarray(images[k])
        tries = []
        for _ in range(2):
            y, x = rng.integers(height - CROP + 1), rng.integers(width - CROP + 1)
            tries.append(image[y : y + CROP, x : x + CROP])
        found.append(max(tries, key=lambda c: float(np.ptp(c[::4, ::4], axis=(0, 1)).sum())))
    return np.stack(found)


def train(
    pools: list[Images],
    path: Path,
    *,
    samples: int = SAMPLES,
    log: Log,
    pause: Path | None = None,
    processes: int = 2,
    width: int = 64,
) -> AutoencoderTiny:
    """Train on so many crops in all, resuming the checkpoint at `path`.

    pools: images (n, 128, 128, 3) uint8 each. The first MEASURED of the first are only measured.
    """
    model = FirstStage(width)
    processes = device.prepare(model, processes)
    optimizer = torch.optim.AdamW(
        [
            {"params": model.autoencoder.parameters(), "peak": LR},
            {"params": model.discriminator.parameters(), "peak": OPPONENT_LR},
        ],
        lr=LR, betas=(0.9, 0.99), weight_decay=1e-4, fused=True,
    )  # fmt: skip
    run = TrainingRun(
        path, {"model": model, "optimizer": optimizer}, samples=samples, log=log, pause=pause
    )
    rng = np.random.default_rng(run.step)
    replicas = Replicas(model, first_stage_loss, processes, seed=run.step)
    held, shown = np.array(pools[0][:MEASURED]), [pools[0][MEASURED:], *pools[1:]]
    for step in run.steps():
        run.set_rate(optimizer, LR)
        for group in optimizer.param_groups:
            group["lr"] *= group["peak"] / LR
        grown = (run.progress - OPPONENT_FROM) / (OPPONENT_FULL - OPPONENT_FROM)
        share = np.full(BATCH, min(1.0, max(0.0, grown)), np.float32)
        batch = crops(shown[rng.integers(len(shown))], rng, BATCH)
        value = replicas.backward((batch, share))
        nn.utils.clip_grad_norm_(model.autoencoder.parameters(), 1.0)
        optimizer.step()
        run.note(BATCH, loss=value)
        if step and step % MEASURE_EVERY == 0:
            figures, _ = measure.reconstruction(model.autoencoder, held)
            log(f"{path.stem}: " + " ".join(f"{k} {v:.3f}" for k, v in figures.items()))
            model.train()
    replicas.close()
    return model.cpu().autoencoder.eval()


def load(path: Path, width: int = 64) -> AutoencoderTiny:
    """The autoencoder of the checkpoint at `path`. Raises FileNotFoundError if there is none."""
    state = checkpoint.load(path)
    if state is None:
        raise FileNotFoundError(f"{path}: run the stage `first-stage` first")
    model = FirstStage(width)
    model.load_state_dict(state["model"])
    return model.autoencoder.eval()
