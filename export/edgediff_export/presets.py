"""Presets: how an export trades quality for time on small devices, in one word."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PresetName = Literal["fast", "balanced", "quality"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The choices of a preset if no flag makes them; weights of few steps keep their own steps and
    sampler.

    tiny_vae: whether a tiny autoencoder replaces the pipeline's own.
    average_attention: whether keys and values are averaged, on CPUs in int8."""

    steps: int
    sampler: str
    tiny_vae: bool
    average_attention: bool


PRESETS: Mapping[PresetName, Preset] = {
    "fast": Preset(steps=8, sampler="dpmpp_2m_karras", tiny_vae=True, average_attention=True),
    "balanced": Preset(steps=15, sampler="dpmpp_2m_karras", tiny_vae=True, average_attention=False),
    "quality": Preset(steps=25, sampler="dpmpp_2m_karras", tiny_vae=False, average_attention=False),
}
"""All are exported in int8, or in fp16 for GPUs."""
