"""A model's latent space, and the shapes of its latents."""

from dataclasses import dataclass
from typing import Literal

from edgediff.bundle.schema import require
from edgediff.errors import InputError

LatentType = Literal["image", "video", "audio"]

_SIZES = {
    "image": "(width, height) in pixels",
    "video": "(width, height) in pixels and a number of frames",
    "audio": "(samples,)",
}


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The latent space: samples = decode(latents / scaling_factor + shift_factor).

    type: the kind of sample. Latents are (channels, h, w) for an image, (channels, frames, h, w)
        for a video, (channels, t) for audio.
    downscale: pixels a side to a latent; for audio, samples to a latent.
    temporal_downscale: for a video, frames to a latent.
    causal: whether a video's first frame has its own latents, as in causal autoencoders.
    sample_rate: for audio, in Hz.

    Raises BundleError for values that are out of range or contradict each other."""

    type: LatentType = "image"
    channels: int
    downscale: int
    scaling_factor: float
    shift_factor: float = 0.0
    temporal_downscale: int = 1
    causal: bool = False
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        require(1 <= self.channels <= 4096, "latent: channels", self.channels, "from 1 to 4096")
        most = 65536 if self.type == "audio" else 64
        ok = 1 <= self.downscale <= most
        require(ok, "latent: downscale", self.downscale, f"from 1 to {most}")
        scale, shift = self.scaling_factor, self.shift_factor
        require(1e-6 <= scale <= 1e6, "latent: scaling_factor", scale, "from 1e-6 to 1e6")
        require(abs(shift) <= 1e6, "latent: shift_factor", shift, "from -1e6 to 1e6")
        video = self.type == "video"
        frames = self.temporal_downscale
        ok = 1 <= frames <= (64 if video else 1)
        require(ok, "latent: temporal_downscale", frames, "from 1 to 64 for a video, or 1")
        require(video or not self.causal, "latent: causal", self.causal, "false unless a video")
        rate = self.sample_rate
        ok = rate is not None and rate >= 1 if self.type == "audio" else rate is None
        require(ok, "latent: sample_rate", rate, "1 or more for audio, or null")

    def shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of latents, without a batch: (c, h, w), (c, frames, h, w) or (c, t).

        size: (width, height) in pixels for an image, (width, height, frames) for a video,
        (samples,) for audio. Raises InputError for a size that is not a whole number of latents."""
        rank = {"image": 2, "video": 3, "audio": 1}[self.type]
        if len(size) != rank or min(size) < 1:
            raise InputError(
                f"the size of the {self.type} is {size}: expected {_SIZES[self.type]}, each 1 or"
                " more"
            )
        if self.type == "audio":
            return (self.channels, _whole(size[0], self.downscale, "samples"))
        width, height = (_whole(side, self.downscale, "pixels") for side in size[:2])
        if self.type == "image":
            return (self.channels, height, width)
        apart = 1 if self.causal else 0
        latents = _whole(size[2] - apart, self.temporal_downscale, "frames", apart) + apart
        return (self.channels, latents, height, width)

    def size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `shape`: the size of the sample that latents of shape (..., h, w),
        (..., frames, h, w) or (..., t) decode to. Leading dimensions are ignored."""
        if self.type == "audio":
            return (shape[-1] * self.downscale,)
        height, width = (side * self.downscale for side in shape[-2:])
        if self.type == "image":
            return (width, height)
        apart = 1 if self.causal else 0
        return (width, height, (shape[-3] - apart) * self.temporal_downscale + apart)


def _whole(length: int, unit: int, of: str, apart: int = 0) -> int:
    """The number of latents in a length. apart: the length already taken off."""
    if length % unit:
        first = f"1 and a multiple of {unit}" if apart else f"a multiple of {unit}"
        raise InputError(f"{length + apart} {of} are not whole latents: expected {first}")
    return length // unit
