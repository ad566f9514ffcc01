"""A pipeline whose VAE a tiny one replaces, against diffusers' pipeline with the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from edgediff_export.export import Options, export
from PIL import Image

import edgediff

pytestmark = [
    pytest.mark.slow,
    # Of diffusers itself.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]


@pytest.mark.parametrize(("shape", "name"), [("sd1", "taesd"), ("xl", "taesdxl")])
def test_text_and_image_to_image(
    shape: str, name: str, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    vae.save_pretrained(tmp_path / name)
    made = export(
        Options(
            source=str(small_pipeline(shape)),
            out=tmp_path / "out",
            vae=tmp_path / name,
            with_encoder=True,
            steps=2,
        )
    )
    provenance = made.manifest.provenance
    assert provenance.attribution == (f"VAE: madebyollin/{name} by Ollin Boer Bohan, MIT",)
    assert provenance.source == f"{shape} with the VAE {name}"
    assert (made.manifest.latent.scaling_factor, made.manifest.latent.downscale) == (1.0, 8)

    def theirs(cls: Any, **options: Any) -> Any:
        kwargs = {"safety_checker": None} if shape == "sd1" else {"add_watermarker": False}
        pipe = cls.from_pretrained(small_pipeline(shape), vae=vae, local_files_only=True, **kwargs)
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator("cpu").manual_seed(3)
        made = pipe(
            "a red fox", generator=generator, guidance_scale=5.0, output_type="pil", **options
        )
        return np.asarray(made.images[0]).astype(int)

    xl = "XL" if shape == "xl" else ""
    rng = np.random.default_rng(1)
    photo = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with edgediff.load(made.root, threads=1) as pipe:
        options: dict[str, Any] = {
            "seed": 3,
            "guidance_scale": 5.0,
            "size": (64, 64),
            "sampler": "euler",
        }
        image = pipe.generate("a red fox", steps=2, **options).images[0]
        expected = theirs(
            getattr(diffusers, f"StableDiffusion{xl}Pipeline"),
            num_inference_steps=2,
            width=64,
            height=64,
        )
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1
        image = pipe.generate(
            "a red fox", steps=4, init_image=photo, strength=0.5, **options
        ).images[0]
        expected = theirs(
            getattr(diffusers, f"StableDiffusion{xl}Img2ImgPipeline"),
            image=photo,
            num_inference_steps=4,
            strength=0.5,
        )
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1
        assert np.asarray(image).std() > 1
