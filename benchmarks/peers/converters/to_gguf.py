"""SOURCE OUT TYPE: a diffusers folder or a GGUF file → OUT/model.gguf, by the converter of
stable-diffusion.cpp."""

import sys
from pathlib import Path

from stable_diffusion_cpp import StableDiffusion


def main(source: str, out: str, kind: str) -> None:
    Path(out).mkdir()
    model = Path(out) / "model.gguf"
    StableDiffusion().convert(input_path=source, output_path=str(model), output_type=kind)
    if not model.exists():
        sys.exit(f"{source}: stable-diffusion.cpp did not write a {kind} model")


if __name__ == "__main__":
    main(*sys.argv[1:])
