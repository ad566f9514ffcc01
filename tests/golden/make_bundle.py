"""Make tests/golden/tiny: a small bundle of random weights for the torch-free tests.

    python -m tests.golden.make_bundle

Export it anew, and commit it, where bundle.json's schema or the export changed.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from edgediff_export.export import Options, export

from benchmarks import sd15_shape

OUT = Path(__file__).parent / "tiny"
SHAPE = replace(
    sd15_shape.SHAPES["tiny-vae"],
    unet={
        **sd15_shape.SHAPES["sd1"].unet,
        "block_out_channels": (8, 16),
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
    },
    text={
        **sd15_shape.SHAPES["sd1"].text,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
    },
    vae={"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
)


def main() -> None:
    sd15_shape.SHAPES["tiny"] = SHAPE
    with tempfile.TemporaryDirectory() as folder:
        source = sd15_shape.write_pipeline(Path(folder) / "tiny", "tiny")
        shutil.rmtree(OUT, ignore_errors=True)
        options = Options(
            source=str(source),
            out=OUT,
            name="tiny",
            sampler="euler",
            steps=4,
            guidance_scale=5.0,
            with_encoder=True,
        )
        export(options)


if __name__ == "__main__":
    main()
