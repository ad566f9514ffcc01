"""The bundle: the folder that an export writes and a device runs. This module is its only schema.

`bundle.json` is parsed once, here, into frozen dataclasses; nothing downstream sees a raw dict.
Unknown keys are rejected, so that a typo or a newer writer is noticed rather than ignored.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from edgediff.bundle.schema import describe, load_json, parse
from edgediff.errors import BundleError
from edgediff.sampling.schedule import Schedule
from edgediff.sampling.sigmas import Spacing

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
STAGES = ("text_encoder", "unet", "vae_decoder")
"""What this edgediff needs; a bundle may have any others beside them."""

Precision = Literal["fp32", "fp16", "int8"]
DType = Literal["float32", "float16", "int64", "int32", "bool"]


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """One file of the bundle: its size in bytes and the SHA-256 of its content, in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of a graph; a string in `shape` names a free dimension."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One ONNX graph. `data` lists its external weight files; `session_config` holds entries for
    `SessionOptions.add_session_config_entry` that the graph needs to run as intended.
    `loaded_bytes`: what the weights of a graph lowered for the CPU take there once loaded."""

    file: str
    data: tuple[str, ...] = ()
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    session_config: dict[str, str] = field(default_factory=dict)
    loaded_bytes: int | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The graph and its weights."""
        return (self.file, *self.data)

    def input(self, name: str) -> TensorSpec | None:
        """The input called `name`, or None where the graph has no such input."""
        return next((spec for spec in self.inputs if spec.name == name), None)


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The latent space: pixels = decode(latents / scaling_factor + shift_factor).

    A picture of (h, w) pixels has latents (channels, h / downscale, w / downscale)."""

    channels: int
    downscale: int
    scaling_factor: float
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        _require(self.channels >= 1, "latent: channels", self.channels, "1 or more")
        _require(1 <= self.downscale <= 64, "latent: downscale", self.downscale, "from 1 to 64")
        _require(self.scaling_factor > 0, "latent: scaling_factor", self.scaling_factor, "positive")


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """How a tokenizer's ids are framed: bos, text, eos, then `pad_token_id` up to `max_length`.

    embeddings: what textual inversion added: a token → the ids that it stands for in a prompt."""

    file: str
    max_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    embeddings: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.max_length >= 3, "tokenizer: max_length", self.max_length, "3 or more")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            _require(value >= 0, f"tokenizer: {name}", value, "0 or more")
        for token, ids in self.embeddings.items():
            ok = len(ids) >= 1 and min(ids) >= 0
            _require(ok, f"tokenizer: embeddings: {token}", list(ids), "ids of 0 or more")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What `generate` uses where the caller leaves an argument unset. Sizes are in pixels.

    spacing: of the noise levels, with `sampler` alone."""

    sampler: str
    steps: int
    guidance_scale: float
    width: int
    height: int
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "width", "height"):
            value = getattr(self, name)
            _require(value >= 1, f"defaults: {name}", value, "1 or more")


@dataclass(frozen=True, kw_only=True)
class StageFidelity:
    """A stage against the float model on the fixtures: error is ‖q − f‖ / ‖f‖ (unitless).

    `tolerance` is the largest error that `edgediff verify` accepts on a device."""

    error: float
    max_abs_error: float
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class PictureFidelity:
    """A finished picture against the float model's: PSNR in dB over 8-bit pixels, None = equal.

    A fixture of the same `name` in fixtures.npz holds the float model's picture."""

    name: str
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    psnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What the export cost in accuracy, measured when the bundle was made."""

    stages: dict[str, StageFidelity]
    pictures: tuple[PictureFidelity, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlanSearch:
    """A budget that the plan was searched for, and the PSNR in dB of the median picture against
    the float model's: on the pictures that the search used, and on others. None: equal, or no
    such limit."""

    min_psnr_db: float | None
    max_bytes: int | None
    calibration_psnr_db: float | None
    unseen_psnr_db: float | None
    unseen_lowest_db: float | None
    unseen_pictures: int


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The precision asked for and, graph by graph and weight by weight, what each became.

    averaged_attention: whether keys and values are averaged at the highest resolution.
    direct: graph by graph, the weights of the int8 convolutions that write bytes.
    reduced_range: whether weights of int8 products have 7 bits, for x86 without VNNI."""

    precision: Precision
    tensors: dict[str, dict[str, str]] = field(default_factory=dict)
    averaged_attention: bool = False
    direct: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reduced_range: bool = False
    search: PlanSearch | None = None


@dataclass(frozen=True, kw_only=True)
class MergedLora:
    """A LoRA that was merged: its file's name and SHA-256 in hex, and how much of it."""

    file: str
    scale: float
    sha256: str


@dataclass(frozen=True, kw_only=True)
class MergedEmbedding:
    """A textual inversion that was merged: its file's name and SHA-256 in hex, and what a prompt
    calls it."""

    file: str
    token: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the weights came from, under what terms, what was merged into them, and the versions
    that made the bundle. controlnets: control network → where it came from."""

    source: str
    license: str | None = None
    attribution: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    loras: tuple[MergedLora, ...] = ()
    embeddings: tuple[MergedEmbedding, ...] = ()
    controlnets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`bundle.json`, whole. `providers`: what it was made for, fastest first; `auto` takes the
    first that runs. `tokenizers`: of each text encoder, in the order in which the network reads
    what these give. `zeros_for_no_negative`: guidance without a negative prompt takes zeros in
    place of an empty prompt's embedding."""

    format_version: int = FORMAT_VERSION
    name: str
    pipeline: str
    target: str
    providers: tuple[str, ...]
    files: dict[str, FileSpec]
    graphs: dict[str, GraphSpec]
    tokenizers: dict[str, TokenizerSpec]
    latent: LatentSpec
    schedule: Schedule
    defaults: Defaults
    quantization: Quantization
    fidelity: Fidelity
    provenance: Provenance
    fixtures: str | None = None
    zeros_for_no_negative: bool = False

    def own_files(self, stage: str) -> list[str]:
        """A stage's files that no stage before it has: the two UNets of a bundle with control
        networks have one weights file."""
        names = list(self.graphs)
        before = {f for s in names[: names.index(stage)] for f in self.graphs[s].files}
        return [name for name in self.graphs[stage].files if name not in before]

    def to_json(self) -> str:
        """The text of bundle.json: UTF-8 JSON, two-space indents, keys in schema order."""
        raw = dataclasses.asdict(self)
        return json.dumps(raw, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: a folder whose manifest was parsed and whose files are all there."""

    root: Path
    manifest: Manifest
    id: str
    """SHA-256 of bundle.json, in hex; since that holds every file's hash, it names the whole."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Read a bundle folder; check that each file is there and has the size it should.

        Contents are not read: `check_hashes` does that. Raises BundleError."""
        root = Path(path)
        try:
            exists = root.exists()
        except (OSError, ValueError) as e:
            raise BundleError(f"{path}: is no path to a bundle ({e})") from e
        if not exists:
            raise BundleError(f"{root}: no such bundle: give a folder that `edgediff export` wrote")
        if not root.is_dir():
            raise BundleError(f"{root}: is a file: give the bundle's folder, not a file in it")
        text = _read_manifest(root / MANIFEST)
        bundle = cls(
            root=root,
            manifest=parse_manifest(text),
            id=hashlib.sha256(text.encode()).hexdigest(),
        )
        for name in bundle.manifest.files:
            bundle.check_size(name)
        return bundle

    def path(self, name: str) -> Path:
        """Where the file `name` of bundle.json lies; BundleError if outside the bundle."""
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise BundleError(
                f"{name}: links to a place outside the bundle {self.root}: copy it in"
            )
        return path

    def check_size(self, name: str) -> None:
        """Compare a file's size on disk with the manifest's. Raises BundleError."""
        expected = self.manifest.files[name].size
        try:
            size = self.path(name).stat().st_size
        except OSError as e:
            raise BundleError(
                f"{name}: missing from {self.root}: copy or export the bundle again"
            ) from e
        if size != expected:
            raise BundleError(
                f"{name}: {size} bytes, but bundle.json says {expected}:"
                " copy or export the bundle again"
            )

    def check_hash(self, name: str) -> None:
        """Compare a file's SHA-256 with the manifest's, reading all of it. Raises BundleError."""
        expected = self.manifest.files[name].sha256
        try:
            actual = hash_file(self.path(name))
        except OSError as e:
            raise BundleError(
                f"{name}: cannot be read ({e.strerror}): check its permissions"
            ) from e
        if actual != expected:
            raise BundleError(
                f"{name}: sha256 {actual[:8]}… but bundle.json says {expected[:8]}…:"
                " copy or export the bundle again"
            )


def parse_manifest(text: str) -> Manifest:
    """Parse and check the text of bundle.json. Raises BundleError, naming the place and value."""
    try:
        raw = load_json(text)
    except ValueError as e:
        raise BundleError(f"{MANIFEST}: not JSON ({e}): copy or export the bundle again") from e
    if not isinstance(raw, dict):
        raise BundleError(f"{MANIFEST}: expected an object, found {describe(raw)}")
    # The version comes first: a newer format may have any keys at all.
    version = raw.get("format_version")
    if type(version) is not int or version < 1:
        raise BundleError(
            f"{MANIFEST}: format_version is {version!r}, expected {FORMAT_VERSION}:"
            " is this an edgediff bundle?"
        )
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST}: format version {version}, but this edgediff reads up to"
            f" {FORMAT_VERSION}: pip install -U edgediff"
        )
    if isinstance(raw.get("schedule"), dict):  # the only kind before schedules had a type
        raw["schedule"].setdefault("type", "discrete")
    manifest: Manifest = parse(Manifest, raw, MANIFEST, BundleError)
    _check_references(manifest)
    return manifest


def describe_files(root: Path, names: Iterable[str]) -> dict[str, FileSpec]:
    """Size and SHA-256 of each named file under `root`, for a manifest being written."""
    return {
        name: FileSpec(size=(root / name).stat().st_size, sha256=hash_file(root / name))
        for name in names
    }


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write bundle.json, after checking that what is written can be read back the same."""
    text = manifest.to_json()
    if parse_manifest(text) != manifest:
        raise BundleError(f"{MANIFEST}: does not survive a round trip through JSON")
    (root / MANIFEST).write_text(text, encoding="utf-8")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _require(ok: bool, where: str, value: object, expected: str) -> None:
    if not ok:
        raise BundleError(f"{where} is {value!r}, expected {expected}: export the bundle again")


def _read_manifest(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise BundleError(
            f"{path.parent}: holds no {MANIFEST}: give a folder that `edgediff export` wrote"
        ) from e
    except (OSError, UnicodeDecodeError) as e:
        raise BundleError(f"{path}: cannot be read ({e}): copy or export the bundle again") from e


def _check_references(manifest: Manifest) -> None:
    """Every file that is named must be listed, and every listed name must stay in the folder."""
    for name in manifest.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or not name:
            raise BundleError(
                f"{MANIFEST}: files: {name!r} leaves the bundle: only paths inside it are allowed"
            )
    named = {f"graphs.{k}": (g.file, *g.data) for k, g in manifest.graphs.items()}
    named |= {f"tokenizers.{k}": (t.file,) for k, t in manifest.tokenizers.items()}
    named["fixtures"] = (manifest.fixtures,) if manifest.fixtures is not None else ()
    for where, files in named.items():
        for name in files:
            if name not in manifest.files:
                raise BundleError(f"{MANIFEST}: {where}: {name!r} is not listed under files")
    for stage in STAGES:
        if stage not in manifest.graphs:
            raise BundleError(
                f"{MANIFEST}: graphs: {stage} is missing, without which this edgediff makes no"
                f" pictures; a {manifest.pipeline} may need a newer one: pip install -U edgediff"
            )
    for key in manifest.tokenizers:
        if key not in manifest.graphs:
            raise BundleError(f"{MANIFEST}: tokenizers: {key!r} has no graph of that name")
    if "text_encoder" not in manifest.tokenizers:
        raise BundleError(f"{MANIFEST}: tokenizers: text_encoder is missing")
