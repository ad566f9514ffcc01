"""Models of few steps, by the names of what is published, and how their authors sample them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgediff_export.export import _open
from edgediff_export.options import Options
from edgediff_export.source.few_steps import find_few_steps, unknown_few_steps
from edgediff_export.source.lora import Lora, Matched
from edgediff_export.source.scheduler import adapt, choose_sampling, read_schedule, reasons
from safetensors.torch import load_file, save_file

from edgediff.sampling.plan import make_plan

EULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
}


@pytest.mark.parametrize(
    ("name", "label", "sampling", "spacing"),
    [
        ("sdxl_lightning_8step_unet", "Lightning", ("euler", 8, 0.0), "trailing"),
        ("realvisxlV50_v50LightningBakedvae", "Lightning", ("euler", 4, 0.0), "trailing"),
        ("sd_xl_turbo_1.0_fp16", "Turbo", ("euler", 4, 0.0), "trailing"),
        ("Hyper-SDXL-8steps-lora", "Hyper-SD", ("ddim", 8, 0.0), "trailing"),
        ("Hyper-SDXL-12steps-CFG-lora", "Hyper-SD", ("ddim", 12, 5.0), "trailing"),
        ("Hyper-SDXL-1step-lora", "Hyper-SD", ("tcd", 1, 0.0), "trailing"),
        ("Hyper-SD15-1step-lora", "Hyper-SD", ("tcd", 1, 0.0), "trailing"),
        ("Hyper-SDXL-1step-Unet-Comfyui.fp16", "Hyper-SD", ("lcm", 1, 0.0), "leading"),
        ("Hyper-SD15-1step", "Hyper-SD", ("lcm", 1, 0.0), "leading"),
        ("juggernautXL_v9Rdphoto2Hyper", "Hyper-SD", ("ddim", 4, 0.0), "trailing"),
        ("realisticVisionV60B1_v51HyperVAE", "Hyper-SD", ("ddim", 4, 0.0), "trailing"),
        ("dmd2_sdxl_1step_unet_fp16", "DMD2", ("lcm", 1, 0.0), "leading"),
        ("pcm_sd15_smallcfg_4step_converted", "PCM", ("ddim", 4, 0.0), "trailing"),
        ("dmd2_sdxl_4step_unet_fp16", "DMD2", ("lcm", 4, 0.0), "leading"),
        ("pcm_sdxl_smallcfg_2step_converted", "PCM", ("ddim", 2, 0.0), "trailing"),
        ("pcm_sdxl_normalcfg_8step_converted", "PCM", ("ddim", 8, 7.5), "trailing"),
        ("pcm_sdxl_lcmlike_lora_converted", "PCM", ("lcm", 4, 0.0), "leading"),
        ("h1t/TCD-SDXL-LoRA", "TCD", ("tcd", 4, 0.0), "leading"),
        ("IDKiro/sdxs-512-dreamshaper", "SDXS", ("euler", 1, 0.0), "trailing"),
        ("latent-consistency/lcm-lora-sdxl", "LCM", ("lcm", 4, 1.0), "leading"),
        ("jasperai/flash-sdxl", "Flash Diffusion", ("lcm", 4, 0.0), "leading"),
    ],
)
def test_weights_without_a_config_follow_their_names(
    name: str, label: str, sampling: tuple[str, int, float], spacing: str
) -> None:
    found = find_few_steps([name])
    assert found is not None
    assert found[1].label == label
    adapted = adapt(EULER, name=name, timestep_spacing=None, prediction_type=None, bare=True)
    assert adapted["timestep_spacing"] == spacing
    read_schedule(adapted)
    chosen = choose_sampling(adapted, name=name, guidance_embedding=False, xl=True)
    assert (chosen.sampler, chosen.steps, chosen.guidance_scale) == sampling
    (why,) = reasons(adapted, [name], embedding=False)
    plural = "" if sampling[1] == 1 else "s"
    assert f"the name {name!r} says {label}: {sampling[1]} step{plural} of {sampling[0]}" in why


@pytest.mark.parametrize(
    "name",
    [
        *("stable-diffusion-v1-5", "hyperrealism", "lcmx", "footsteps", "dreamshaper_8", "tcdream"),
        *("alcm", "sdxl-base", "pcmcia", "hyper-realism-v2", "hyperreal_1step"),
    ],
)
def test_other_names(name: str) -> None:
    assert find_few_steps([name]) is None
    assert reasons(EULER, [name], embedding=False) == ()


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("dmd2_sdxl_4step_lora", [999, 749, 499, 249]),
        ("dmd2_sdxl_1step_unet_fp16", [399]),
        ("Hyper-SDXL-1step-Unet", [800]),
        ("Hyper-SDXL-1step-lora", [999]),
    ],
)
def test_some_are_sampled_at_timesteps_of_their_own(name: str, timesteps: list[int]) -> None:
    """Those of their model cards; with other numbers of steps, the scheduler's."""
    adapted = adapt(EULER, name=name, timestep_spacing=None, prediction_type=None, bare=True)
    schedule = read_schedule(adapted)
    chosen = choose_sampling(adapted, name=name, guidance_embedding=False)
    assert chosen.steps == len(timesteps)
    plan = make_plan(schedule, chosen.sampler, chosen.steps)
    assert [step.timestep for step in plan.steps] == timesteps
    assert [step.timestep for step in make_plan(schedule, "lcm", 2).steps] == [999, 499]
    (why,) = reasons(adapted, [name], embedding=False)
    assert (f" from timestep {timesteps[0]}, guidance 0" in why) == ("timesteps" in adapted)


def test_a_folder_with_weights_that_start_elsewhere() -> None:
    """No config of a scheduler says so, and so the name counts."""
    name = "Hyper-SDXL-1step"
    adapted = adapt(EULER, name=name, timestep_spacing=None, prediction_type=None)
    assert read_schedule(adapted).timesteps == (800,)
    chosen = choose_sampling(adapted, name=name, guidance_embedding=False)
    assert (chosen.sampler, chosen.steps) == ("lcm", 1)


@pytest.mark.parametrize(
    ("name", "steps"), [("sdxs-512-0.9", 1), ("sdxl-lightning-8step", 8), ("Hyper-SDXL-2steps", 2)]
)
def test_a_folder_whose_name_counts_whatever_its_config_says(name: str, steps: int) -> None:
    """The pipeline's own scheduler stays, with the spacing that the weights need."""
    adapted = adapt(EULER, name=name, timestep_spacing=None, prediction_type=None)
    assert adapted == {**EULER, "timestep_spacing": "trailing"}
    chosen = choose_sampling(adapted, name=name, guidance_embedding=False)
    assert (chosen.sampler, chosen.steps, chosen.guidance_scale) == ("euler", steps, 0.0)
    (why,) = reasons(adapted, [name], embedding=False)
    assert why.startswith(f"few steps: the name {name!r} says ")


@pytest.mark.parametrize("name", ["Hyper-SDXL-8steps-lora", "pcm_sdxl_smallcfg_2step_converted"])
def test_x0_is_not_clipped_by_a_scheduler_that_the_pipeline_did_not_have(name: str) -> None:
    """DDIMScheduler clips by default, which is for pixels."""
    adapted = adapt(EULER, name=name, timestep_spacing=None, prediction_type=None, bare=True)
    assert read_schedule(adapted).clip_sample is False


def test_a_folder_has_a_config_of_its_own() -> None:
    """Its scheduler stays, and a name such as Turbo counts only with trailing timesteps."""
    for name in ("dmd2", "my-lcm-merge", "turbo"):
        adapted = adapt(EULER, name=name, timestep_spacing=None, prediction_type=None)
        assert adapted == EULER
        chosen = choose_sampling(adapted, name=name, guidance_embedding=False)
        assert (chosen.steps, chosen.guidance_scale) == (20, 7.5)
        (why,) = reasons(adapted, [name], embedding=False)
        assert "sampled as the config says" in why


def test_a_unet_that_takes_the_guidance_scale_is_sampled_with_lcm() -> None:
    adapted = adapt(
        EULER, name="unet", timestep_spacing=None, prediction_type=None, guidance_embedding=True
    )
    assert adapted["_class_name"] == "LCMScheduler"
    chosen = choose_sampling(adapted, name="unet", guidance_embedding=True)
    assert (chosen.sampler, chosen.steps, chosen.guidance_scale) == ("lcm", 4, 8.5)
    assert "time_cond_proj_dim" in reasons(adapted, ["unet"], embedding=True)[0]


@pytest.mark.parametrize(
    "name",
    [
        *("hansyan/perflow-sd15-dreamshaper", "sdxl_tdd_lora_weights", "Segmind-VegaRT"),
        *("nitrosd-realism_unet", "SD2.1-Nitro", "sd-community/sdxl-flash", "instaflow_0_9B"),
    ],
)
def test_a_few_step_family_without_a_rule_is_noted(name: str) -> None:
    assert find_few_steps([name]) is None
    (why,) = reasons(EULER, ["m", name], embedding=False)
    assert f"the name {name!r} is that of a few-step model" in why
    assert "`--steps`" in why


def _few_steps(name: str, scale: float = 1.0) -> bool:
    lora = Lora(path=Path(f"{name}.safetensors"), scale=scale)
    return Matched(lora=lora, changes={}, names=(name,)).few_steps


@pytest.mark.parametrize(
    "name",
    [
        *("thunder_lightning_effect_style", "turbocharged_car", "turbo kid"),
        *("Lightning McQueen LoRA", "Turbocharged SDXL", "lightningbolt_sd15", "usdx turbo"),
    ],
)
def test_ordinary_words_in_the_name_of_a_lora(name: str) -> None:
    assert not _few_steps(name)
    assert unknown_few_steps([name]) is None


@pytest.mark.parametrize(
    "name",
    [
        *("sdxl_lightning_4step_lora", "ByteDance/SDXL-Lightning", "sd_xl_turbo_lora_v1"),
        *("SDXLTurbo_lora", "lightning 8 steps", "sd15_turbo", "sd-turbo", "turbo-sd1.5"),
        *("LCMTurboMix_Euler_A", "lcm-lora-sdv1-5", "Hyper-SD15-8steps-CFG-lora", "dmd2_lora"),
    ],
)
def test_a_lora_of_few_steps_counts_unless_its_scale_is_0(name: str) -> None:
    assert _few_steps(name)
    assert not _few_steps(name, 0.0)


@pytest.mark.parametrize(
    ("name", "scale", "steps", "words"),
    [
        ("turbo kid", 1.0, 20, "'turbo kid' is not taken for that of a few-step model"),
        ("turbo kid", 0.0, 20, ""),
        ("sd15_turbo", 1.0, 4, "'sd15_turbo' says Turbo"),
    ],
)
def test_a_lora_whose_name_is_in_doubt_is_noted(
    name: str,
    scale: float,
    steps: int,
    words: str,
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = small_pipeline("sd1")
    unet = load_file(next((folder / "unet").glob("*.safetensors")))
    key = next(key for key in unet if key.endswith("attn1.to_q.weight"))
    out, inner = unet[key].shape
    layer = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
    down, up = torch.ones(2, inner), torch.ones(out, 2)
    path = tmp_path / f"{name}.safetensors"
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, path)
    lora = Lora(path=path, scale=scale)
    options = Options(source=str(folder), out=tmp_path / "out", loras=(lora,))
    opened = _open(options, None, tmp_path)
    assert opened.defaults.steps == steps
    assert words in "".join(opened.reasons)
    assert bool(words) == bool(opened.reasons)
