"""Control networks against diffusers' own pipelines: latents and pixels, end to end."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from edgediff_export.export import Options, export
from edgediff_export.source.original_names import controlnet_names
from PIL import Image
from safetensors.torch import load_file, save_file

import edgediff
from edgediff import Control
from edgediff.bundle.folder import read_fixtures
from edgediff.verification import verify

pytestmark = [  # of diffusers itself
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]

PROMPT = "a red fox, jumping over 2 lazy dogs"
NEGATIVE = "blurry, low quality"
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler.from_config,
    "euler": diffusers.EulerDiscreteScheduler.from_config,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler.from_config,
}


@pytest.fixture(scope="module")
def images() -> dict[str, Image.Image]:
    """Maps of other sizes and modes than the images that they steer."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    lines = Image.fromarray((rng.random((64, 64)) > 0.8).astype(np.uint8) * 255)
    return {"canny": coarse.resize((100, 70)), "depth": lines}


class Pair:
    """diffusers' pipelines with control networks and ours, of one shape."""

    def __init__(self, folders: Any) -> None:
        self._folders = folders
        self._loaded: dict[tuple[str, ...], Any] = {}
        self.ours = edgediff.load(folders.bundle, threads=1)

    def theirs(self, kind: str, *names: str) -> Any:
        """diffusers' pipeline of a class, with the networks of these names."""
        if (kind, *names) not in self._loaded:
            networks = [
                diffusers.ControlNetModel.from_pretrained(self._folders.controlnets[n])
                for n in names
            ]
            plain = {"add_watermarker": False} if "XL" in kind else {"safety_checker": None}
            pipe = getattr(diffusers, kind).from_pretrained(
                self._folders.diffusers,
                controlnet=networks if len(networks) > 1 else networks[0],
                local_files_only=True,
                **plain,
            )
            pipe.set_progress_bar_config(disable=True)
            self._loaded[kind, *names] = pipe
        return self._loaded[kind, *names]


@pytest.fixture(scope="module")
def pair(controlled: Callable[[str], Any]) -> Callable[[str], Pair]:
    """Shape → both, loaded once."""
    loaded: dict[str, Pair] = {}

    def load(shape: str) -> Pair:
        if shape not in loaded:
            loaded[shape] = Pair(controlled(shape))
        return loaded[shape]

    return load


def compare(
    pair: Pair,
    control: Mapping[str, Control],
    *,
    sampler: str = "ddim",
    steps: int = 3,
    guidance: float = 4.0,
    seed: int = 7,
    size: tuple[int, int] = (64, 64),
    negative: str | None = NEGATIVE,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
    strength: float | None = None,
) -> np.ndarray:
    """Both pipelines on the same request; returns our latents."""
    xl = "text_encoder_2" in pair.ours.bundle.manifest.graphs
    task = "" if image is None else "Img2Img" if mask is None else "Inpaint"
    kind = f"StableDiffusion{'XL' if xl else ''}ControlNet{task}Pipeline"
    theirs = pair.theirs(kind, *control)
    theirs.scheduler = SCHEDULERS[sampler](theirs.scheduler.config)
    each = {
        "image" if image is None else "control_image": [c.image for c in control.values()],
        "controlnet_conditioning_scale": [float(c.scale) for c in control.values()],
        "control_guidance_start": [c.start for c in control.values()],
        "control_guidance_end": [c.end for c in control.values()],
    }
    given = {"image": image, "mask_image": mask, "strength": strength}
    arguments = {
        "prompt": PROMPT,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "width": size[0],
        "height": size[1],
        **{k: v if len(v) > 1 else v[0] for k, v in each.items()},
        **{k: v for k, v in given.items() if v is not None},
    }
    options: dict[str, Any] = {
        "negative_prompt": negative,
        "steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "size": size,
        "sampler": sampler,
        "control": control,
        "init_image": image,
        "mask": mask,
        "strength": strength,
    }

    def run_theirs(output: str) -> Any:
        generator = torch.Generator("cpu").manual_seed(seed)
        return theirs(**arguments, generator=generator, output_type=output).images

    latents = list(pair.ours.stream(PROMPT, **options))[-1].latents
    expected = run_theirs("latent").numpy()
    assert latents.shape == expected.shape
    assert np.abs(latents - expected).max() <= 1e-3
    (made,) = pair.ours.generate(PROMPT, **options).images
    difference = np.asarray(made).astype(int) - np.asarray(run_theirs("pil")[0]).astype(int)
    assert np.abs(difference).max() <= 1
    return latents


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_one_network(
    pair: Callable[[str], Pair], images: Any, scale: float, guidance: float
) -> None:
    both = pair("sd1")
    control = {"canny": Control(images["canny"], scale=scale)}
    latents = compare(both, control, guidance=guidance)
    how = {"steps": 3, "guidance_scale": guidance, "seed": 7, "sampler": "ddim"}
    plain = list(both.ours.stream(PROMPT, negative_prompt=NEGATIVE, **how))[-1].latents
    assert (np.abs(plain - latents).max() > 0.01) == (scale > 0)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 1.0), (0.2, 0.8)])
def test_on_part_of_the_steps(
    pair: Callable[[str], Pair], images: Any, start: float, end: float
) -> None:
    control = {"depth": Control(images["depth"], scale=0.8, start=start, end=end)}
    compare(pair("sd1"), control, steps=5)


@pytest.fixture(scope="module")
def two(images: Any) -> dict[str, Control]:
    """Two networks on parts of the steps that overlap."""
    return {
        "canny": Control(images["canny"], scale=0.5, end=0.75),
        "depth": Control(images["depth"], scale=1.0, start=0.25),
    }


def test_two_networks_add_up(pair: Callable[[str], Pair], two: Any) -> None:
    compare(pair("sd1"), two, steps=4, sampler="dpmpp_2m")


@pytest.mark.parametrize("size", [(72, 104), (128, 64)])
def test_other_sizes(pair: Callable[[str], Pair], images: Any, size: tuple[int, int]) -> None:
    compare(pair("sd1"), {"canny": Control(images["canny"])}, steps=2, sampler="euler", size=size)


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps(pair: Callable[[str], Pair], images: Any, steps: int) -> None:
    compare(pair("sd1"), {"depth": Control(images["depth"])}, steps=steps)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (5, 0.8), (2, 1.0)])
def test_image_to_image(
    pair: Callable[[str], Pair], images: Any, sampler: str, steps: int, strength: float
) -> None:
    """A part of the steps is one of those that are taken."""
    control = {"canny": Control(images["canny"], scale=0.7, end=0.5)}
    image = images["canny"].resize((64, 64))
    compare(pair("sd1"), control, sampler=sampler, steps=steps, strength=strength, image=image)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting(pair: Callable[[str], Pair], images: Any, two: Any, strength: float) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 8, 48, 40))
    image = images["canny"].resize((64, 64))
    compare(pair("sd1"), two, steps=4, strength=strength, image=image, mask=mask)


@pytest.mark.slow
def test_inpainting_by_a_unet_of_nine_channels(pair: Callable[[str], Pair], two: Any) -> None:
    """The networks see the latents alone."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 8, 48, 40))
    image = Image.new("RGB", (64, 64), (200, 90, 40))
    compare(pair("inpaint"), two, steps=4, strength=1.0, image=image, mask=mask)


@pytest.mark.slow
def test_sdxl(pair: Callable[[str], Pair], two: Any) -> None:
    compare(pair("xl"), two, steps=4, sampler="euler")


@pytest.mark.slow
def test_a_unet_without_a_middle_block(pair: Callable[[str], Pair], images: Any) -> None:
    compare(pair("xl-pruned"), {"canny": Control(images["canny"])}, steps=2, sampler="euler")


@pytest.mark.slow
def test_sdxl_at_another_size(pair: Callable[[str], Pair], images: Any) -> None:
    control = {"canny": Control(images["canny"], scale=0.8)}
    compare(pair("xl"), control, steps=2, sampler="euler", size=(72, 104), negative=None)


ATTENTION_FREE = {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "small": ATTENTION_FREE,
    "bgr": {"controlnet_conditioning_channel_order": "bgr"},
    "pooled": {"global_pool_conditions": True},
    "file": {},
    "shuffle-file": {"global_pool_conditions": True},
    "bare": {**ATTENTION_FREE, "addition_embed_type": None},  # not even SDXL's sizes
}
"""Control network → the entries of its config; "file": ours is a single file without one."""


@pytest.fixture(scope="module")
def kinds(
    sd15_shape: Any, small_pipeline: Any, tmp_path_factory: Any
) -> Callable[[str, tuple[str, ...]], Pair]:
    """(shape, names of KINDS) → a bundle with control networks of all these kinds."""
    done: dict[str, Pair] = {}

    def export_with(shape: str, names: tuple[str, ...]) -> Pair:
        if shape not in done:
            folder = tmp_path_factory.mktemp("kinds")
            networks = {
                name: sd15_shape.write_controlnet(folder / name, shape, seed=seed, **KINDS[name])
                for seed, name in enumerate(names, 1)
            }
            ours = {
                name: original_file(path, folder / f"{name}.safetensors")
                if name.endswith("file")
                else path
                for name, path in networks.items()
            }
            options = Options(
                source=str(small_pipeline(shape)),
                out=folder / "bundle",
                steps=2,
                controlnets=tuple(f"{name}={path}" for name, path in ours.items()),
            )
            export(options)
            folders = SimpleNamespace(
                diffusers=small_pipeline(shape), bundle=options.out, controlnets=networks
            )
            done[shape] = Pair(folders)
        return done[shape]

    return export_with


def original_file(folder: Path, file: Path) -> Path:
    """A control network's folder as a file of the original code."""
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    layers = {name.rpartition(".")[0] for name in state}
    names = controlnet_names(layers)
    renamed = {}
    for name, tensor in state.items():
        layer, _, end = name.rpartition(".")
        renamed[f"control_model.{names[layer]}.{end}"] = tensor
    save_file(renamed, file)
    return file


OF_SD1 = ("plain", "small", "bgr", "pooled", "file", "shuffle-file")


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_SD1)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_kinds(kinds: Any, images: Any, name: str, guidance: float) -> None:
    """Also the rule that averaged residuals steer only the prompt's half of guidance."""
    both = kinds("sd1", OF_SD1)
    latents = compare(both, {name: Control(images["canny"], scale=0.9)}, guidance=guidance)
    how = {"steps": 3, "guidance_scale": guidance, "seed": 7, "sampler": "ddim"}
    plain = list(both.ours.stream(PROMPT, negative_prompt=NEGATIVE, **how))[-1].latents
    assert np.abs(plain - latents).max() > 0.01


def test_two_that_average(kinds: Any, images: Any) -> None:
    two = {
        "pooled": Control(images["canny"], scale=0.5),
        "shuffle-file": Control(images["depth"], start=0.25),
    }
    compare(kinds("sd1", OF_SD1), two, steps=4)


def test_inputs_that_tracing_dropped_are_not_fed(kinds: Any) -> None:
    """The text, by a network without attention; nor are they in the bundle's fixtures."""
    both = kinds("sd1", OF_SD1)
    manifest = both.ours.bundle.manifest
    assert manifest.controlnets["small"].graph.input("encoder_hidden_states") is None
    assert manifest.controlnets["plain"].graph.input("encoder_hidden_states") is not None
    fixtures = read_fixtures(both.ours.bundle)
    for stage, graph in manifest.graphs.items():
        names = {k.split("/")[3] for k in fixtures if k.startswith(f"{stage}/") and "/in/" in k}
        assert names == {i.name for i in graph.inputs}
    assert [c for c in verify(both.ours.bundle.root, provider="cpu").checks if not c.ok] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "bare", "file", "pooled"])
def test_kinds_for_sdxl(kinds: Any, images: Any, name: str) -> None:
    both = kinds("xl", ("small", "bare", "file", "pooled"))
    compare(both, {name: Control(images["canny"], scale=0.8)}, steps=2, sampler="euler")
    graph = both.ours.bundle.manifest.controlnets["bare"].graph
    assert [i.name for i in graph.inputs] == [
        *("sample", "timestep", "controlnet_cond", "conditioning_scale")
    ]


def test_a_map_is_prepared_as_in_diffusers(pair: Callable[[str], Pair], images: Any) -> None:
    """Resized by Lanczos, RGB, in [0, 1]: to the last bit."""
    theirs = pair("sd1").theirs("StableDiffusionControlNetPipeline", "canny")
    for image in images.values():
        processor = theirs.control_image_processor
        expected = processor.preprocess(image.convert("RGB"), height=88, width=56).numpy()
        np.testing.assert_array_equal(Control(image).pixels(56, 88), expected)
