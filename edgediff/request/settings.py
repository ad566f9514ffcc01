"""The settings of a call of `generate`: its options, with every default filled in."""

from dataclasses import dataclass

from edgediff.request.control import ControlSettings
from edgediff.request.hires import Mode
from edgediff.request.init_image import ImageRecord
from edgediff.sampling.guidance import Guidance
from edgediff.sampling.sigmas import Spacing


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines an image, except its seed; every default has been filled in.

    It goes into the image's PNG as JSON, and is read back by name: a field has the name of its
    option (width and height: size), and a new one a default, None or what is off, which is how an
    older image is read. An image that was given is recorded as {"name": …, "sha256": …}."""

    prompt: str
    negative_prompt: str | None
    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    model: str
    bundle: str
    provider: str
    spacing: Spacing | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    variation_seed: int | None = None
    variation_strength: float = 0.0
    prompt_weights: bool = False
    long_prompts: bool = False
    clip_skip: int | None = None
    control: tuple[ControlSettings, ...] | None = None
    init_image: ImageRecord | None = None
    strength: float | None = None
    mask: ImageRecord | None = None
    keep_unmasked: bool = False
    hires: float | None = None
    hires_strength: float | None = None
    hires_steps: int | None = None
    hires_mode: Mode | None = None

    def guidance(self, embedding_dim: int | None) -> Guidance:
        """The guidance of this call. embedding_dim: see `Guidance`."""
        return Guidance(
            scale=self.guidance_scale,
            rescale=self.guidance_rescale,
            interval=self.guidance_interval,
            embedding_dim=embedding_dim,
        )
