"""A checkpoint of a whole pipeline in one safetensors file."""

from pathlib import Path

from edgediff.errors import ExportError, first_line
from edgediff_export.quiet import quiet
from edgediff_export.source.families import SUPPORTED
from edgediff_export.source.safetensors_file import PICKLES, tensor_names


def unpack(path: Path, folder: Path) -> Path:
    """A single-file checkpoint → a diffusers folder. The configs that it lacks are diffusers' own,
    from the hub or from the hub's local cache. Raises ExportError."""
    if path.suffix in PICKLES:
        raise ExportError(
            f"{path}: a pickle, which can run any code when it is read; edgediff reads safetensors"
            " only: where you trust it, convert it with"
            f' StableDiffusionPipeline.from_single_file("{path.name}").save_pretrained(folder)'
        )
    if path.suffix != ".safetensors":
        raise ExportError(f"{path}: give a .safetensors file, a diffusers folder or a hub id")
    with quiet():
        import diffusers

        # diffusers finds the rest out by itself, but not the pipeline.
        xl = "conditioner.embedders.1.model.ln_final.weight" in tensor_names(path)
        cls = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
        try:
            pipeline = cls.from_single_file(path)
        except Exception as e:  # diffusers raises anything for a file of another kind
            raise ExportError(f"{path}: cannot be loaded ({first_line(e)}); {SUPPORTED}") from e
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
