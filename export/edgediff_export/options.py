"""The options of an export."""

from dataclasses import dataclass, field
from pathlib import Path

from edgediff.bundle.manifest import FidelityLevel, Precision
from edgediff.errors import InputError
from edgediff.sampling.schedule import PredictionType, TimestepSpacing
from edgediff_export.presets import PRESETS, Preset, PresetName
from edgediff_export.search.budget import Budget
from edgediff_export.source.lora import Lora
from edgediff_export.source.textual_inversion import Embedding
from edgediff_export.targets.cpu.kernels import Profile
from edgediff_export.targets.table import CONVERTERS, Target


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one export. None leaves a choice to the preset, if there is one, or to the
    pipeline. size: (width, height) in pixels."""

    source: str
    out: Path
    preset: PresetName | None = None
    precision: Precision | None = None
    target: Target | None = None
    budget: Budget = field(default_factory=Budget)
    plan: Path | None = None
    average_attention: bool | None = None
    profile: Profile = "auto"
    size: tuple[int, int] | None = None
    vae: Path | None = None
    unet: Path | None = None
    text_encoder: Path | None = None
    text_encoder_2: Path | None = None
    with_encoder: bool = False
    controlnets: tuple[str, ...] = ()
    name: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    timestep_spacing: TimestepSpacing | None = None
    prediction_type: PredictionType | None = None
    zero_terminal_snr: bool | None = None
    license: str | None = None
    attribution: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    allow_partial: bool = False
    embeddings: tuple[Embedding, ...] = ()
    fidelity: FidelityLevel = "quick"
    force: bool = False

    @property
    def resolved_target(self) -> Target:
        """The target, by default the usual one of the precision."""
        return self.target or ("gpu" if self.precision == "fp16" else "cpu")

    @property
    def chosen(self) -> Preset | None:
        """The values of the preset."""
        return None if self.preset is None else PRESETS[self.preset]

    @property
    def resolved_precision(self) -> Precision:
        """The precision, by default the preset's, or fp32."""
        if self.precision is not None:
            return self.precision
        if self.preset is None:
            return "fp32"
        return "fp16" if self.resolved_target == "gpu" else "int8"

    @property
    def averages_attention(self) -> bool:
        """Whether keys and values are averaged, which only int8 for CPUs does."""
        if self.average_attention is not None:
            return self.average_attention
        able = (self.resolved_target, self.resolved_precision) == ("cpu", "int8")
        return self.chosen is not None and self.chosen.average_attention and able


def check_options(options: Options) -> None:
    """Raise InputError for options that do not go together."""
    target, precision = options.resolved_target, options.resolved_precision
    possible = [p for t, p in CONVERTERS if t == target]
    if precision not in possible:
        why = (
            "CPUs have no float16 arithmetic that would be faster"
            if precision == "fp16"
            else "GPUs are fast in float16"
        )
        raise InputError(
            f"--precision {precision} for --target {target}: {why}; give"
            f" {' or '.join(f'--precision {p}' for p in possible)}, or another target"
        )
    asked = [
        flag
        for flag, given in (
            ("--min-psnr", options.budget.min_psnr is not None),
            ("--max-size", options.budget.max_size is not None),
            ("--plan", options.plan is not None),
            ("--average-attention", bool(options.average_attention)),
            ("--profile", options.profile != "auto"),
        )
        if given
    ]
    if asked and (target, precision) != ("cpu", "int8"):
        raise InputError(f"{asked[0]} needs --precision int8 --target cpu")
    if options.plan is not None and options.budget.asked:
        raise InputError(
            "--plan fixes the format of each layer: leave --min-psnr and --max-size out"
        )
    if options.fidelity == "none" and options.budget.asked:
        raise InputError(
            f"--fidelity none compares no images, which {asked[0]} needs: leave one of them out"
        )
    if options.plan is not None and options.profile != "auto":
        raise InputError("--plan brings the kernels of its own profile: leave --profile out")
