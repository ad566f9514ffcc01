"""Models of few steps, by the names of what is published, and how their authors sample them."""

from typing import Any

import pytest
from edgediff_export.source.few_steps import find_few_steps
from edgediff_export.source.scheduler import adapt, choose_sampling, read_schedule, reasons

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
        ("Hyper-SDXL-8steps-lora", "Hyper-SD", ("euler", 8, 0.0), "trailing"),
        ("Hyper-SDXL-12steps-CFG-lora", "Hyper-SD", ("euler", 12, 5.0), "trailing"),
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
    assert f"the name {name!r} says {label}: {sampling[1]} steps of {sampling[0]}" in why


@pytest.mark.parametrize(
    "name",
    [
        *("stable-diffusion-v1-5", "hyperrealism", "lcmx", "footsteps", "dreamshaper_8", "tcdream"),
        *("alcm", "sdxl-base", "pcmcia"),
    ],
)
def test_other_names(name: str) -> None:
    assert find_few_steps([name]) is None
    assert reasons(EULER, [name], embedding=False) == ()


def test_dmd2_is_sampled_at_the_steps_it_was_trained_at() -> None:
    name = "dmd2_sdxl_4step_lora"
    adapted = adapt(EULER, name=name, timestep_spacing=None, prediction_type=None, bare=True)
    assert adapted["original_inference_steps"] == 4
    schedule = read_schedule(adapted)
    from edgediff.sampling.plan import make_plan

    plan = make_plan(schedule, "lcm", 4)
    assert [step.timestep for step in plan.steps] == [999, 749, 499, 249]


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
