"""SOURCE OUT: optimum's float32 graphs → int8, by onnxruntime's `quantize_dynamic` defaults."""

import shutil
import sys
from pathlib import Path

from onnxruntime.quantization import quantize_dynamic


def main(source: str, out: str) -> None:
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.onnx", "*.onnx_data"))
    for graph in sorted(Path(source).glob("*/*.onnx")):
        quantize_dynamic(
            graph, Path(out) / graph.relative_to(source), use_external_data_format=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
