"""Models that were distilled to a few steps. Their weights come without the settings they need, so
these are read from the names that the files go by."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgediff.sampling.schedule import PredictionType, TimestepSpacing

_STEPS_IN_NAME = re.compile(r"([1-9]\d?)[ _-]?steps?(?![a-z])", re.IGNORECASE)
_STEPS = 4
# "hyper" begins other words, such as hyperrealism and hyper-real.
_HYPER = r"hyper(?:[ _-]?(?:sd|xl|lora|unet|vae|cfg|baked|v?\d)|[ _.-]*$)"
_ONE_STEP = r"(?<![a-z\d])1[ _-]?step"


@dataclass(frozen=True, kw_only=True)
class FewSteps:
    """How a few-step model is to be sampled.

    scheduler: the diffusers class that it was published with; None keeps the pipeline's.
    spacing, prediction_type: None keeps the pipeline's.
    starts: number of steps → the timesteps that so many are taken at, if they are not those of the
        scheduler; see `timesteps`.
    always: whether this holds whatever the config at hand says."""

    label: str
    steps: int = _STEPS
    guidance_scale: float | None = 0.0
    scheduler: str | None = None
    spacing: TimestepSpacing | None = "trailing"
    prediction_type: PredictionType | None = None
    starts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    always: bool = False

    @property
    def timesteps(self) -> tuple[int, ...] | None:
        """The timesteps that the model card asks for; None for the scheduler's own."""
        return self.starts.get(self.steps)


def _word(pattern: str) -> re.Pattern[str]:
    """A word in a name, whose words may run into capitals or digits."""
    return re.compile(rf"(?<![a-z])(?:{pattern})(?![a-z])", re.IGNORECASE)


_RULES: Sequence[tuple[re.Pattern[str], FewSteps]] = (
    # Yin et al. 2024, arXiv:2405.14867.
    (
        _word("dmd2?"),
        FewSteps(
            label="DMD2",
            scheduler="LCMScheduler",
            spacing=None,
            starts={1: (399,), 4: (999, 749, 499, 249)},
        ),
    ),
    # Wang et al. 2024, arXiv:2405.18407; those with "normalcfg" keep guidance.
    (
        _word("pcm[ _-].*lcmlike|pcm.*lcm[ _-]?like"),
        FewSteps(label="PCM", scheduler="LCMScheduler", spacing=None),
    ),
    (
        _word("pcm[ _-].*normal[ _-]?cfg"),
        FewSteps(label="PCM", scheduler="DDIMScheduler", guidance_scale=7.5),
    ),
    (_word("pcm"), FewSteps(label="PCM", scheduler="DDIMScheduler")),
    # Zheng et al. 2024, arXiv:2402.19159.
    (_word("tcd"), FewSteps(label="TCD", scheduler="TCDScheduler", spacing=None)),
    # Song et al. 2024, arXiv:2403.16627.
    (_word("sdxs"), FewSteps(label="SDXS", steps=1, always=True)),
    # Lin et al. 2024, arXiv:2402.13929.
    (re.compile("lightning", re.IGNORECASE), FewSteps(label="Lightning", always=True)),
    # Ren et al. 2024, arXiv:2404.13686; those with "CFG" keep guidance. The one-step UNet starts at
    # timestep 800; the LoRA of that name is for one step and more.
    (
        re.compile(rf"{_HYPER}.*cfg", re.IGNORECASE),
        FewSteps(
            label="Hyper-SD",
            steps=8,
            guidance_scale=None,
            scheduler="DDIMScheduler",
            always=True,
        ),
    ),
    (
        re.compile(rf"(?=.*{_ONE_STEP})(?=.*lora).*{_HYPER}", re.IGNORECASE),
        FewSteps(label="Hyper-SD", scheduler="TCDScheduler", always=True),
    ),
    (
        re.compile(rf"(?=.*{_ONE_STEP}).*{_HYPER}", re.IGNORECASE),
        FewSteps(
            label="Hyper-SD",
            scheduler="LCMScheduler",
            spacing=None,
            starts={1: (800,)},
            always=True,
        ),
    ),
    (
        re.compile(_HYPER, re.IGNORECASE),
        FewSteps(label="Hyper-SD", scheduler="DDIMScheduler", always=True),
    ),
    # Chadebec et al. 2024, arXiv:2406.02347.
    (
        re.compile(r"flash[ _-]?(?:sd|pixart)", re.IGNORECASE),
        FewSteps(label="Flash Diffusion", scheduler="LCMScheduler", spacing=None),
    ),
    # Luo et al. 2023, arXiv:2310.04378 and 2311.05556.
    (
        _word("lcm"),
        FewSteps(label="LCM", scheduler="LCMScheduler", guidance_scale=1.0, spacing=None),
    ),
    # Sauer et al. 2023, arXiv:2311.17042.
    (re.compile("turbo", re.IGNORECASE), FewSteps(label="Turbo")),
)


_UNKNOWN = _word(
    r"perflow|instaflow|tdd|vegart|nitro[ _-]?(?:sd|fusion)|sd[\w.]*[ _-]nitro"
    r"|sd[ _-]?xl[ _-]?flash"
)
"""Families of few-step models without a rule here."""


def unknown_few_steps(names: Sequence[str]) -> str | None:
    """The first name that is one of a few-step model whose settings are not known here."""
    return next((name for name in names if _UNKNOWN.search(name)), None)


# LoRAs are named after things, and "turbo" and "lightning" are words for such.
_WORD_OF_LORAS: Mapping[str, re.Pattern[str]] = {
    label: re.compile(rf"(?:(?<![a-z])|(?<=xl)|(?<=lcm))(?i:{label})(?![a-z])")
    for label in ("Lightning", "Turbo")
}
_COMPANION = re.compile(
    r"(?<![a-z])sd(?:[ _-]?xl|[ _-]?v?[123](?!\d)|[ _-]?v?1[._]?5|(?![a-z\d]))"
    rf"|lcm|{_STEPS_IN_NAME.pattern}",
    re.IGNORECASE,
)
"""Beside such a word: the family that it was distilled from, LCM, or a number of steps."""


def find_few_steps(names: Sequence[str], *, lora: bool = False) -> tuple[str, FewSteps] | None:
    """The first name that says so → it, and how to sample; None for other models.

    lora: whether the names are a LoRA's."""
    for name in names:
        for pattern, rule in _RULES:
            word = _WORD_OF_LORAS.get(rule.label) if lora else None
            if word is not None and not (word.search(name) and _COMPANION.search(name)):
                continue
            if pattern.search(name):
                return name, _fitted(rule, name, names)
    return None


def _fitted(rule: FewSteps, name: str, names: Sequence[str]) -> FewSteps:
    """With the number of steps that the name says, or another of the names."""
    found = next((m for n in (name, *names) if (m := _STEPS_IN_NAME.search(n))), None)
    steps = rule.steps if found is None else int(found[1])
    if rule.label == "Lightning" and steps == 1:
        return replace(rule, steps=1, prediction_type="sample")
    return replace(rule, steps=steps)
