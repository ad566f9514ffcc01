"""optimum-onnx's ORTStableDiffusionPipeline on onnxruntime's CPU provider."""

from typing import Any

from lines import Draw, serve
from with_diffusers import drawing


def load(config: dict[str, Any]) -> Draw:
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    return drawing(ORTStableDiffusionPipeline.from_pretrained(config["model"]), config)


if __name__ == "__main__":
    serve(("torch", "transformers", "diffusers", "optimum.onnxruntime"), load)
