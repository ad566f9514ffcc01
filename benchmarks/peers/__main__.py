"""Generate the same image with edgediff and with its peers.

    python -m benchmarks.peers [run|install|convert] [--work DIR] [--peer NAME]... [--json OUT]
                               [--size 512] [--steps 4] [--rounds 6] [--warm 1] [--clear 3]
                               [--shape sd15] [--resume]

`install` makes a virtual environment for each peer, `convert` also converts the model, and `run`,
the default, also generates the images. It takes 30 GB of disk, and hours the first time. If torch's
default build for your system is one for GPUs, configure pip to find a CPU build first. A peer that
cannot be installed, converted or run is left out by name, with the reason.

Every peer gets the same prompt, size and number of Euler steps, without guidance. In each round
every peer starts once, in a new process, with its files in the system's cache. Peers that are
clearly slower than the fastest run in the first round only. Cold: from the start of the process to
the PNG. Ratios compare with the fastest peer other than edgediff, round by round. PSNR compares
with diffusers in float32, if both start from the same noise and tokens.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import add_json, print_checks, print_table
from benchmarks.models import add_work
from benchmarks.peers import environments, table
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.conversion import Place
from benchmarks.peers.environments import HERE, PeerError
from benchmarks.peers.results import Measured, Result, Settings, read
from benchmarks.peers.rounds import Entrant, Rounds
from edgediff.bench import machine
from edgediff.bench.results import write

PROMPT = "a lighthouse on a rocky coast, oil painting"
REFERENCE = "diffusers float32"


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parse(arguments)
    place = Place(work=given.work, shape=given.shape)
    settings = Settings(
        shape=given.shape,
        prompt=PROMPT,
        seed=0,
        width=given.size,
        height=given.size,
        steps=given.steps,
        rounds=given.rounds,
        warm=given.warm,
        clear=given.clear,
    )
    before = _earlier(given.json, settings) if given.resume else None
    entrants: list[Entrant] = []
    left_out: list[Measured] = []
    for name in given.peer or PEERS:
        try:
            if given.what == "install":
                environment = PEERS[name].environment
                environments.install(place.environment(environment), environment)
            else:
                entrants.append(ready(name, PEERS[name], place, settings))
        except PeerError as e:
            print(f"{name}: left out: {e}", file=sys.stderr)
            left_out.append(Measured(name=name, status="left out", reason=str(e)))
    if given.what != "run":
        sys.exit(1 if left_out else 0)
    found = Rounds(
        entrants=entrants,
        settings=settings,
        environment=environments.variables(),
        write=lambda result: _write(given.json, result),
        tell=lambda line: print(line, file=sys.stderr),
        reference=REFERENCE,
        left_out=left_out,
        before=before,
    ).run()
    show(found)


def ready(name: str, peer: Peer, place: Place, settings: Settings) -> Entrant:
    """Install the peer and convert its model, unless done before. Raises PeerError."""
    if peer.needs:
        flags = machine.describe().cpu_flags
        if flags and not set(peer.needs) & set(flags):  # empty: unknown
            raise PeerError(peer.lacks)
    folder = place.environment(peer.environment)
    environments.install(folder, peer.environment)
    if "provider" in peer.options:  # before an export that could not run here
        environments.check_provider(folder, peer.options["provider"])
    model = peer.model(place)
    inputs: dict[str, Any] = {
        **peer.options,
        "model": str(model),
        "prompt": settings.prompt,
        "seed": settings.seed,
        "width": settings.width,
        "height": settings.height,
        "steps": settings.steps,
    }
    reads = [folder, model]
    if peer.compiles:
        cache = place.cache(f"{name.replace(' ', '-')}-{settings.width}")
        cache.mkdir(parents=True, exist_ok=True)
        inputs["cache"] = str(cache)
        reads.append(cache)
    worker = HERE / "workers" / f"{peer.worker}.py"
    return Entrant(
        known=Measured(
            name=name,
            versions=environments.versions(folder),
            installed_bytes=environments.installed_bytes(folder),
            model_bytes=sum(f.stat().st_size for f in environments.files(model)),
        ),
        command=(str(environments.python(folder)), str(worker)),
        inputs=inputs,
        reads=reads,
        compiles=peer.compiles,
        differs=bool(peer.differs),
    )


def show(found: Result) -> None:
    """Print the table, the peers that were left out, and edgediff's best against the targets."""
    s, m = found.settings, found.machine
    print(f"{m.cpu}, {m.cores} cores ({' '.join(m.cpu_flags)})")
    print(
        f"{s.shape}, {s.width}x{s.height}, {s.steps} steps, {s.rounds} round{'s' * (s.rounds > 1)}"
    )
    print()
    print_table(table.HEADER, table.rows(found))
    for line in table.left_out(found):
        print(f"left out: {line}")
    print_checks(table.checks(found))


def _earlier(path: Path | None, settings: Settings) -> Result | None:
    """The result to continue, or None."""
    if path is None or not path.exists():
        return None
    found = read(path)
    if replace(found.settings, rounds=settings.rounds, clear=settings.clear) != settings:
        sys.exit(f"{path}: holds a run with other settings: give another file, or omit --resume")
    here = machine.describe()
    if (found.machine.cpu, found.machine.cores) != (here.cpu, here.cores):
        sys.exit(f"{path}: holds a run on another machine, {found.machine.cpu}: give another file")
    return found


def _write(path: Path | None, result: Result) -> None:
    if path is not None:
        write(path, result)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("what", nargs="?", choices=("run", "install", "convert"), default="run")
    add_work(parser)
    parser.add_argument(
        "--peer",
        action="append",
        choices=tuple(PEERS),
        metavar="NAME",
        help=f"only these; repeatable: {', '.join(PEERS)}",
    )
    parser.add_argument("--shape", default="sd15", help="of benchmarks.sd15_shape (%(default)s)")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6, help="six give a 95 %% interval")
    parser.add_argument("--warm", type=int, default=1, help="warm images per round")
    parser.add_argument(
        "--clear",
        type=float,
        default=3.0,
        help="peers slower than this many times the fastest run in the first round only",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --json, up to --rounds; start over after a change of edgediff",
    )
    add_json(parser)
    given = parser.parse_args(arguments)
    if min(given.rounds, given.warm, given.steps, given.size) < 1:
        parser.error("--rounds, --warm, --steps and --size must be 1 or more")
    if not given.clear >= 1:
        parser.error("--clear must be 1 or more")
    return given


if __name__ == "__main__":
    main()
