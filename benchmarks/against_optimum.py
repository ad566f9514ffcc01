"""A stage of several bundles, measured in turns with the float32 graph that optimum exports."""

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import models
from benchmarks.measure import (
    Check,
    add_json,
    interleave,
    machine,
    print_checks,
    print_machine,
    print_table,
    write_json,
)
from edgediff.backend.available import ort
from edgediff.backend.options import SessionOptions
from edgediff.backend.session import Session
from edgediff.bundle.folder import Bundle
from edgediff.text.tokenizer import Tokenizer
from edgediff.verification import relative_error

Arrays = dict[str, NDArray[Any]]

PROMPT = "a lighthouse on a rocky coast, oil painting"
TIMESTEP = 501
_SIZE_BAR = 0.26
_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A loaded stage. `size` in bytes, including weights."""

    name: str
    id: str | None
    precision: str
    size: int
    run: Callable[[Arrays], Arrays]


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """The float32 graphs to compare with: optimum's export, or a float32 bundle."""

    folder: Path
    is_bundle: bool

    @property
    def description(self) -> str:
        if self.is_bundle:
            return f"the float32 bundle {self.folder.name}, traced by optimum and tidied"
        return f"optimum's main_export ({self.folder.name})"

    def load(self, stage: str, threads: int | None) -> Graph:
        load = load_bundle if self.is_bundle else load_optimum
        return load(self.folder, stage, threads)


def load_bundle(folder: Path, stage: str, threads: int | None) -> Graph:
    bundle = Bundle.open(folder)
    spec = bundle.manifest.graphs[stage]
    session = Session(bundle.path(spec.file), spec, SessionOptions(provider="cpu", threads=threads))
    return Graph(
        name=folder.name,
        id=bundle.id,
        precision=spec.precision,
        size=sum(bundle.manifest.files[f].size for f in (spec.file, *spec.data)),
        run=lambda inputs: session.run(**inputs),
    )


def load_optimum(folder: Path, stage: str, threads: int | None) -> Graph:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    path = folder / stage / "model.onnx"
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    dtypes = {i.name: _DTYPES[i.type] for i in session.get_inputs()}

    def run(inputs: Arrays) -> Arrays:
        cast = {k: v.astype(dtypes[k]) for k, v in inputs.items()}
        return dict(zip(names, session.run(names, cast), strict=True))

    return Graph(
        name="optimum",
        id=None,
        precision="fp32",
        size=sum(f.stat().st_size for f in path.parent.glob("model.onnx*")),
        run=run,
    )


def make_inputs(
    stage: str, yardstick: Yardstick, bundle: Bundle, size: int, threads: int | None
) -> Arrays:
    """The stage's inputs for one image of size × size pixels, by tensor name.

    The latents are noise, as at the start of a run; the text is a real prompt of 77 tokens."""
    manifest = bundle.manifest
    spec = manifest.tokenizers["text_encoder"]
    ids = Tokenizer(bundle.path(spec.file), spec).encode(PROMPT).ids
    if stage == "text_encoder":
        return {"input_ids": ids.astype(manifest.graphs[stage].inputs[0].dtype)}
    rng = np.random.default_rng(0)
    channels, side, _ = manifest.latent.shape((size, size))
    noise = rng.standard_normal((1, channels, side, side), dtype=np.float32)
    if stage == "vae_decoder":
        # Latents of an image are smooth over large areas.
        coarse = rng.standard_normal((1, channels, 4, 4), dtype=np.float32)
        even = np.kron(coarse, np.ones((1, 1, -(-side // 4), -(-side // 4)), np.float32))
        latents = even[..., :side, :side] + 0.1 * noise
        return {"latent_sample": (latents / manifest.latent.scaling_factor).astype(np.float32)}
    text = yardstick.load("text_encoder", threads).run(
        {"input_ids": ids.astype(manifest.graphs["text_encoder"].inputs[0].dtype)}
    )
    inputs: Arrays = {
        "sample": noise,
        "timestep": np.array(TIMESTEP, np.float32),
        "encoder_hidden_states": text["last_hidden_state"],
    }
    guidance = manifest.graphs["unet"].input("timestep_cond")
    if guidance is not None:
        inputs["timestep_cond"] = np.zeros((1, int(guidance.shape[-1])), np.float32)
    return inputs


def compare(
    stage: str,
    yardstick: Yardstick,
    bundles: list[Path],
    *,
    size: int,
    repeats: int,
    threads: int | None,
) -> dict[str, Any]:
    """Time, size and error of the stage in each bundle, and their ratios to the yardstick."""
    inputs = make_inputs(stage, yardstick, Bundle.open(bundles[0]), size, threads)
    graphs = [yardstick.load(stage, threads), *(load_bundle(b, stage, threads) for b in bundles)]
    keys = [f"{i}" for i in range(len(graphs))]
    seconds = interleave(
        {k: lambda g=g: g.run(inputs) for k, g in zip(keys, graphs, strict=True)}, repeats
    )
    reference = graphs[0].run(inputs)
    rows = []
    for key, graph in zip(keys, graphs, strict=True):
        outputs = graph.run(inputs)
        shared = [k for k in outputs if k in reference]
        median, minimum = statistics.median(seconds[key]), min(seconds[key])
        rows.append(
            {
                "name": graph.name,
                "bundle": graph.id,
                "precision": graph.precision,
                "bytes": graph.size,
                "seconds": seconds[key],
                "median": median,
                "min": minimum,
                "median_ratio": median / statistics.median(seconds["0"]),
                "min_ratio": minimum / min(seconds["0"]),
                "bytes_ratio": graph.size / graphs[0].size,
                "error": max(relative_error(outputs[k], reference[k]) for k in shared),
            }
        )
    return {"stage": stage, "shapes": {k: list(v.shape) for k, v in inputs.items()}, "graphs": rows}


def main(description: str, time_bars: Mapping[str, float]) -> None:
    """Parse the command line, measure the stages of `time_bars`, print and write."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="the diffusers folder to export (by default one of Stable Diffusion 1.5's shape)",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="BUNDLE",
        help="a float32 bundle to compare with, instead of optimum's export",
    )
    models.add_work(parser)
    parser.add_argument("--size", type=int, default=512, help="pixels a side (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="measured runs (%(default)s)")
    parser.add_argument("--threads", type=int, help="one per core by default")
    add_json(parser)
    arguments = parser.parse_args()

    work, source = arguments.work, arguments.source
    if source is None and not (arguments.bundles and arguments.reference):
        source = models.pipeline(work)
    bundles = arguments.bundles or [models.bundle(work, source, "int8")]
    if arguments.reference:
        yardstick = Yardstick(folder=arguments.reference, is_bundle=True)
    else:
        yardstick = Yardstick(folder=models.optimum_graphs(work, source), is_bundle=False)
    found: dict[str, Any] = {
        "machine": machine(),
        "provider": "cpu",
        "threads": arguments.threads,
        "size": arguments.size,
        "reference": yardstick.description,
        "stages": [],
    }
    print_machine(found["machine"])
    print(
        f"{arguments.size}x{arguments.size} pixels, batch 1, 77 tokens; medians of"
        f" {arguments.repeats} interleaved runs after the first; reference:"
        f" {yardstick.description}"
    )
    checks: list[Check] = []
    for stage, bar in time_bars.items():
        measured = compare(
            stage,
            yardstick,
            bundles,
            size=arguments.size,
            repeats=arguments.repeats,
            threads=arguments.threads,
        )
        found["stages"].append(measured)
        print()
        _print(measured)
        for row in measured["graphs"][1:]:
            if row["precision"] == "int8":
                what = f"{stage}, {row['name']} / reference"
                checks += [
                    Check(what=f"{what}: median time", value=row["median_ratio"], bar=bar),
                    Check(what=f"{what}: size", value=row["bytes_ratio"], bar=_SIZE_BAR),
                ]
    print_checks(checks)
    found["checks"] = [c.record() for c in checks]
    write_json(arguments.json, found)


def _print(measured: Mapping[str, Any]) -> None:
    rows = [
        (
            "reference" if i == 0 else g["name"],
            g["precision"],
            f"{g['median']:.4f} s",
            f"{g['min']:.4f} s",
            f"{g['median_ratio']:.3f}",
            f"{g['min_ratio']:.3f}",
            f"{g['bytes'] / 1e6:.1f} MB",
            f"{g['bytes_ratio']:.3f}",
            f"{g['error']:.1e}",
        )
        for i, g in enumerate(measured["graphs"])
    ]
    header = ("median", "min", "/ref", "min/ref", "size", "/ref", "‖q−f‖/‖f‖")
    print_table((measured["stage"], "precision", *header), rows)
