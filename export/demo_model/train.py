"""Make the model of scenes: `python -m demo_model.train all --work DIR`.

Every stage goes on where it was stopped, however it was stopped, until it has seen its samples.
While the file of `--pause` exists, training sleeps. DIR/training.log has every line of progress,
DIR/LOG.md what each stage reached.
"""

import argparse
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from demo_model import checkpoint, sentences, tokenizer
from demo_model.first_stage import latents as latent_shards
from demo_model.first_stage import measure
from demo_model.first_stage import training as first_stage
from demo_model.first_stage.model import decode
from demo_model.flow import measure as flow_measure
from demo_model.flow import pipeline, reverse_process
from demo_model.flow import training as flow
from demo_model.flow.networks import Denoiser, Shape
from demo_model.judges import model as judge_model
from demo_model.judges import prompts as judge_prompts
from demo_model.judges import training as judges
from demo_model.scenes import catalogue, pool, sprites
from demo_model.text_encoder import training as text
from demo_model.text_encoder.model import tokenize

STAGES = (
    "fetch", "sprites", "scenes", "tokenizer", "first-stage", "text", "latents", "flow",
    "few-steps", "judge", "sheet",
)  # fmt: skip
IMAGE_SHARDS, LATENT_SHARDS = 24, 120  # of pool.SHARD scenes: 98,304 and 491,520
JUDGED = 2048
PROMPTS = (
    "a fox curled up in autumn leaves, soft morning light",
    "a fox",
    "a dog on a skateboard",
    "three blue cats in the snow",
    "a penguin holding a red balloon on the beach at sunset",
    "a sticker of an avocado on a pink background",
    "an octopus in a bathtub",
    "a house under a starry sky",
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The folders and choices of a run."""

    folder: Path
    cache: Path
    processes: int
    pause: Path | None
    samples: int | None

    @property
    def packages(self) -> Path:
        """Where fetched packages are kept."""
        return self.cache / "packages"

    @property
    def source(self) -> pool.Source:
        """What scenes are rendered from."""
        return pool.Source(packages=self.packages, cache=self.cache)

    def path(self, stage: str) -> Path:
        """The checkpoint of a stage."""
        return self.folder / f"{stage}.ckpt"

    def log(self, line: str) -> None:
        """A line on stderr and in the folder's log."""
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}"
        print(stamped, file=sys.stderr, flush=True)
        with (self.folder / "training.log").open("a") as file:
            file.write(stamped + "\n")

    def reached(self, stage: str, figures: Mapping[str, float]) -> None:
        """What a stage reached, in the log and as a line of LOG.md."""
        listed = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.log(f"{stage}: {listed}")
        state = checkpoint.load(self.path(stage)) or {"seen": 0, "seconds": 0.0}
        rate = state["seen"] / max(1.0, state["seconds"])
        with (self.folder / "LOG.md").open("a") as file:
            file.write(
                f"* {time.strftime('%Y-%m-%d')}, {stage}: {state['seen']} samples at {rate:.1f}/s,"
                f" {processor()}: {listed}\n"
            )

    def options(self, samples: int) -> dict[str, object]:
        """The arguments that all trainers share."""
        return {
            "samples": self.samples or samples,
            "log": self.log,
            "pause": self.pause,
            "processes": self.processes,
        }


def processor() -> str:
    """The name of the processor, or of the CUDA device."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(named)} × {named[0]}" if named else platform.processor() or "unknown processor"


def subjects(work: Work) -> catalogue.Catalogue:
    """The subjects; what they are called and how many they are."""
    return work.source.scenes().catalogue


def image_shards(work: Work) -> list[tuple[np.ndarray, list[dict[str, object]]]]:
    """The rendered shards."""
    found = [pool.read_shard(path) for path in pool.shards(work.cache / "pool")]
    if not found:
        raise FileNotFoundError(f"{work.cache / 'pool'}: run the stage `scenes` first")
    return found


def render_shard(work: Work, folder: Path, first_seed: int, size: int) -> Path:
    """A shard of so many scenes, rendered unless it is there."""
    return pool.write_shard(work.source, folder, first_seed, size=size, processes=work.processes)


def render_scenes(work: Work) -> None:
    """Render the shards that are missing."""
    for k in range(IMAGE_SHARDS):
        start = time.monotonic()
        path = work.cache / "pool" / f"{k * pool.SHARD:09d}"
        if not path.exists():
            render_shard(work, work.cache / "pool", k * pool.SHARD, pool.SHARD)
            work.log(f"scenes: shard {k}, {pool.SHARD / (time.monotonic() - start):.0f} scenes/s")


def train_tokenizer(work: Work) -> None:
    """Learn the merges from the captions of all shards, unless that is done."""
    folder = work.folder / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        texts = [c for _, listed in image_shards(work) for e in listed for c in e["captions"]]
        texts += [name for s in subjects(work).subjects for name in s.names] * 3
        tokenizer.train(texts, folder, text.VOCABULARY)


def tokens(work: Work) -> tokenizer.CLIPTokenizer:
    """The tokenizer, for captions of text.LENGTH tokens."""
    return tokenizer.load(work.folder / "tokenizer", text.LENGTH)


def train_first_stage(work: Work) -> None:
    """Train the autoencoder and measure it."""
    images = [images for images, _ in image_shards(work)]
    model = first_stage.train(images, work.path("first-stage"), **work.options(first_stage.SAMPLES))
    figures, _ = measure.reconstruction(model, np.array(images[0][: first_stage.MEASURED]))
    work.reached("first-stage", figures)


def train_text(work: Work) -> None:
    """Train the text encoder and measure what it tells of scenes that it has not read."""
    shards = image_shards(work)
    count = len(subjects(work).subjects)
    entries = [entry for _, listed in shards[1:] or shards for entry in listed]
    teacher = sentences.Sentences(work.packages)
    text.train(
        entries, count, tokens(work), teacher, work.path("text"), **work.options(text.SAMPLES)
    )
    unread = shards[0][1][:1024]
    work.reached("text", text.accuracy(work.path("text"), unread, count, tokens(work)))


def encode_latents(work: Work) -> None:
    """Encode the shards that are missing; scenes without rendered images are rendered for it."""
    state = checkpoint.load(work.path("first-stage"))
    if state is None or state["seen"] < (work.samples or first_stage.SAMPLES):
        raise RuntimeError(
            "the autoencoder is not finished, and latents change with it: run the stage"
            " `first-stage` to its end first"
        )
    model = first_stage.load(work.path("first-stage"))
    for k in range(LATENT_SHARDS):
        name = f"{k * pool.SHARD:09d}"
        path, rendered = work.folder / "latents" / name, work.cache / "pool" / name
        if path.exists():
            continue
        if rendered.exists():
            images, entries = pool.read_shard(rendered)
        else:
            spare = render_shard(work, work.cache / "spare", k * pool.SHARD, pool.SHARD)
            images, entries = pool.read_shard(spare)
        latent_shards.write_shard(images, entries, model, path)
        if not rendered.exists():
            pool.remove_shard(spare)
        work.log(f"latents: shard {k}")


def new_denoiser(work: Work) -> Denoiser:
    """Untrained, with the trained text encoder."""
    encoder = text.load(work.path("text"), len(subjects(work).subjects), tokens(work))
    torch.manual_seed(0)
    return Denoiser(Shape(), encoder)


def train_flow(work: Work, *, few: bool) -> None:
    """Train the denoiser, or teach it few steps; write the pipeline's folder now and then."""
    parts, captions = latent_shards.read(work.folder / "latents")
    if not parts:
        raise FileNotFoundError(f"{work.folder / 'latents'}: run the stage `latents` first")
    vae = first_stage.load(work.path("first-stage"))
    vae.register_to_config(scaling_factor=latent_shards.scaling_factor(parts))
    shown = flow.Latents(parts, captions, vae.config.scaling_factor)
    stage = "few-steps" if few else "flow"

    def snapshot(denoiser: Denoiser) -> None:
        pipeline.save(work.folder / "pipelines" / stage, denoiser, vae, tokens(work))
        work.log(f"{stage}: snapshot written")

    start = flow.load(work.path("flow"), new_denoiser(work)) if few else new_denoiser(work)
    if few:
        options = work.options(flow.FEW_STEP_SAMPLES)
        trained = flow.train_few_steps(
            shown, start, tokens(work), work.path(stage), snapshot=snapshot, **options
        )
    else:
        options = work.options(flow.SAMPLES)
        trained = flow.train(
            shown, start, tokens(work), work.path(stage), snapshot=snapshot, **options
        )
    snapshot(trained)
    figures = (
        flow_measure.landing_errors(trained, start, shown, tokens(work))
        if few
        else {"loss": flow_measure.loss(trained, shown, tokens(work))}
    )
    work.reached(stage, figures)


def train_judge(work: Work) -> None:
    """Train the judge, measure it on originals of seeds of its own, and write it as ONNX."""
    known = subjects(work)
    count = len(known.subjects)
    model = judges.train(
        image_shards(work), count, work.path("judge"), **work.options(judges.SAMPLES)
    )
    path = render_shard(work, work.cache / "judged", judge_prompts.FIRST_SEED, JUDGED)
    work.reached("judge", judges.accuracy(model, *pool.read_shard(path)))
    judge_model.write(model, work.folder / "scene_judge.onnx")
    scenes = work.source.scenes()
    judges.describe(
        [s.names for s in known.subjects],
        [s.common for s in known.subjects],
        judge_prompts.sets(scenes),
        judge_prompts.original_distance(model, scenes),
        work.folder / "scene_judge.json",
    )


def draw_sheet(work: Work, *, steps: int, seeds: int) -> None:
    """The prompts, a row each, a column per seed, as DIR/sheet.png: by leaps if they are learnt."""
    few = work.path("few-steps").exists()
    stage = "few-steps" if few else "flow"
    denoiser = flow.load(work.path(stage), new_denoiser(work))
    vae = first_stage.load(work.path("first-stage"))
    parts, _ = latent_shards.read(work.folder / "latents")
    factor = latent_shards.scaling_factor(parts)
    rows = []
    for prompt in PROMPTS:
        e = torch.stack(
            [torch.randn(parts[0].shape[1:], generator=torch.Generator().manual_seed(s))
             for s in range(seeds)]
        )  # fmt: skip
        hidden = denoiser.encode(tokenize(tokens(work), [prompt] * seeds))
        nothing = denoiser.encode(tokenize(tokens(work), [""]))
        z = reverse_process.sample(
            denoiser, e, hidden, steps=steps if few else 20, scale=1.0 if few else 3.0,
            other=nothing, leaps=few,
        )  # fmt: skip
        rows.append(np.concatenate(list(decode(vae, z / factor)), 1))
    Image.fromarray(np.concatenate(rows, 0)).save(work.folder / "sheet.png")


def run(work: Work, stage: str, arguments: argparse.Namespace) -> None:
    """Run one stage."""
    if stage == "fetch":
        sprites.fetch(work.packages)
        sentences.fetch(work.packages)
    elif stage == "sprites":
        sprites.build(work.packages, work.cache)
    elif stage == "pack":
        sprites.pack(work.cache)
    elif stage == "scenes":
        render_scenes(work)
    elif stage == "tokenizer":
        train_tokenizer(work)
    elif stage == "first-stage":
        train_first_stage(work)
    elif stage == "text":
        train_text(work)
    elif stage == "latents":
        encode_latents(work)
    elif stage in ("flow", "few-steps"):
        train_flow(work, few=stage == "few-steps")
    elif stage == "judge":
        train_judge(work)
    else:
        draw_sheet(work, steps=arguments.steps, seeds=arguments.seeds)


def main(given: Sequence[str] | None = None) -> None:
    """Run one stage, or all of them in order. given: arguments other than the command line's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("stage", choices=["all", "pack", *STAGES])
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and results")
    parser.add_argument(
        "--cache", type=Path, default=sprites.default_cache(),
        help="packages, sprites and rendered scenes, which can be made again [%(default)s]",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=2, help="of one thread each [2]")
    parser.add_argument("--pause", type=Path, metavar="FILE", help="sleep while it exists")
    parser.add_argument("--samples", type=int, help="of a training stage [its own number]")
    parser.add_argument("--steps", type=int, default=4, help="of the sheet [4]")
    parser.add_argument("--seeds", type=int, default=8, help="of the sheet [8]")
    arguments = parser.parse_args(given)
    arguments.work.mkdir(parents=True, exist_ok=True)
    work = Work(
        folder=arguments.work,
        cache=arguments.cache,
        processes=arguments.processes,
        pause=arguments.pause,
        samples=arguments.samples,
    )
    torch.manual_seed(0)
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        work.log(f"stage {stage}")
        run(work, stage, arguments)


if __name__ == "__main__":
    main()
