"""The performance sections of README.md and docs/benchmarks.md, from benchmarks/results/*.json.

    python -m benchmarks.performance_page [--check]

README.md gets a summary, docs/benchmarks.md every figure. A section stands between two markers and
is replaced as a whole. --check writes nothing; it fails if a section differs from the results, and
names the figures that no result contains.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import ROOT
from benchmarks.peers import results, table
from benchmarks.peers.results import Result
from benchmarks.record import RESULTS

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN = "<!-- performance: by python -m benchmarks.performance_page -->"
END = "<!-- /performance -->"
_FIGURE = re.compile(r"\d+(?:\.\d+)?(?: (?:ms|s|MB|GB|dB|%))?")

SUMMARY_COLUMNS = ("peer", "warm", "cold", "peak memory", "model", "installed", "PSNR")


def page(folder: Path) -> str:
    """Every figure, as markdown; empty if there are no results."""
    return _joined(part for name in _machines(folder) for part in _machine(folder, name))


def summary(folder: Path) -> str:
    """edgediff beside the fastest variant of each peer; empty if peers were not measured."""
    return _joined(part for name in _machines(folder) for part in _summary(folder, name))


SECTIONS: dict[Path, Callable[[Path], str]] = {README: summary, PAGE: page}
"""File → the function that makes its section from the folder of results."""


def section(text: str) -> str:
    """The text between the markers."""
    try:
        return text.split(BEGIN + "\n", 1)[1].split(END, 1)[0]
    except IndexError:
        sys.exit(f"expected {BEGIN} and {END}, a line each, around the section")


def replaced(text: str, made: str) -> str:
    """The text with `made` between the markers."""
    return text.replace(BEGIN + "\n" + section(text), BEGIN + "\n" + made)


def unheld(text: str, made: str) -> list[str]:
    """Figures of the section, with their units, that `made` does not contain."""
    held = set(_FIGURE.findall(made))
    return [figure for figure in _FIGURE.findall(section(text)) if figure not in held]


def _machines(folder: Path) -> list[str]:
    return sorted({f.stem.split("-", 1)[1] for f in folder.glob("*-*.json")})


def _joined(parts: Iterable[str]) -> str:
    text = "\n".join(parts).rstrip("\n")
    return text + "\n" if text else ""


def _load(folder: Path, benchmark: str, machine: str) -> Any:
    """A benchmark's result on a machine, or None."""
    path = folder / f"{benchmark}-{machine}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _load_peers(folder: Path, machine: str) -> Result | None:
    path = folder / f"peers-{machine}.json"
    return results.read(path) if path.exists() else None


def _summary(folder: Path, machine: str) -> list[str]:
    """README's part about one machine."""
    found = _load_peers(folder, machine)
    if found is None:
        return []
    s = found.settings
    shown = {p.name for p in table.fastest_variants(found)}
    columns = [table.HEADER.index(name) for name in SUMMARY_COLUMNS]
    rows = [[row[k] for k in columns] for row in table.rows(found) if row[0] in shown]
    lines = [
        f"One {s.width}×{s.height} image in {s.steps} steps, from a model of Stable Diffusion 1.5's"
        f" shape, on {_described(found)}:",
        "",
        *_table(("engine", *SUMMARY_COLUMNS[1:]), rows),
        "",
    ]
    startup, stages = _load(folder, "startup", machine), _load(folder, "stages", machine)
    if startup and stages:
        median, (width, height) = stages["median"], stages["size"]
        lines += [
            f"The built-in model makes a {width}×{height} image in"
            f" {table.seconds(median['picture'])} there, and its first image"
            f" {table.seconds(statistics.median(startup['first picture']))} after the process"
            " starts.",
            "",
        ]
    return lines


def _machine(folder: Path, name: str) -> list[str]:
    """Every figure of one machine."""
    parts: list[str] = []
    startup, stages = _load(folder, "startup", name), _load(folder, "stages", name)
    if startup and stages:
        parts += _built_in(startup, stages)
    unet, vae, memory = (_load(folder, b, name) for b in ("unet_step", "vae_decode", "memory"))
    if unet and vae and memory:
        parts += _int8(unet, vae, memory)
    peers = _load_peers(folder, name)
    if peers is not None:
        parts += _peers(peers)
    return parts


def _built_in(startup: Mapping[str, Sequence[float]], stages: Mapping[str, Any]) -> list[str]:
    """The built-in model."""
    median, (width, height) = stages["median"], stages["size"]
    return [
        f"### The built-in model on {_named(stages['machine'])}",
        "",
        f"{width}×{height} pixels, {stages['steps']} steps,"
        f" {_guidance(stages['guidance_scale'])}. Medians from `python -m benchmarks.startup` and"
        " `stages`.",
        "",
        *_table(
            ("measured", "value"),
            [
                ("`import edgediff`", table.seconds(statistics.median(startup["import edgediff"]))),
                (
                    "first image, from the start of the process",
                    table.seconds(statistics.median(startup["first picture"])),
                ),
                ("load", table.seconds(stages["load"])),
                ("one image, warm", table.seconds(median["picture"])),
                ("one UNet step", table.seconds(median["step"])),
                ("time that the runtime adds to onnxruntime's", f"{median['overhead']:.1%}"),
                ("peak memory", f"{stages['peak_mb']:.0f} MB"),
            ],
        ),
        "",
    ]


def _int8(unet: Mapping[str, Any], vae: Mapping[str, Any], memory: Mapping[str, Any]) -> list[str]:
    """int8 against float32."""
    rows = [_stage(s) for found in (unet, vae) for s in found["stages"]]
    bundles = {b["precision"]: b for b in memory["bundles"]}
    if {"fp32", "int8"} <= bundles.keys():
        fp32, int8 = bundles["fp32"], bundles["int8"]
        rows += [
            (
                "load, files cached",
                table.seconds(fp32["median_load"]),
                table.seconds(int8["median_load"]),
                f"{int8['median_load'] / fp32['median_load']:.2f}",
            ),
            (
                "peak memory of one image",
                table.size(round(fp32["peak_mb"] * 1e6)),
                table.size(round(int8["peak_mb"] * 1e6)),
                f"{int8['peak_mb'] / fp32['peak_mb']:.2f}",
            ),
        ]
    return [
        f"### int8 against float32 on {_named(unet['machine'])}",
        "",
        f"A pipeline of Stable Diffusion 1.5's shape with random weights, {unet['size']}×"
        f"{unet['size']}. float32 is the graph that optimum exports; for load time and memory it is"
        " edgediff's own float32 bundle (`python -m benchmarks.unet_step`, `vae_decode`,"
        " `memory`).",
        "",
        *_table(("measured", "float32", "int8", "ratio"), rows),
        "",
    ]


def _stage(found: Mapping[str, Any]) -> tuple[str, ...]:
    reference, int8 = found["graphs"][:2]
    return (
        found["stage"].replace("_", " "),
        table.seconds(reference["median"]),
        table.seconds(int8["median"]),
        f"{int8['median_ratio']:.2f}",
    )


def _peers(found: Result) -> list[str]:
    """edgediff and other ways to run the same model."""
    s = found.settings
    lines = [
        f"### edgediff and its peers on {_described(found)}",
        "",
        f"A pipeline of Stable Diffusion 1.5's shape with random weights, one {s.width}×{s.height}"
        f" image, {s.steps} Euler steps, without guidance. Medians of {_rounds(found)}; every round"
        f" starts each peer in a new process (`python -m benchmarks.peers --clear {s.clear:g}`).",
        "",
        "* cold: from the start of the process to the finished PNG.",
        "* warm ratio: warm time over that of the fastest peer other than edgediff, in the rounds"
        " that measured both.",
        "* PSNR: against the image from diffusers in float32, for peers that start from the same"
        " noise and tokens.",
        "",
        *_table(table.HEADER, table.rows(found)),
        "",
    ]
    checks = table.checks(found)
    if checks:
        lines += ["Targets:", ""]
    for check in checks:
        verdict = "met" if check.met else "missed"
        lines.append(f"* {check.what}: {check.value:.2f} (target ≤ {check.bar:g}): {verdict}")
    left_out = table.left_out(found)
    if left_out:
        lines += ["", "Not measured:", "", *(f"* {line}" for line in left_out)]
    return [*lines, ""]


def _described(found: Result) -> str:
    m = found.machine
    return f"{m.cores} cores of {m.cpu} ({_kernels(m.cpu_flags)})"


def _rounds(found: Result) -> str:
    """How many there were; an interrupted run has fewer than it asked for."""
    rounds = max((len(p.cold) for p in found.peers), default=0)
    if rounds == 1:
        return "one round"
    return (
        f"up to {rounds} rounds (one round for peers that take more than"
        f" {found.settings.clear:g} times as long as the fastest)"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _named(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores of {machine['cpu']}"


def _kernels(flags: Sequence[str]) -> str:
    """The flags that decide how fast int8 is, or the last flag if there are none."""
    int8 = [f for f in flags if "vnni" in f or "int8" in f or f in ("avx2", "i8mm", "asimddp")]
    return ", ".join(int8 or flags[-1:])


def _guidance(scale: float) -> str:
    return "without guidance" if scale == 1 else f"guidance {scale:g}"


def main() -> None:
    """Write the sections, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    arguments = parser.parse_args()
    for path, make in SECTIONS.items():
        text, made = path.read_text(encoding="utf-8"), make(RESULTS)
        if not arguments.check:
            path.write_text(replaced(text, made), encoding="utf-8")
        elif section(text) != made:
            wrong = ", ".join(unheld(text, made)) or "none"
            sys.exit(
                f"{path.name}: the section differs from the results; figures that no result"
                f" contains: {wrong}"
            )


if __name__ == "__main__":
    main()
