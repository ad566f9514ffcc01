"""Make tests/golden/tiny_control: a small bundle of random weights with two control networks.

    python -m tests.golden.make_control

Export it anew, and commit it, where bundle.json's schema or the export changed.
"""

import shutil
import tempfile
from pathlib import Path

from edgediff_export.export import Options, export

from benchmarks import sd15_shape
from tests.golden.make_bundle import SHAPE

OUT = Path(__file__).parent / "tiny_control"


def main() -> None:
    sd15_shape.SHAPES["tiny"] = SHAPE
    with tempfile.TemporaryDirectory() as folder:
        source = sd15_shape.write_pipeline(Path(folder) / "tiny", "tiny")
        networks = [
            f"{name}={sd15_shape.write_controlnet(Path(folder) / name, 'tiny', seed=seed)}"
            for seed, name in enumerate(("canny", "depth"), 1)
        ]
        shutil.rmtree(OUT, ignore_errors=True)
        options = Options(
            source=str(source),
            out=OUT,
            name="tiny_control",
            sampler="euler",
            steps=4,
            guidance_scale=5.0,
            controlnets=tuple(networks),
        )
        export(options)


if __name__ == "__main__":
    main()
