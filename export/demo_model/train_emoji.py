"""Make the model that ships: `python export/demo_model/train_emoji.py all --work DIR`.

Every stage picks up where it was stopped, however it was stopped. The result is a diffusers folder
at DIR/pipeline; DIR/snapshots/latest holds one of about every ten minutes while it trains.
"""

import argparse
import json
import sys
import time
from pathlib import Path

if not __package__:  # run as a script: let the package, not its folder, be importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo_model import (
    autoencoder,
    captions,
    checkpoint,
    classifier,
    dataset,
    dictionary,
    diffusion,
    recover,
    sentences,
    text,
    tokenizer,
    words,
)
from demo_model.concepts import PROMPTS

STAGES = (
    "fetch",
    "render",
    "tokenizer",
    "autoencoder",
    "latents",
    "text",
    "diffusion",
    "few-step",
    "words",
    "decoder",
    "judge",
    "sheet",
)


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def start_from(weights: Path, work: Path) -> None:
    """Let training go on from a file that `recover.keep` wrote; what work has is left alone.

    The autoencoder and the tokenizer are then done; text encoder and UNet start from the file's.
    """
    if (work / "start.ckpt").exists():  # written last
        return
    networks, vae, tokens = recover.read(weights)
    tokens.save_pretrained(work / "tokenizer")
    checkpoint.save(
        work / "autoencoder.ckpt",
        {"model": vae.state_dict(), "step": 0, "seconds": float("inf")},
    )
    checkpoint.save(work / "start.ckpt", {"networks": networks.state_dict()})


def encode_latents(work: Path) -> None:
    """Encode every picture once: work/latents.ckpt holds `raw` (n, 16, 8, 8) and its `std`."""
    if (work / "latents.ckpt").exists():
        return
    images, _ = dataset.load(work / "data")
    raw = autoencoder.encode(autoencoder.load(work), images)
    _log(f"latents: mean {raw.mean((0, 2, 3)).tolist()}, std {raw.std((0, 2, 3)).tolist()}")
    checkpoint.save(work / "latents.ckpt", {"raw": raw, "std": raw.std()})


def load_latents(work: Path) -> tuple[Tensor, float]:
    """Latents (n, 16, 8, 8) float32 of unit deviation, and the factor that made them so."""
    state = checkpoint.load(work / "latents.ckpt")
    if state is None:
        raise FileNotFoundError(f"{work / 'latents.ckpt'}: run the stage `latents` first")
    factor = round(1 / float(state["std"]), 5)
    return state["raw"] * factor, factor


def write_pipeline(work: Path, folder: Path, networks: diffusion.Networks) -> None:
    """Write the diffusers folder with these networks and the latest decoder."""
    vae = autoencoder.load(work)
    vae.register_to_config(scaling_factor=load_latents(work)[1])
    diffusion.save_pipeline(folder, networks, vae, tokenizer.load(work / "tokenizer"))


def train_diffusion(work: Path, minutes: float, processes: int, *, few_step: bool) -> None:
    """Train the UNet, with snapshots, or teach it four steps; write the pipeline."""
    _, concepts = dataset.load(work / "data")
    tokens = tokenizer.load(work / "tokenizer")
    latents, _ = load_latents(work)
    further = json.loads((work / "words.json").read_text())
    shown = captions.widened(dataset.for_training(concepts), further)

    def snapshot(networks: diffusion.Networks) -> None:
        write_pipeline(work, work / "snapshots" / "latest", networks)
        _log("snapshot written")

    figures = diffusion.train(
        latents,
        shown,
        tokens,
        work,
        minutes=minutes,
        log=_log,
        start=diffusion.load_average(work, tokens, teacher=True)
        if few_step
        else diffusion.beginning(work, tokens, captions.some(shown)),
        snapshot=snapshot,
        processes=processes,
        few_step=few_step,
    )
    (work / ("few-step.json" if few_step else "diffusion.json")).write_text(json.dumps(figures))
    folder = "pipeline" if few_step else "teacher"
    write_pipeline(work, work / folder, diffusion.load_average(work, tokens))


def teach_words(work: Path, minutes: float, processes: int) -> None:
    """Teach the few-step networks' text encoder further words and the house style; write the
    pipeline. Done once: work/words.ckpt."""
    if (work / "words.ckpt").exists():
        return
    _, concepts = dataset.load(work / "data")
    tokens = tokenizer.load(work / "tokenizer")
    encoder = diffusion.load_average(work, tokens).text_encoder
    words.teach(
        encoder,
        concepts,
        json.loads((work / "words.json").read_text()),
        tokens,
        work,
        minutes=minutes,
        log=_log,
        processes=processes,
    )
    checkpoint.save(work / "words.ckpt", {"text_encoder": encoder.state_dict()})
    write_pipeline(work, work / "pipeline", final_networks(work))


def final_networks(work: Path) -> diffusion.Networks:
    """What ships: the few-step networks, with the text encoder of the stage `words` if it ran."""
    networks = diffusion.load_average(work, tokenizer.load(work / "tokenizer"))
    state = checkpoint.load(work / "words.ckpt")
    if state is not None:
        networks.text_encoder.load_state_dict(state["text_encoder"])
    return networks


def draw_sheet(folder: Path, path: Path, *, guidance: float, steps: int, seeds: int) -> None:
    """The ten promised prompts, a row each, a column per seed, as one PNG."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for prompt in PROMPTS:
        images = pipeline(
            [prompt] * seeds,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in range(seeds)],
        ).images
        rows.append(np.concatenate([np.asarray(image) for image in images], 1))
    Image.fromarray(np.concatenate(rows, 0)).save(path)


def main() -> None:
    """Run one stage, or all of them in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["all", *STAGES])
    parser.add_argument("--work", type=Path, required=True, help="a folder for everything made")
    parser.add_argument(
        "--from-weights",
        type=Path,
        nargs="?",
        const=recover.WEIGHTS,
        metavar="FILE",
        help="go on from these [weights.safetensors beside the recipe]",
    )
    parser.add_argument("--tarballs", type=Path, help="packages fetched before [WORK/tarballs]")
    parser.add_argument("--text-minutes", type=float, default=60.0)
    parser.add_argument("--autoencoder-minutes", type=float, default=20.0)
    parser.add_argument("--diffusion-minutes", type=float, default=120.0)
    parser.add_argument("--few-step-minutes", type=float, default=15.0)
    parser.add_argument("--words-minutes", type=float, default=10.0)
    parser.add_argument("--decoder-minutes", type=float, default=15.0)
    parser.add_argument("--judge-minutes", type=float, default=9.0)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each [2]")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    tarballs = arguments.tarballs or work / "tarballs"
    torch.manual_seed(0)
    if arguments.from_weights is not None:
        start_from(arguments.from_weights, work)
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        _log(f"stage {stage}")
        if stage == "fetch":
            dataset.fetch(tarballs, (*dataset.PACKAGES, *dictionary.PACKAGES))
            sentences.fetch(tarballs)
        elif stage == "render":
            dataset.build(tarballs, work / "data")
        elif stage == "tokenizer":
            if not (work / "tokenizer" / "tokenizer_config.json").exists():
                _, concepts = dataset.load(work / "data")
                tokenizer.train(captions.corpus(concepts), work / "tokenizer")
        elif stage == "text":
            _, concepts = dataset.load(work / "data")
            tokens = tokenizer.load(work / "tokenizer")
            start = checkpoint.load(work / "start.ckpt")
            prefix = "text_encoder."
            text.train(
                concepts,
                load_latents(work)[0],
                tokens,
                tarballs,
                work,
                minutes=arguments.text_minutes,
                log=_log,
                processes=arguments.processes,
                start={
                    k.removeprefix(prefix): v
                    for k, v in start["networks"].items()
                    if k.startswith(prefix)
                }
                if start is not None
                else None,
            )
            recall = text.recall(concepts, tokens, work)
            _log(f"text encoder alone: {recall}")
            (work / "text.json").write_text(json.dumps(recall))
        elif stage in ("autoencoder", "decoder"):
            images, concepts = dataset.load(work / "data")
            tuned = stage == "decoder"
            drawn = sum(len(c.pictures) for c in dataset.published(concepts))  # they come first
            autoencoder.train(
                np.array(images[:drawn]),
                work,
                minutes=arguments.decoder_minutes if tuned else arguments.autoencoder_minutes,
                log=_log,
                processes=arguments.processes,
                finetune=tuned,
            )
            if tuned:
                write_pipeline(work, work / "pipeline", final_networks(work))
        elif stage == "words":
            teach_words(work, arguments.words_minutes, arguments.processes)
        elif stage == "latents":
            encode_latents(work)
        elif stage in ("diffusion", "few-step"):
            few = stage == "few-step"
            minutes = arguments.few_step_minutes if few else arguments.diffusion_minutes
            train_diffusion(work, minutes, arguments.processes, few_step=few)
        elif stage == "judge":
            images, concepts = dataset.load(work / "data")
            classifier.train(images, concepts, work, minutes=arguments.judge_minutes, log=_log)
            classifier.describe(concepts, work / "concepts.json")
        else:
            draw_sheet(
                work / "pipeline",
                work / "sheet.png",
                guidance=arguments.guidance,
                steps=arguments.steps,
                seeds=4,
            )


if __name__ == "__main__":
    main()
