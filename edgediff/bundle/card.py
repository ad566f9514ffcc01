"""The model card of a bundle on the Hugging Face hub: README.md, with front matter in YAML.

What bundle.json says is text from a stranger: in the front matter each value is a quoted string,
and in the text every character that Markdown or HTML could read is escaped."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from edgediff.bundle.manifest import Manifest
from edgediff.errors import printable

CARD = "README.md"
LICENSES = (
    *("apache-2.0", "mit", "openrail", "openrail++", "creativeml-openrail-m", "cc0-1.0"),
    *("bigscience-openrail-m", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("agpl-3.0", "gpl-3.0", "bsd-3-clause", "unlicense", "wtfpl"),
)
"""Those that the hub knows by these names, as far as models of images have them."""
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?=@|/| with |$)", re.ASCII)
_ACTIVE = re.compile(r"([\\`*_\[\]<>#|~&!$@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
"""What Markdown on the hub reads anywhere: also bare addresses become links, and $ formulas."""
_FIRST = re.compile(r"^(\d+(?=[.)](?: |$))|(?=[-+=]))(.)")
"""What begins a list, a rule or a heading."""


def model_card(manifest: Manifest, repository: str) -> str:
    """README.md of a bundle. repository: "owner/name", checked."""
    return f"---\n{_front_matter(manifest)}---\n\n{_text(manifest, repository)}"


def base_model(source: str) -> str | None:
    """The hub id with which a bundle's source begins, or None."""
    m = _HUB_ID.match(source)
    return m[1] if m else None


def _front_matter(manifest: Manifest) -> str:
    license = manifest.provenance.license or "unknown"
    known = license.lower() in (*LICENSES, "unknown")
    base = base_model(manifest.provenance.source)
    precision = manifest.quantization.precision
    tags = ["edgediff", "onnx", "text-to-image", precision]
    tags += ["image-to-image"] if manifest.encoder is not None else []
    tags += ["controlnet"] if manifest.controlnets else []
    lines = [
        f"license: {_quoted(license.lower() if known else 'other')}",
        *([] if known else [f"license_name: {_quoted(license)}"]),
        'library_name: "edgediff"',
        'pipeline_tag: "text-to-image"',
    ]
    if base is not None:
        relation = "finetune" if precision == "fp32" else "quantized"
        lines += [f"base_model: {_quoted(base)}", f"base_model_relation: {_quoted(relation)}"]
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in tags)]
    return "".join(f"{line}\n" for line in lines)


def _text(manifest: Manifest, repository: str) -> str:
    sections = [
        f"# {_plain(manifest.name)}",
        "A text-to-image bundle for edgediff: ONNX graphs that run on small devices with"
        " onnxruntime and without PyTorch.",
        "```sh\n"
        'pip install "edgediff[hub]"\n'
        f'edgediff generate "a red apple" -m hf:{repository} -o apple.png\n'
        "```",
        "```python\n"
        "import edgediff\n\n"
        f'pipe = edgediff.load("hf:{repository}")\n'
        'pipe.generate("a red apple", seed=7).save("apple.png")\n'
        "```",
        "## Defaults",
        _table(("", ""), _defaults(manifest)),
        "## Quality",
        *_quality(manifest),
        "## Source",
        "\n".join(f"* {_plain(line)}" for line in _source(manifest)),
    ]
    return "\n\n".join(sections) + "\n"


def _defaults(manifest: Manifest) -> list[tuple[str, str]]:
    defaults, preset = manifest.defaults, manifest.preset
    size = sum(file.size for file in manifest.files.values())
    return [
        ("image size", f"{defaults.width}x{defaults.height}"),
        ("steps", str(defaults.steps)),
        ("sampler", defaults.sampler),
        ("guidance", f"{defaults.guidance_scale:g}"),
        ("precision", manifest.quantization.precision),
        ("made for", f"{manifest.target}: {', '.join(manifest.providers)}"),
        ("size", f"{size / 1e6:.1f} MB"),
        *([("preset", preset.name)] if preset is not None else []),
        *(("control network", name) for name in manifest.controlnets),
    ]


def _quality(manifest: Manifest) -> list[str]:
    """The figures that the export measured."""
    images = manifest.fidelity.images
    sections = ["Compared with the float model when the bundle was made:"]
    rows = [
        (stage, manifest.graphs[stage].precision, f"{found.error:.1e}")
        for stage, found in manifest.fidelity.stages.items()
        if stage in manifest.graphs
    ]
    if rows:
        sections.append(_table(("stage", "precision", "relative error"), rows))
    made = [
        (
            image.prompt,
            str(image.seed),
            f"{image.width}x{image.height}, {image.steps} of {image.sampler}",
            "equal" if image.psnr_db is None else f"{image.psnr_db:.1f} dB",
        )
        for image in images
    ]
    if made:
        sections.append(_table(("prompt", "seed", "size and steps", "PSNR"), made))
    return sections


def _source(manifest: Manifest) -> list[str]:
    provenance = manifest.provenance
    versions: Mapping[str, str] = provenance.versions
    return [
        f"model: {provenance.source}",
        f"licence: {provenance.license or 'not stated'}",
        *provenance.attribution,
        *(f"LoRA: {m.file}, scale {m.scale:g}" for m in provenance.loras),
        *(f"textual inversion: {m.file} as {m.token}" for m in provenance.embeddings),
        *(f"control network {name}: {of}" for name, of in provenance.controlnets.items()),
        "exported with " + ", ".join(f"{k} {v}" for k, v in versions.items()),
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _quoted(text: str) -> str:
    """A YAML string in double quotes, which takes JSON's escapes."""
    return json.dumps(printable(text), ensure_ascii=False)


def _plain(text: str) -> str:
    """Text on one line that Markdown shows as it is: no link, tag, table or heading of its own."""
    one_line = " ".join(printable(text).split())
    return _FIRST.sub(r"\1\\\2", _ACTIVE.sub(r"\\\1", one_line))
