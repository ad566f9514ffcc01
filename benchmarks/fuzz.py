"""Hostile inputs by the thousand: mutated bundles, graphs, tokenizers, fixtures, images, records
and files of prompts.

    python -m benchmarks.fuzz [--cases N] [--seed S] [--only KIND ...] [--state FILE]

Each case is made from its number and the seed, so that one can be run again by itself (`--first K
--cases 1`). Cases run in a worker process, which must survive them. It has 4 GiB of address space,
because a graph may ask for any amount of memory. The command counts:

* crashes: the worker died;
* hangs: no answer in 10 seconds;
* foreign errors: an exception that is not an EdgediffError;
* files written outside the worker's own folder, or changed there beside its bundle;
* altered weights that were accepted.

Exit status 1 if any is not 0. With --state, an interrupted run goes on from that file.
"""

import argparse
import collections
import copy
import hashlib
import io
import json
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import onnx
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import edgediff
from edgediff.backend.available import silence_log
from edgediff.backend.options import SessionOptions
from edgediff.backend.session import Session
from edgediff.bundle.folder import Bundle
from edgediff.bundle.graph_files import bundle_graph_files
from edgediff.errors import EdgediffError
from edgediff.files import write_whole
from edgediff.request.request import resolve
from edgediff.text.tokenizer import Tokenizer

TINY = Path(__file__).parent.parent / "tests" / "golden" / "tiny"
HANG = 10.0
"""Seconds without an answer; on a loaded machine they are measured in the worker's own time."""

MEMORY = 4 * 2**30
"""Bytes of address space of a worker."""

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**18, 0.0, -0.5, 1e-320, 1e308),
    *(
        "",
        "a",
        "..",
        "/",
        "/etc/passwd",
        "../x",
        "a/b",
        "a\\b",
        "\0",
        "\x1b[2J",
        "\ud800",
        "é" * 300,
    ),
    *("*/_ORT_MEM_ADDR_/*", "{prompt}", "{prompt}{prompt}", "nan", "1e999", "x" * 100_000),
    *([], {}, [[]], [None] * 100, {"a": 1}, [0] * 10_000),
)


class World:
    """The worker's folder: a bundle to be changed, beside files that must stay as they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        shutil.copytree(TINY, self.bundle)
        (folder / "victim").write_text("the user's own text\n")
        (folder / "out").mkdir()
        self.before = self._listing()
        self.pipe = edgediff.load(TINY, threads=1)

    def restore(self, *names: str) -> None:
        """Put files of the bundle back."""
        for name in (*names, "bundle.json"):
            path = self.bundle / name
            path.unlink(missing_ok=True)
            shutil.copyfile(TINY / name, path)

    def rehash(self, *names: str) -> None:
        """Let bundle.json vouch for changed files."""
        manifest = json.loads((TINY / "bundle.json").read_text())
        for name in names:
            content = (self.bundle / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][name] = {"size": len(content), "sha256": digest}
        (self.bundle / "bundle.json").write_text(json.dumps(manifest))

    def touched(self) -> list[str]:
        """What is not as it was, beside the bundle's own files."""
        now = self._listing()
        changed = {*self.before.items()} ^ {*now.items()}
        for path in (self.folder / "out").iterdir():
            path.unlink()
        return sorted({name for name, _ in changed})

    def _listing(self) -> dict[str, bytes]:
        inside = {path.name for path in self.bundle.iterdir()} ^ {p.name for p in TINY.iterdir()}
        listing = {path.name: b"" for path in self.folder.iterdir()}
        victim = (self.folder / "victim").read_bytes()
        return listing | {"victim": victim} | dict.fromkeys(inside, b"")


def mutate(raw: bytes, source: random.Random) -> bytes:
    """A few bytes flipped, inserted, cut, doubled, or overwritten by a number."""
    out = bytearray(raw)
    for _ in range(source.choice((1, 1, 2, 4, 16))):
        at = source.randrange(len(out) + 1)
        span = source.choice((1, 2, 4, 8, 64, 1024))
        act = source.randrange(6)
        if act == 0 and out:
            out[at % len(out)] ^= 1 << source.randrange(8)
        elif act == 1 and out:
            out[at % len(out)] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
        elif act == 2:
            out[at:at] = source.randbytes(span)
        elif act == 3:
            del out[at : at + span]
        elif act == 4:
            out[at:at] = out[at : at + span]
        else:
            number = source.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, source.getrandbits(32)))
            out[at : at + 4] = struct.pack(source.choice("<>") + "I", number)
    return bytes(out[: source.randrange(len(out) + 1)] if source.random() < 0.05 else out)


def mutate_json(raw: Any, source: random.Random) -> str:
    """Values replaced, keys added, moved or dropped; then, at times, bytes of the text."""
    raw = json.loads(json.dumps(raw))
    for _ in range(source.choice((1, 1, 1, 2, 5))):
        place: Any = raw
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = source.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and source.random() < 0.85:
                place = place[key]
                continue
            act = source.random()
            if act < 0.7:
                place[key] = copy.deepcopy(source.choice(HOSTILE))
            elif act < 0.85:
                del place[key]
            elif isinstance(place, dict):
                place[str(source.choice(HOSTILE))[:300]] = place[key]
            break
    text = json.dumps(raw, ensure_ascii=source.random() < 0.5)
    if source.random() < 0.2:
        text = mutate(text.encode("utf-8", "surrogatepass"), source).decode("utf-8", "replace")
    if source.random() < 0.02:
        text = text.replace(
            ": 1", ": " + source.choice(("1e999", "NaN", "[" * 9999, "9" * 9999)), 1
        )
    return text


def bundle_case(world: World, source: random.Random) -> None:
    text = mutate_json(json.loads((TINY / "bundle.json").read_text()), source)
    (world.bundle / "bundle.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    bundle = Bundle.open(world.bundle)
    resolve(bundle, "a fox", {})
    if source.random() < 0.3:
        with edgediff.load(world.bundle, threads=1) as pipe:
            pipe.generate("a fox", seed=1, steps=1, size=pipe.bundle.manifest.latent.downscale * 2)


def graph_case(world: World, source: random.Random) -> None:
    stage, name = source.choice(
        (("text_encoder", "text_encoder.onnx"), ("vae_decoder", "vae_decoder.onnx"))
    )
    (world.bundle / name).write_bytes(mutate((TINY / name).read_bytes(), source))
    world.rehash(name)
    try:
        bundle = Bundle.open(world.bundle)
        files = bundle_graph_files(bundle, stage, check_hashes=True)
        try:
            loaded = onnx.ModelProto.FromString(files.model)
        except Exception:
            loaded = onnx.ModelProto()
        named = {
            entry.value
            for tensor in loaded.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        if not named <= {*bundle.manifest.graphs[stage].data}:
            raise AssertionError(f"unlisted weights were accepted: {named}")
        graph = bundle.manifest.graphs[stage]
        session = Session(files, graph, SessionOptions(threads=1))
        shapes = {
            i.name: np.zeros([d if isinstance(d, int) else 2 for d in i.shape], i.dtype)
            for i in graph.inputs
        }
        session.run(**shapes)
    finally:
        world.restore(name)


def weights_case(world: World, source: random.Random) -> None:
    """Weights that bundle.json does not vouch for are refused, whatever they are."""
    stage = source.choice(("text_encoder", "vae_decoder"))
    name = f"{stage}.onnx.data"
    raw = (TINY / name).read_bytes()
    changed = mutate(raw, source)
    (world.bundle / name).write_bytes(changed)
    try:
        with edgediff.load(world.bundle, threads=1, max_memory="40MB") as pipe:
            pipe.generate("a", seed=1, steps=1, size=16)
        if changed != raw:
            raise AssertionError("altered weights were accepted")
    finally:
        world.restore(name)


def tokenizer_case(world: World, source: random.Random) -> None:
    raw = (TINY / "tokenizer.json").read_text()
    text = mutate_json(json.loads(raw), source)
    content = text.encode("utf-8", "surrogatepass")
    spec = world.pipe.bundle.manifest.tokenizers["text_encoder"]
    tokenizer = Tokenizer(world.bundle / "tokenizer.json", spec, content)
    for prompt in ("a fox", "", "(a:1.2) [b] BREAK é🦊", "a " * 200):
        tokenizer.encode(prompt, weighted=True, chunked=True)


def fixtures_case(world: World, source: random.Random) -> None:
    from edgediff.bundle.folder import read_fixtures

    name = "fixtures.npz"
    (world.bundle / name).write_bytes(mutate((TINY / name).read_bytes(), source))
    world.rehash(name)
    try:
        read_fixtures(Bundle.open(world.bundle))
        if source.random() < 0.02:
            edgediff.verify(world.bundle, threads=1)
    finally:
        world.restore(name)


def image_case(world: World, source: random.Random) -> None:
    kind = source.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"))
    mode = source.choice(("RGB", "L", "P", "RGBA") if kind in ("PNG", "WEBP") else ("RGB", "L"))
    out = io.BytesIO()
    Image.new(mode, (source.randint(1, 40), source.randint(1, 40)), 7).save(out, kind)
    (world.folder / "out" / "image").write_bytes(mutate(out.getvalue(), source))
    resolve(world.pipe.bundle, "a", {"init_image": world.folder / "out" / "image"})


RECORD = {
    "edgediff": "0.1.0",
    "prompt": "a (fox:1.2)",
    "negative_prompt": "b",
    "seed": 3,
    "steps": 2,
    "guidance_scale": 2.0,
    "sampler": "euler",
    "width": 64,
    "height": 64,
    "model": "tiny",
    "bundle": "0" * 64,
    "provider": "cpu",
    "spacing": None,
    "onnxruntime": "1.30.0",
    "init_image": {"name": "a.png", "sha256": "0" * 64},
    "control": [{"name": "canny", "image": {"name": "b.png", "sha256": "0" * 64}}],
}
PARAMETERS = (
    "a (fox:1.2) <lora:x:1>\nNegative prompt: b\nSteps: 20, Sampler: DPM++ 2M,"
    " Schedule type: Karras,"
    ' CFG scale: 7, Seed: 5, Size: 512x768, Model: "a, b", Variation seed: 1, Version: v1.9'
)


def record_case(world: World, source: random.Random) -> None:
    path = world.folder / "out" / "record"
    image = Image.new("RGB", (8, 8))
    kind = source.choice(("PNG", "PNG", "JPEG", "WEBP"))
    record = mutate_json(RECORD, source).encode("utf-8", "replace").decode()
    parameters = mutate(PARAMETERS.encode(), source).decode("latin-1")
    if kind == "PNG":
        info = PngInfo()
        if source.random() < 0.6:
            info.add_itxt("edgediff", record.replace("\0", ""))
        info.add_itxt("parameters", parameters.replace("\0", ""))
        image.save(path, "PNG", pnginfo=info)
    else:
        exif = Image.Exif()
        exif[0x010E] = f'{{"edgediff": {record}}}'.encode("ascii", "replace").decode()[:60_000]
        exif[0x8769] = {0x9286: b"UNICODE\0" + parameters.encode("utf-16-be", "replace")}
        image.save(path, kind, exif=exif)
    if source.random() < 0.5:
        path.write_bytes(mutate(path.read_bytes(), source))
    made = edgediff.recorded(path)
    options: Any = made.options
    if {"init_image", "mask", "control"} & {*options}:
        raise AssertionError("a record opens a file")
    resolve(world.pipe.bundle, made.prompt, options)


LINES = (
    {"prompt": "a fox", "seed": 7, "output": "fox.png", "steps": 2, "size": [64, 64]},
    {"prompt": "a", "negative_prompt": "b", "guidance_interval": [0, 0.5], "sampler": "euler"},
    {"prompt": "a", "init_image": "victim", "strength": 0.5, "prompt_weights": True},
    {"prompt": "a", "hires": 2.0, "variation_seed": 1, "variation_strength": 0.1, "seed": [1, 2]},
)


def prompts_case(world: World, source: random.Random) -> None:
    path = world.folder / "out" / "prompts.jsonl"
    lines = [mutate_json(source.choice(LINES), source) for _ in range(source.randint(1, 5))]
    lines.append('"a fox"')
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    if source.random() < 0.3:
        path.write_bytes(mutate(path.read_bytes(), source))
    out = world.folder / "out" / "images"
    try:
        jobs = edgediff.prepare_jobs(edgediff.read_jobs(path, out), world.pipe.bundle)
        for job in jobs:
            for place in [] if job.error is not None else job.paths:
                if place.parent != out:
                    raise AssertionError(f"an image would go to {place}")
    finally:
        shutil.rmtree(out, ignore_errors=True)


KINDS: dict[str, tuple[int, Callable[[World, random.Random], None]]] = {
    "bundle": (30, bundle_case),
    "graph": (15, graph_case),
    "weights": (2, weights_case),
    "tokenizer": (12, tokenizer_case),
    "fixtures": (9, fixtures_case),
    "image": (14, image_case),
    "record": (10, record_case),
    "prompts": (8, prompts_case),
}
"""Kind → its share of a hundred cases, and what runs one."""


def kind_of(case: int, seed: int, only: list[str]) -> str:
    """The kind of a case, by its number."""
    kinds = only or list(KINDS)
    shares = [KINDS[kind][0] for kind in kinds]
    return random.Random(f"{seed} {case} kind").choices(kinds, shares)[0]


def work(first: int, cases: int, seed: int, only: list[str]) -> None:
    """The worker: a line before each case, and one after it."""
    silence_log()
    # A graph may ask for any amount of memory; only the system can bound that.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for case in range(first, first + cases):
            kind = kind_of(case, seed, only)
            print("begin", case, kind, flush=True)
            try:
                KINDS[kind][1](world, random.Random(f"{seed} {case}"))
                outcome = "taken"
            except EdgediffError as e:
                outcome = "refused" if str(e) else "refused without a word"
            except AssertionError as e:
                outcome = f"wrong: {e}"
            except BaseException as e:
                if isinstance(e, KeyboardInterrupt):
                    raise
                outcome = f"foreign: {type(e).__name__}: {e}"
            world.restore()
            touched = world.touched()
            if touched:
                outcome = f"wrote: {touched}"
            print("end", case, outcome.encode("ascii", "backslashreplace").decode(), flush=True)


def run(first: int, end: int, seed: int, only: list[str], state: Path | None) -> dict[str, Any]:
    """All cases; a worker that dies or hangs is replaced. Returns the counts and the findings."""
    counts: collections.Counter[str] = collections.Counter()
    findings: list[str] = []
    if state is not None and state.exists():
        before = json.loads(state.read_text())
        first, counts = before["next"], collections.Counter(before["counts"])
        findings = before["findings"]

    def note(case: int, kind: str, outcome: str) -> None:
        what = outcome.partition(":")[0]
        counts[what] += 1
        counts[kind] += 1
        if what not in ("taken", "refused"):
            findings.append(f"{case} {kind}: {outcome[:300]}")
            print(findings[-1], file=sys.stderr, flush=True)
        if state is not None and (case % 100 == 0 or case + 1 == end):
            text = json.dumps({"next": case + 1, "counts": counts, "findings": findings}, indent=1)
            write_whole(state, (text + "\n").encode())

    while first < end:
        command = [sys.executable, "-m", "benchmarks.fuzz", "--worker", "--first", str(first)]
        command += ["--cases", str(end - first), "--seed", str(seed)]
        for kind in only:
            command += ["--only", kind]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        ) as worker:
            case, kind = first, "start"
            while True:
                line = _answer(worker)
                if line is None:
                    worker.kill()
                    note(case, kind, f"hang: no answer in {HANG:g} s")
                    break
                if not line:
                    if case < end - 1 or kind != "":
                        note(case, kind, f"crash: status {worker.wait()}")
                    break
                word, number, rest = line.rstrip("\n").split(" ", 2)
                case = int(number)
                if word == "begin":
                    kind = rest
                else:
                    note(case, kind, rest)
                    if case == end - 1:
                        kind = ""
            first = case + 1
    return {"counts": dict(sorted(counts.items())), "findings": findings}


def _answer(worker: "subprocess.Popen[bytes]") -> str | None:
    """The worker's next line, "" at its end, None if it hangs. On a loaded machine a worker may
    wait for the processor: only what it computes counts, and three times as long by the clock."""
    started = _seconds(worker.pid)
    out = cast("IO[bytes]", worker.stdout)  # not buffered: what select sees is all there is
    for _ in range(int(HANG * 3)):
        ready, _, _ = select.select([out], [], [], 1.0)
        if ready:
            return out.readline().decode()
        if _seconds(worker.pid) - started > HANG:
            return None
    return None


def _seconds(pid: int) -> float:
    """Processor seconds of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=list(KINDS))
    parser.add_argument("--state", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.first, given.cases, given.seed, given.only)
        return
    found = run(given.first, given.first + given.cases, given.seed, given.only, given.state)
    print(json.dumps(found, indent=1))
    sys.exit(1 if found["findings"] else 0)


if __name__ == "__main__":
    main()
