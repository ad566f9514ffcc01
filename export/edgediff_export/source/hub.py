"""Downloads from the Hugging Face hub."""

import re
from pathlib import Path

from edgediff.errors import ExportError, first_line
from edgediff_export.quiet import quiet


def is_hub_id(text: str) -> bool:
    """Whether a text may be a hub id, "owner/name"."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not Path(text).is_absolute()


def download_pipeline(hub_id: str) -> Path:
    """The folder of a downloaded pipeline. Raises ExportError."""
    with quiet():
        from diffusers import DiffusionPipeline

        try:
            # What is passed is not downloaded: the safety checker is larger than some UNets.
            folder = DiffusionPipeline.download(
                hub_id, use_safetensors=True, safety_checker=None, feature_extractor=None
            )
        except Exception as e:  # the hub's client raises a dozen unrelated classes
            raise ExportError(
                f"{hub_id}: neither a folder here nor to be had from the hub ({first_line(e)}):"
                " check the name and the connection, or give a local diffusers folder"
            ) from e
    return Path(folder)


def download_component(hub_id: str, *, flag: str) -> Path:
    """The folder of a downloaded network of one component. flag: the option that asks for it.

    Raises ExportError."""
    with quiet():
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(
                    hub_id,
                    allow_patterns=["config.json", "README.md", "diffusion_pytorch_model*"],
                    ignore_patterns=["*.bin", "*.msgpack", "*.h5"],
                )
            )
        except Exception as e:  # the hub's client raises a dozen unrelated classes
            raise ExportError(
                f"{flag} {hub_id}: neither a folder here nor to be had from the hub"
                f" ({first_line(e)}): check the name and the connection, or give a local folder"
            ) from e
