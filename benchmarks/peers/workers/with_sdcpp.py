"""stable-diffusion.cpp through its Python bindings, on all cores (its default is half)."""

import os
import re
from typing import Any

from lines import Draw, serve


def load(config: dict[str, Any]) -> Draw:
    import stable_diffusion_cpp

    said: list[str] = []

    @stable_diffusion_cpp.sd_log_callback
    def note(_level: int, text: bytes, _data: Any) -> None:
        said.append(text.decode("utf-8", errors="replace"))

    pipe = stable_diffusion_cpp.StableDiffusion(
        model_path=f"{config['model']}/model.gguf",
        n_threads=os.cpu_count(),
        rng_type="cpu",  # torch's noise
        sampler_rng_type="cpu",
        vae_decode_only=True,
        verbose=False,
    )
    stable_diffusion_cpp.sd_set_log_callback(note, None)

    def draw() -> tuple[Any, dict[str, Any]]:
        said.clear()
        steps: list[float] = []

        def step(_step: int, _steps: int, seconds: float) -> None:
            steps.append(seconds)

        made = pipe.generate_image(
            prompt=config["prompt"],
            width=config["width"],
            height=config["height"],
            sample_steps=config["steps"],
            sample_method="euler",
            cfg_scale=1.0,
            seed=config["seed"],
            progress_callback=step,
        )
        return made[0], {
            "text_encoder": logged(said, "get_learned_condition completed"),
            "steps": steps[-config["steps"] :],
            "decoder": logged(said, "decode_first_stage completed"),
        }

    draw.keep = note  # type: ignore[attr-defined]  # C calls it: keep a reference
    return draw


def logged(said: list[str], what: str) -> float | None:
    """The seconds for `what` in the log."""
    found = re.search(rf"{what}, taking ([\d.]+)s", "".join(said))
    return float(found[1]) if found else None


if __name__ == "__main__":
    serve(("stable_diffusion_cpp",), load)
