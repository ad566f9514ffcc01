"""One or more results as one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from edgediff.bench import plots
from edgediff.bench.compare import stages
from edgediff.bench.intervals import Interval, median_interval
from edgediff.bench.results import Result, Run
from edgediff.errors import InputError
from edgediff.files import write_whole

# The page loads nothing: all its contents are in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; } small, .quiet { opacity: .7; }
.scroll { overflow-x: auto; } .warn { border-left: 3px solid #efb118; padding-left: .8rem; }
svg { width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
svg .grid { stroke: var(--line); }
figure { display: inline-block; margin: 0 1rem 1rem 0; } figcaption { font-size: .8rem; }
figure img { max-width: 16rem; height: auto; display: block; }
"""


def write(path: Path, files: Mapping[str, Result]) -> None:
    """Write name → result as one HTML file. Raises InputError if it cannot be written."""
    try:
        write_whole(path, page(files).encode())
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from e


def page(files: Mapping[str, Result]) -> str:
    """The text of the page."""
    runs = _labelled(files)
    measured = {label: run for label, run in runs.items() if run.warm}
    parts = [
        *(_head(name, result) for name, result in files.items()),
        "<h2>Configurations</h2>",
        _bundle_table(runs),
        *_notes(runs),
        "<h2>Latency</h2>",
        _latency_table(runs),
        "<h2>Latency by stage</h2>",
        "<p class=quiet>Medians of warm images; steps are the sum over one image.</p>",
        plots.bars({label: _by_stage(run) for label, run in measured.items()}, "s"),
        *_optional(
            "From process start to the first image",
            plots.bars(
                {label: _cold_parts(run) for label, run in measured.items() if run.cold}, "s"
            )
            if any(run.cold for run in measured.values())
            else "",
        ),
        *_optional(
            "Memory over time",
            plots.lines(
                {
                    label: [(t, rss / 1e6) for t, rss in run.memory]
                    for label, run in runs.items()
                    if run.memory
                },
                "s since process start",
                "MB resident",
            ),
        ),
        *_optional(
            "Quality against latency",
            plots.scatter(_quality_points(measured), "s per image", "dB to the float model"),
        ),
        *_operators(runs),
        "<h2>Nodes by provider</h2>",
        _placement_table(runs),
        "<h2>Timed images</h2>",
        *(_figure(label, run) for label, run in runs.items() if run.image_png),
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name=viewport content="width=device-width">'
        f"<title>edgediff bench</title><style>{_STYLE}</style></head><body>"
        "<h1>edgediff bench</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _labelled(files: Mapping[str, Result]) -> dict[str, Run]:
    """Label → run; with several files, labels begin with the file's name."""
    if len(files) == 1:
        (result,) = files.values()
        return {run.config.label: run for run in result.runs}
    return {
        f"{name}: {run.config.label}": run for name, result in files.items() for run in result.runs
    }


def _head(name: str, result: Result) -> str:
    machine, conditions = result.machine, result.conditions
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 1e9:.1f} GB"
    rows = [
        ("machine", f"{machine.cpu}, {machine.cores} cores{memory}"),
        ("kernel flags", " ".join(machine.cpu_flags)),
        ("GPU", ", ".join(machine.gpus)),
        ("system", f"{machine.system}, Python {machine.python}"),
        ("power", machine.power or "unknown"),
        ("versions", ", ".join(f"{k} {v}" for k, v in result.versions.items())),
        ("started", result.started),
        ("order", "in turns" if result.interleaved else "one configuration after another"),
    ]
    if conditions is not None:
        if conditions.frequency_mhz is not None:
            low, mean, high = conditions.frequency_mhz
            rows.append(("clock", f"{low:.0f} to {high:.0f} MHz, {mean:.0f} on average"))
        throttled = conditions.throttled
        rows.append(("throttling", "unknown" if throttled is None else f"{throttled} events"))
        if conditions.others is not None:
            rows.append(("other processes", f"{conditions.others:.0%} of the CPU time"))
    table = "".join(
        f"<tr><td>{escape(key)}</td><td class=text>{escape(value)}</td></tr>"
        for key, value in rows
        if value
    )
    missing = "".join(f"<li>{escape(line)}</li>" for line in result.missing)
    warning = f"<div class=warn><p>Missing:</p><ul>{missing}</ul></div>" if missing else ""
    return f"<h2>{escape(name)}</h2><table>{table}</table>{warning}"


def _bundle_table(runs: Mapping[str, Run]) -> str:
    header = (
        *("configuration", "bundle", "target", "precision", "weights by format", "provider"),
        *("threads", "compile cache"),
    )
    rows = []
    for label, run in runs.items():
        config, model = run.config, run.config.model
        plan = ", ".join(f"{count} {name}" for name, count in model.plan.items())
        threads = "one per core" if config.threads is None else str(config.threads)
        rows.append(
            [
                *(label, f"{model.name} {model.id[:12]}", model.target, model.precision),
                *(plan or f"all {model.precision}", config.provider, threads, _compiled(run)),
            ]
        )
    return _table(header, rows)


def _compiled(run: Run) -> str:
    """Hits and misses of a provider's compile caches, as text."""
    return "; ".join(
        f"{stage}: " + ", ".join(f"{kind} {outcome}" for kind, outcome in kinds.items())
        for stage, kinds in run.caches.items()
    )


def _notes(runs: Mapping[str, Run]) -> list[str]:
    found = [f"{label}: {note}" for label, run in runs.items() for note in run.notes]
    items = "".join(f"<li>{escape(line)}</li>" for line in found)
    return [f"<ul>{items}</ul>"] if items else []


def _latency_table(runs: Mapping[str, Run]) -> str:
    header = (
        *("configuration", "image", "95 % interval", "per minute", "text", "step", "decode"),
        *("first image", "peak memory", "GPU memory", "on disk", "quality", "energy"),
    )
    rows = []
    for label, run in runs.items():
        if not run.warm:
            rows.append([label, run.error or run.status, *[""] * (len(header) - 2)])
            continue
        found = {name: median_interval(v) for name, v in stages(run.warm).items() if v}
        image = found["image"]
        cold = median_interval([c.first_image for c in run.cold]) if run.cold else None
        joules = [p.joules for p in run.warm if p.joules is not None]
        rows.append(
            [
                label,
                f"{image.median:.3g} s",
                _bounds(image),
                f"{60 * run.config.batch / image.median:.3g}",
                f"{found['text_encoder'].median:.3g} s",
                f"{found['step'].median:.3g} s" if "step" in found else "",
                f"{found['decoder'].median:.3g} s",
                "" if cold is None else f"{cold.median:.3g} s",
                "unknown" if run.peak_bytes is None else f"{run.peak_bytes / 1e6:.0f} MB",
                "" if run.gpu_peak_bytes is None else f"{run.gpu_peak_bytes / 1e6:.0f} MB",
                f"{run.config.model.bytes / 1e6:.1f} MB",
                quality(run),
                f"{median_interval(joules).median:.3g} J" if joules else "unknown",
            ]
        )
    return _table(header, rows)


def quality(run: Run) -> str:
    """The PSNR of the timed image, as text."""
    if run.quality is None:
        return ""
    if run.quality.equal:
        return "equal"
    return "unknown" if run.quality.psnr_db is None else f"{run.quality.psnr_db:.1f} dB"


def _bounds(found: Interval) -> str:
    low_confidence = "" if found.confidence >= 0.945 else f" ({found.confidence:.0%})"
    return f"{found.low:.3g} … {found.high:.3g} s{low_confidence}"


def _placement_table(runs: Mapping[str, Run]) -> str:
    rows = [
        [label, stage, provider.removesuffix("ExecutionProvider"), str(p.nodes), str(p.partitions)]
        for label, run in runs.items()
        for stage, providers in run.placement.items()
        for provider, p in providers.items()
    ]
    return _table(("configuration", "stage", "provider", "nodes", "partitions"), rows)


def _operators(runs: Mapping[str, Run]) -> list[str]:
    rows = [
        [label, stage, o.name, f"{o.seconds * 1e3:.3g} ms", f"{o.share:.0%}"]
        for label, run in runs.items()
        for stage, operators in run.operators.items()
        for o in operators
    ]
    if not rows:
        return []
    header = ("configuration", "stage", "operator", "per image", "share")
    return ["<h2>Operators by time</h2>", _table(header, rows)]


def _by_stage(run: Run) -> dict[str, float]:
    return {
        "text encoder": median_interval([p.text_encoder for p in run.warm]).median,
        "steps": median_interval([sum(p.steps) for p in run.warm]).median,
        "decoder": median_interval([p.decoder for p in run.warm]).median,
    }


def _cold_parts(run: Run) -> dict[str, float]:
    middle = sorted(run.cold, key=lambda c: c.first_image)[len(run.cold) // 2]
    loads = {f"load {stage}": seconds for stage, seconds in middle.stages.items()}
    known = {
        "interpreter": middle.interpreter,
        "imports": middle.imports,
        **loads,
        # A provider that compiles loads its stages with the first image, none before.
        "load, other": max(0.0, middle.load - sum(loads.values())),
    }
    return {**known, "image": max(0.0, middle.first_image - sum(known.values()))}


def _quality_points(runs: Mapping[str, Run]) -> dict[str, tuple[float, float]]:
    return {
        label: (median_interval([p.total for p in run.warm]).median, run.quality.psnr_db)
        for label, run in runs.items()
        if run.quality is not None and run.quality.psnr_db is not None
    }


def _figure(label: str, run: Run) -> str:
    caption = f"{label}, {quality(run)}" if run.quality else label
    return (
        f'<figure><img alt="{escape(run.config.prompt)}" src="data:image/png;base64,'
        f'{escape(run.image_png or "")}"><figcaption>{escape(caption)}<br>'
        f"{escape(repr(run.config.prompt))}, seed {run.config.seed}</figcaption></figure>"
    )


def _optional(title: str, body: str) -> list[str]:
    return [f"<h2>{title}</h2>", body] if body else []


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"
