"""SOURCE OUT: a diffusers folder → OpenVINO's, weights in float16, by optimum-intel's exporter."""

import sys
from pathlib import Path

from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig


def main(source: str, out: str) -> None:
    main_export(
        source,
        output=Path(out),
        task="text-to-image",
        ov_config=OVConfig(dtype="fp16"),
        convert_tokenizer=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
