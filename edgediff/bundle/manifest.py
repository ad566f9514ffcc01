"""The schema of `bundle.json`, the manifest of the folder that an export writes and a device runs.

It is parsed once, here, into frozen dataclasses; no other module sees a raw dict.
Unknown keys are rejected, so that a typo or a newer writer is noticed rather than ignored.
"""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from edgediff.bundle.latent import LatentSpec
from edgediff.bundle.schema import describe, is_line, load_json, parse, require
from edgediff.bundle.upgrade import upgraded
from edgediff.checks import MAX_SIDE
from edgediff.errors import BundleError
from edgediff.files import is_file_name
from edgediff.sampling.schedule import Schedule
from edgediff.sampling.sigmas import Spacing

FORMAT_VERSION = 2
MANIFEST = "bundle.json"
PROMPT = "{prompt}"
"""The place of the prompt in a tokenizer's template."""

Precision = Literal["fp32", "fp16", "int8"]
FidelityLevel = Literal["full", "quick", "none"]
"""The images that an export compares with the float model's: as the bundle makes them; small ones
in few steps; none, which measures nothing of images."""
DType = Literal["float32", "float16", "int64", "int32", "bool"]
Role = Literal[
    "text_encoder", "denoiser", "controlled_denoiser", "controlnet", "decoder", "encoder"
]
"""The purpose of a graph. A controlled denoiser takes the outputs of control networks as further
inputs; a decoder turns latents into an image, an encoder an image into latents."""
EVERY_STEP: tuple[Role, ...] = ("denoiser", "controlled_denoiser", "controlnet")
"""The roles of graphs that run in each denoising step; others run once for an image."""
SESSION_CONFIG = {
    "session.disable_quant_qdq": ("0", "1"),
    "session.x64quantprecision": ("0", "1"),
}
"""The entries of onnxruntime's session configuration that an export writes, and their values."""
_MOST_IDS = 2**31 - 1
_EXACTLY_ONE: tuple[Role, ...] = ("denoiser", "decoder")
_AT_MOST_ONE: tuple[Role, ...] = ("controlled_denoiser", "encoder")
_CONTROLNET = "controlnet."
MAX_TOKENS = 65_536
MAX_TEMPLATE = 10_000
MAX_STEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """One file of the bundle: its size in bytes and the SHA-256 of its content, in hex."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        require(0 <= self.size < 2**50, "files: size", self.size, "bytes")
        ok = len(self.sha256) == 64 and not {*self.sha256} - {*"0123456789abcdef"}
        require(ok, "files: sha256", self.sha256[:80], "64 digits of hexadecimal")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of a graph; a string in `shape` names a free dimension."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        ok = 0 < len(self.name) <= 256 and is_line(self.name)
        require(ok, "graphs: tensor name", self.name[:80], "1 to 256 letters")
        require(len(self.shape) <= 8, f"graphs: {self.name}: rank", len(self.shape), "at most 8")
        for size in self.shape:
            ok = 0 < len(size) <= 256 if isinstance(size, str) else 0 <= size < 2**31
            require(ok, f"graphs: {self.name}: shape", self.shape, "sizes and names of sizes")


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One ONNX graph. `data` lists its external weight files; `session_config` holds entries for
    `SessionOptions.add_session_config_entry` that the graph needs to run as intended, from
    SESSION_CONFIG: others could make onnxruntime write files, or load libraries.
    `loaded_bytes`: the memory of a lowered graph's weights once loaded on the CPU.
    `conditional_only`: of a control network: under guidance it steers the prediction for the prompt
    and not the negative one, as networks do whose residuals are averages over the image.
    Its inputs and outputs have the names of `edgediff.bundle.tensor_names`."""

    role: Role
    file: str
    data: tuple[str, ...] = ()
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    session_config: dict[str, str] = field(default_factory=dict)
    loaded_bytes: int | None = None
    conditional_only: bool = False

    def __post_init__(self) -> None:
        for of, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = {tensor.name for tensor in tensors}
            ok = 0 < len(names) == len(tensors)
            require(ok, f"graphs: {of}", sorted(names)[:8], "one or more, each listed once")
        for key, value in self.session_config.items():
            values = SESSION_CONFIG.get(key)
            if values is None:
                known = " or ".join(SESSION_CONFIG)
                raise BundleError(
                    f"{self.file}: session_config: {key[:200]!r} may not come from a bundle, only"
                    f" {known}: do not use this bundle unless you know its maker"
                )
            require(value in values, f"session_config: {key}", value[:80], " or ".join(values))
        taken = self.loaded_bytes
        require(taken is None or 0 <= taken < 2**50, "graphs: loaded_bytes", taken, "bytes")

    @property
    def files(self) -> tuple[str, ...]:
        """The graph and its weights."""
        return (self.file, *self.data)

    def input(self, name: str) -> TensorSpec | None:
        """The input called `name`, or None if the graph has no such input."""
        return next((spec for spec in self.inputs if spec.name == name), None)

    def require_input(self, name: str) -> TensorSpec:
        """The input called `name`. Raises BundleError if the graph has no such input."""
        spec = self.input(name)
        if spec is None:
            raise BundleError(f"{self.file}: has no input `{name}`: export the bundle again")
        return spec


@dataclass(frozen=True)
class Stage:
    """A graph of a bundle, and the name by which it is run."""

    name: str
    graph: GraphSpec


def controlnet_stage(name: str) -> str:
    """The name of the stage of a control network called `name`."""
    return _CONTROLNET + name


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """How a tokenizer's ids are framed: bos and eos, if the encoder has them, around the template
    with the prompt in it, then `pad_token_id`.

    max_length: the most ids that the encoder takes; a longer prompt is cut.
    min_length: the length that shorter prompts are padded to: max_length for an encoder of fixed
        length, such as CLIP; 0 = no padding. Prompts that run together get the same length.
    template: text with one `{prompt}`.
    embeddings: of textual inversion: a token → the ids that it stands for in a prompt."""

    file: str
    max_length: int
    min_length: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int
    template: str = PROMPT
    embeddings: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = 1 + sum(id is not None for id in (self.bos_token_id, self.eos_token_id))
        ok = self.max_length >= least
        require(ok, "tokenizer: max_length", self.max_length, f"{least} or more")
        ok = self.max_length <= MAX_TOKENS
        require(ok, "tokenizer: max_length", self.max_length, f"at most {MAX_TOKENS}")
        ok = 0 <= self.min_length <= self.max_length
        require(ok, "tokenizer: min_length", self.min_length, "from 0 to max_length")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ok = value is None or 0 <= value <= _MOST_IDS
            require(ok, f"tokenizer: {name}", value, "0 or more, below 2**31")
        ok = self.template.count(PROMPT) == 1 and len(self.template) <= MAX_TEMPLATE
        require(ok, "tokenizer: template", self.template, f"text with one {PROMPT}")
        for token, ids in self.embeddings.items():
            ok = len(ids) >= 1 and min(ids) >= 0 and max(ids) <= _MOST_IDS
            require(ok, f"tokenizer: embeddings: {token}", list(ids), "ids of 0 or more")


@dataclass(frozen=True, kw_only=True)
class ConditioningSpec:
    """How the outputs of text encoders become inputs of the denoiser.

    states: text encoders, in groups. Hidden states are joined within a group along the features, as
        in SDXL (Podell et al. 2023, arXiv:2307.01952, section 2.1), and between groups along the
        tokens, narrower ones padded with zeros, as in Stable Diffusion 3 (Esser et al. 2024,
        arXiv:2403.03206, section 4).
    pooled: the text encoders whose embeddings of the whole prompt are joined along the features."""

    states: tuple[tuple[str, ...], ...]
    pooled: tuple[str, ...] = ()


_LATER = ("timesteps",)
"""Fields of a schedule that are only written if they are set: the first versions of edgediff that
read this format refuse keys that they do not know."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The values that `generate` uses for options that the caller leaves unset. Sizes are in
    pixels.

    spacing: of the noise levels, only with `sampler`."""

    sampler: str
    steps: int
    guidance_scale: float
    width: int
    height: int
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        for name, most in (("steps", MAX_STEPS), ("width", MAX_SIDE), ("height", MAX_SIDE)):
            value = getattr(self, name)
            require(1 <= value <= most, f"defaults: {name}", value, f"from 1 to {most}")


@dataclass(frozen=True, kw_only=True)
class StageFidelity:
    """A stage compared with the float model on the fixtures: error is ‖q − f‖ / ‖f‖, unitless.

    `tolerance` is the largest error that `edgediff verify` accepts on a device."""

    error: float
    max_abs_error: float
    tolerance: float

    def __post_init__(self) -> None:
        for name in ("error", "max_abs_error", "tolerance"):
            value = getattr(self, name)
            require(value >= 0, f"fidelity: {name}", value, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ImageFidelity:
    """A finished image compared with the float model's: PSNR in dB over 8-bit pixels, None = equal.

    fixtures.npz holds the float model's image under the same `name`."""

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
    """The accuracy lost by the export, measured when the bundle was made.

    level: how many images were compared, see FidelityLevel; None: an earlier version does not say.
    """

    stages: dict[str, StageFidelity]
    images: tuple[ImageFidelity, ...] = ()
    level: FidelityLevel | None = None

    def __post_init__(self) -> None:
        ok = self.level != "none" or not self.images
        require(ok, "fidelity: images", len(self.images), "no image at the level 'none'")


@dataclass(frozen=True, kw_only=True)
class PlanSearch:
    """The budget for which the plan was searched, and the median PSNR in dB of images compared with
    the float model's: on those that the search used, and on unseen ones. None: images are equal, or
    there is no such limit."""

    min_psnr_db: float | None
    max_bytes: int | None
    calibration_psnr_db: float | None
    unseen_psnr_db: float | None
    unseen_lowest_db: float | None
    unseen_images: int


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The precision asked for, and the precision of each weight.

    tensors: graph → weight → precision.
    averaged_attention: whether keys and values are averaged at the highest resolution.
    direct: graph → the weights of the int8 convolutions that write bytes.
    reduced_range: whether weights of int8 products have 7 bits, for x86 without VNNI."""

    precision: Precision
    tensors: dict[str, dict[str, str]] = field(default_factory=dict)
    averaged_attention: bool = False
    direct: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reduced_range: bool = False
    search: PlanSearch | None = None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The choices of the export's preset. None: a flag, or the weights, chose instead; vae: also if
    the pipeline's own is kept."""

    name: str
    steps: int | None = None
    sampler: str | None = None
    vae: str | None = None
    precision: Precision | None = None
    averaged_attention: bool = False


@dataclass(frozen=True, kw_only=True)
class MergedLora:
    """A merged LoRA: its file's name and SHA-256 in hex, and the scale it was merged with."""

    file: str
    scale: float
    sha256: str


@dataclass(frozen=True, kw_only=True)
class MergedEmbedding:
    """A merged textual inversion: its file's name and SHA-256 in hex, and its token in prompts."""

    file: str
    token: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The source of the weights, their license and attribution, the LoRAs and embeddings that were
    merged, and the versions that made the bundle. controlnets: control network → its source."""

    source: str
    license: str | None = None
    attribution: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    loras: tuple[MergedLora, ...] = ()
    embeddings: tuple[MergedEmbedding, ...] = ()
    controlnets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of `bundle.json`. `providers`: those that it was made for, fastest first; `auto` takes
    the first that runs. `graphs`: by the names of their stages. `tokenizers`: by text encoder.
    `zeros_for_no_negative`: guidance without a negative prompt uses zeros instead of an empty
    prompt's embedding."""

    format_version: int = FORMAT_VERSION
    name: str
    pipeline: str
    target: str
    providers: tuple[str, ...]
    files: dict[str, FileSpec]
    graphs: dict[str, GraphSpec]
    tokenizers: dict[str, TokenizerSpec]
    conditioning: ConditioningSpec
    latent: LatentSpec
    schedule: Schedule
    defaults: Defaults
    quantization: Quantization
    fidelity: Fidelity
    provenance: Provenance
    fixtures: str | None = None
    zeros_for_no_negative: bool = False
    preset: Preset | None = None

    def __post_init__(self) -> None:
        for of in ("name", "pipeline", "target"):
            require(is_line(getattr(self, of)), of, getattr(self, of)[:80], "one line")
        ok = len(self.providers) > 0 and all(map(is_line, self.providers))
        require(ok, "providers", list(self.providers)[:8], "one or more names")

    @property
    def text_encoders(self) -> tuple[Stage, ...]:
        """The stages that encode the prompt; at least one."""
        return self._with_role("text_encoder")

    @property
    def denoiser(self) -> Stage:
        """The stage that predicts the noise, or x0, or the velocity."""
        return self._with_role("denoiser")[0]

    @property
    def controlled_denoiser(self) -> Stage | None:
        """The same denoiser with the outputs of control networks as further inputs, or None. It
        shares the denoiser's weights file."""
        return next(iter(self._with_role("controlled_denoiser")), None)

    @property
    def controlnets(self) -> dict[str, Stage]:
        """The control networks, by the names that a call gives them."""
        stages = self._with_role("controlnet")
        return {stage.name.removeprefix(_CONTROLNET): stage for stage in stages}

    @property
    def decoder(self) -> Stage:
        """The stage that turns latents into an image."""
        return self._with_role("decoder")[0]

    @property
    def encoder(self) -> Stage | None:
        """The stage that turns an image into latents, or None."""
        return next(iter(self._with_role("encoder")), None)

    def _with_role(self, role: Role) -> tuple[Stage, ...]:
        return tuple(Stage(k, graph) for k, graph in self.graphs.items() if graph.role == role)

    def own_files(self, stage: str) -> list[str]:
        """A stage's files that no stage before it has: the two denoisers of a bundle with control
        networks share one weights file."""
        names = list(self.graphs)
        before = {f for s in names[: names.index(stage)] for f in self.graphs[s].files}
        return [name for name in self.graphs[stage].files if name not in before]

    def to_json(self) -> str:
        """The text of bundle.json: UTF-8 JSON, two-space indents, keys in schema order."""
        raw = dataclasses.asdict(self)
        if self.preset is None:  # which earlier versions do not know
            del raw["preset"]
        if self.fidelity.level is None:
            del raw["fidelity"]["level"]
        for graph in raw["graphs"].values():
            if not graph["conditional_only"]:
                del graph["conditional_only"]
        for name in _LATER:
            if raw["schedule"].get(name) is None:
                raw["schedule"].pop(name, None)
        return json.dumps(raw, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
    raw = upgraded(raw, version)
    manifest: Manifest = parse(Manifest, raw, MANIFEST, BundleError)
    _check_references(manifest)
    _check_stages(manifest)
    return manifest


def _check_references(manifest: Manifest) -> None:
    """Every file that is used must be listed, and every listed name must stay in the folder."""
    for name in manifest.files:
        if not is_file_name(name) or name == MANIFEST:
            raise BundleError(
                f"{MANIFEST}: files: {name[:80]!r} leaves the bundle or is not the plain name of a"
                " file: export the bundle again"
            )
    named = {f"graphs.{k}": (g.file, *g.data) for k, g in manifest.graphs.items()}
    named |= {f"tokenizers.{k}": (t.file,) for k, t in manifest.tokenizers.items()}
    named["fixtures"] = (manifest.fixtures,) if manifest.fixtures is not None else ()
    for where, files in named.items():
        for name in files:
            if name not in manifest.files:
                raise BundleError(f"{MANIFEST}: {where}: {name!r} is not listed under files")


def _check_stages(manifest: Manifest) -> None:
    """The stages that this edgediff needs must exist, and their text encoders must fit together."""
    roles = Counter(graph.role for graph in manifest.graphs.values())
    for role in ("text_encoder", *_EXACTLY_ONE):
        if not roles[role]:
            raise BundleError(
                f"{MANIFEST}: graphs: {role} is missing, without which this edgediff makes no"
                f" images; a {manifest.pipeline} may need a newer one: pip install -U edgediff"
            )
    for role in (*_EXACTLY_ONE, *_AT_MOST_ONE):
        if roles[role] > 1:
            raise BundleError(f"{MANIFEST}: graphs: {roles[role]} have the role {role}, expected 1")
    encoders = [stage.name for stage in manifest.text_encoders]
    for key in manifest.tokenizers:
        if key not in encoders:
            raise BundleError(f"{MANIFEST}: tokenizers: {key!r} has no text encoder of that name")
    for key in encoders:
        if key not in manifest.tokenizers:
            raise BundleError(f"{MANIFEST}: tokenizers: {key} is missing")
    joined = manifest.conditioning
    if not joined.states or not all(joined.states):
        raise BundleError(f"{MANIFEST}: conditioning: states: expected groups of text encoders")
    for key in (*(name for group in joined.states for name in group), *joined.pooled):
        if key not in encoders:
            raise BundleError(f"{MANIFEST}: conditioning: {key!r} is not a text encoder")
    for group in joined.states:
        lengths = {(t.min_length, t.max_length) for t in (manifest.tokenizers[k] for k in group)}
        if len(group) > 1 and (len(lengths) > 1 or any(a != b for a, b in lengths)):
            raise BundleError(
                f"{MANIFEST}: conditioning: {', '.join(group)} join along the features, for which"
                " they need one and the same length of prompts"
            )
