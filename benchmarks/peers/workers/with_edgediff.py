"""edgediff as in an app: `edgediff.load(BUNDLE)`, with hashes compared."""

from typing import Any

from lines import Draw, serve


def load(config: dict[str, Any]) -> Draw:
    import edgediff

    pipe = edgediff.load(
        config["model"], provider=config["provider"], cache_dir=config.get("cache")
    )

    def draw() -> tuple[Any, dict[str, Any]]:
        made = pipe.generate(
            config["prompt"],
            size=(config["width"], config["height"]),
            steps=config["steps"],
            sampler="euler",
            guidance_scale=1.0,
            seed=config["seed"],
        )
        timings = made.timings
        return made.images[0], {
            "text_encoder": timings.stages["text_encoder"],
            "steps": list(timings.steps),
            "decoder": timings.stages["decoder"],
        }

    return draw


if __name__ == "__main__":
    serve(("edgediff", "edgediff.pipeline"), load)
