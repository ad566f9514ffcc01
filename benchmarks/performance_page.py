"""The README's performance section, made from benchmarks/results/*.json.

    python -m benchmarks.performance_page [--check]

It stands between two markers, which hold nothing else. --check writes nothing, and fails where the
section is not what the results say, naming the figures that none of them holds.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import ROOT
from benchmarks.peers import results, table
from benchmarks.peers.results import Result
from benchmarks.record import RESULTS

README = ROOT / "README.md"
BEGIN = "<!-- performance: by python -m benchmarks.performance_page -->"
END = "<!-- /performance -->"
_FIGURE = re.compile(r"\d+(?:\.\d+)?(?: (?:ms|s|MB|GB|dB|%))?")


def page(folder: Path) -> str:
    """The section, as markdown; empty where there are no results."""
    machines = sorted({f.stem.split("-", 1)[1] for f in folder.glob("*-*.json")})
    parts = [part for m in machines for part in _machine(folder, m)]
    return "\n".join(parts).rstrip("\n") + "\n" if parts else ""


def section(readme: str) -> str:
    """What stands between the markers."""
    try:
        return readme.split(BEGIN + "\n", 1)[1].split(END, 1)[0]
    except IndexError:
        sys.exit(f"README.md: expected {BEGIN} and {END}, a line each, around the section")


def replaced(readme: str, made: str) -> str:
    """The README with `made` between the markers."""
    return readme.replace(BEGIN + "\n" + section(readme), BEGIN + "\n" + made)


def unheld(readme: str, folder: Path) -> list[str]:
    """Figures of the section, with their units, that no result holds."""
    held = set(_FIGURE.findall(page(folder)))
    return [figure for figure in _FIGURE.findall(section(readme)) if figure not in held]


def _machine(folder: Path, name: str) -> list[str]:
    """The parts that one machine has results for."""
    found: list[str] = []

    def load(benchmark: str) -> Any:
        path = folder / f"{benchmark}-{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    startup, stages = load("startup"), load("stages")
    if startup and stages:
        found += _built_in(startup, stages)
    unet, vae, memory = load("unet_step"), load("vae_decode"), load("memory")
    if unet and vae and memory:
        found += _int8(unet, vae, memory)
    peers = folder / f"peers-{name}.json"
    if peers.exists():
        found += _peers(results.read(peers))
    return found


def _built_in(startup: Mapping[str, Sequence[float]], stages: Mapping[str, Any]) -> list[str]:
    """The built-in model."""
    median, (width, height) = stages["median"], stages["size"]
    return [
        f"The built-in model on {_named(stages['machine'])}, {width}×{height} pixels,"
        f" {stages['steps']} steps, {_guidance(stages['guidance_scale'])}; medians, by"
        " `python -m benchmarks.startup` and `stages`:",
        "",
        *_table(
            ("what", "figure"),
            [
                ("`import edgediff`", table.seconds(statistics.median(startup["import edgediff"]))),
                (
                    "first picture, from the start of the process",
                    table.seconds(statistics.median(startup["first picture"])),
                ),
                ("load", table.seconds(stages["load"])),
                ("one picture, warm", table.seconds(median["picture"])),
                ("one UNet step", table.seconds(median["step"])),
                ("what the runtime adds to the time in onnxruntime", f"{median['overhead']:.1%}"),
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
                "peak memory of a picture",
                table.size(round(fp32["peak_mb"] * 1e6)),
                table.size(round(int8["peak_mb"] * 1e6)),
                f"{int8['peak_mb'] / fp32['peak_mb']:.2f}",
            ),
        ]
    return [
        f"A pipeline of Stable Diffusion 1.5's shape (random weights), {unet['size']}×"
        f"{unet['size']}, on {_named(unet['machine'])}; float32 is the graph that optimum exports,"
        " for load and memory edgediff's own (`python -m benchmarks.unet_step`, `vae_decode`,"
        " `memory`):",
        "",
        *_table(("what", "float32", "int8", "ratio"), rows),
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
    """edgediff against what a user would pick instead."""
    s = found.settings
    lines = [
        f"A pipeline of Stable Diffusion 1.5's shape (random weights), {s.width}×{s.height},"
        f" {s.steps} steps by the Euler method, without guidance, one picture, on"
        f" {found.machine.cores} cores of {found.machine.cpu}"
        f" ({_kernels(found.machine.cpu_flags)}), by edgediff and by others: medians of"
        f" {_rounds(found)} in which each starts anew (`python -m benchmarks.peers --clear"
        f" {s.clear:g}`). Cold is from the start of the process to the PNG; the ratio is of warm"
        " pictures to the fastest of the others, in rounds in which both drew, and PSNR to the"
        " picture that diffusers draws in float32, where noise and tokens are the same:",
        "",
        *_table(table.HEADER, table.rows(found)),
        "",
        "What edgediff is to reach there, and whether it did:",
        "",
    ]
    for check in table.checks(found):
        verdict = "met" if check.met else "missed"
        lines.append(
            f"* {check.what}: {check.value:.2f}; at most {check.bar:g} is wanted: {verdict}."
        )
    lines += [f"* Left out: {line}." for line in table.left_out(found)]
    return [*lines, ""]


def _rounds(found: Result) -> str:
    """How many there were; an interrupted run has fewer than it was to have."""
    rounds = max((len(p.cold) for p in found.peers), default=0)
    if rounds == 1:
        return "one round"
    return (
        f"up to {rounds} rounds (one for who takes over {found.settings.clear:g} times the fastest)"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _named(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores of {machine['cpu']}"


def _kernels(flags: Sequence[str]) -> str:
    """Of the flags those that decide about int8, or else the last."""
    int8 = [f for f in flags if "vnni" in f or "int8" in f or f in ("avx2", "i8mm", "asimddp")]
    return ", ".join(int8 or flags[-1:])


def _guidance(scale: float) -> str:
    return "without guidance" if scale == 1 else f"guidance {scale:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    arguments = parser.parse_args()
    readme, made = README.read_text(encoding="utf-8"), page(RESULTS)
    if not arguments.check:
        README.write_text(replaced(readme, made), encoding="utf-8")
    elif section(readme) != made:
        wrong = ", ".join(unheld(readme, RESULTS)) or "none"
        sys.exit(f"README.md: not what the results say; figures that no result holds: {wrong}")


if __name__ == "__main__":
    main()
