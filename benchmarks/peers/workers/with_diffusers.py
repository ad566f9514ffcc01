"""diffusers on torch, in the configured dtype."""

from typing import Any

from lines import Draw, Stopwatch, serve


def load(config: dict[str, Any]) -> Draw:
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        config["model"], torch_dtype=getattr(torch, config["dtype"])
    )
    return drawing(pipe, config)


def drawing(pipe: Any, config: dict[str, Any]) -> Draw:
    """Generate with a pipeline that has diffusers' interface; stages are timed from outside."""
    import torch
    from diffusers import EulerDiscreteScheduler

    # Explicit, because exporters write the default of PNDM.
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace"
    )
    pipe.set_progress_bar_config(disable=True)
    watch = Stopwatch()
    pipe.text_encoder.forward = watch.around("text_encoder", pipe.text_encoder.forward)
    pipe.unet.forward = watch.around("unet", pipe.unet.forward)
    pipe.vae.decode = watch.around("decoder", pipe.vae.decode)

    def draw() -> tuple[Any, dict[str, Any]]:
        made = pipe(
            config["prompt"],
            width=config["width"],
            height=config["height"],
            num_inference_steps=config["steps"],
            guidance_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(config["seed"]),
        )
        return made.images[0], watch.take()

    return draw


if __name__ == "__main__":
    serve(("torch", "transformers", "diffusers"), load)
