"""Make tests/golden/format1: a bundle in version 1 of the format, and an image drawn from it.

    python -m tests.golden.make_format1

Run it with a commit whose FORMAT_VERSION is 1: later ones write a later version, and refuse.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edgediff
from edgediff.bundle.manifest import FORMAT_VERSION

OUT = Path(__file__).parent / "format1"
IMAGE = Path(__file__).parent / "format1.npy"
PROMPT, SEED = "a red fox", 7


def main() -> None:
    """Export the bundle, and draw the image."""
    from edgediff_export.export import Options, export

    from benchmarks import sd15_shape

    if FORMAT_VERSION != 1:
        raise SystemExit(f"this edgediff writes format {FORMAT_VERSION}: check out an older commit")
    sd15_shape.SHAPES["format1"] = _shape(sd15_shape.SHAPES["sd1"])
    with tempfile.TemporaryDirectory() as folder:
        network = sd15_shape.write_controlnet(Path(folder) / "canny", "format1", seed=1)
        shutil.rmtree(OUT, ignore_errors=True)
        options = Options(
            source=str(sd15_shape.write_pipeline(Path(folder) / "format1", "format1")),
            out=OUT,
            name="format1",
            sampler="euler",
            steps=2,
            guidance_scale=5.0,
            with_encoder=True,
            controlnets=(f"canny={network}",),
        )
        export(options)
    with edgediff.load(OUT, provider="cpu") as pipe:
        np.save(IMAGE, np.asarray(pipe.generate(PROMPT, seed=SEED).images[0]))


def _shape(small: Any) -> Any:
    """Smaller still than the smallest of the tests."""
    return replace(
        small,
        unet={
            **small.unet,
            "layers_per_block": 1,
            "block_out_channels": (4, 8),
            "cross_attention_dim": 8,
            "norm_num_groups": 2,
            "sample_size": 4,
        },
        text={
            **small.text,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
        },
        vae={
            **small.vae,
            "block_out_channels": (4, 4, 8, 8),
            "norm_num_groups": 2,
            "sample_size": 32,
        },
    )


if __name__ == "__main__":
    main()
