"""OpenVINO GenAI with fixed shapes and cached models, as its guide advises."""

from typing import Any

from lines import Draw, serve

_MICROSECONDS = 1e-6
_MILLISECONDS = 1e-3


def load(config: dict[str, Any]) -> Draw:
    import openvino_genai as genai

    pipe = genai.Text2ImagePipeline(config["model"])
    pipe.set_scheduler(
        genai.Scheduler.from_config(
            f"{config['model']}/scheduler/scheduler_config.json",
            genai.Scheduler.Type.EULER_DISCRETE,
        )
    )
    pipe.reshape(1, config["height"], config["width"], 1.0)
    pipe.compile("CPU", CACHE_DIR=config["cache"])

    def draw() -> tuple[Any, dict[str, Any]]:
        made = pipe.generate(
            config["prompt"],
            width=config["width"],
            height=config["height"],
            num_inference_steps=config["steps"],
            guidance_scale=1.0,
            rng_seed=config["seed"],
        )
        return made.data[0], stages(pipe.get_performance_metrics())

    return draw


def stages(metrics: Any) -> dict[str, Any]:
    """The pipeline's own metrics of the last call."""
    text = sum(metrics.get_text_encoder_infer_duration().values())
    return {
        "text_encoder": text * _MILLISECONDS,
        "steps": [s * _MICROSECONDS for s in metrics.raw_metrics.unet_inference_durations],
        "decoder": metrics.get_vae_decoder_infer_duration() * _MILLISECONDS,
    }


def to_pil(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


if __name__ == "__main__":
    serve(("openvino_genai",), load, to_pil)
