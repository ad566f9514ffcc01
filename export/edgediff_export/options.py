"""The options of an export."""

from dataclasses import dataclass, field
from pathlib import Path

from edgediff.bundle.manifest import Precision
from edgediff.errors import InputError
from edgediff.sampling.schedule import PredictionType, TimestepSpacing
from edgediff_export.search.budget import Budget
from edgediff_export.source.lora import Lora
from edgediff_export.source.textual_inversion import Embedding
from edgediff_export.targets.cpu.kernels import Profile
from edgediff_export.targets.table import CONVERTERS, Target


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one export. None leaves a choice to the pipeline. size: (width, height) in
    pixels."""

    source: str
    out: Path
    precision: Precision = "fp32"
    target: Target | None = None
    budget: Budget = field(default_factory=Budget)
    plan: Path | None = None
    average_attention: bool = False
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
    force: bool = False

    @property
    def resolved_target(self) -> Target:
        """The target, by default the usual one of the precision."""
        return self.target or ("gpu" if self.precision == "fp16" else "cpu")


def check_options(options: Options) -> None:
    """Raise InputError for options that do not go together."""
    target, precision = options.resolved_target, options.precision
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
            ("--average-attention", options.average_attention),
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
    if options.plan is not None and options.profile != "auto":
        raise InputError("--plan brings the kernels of its own profile: leave --profile out")
