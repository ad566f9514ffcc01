"""From a scheduler's config to the bundle's schedule and defaults."""

import re
from typing import Any

import diffusers
import pytest
from edgediff_export.source.scheduler import (
    _SAMPLERS,
    adapt,
    choose_sampling,
    mend,
    read_schedule,
)
from edgediff_export.source.scheduler_options import check_options
from edgediff_export.source.statements import Statements

from edgediff.errors import ExportError
from edgediff.sampling.schedule import DiscreteSchedule, EDMSchedule, alphas_cumprod

SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def config(name: str, **changes: Any) -> dict[str, Any]:
    return {"_class_name": name, **SD, **changes}


@pytest.mark.parametrize("name", sorted(name for name in _SAMPLERS if "EDM" not in name))
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_noise_levels_are_the_schedulers(name: str) -> None:
    scheduler = getattr(diffusers, name)(**SD)
    schedule = read_schedule(config(name))
    assert isinstance(schedule, DiscreteSchedule)
    assert alphas_cumprod(schedule) == pytest.approx(scheduler.alphas_cumprod.tolist(), rel=1e-6)
    assert schedule.prediction_type == "epsilon"


def test_what_the_config_leaves_out_is_diffusers_default_but_for_the_spacing() -> None:
    assert read_schedule({"_class_name": "PNDMScheduler"}) == DiscreteSchedule(
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="epsilon",
        timestep_spacing=None,
        set_alpha_to_one=False,
        skip_prk_steps=False,
    )
    assert read_schedule({"_class_name": "DDIMScheduler"}).clip_sample is True


def test_every_field_is_read() -> None:
    schedule = read_schedule(
        config(
            "DDIMScheduler",
            num_train_timesteps=500,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            steps_offset=1,
            rescale_betas_zero_snr=True,
            set_alpha_to_one=False,
            clip_sample=True,
            clip_sample_range=2.0,
        )
    )
    assert schedule == DiscreteSchedule(
        **SD,
        num_train_timesteps=500,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        rescale_betas_zero_snr=True,
        set_alpha_to_one=False,
        clip_sample=True,
        clip_sample_range=2.0,
    )
    lcm = read_schedule(config("LCMScheduler", original_inference_steps=40, timestep_scaling=5.0))
    assert (lcm.original_inference_steps, lcm.timestep_scaling) == (40, 5.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas is \[0.1, 0.2\]"),
        ({"thresholding": True}, "thresholding is True"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid': expected one of scaled_linear"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow': expected one of epsilon"),
        ({"beta_end": 2.0}, "beta_end is 2.0"),
        ({"beta_end": None}, "beta_end is None: expected a number: change it in scheduler/"),
        ({"beta_end": "0.012"}, "beta_end is '0.012': expected a number"),
        ({"beta_start": [0.1]}, r"beta_start is \[0.1\]: expected a number"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps is '1000': expected a whole number"),
        ({"num_train_timesteps": None}, "num_train_timesteps is None: expected a whole number"),
        ({"steps_offset": 0.5}, "steps_offset is 0.5: expected a whole number"),
        ({"clip_sample_range": True}, "clip_sample_range is True: expected a number"),
        ({"trained_betas": [0.1] * 1000}, r"trained_betas is \[(0.1, ){6}\.\.\.\], which"),
    ],
)
def test_what_the_samplers_cannot_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        read_schedule(config("DDPMScheduler", **changes))


@pytest.mark.parametrize("name", [None, "FlowMatchEulerDiscreteScheduler"])
def test_an_unknown_scheduler(name: str | None) -> None:
    with pytest.raises(ExportError, match=f"scheduler {name}: expected one of DDIMScheduler"):
        read_schedule({"_class_name": name})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("KDPM2AncestralDiscreteScheduler", "since no sampler here takes its steps"),
        ("FlowMatchEulerDiscreteScheduler", "since it is for flow matching"),
    ],
)
def test_a_class_without_a_sampler_is_refused_with_a_remedy(name: str, reason: str) -> None:
    with pytest.raises(ExportError, match=rf"{reason}.*: if .*, name that in model_index.json"):
        read_schedule({"_class_name": name})


@pytest.mark.parametrize(
    ("scheduler", "name", "embedding", "expected"),
    [
        (config("PNDMScheduler"), "sd", False, ("pndm", 20, 7.5)),
        (config("UniPCMultistepScheduler"), "sd", False, ("unipc", 20, 7.5)),
        (config("DEISMultistepScheduler"), "sd", False, ("deis", 20, 7.5)),
        (config("HeunDiscreteScheduler"), "sd", False, ("heun", 20, 7.5)),
        (config("DPMSolverSDEScheduler"), "sd", False, ("dpmpp_sde", 20, 7.5)),
        (
            config("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
            "sd",
            False,
            ("dpmpp_2m_sde", 20, 7.5),
        ),
        (config("TCDScheduler"), "tcd", False, ("tcd", 4, 0.0)),
        (config("TCDScheduler"), "Hyper-SD15-8steps", False, ("tcd", 8, 0.0)),
        (
            config("EulerDiscreteScheduler", timestep_spacing="trailing"),
            "sdxl_lightning_2step_unet",
            False,
            ("euler", 2, 0.0),
        ),
        (
            config("DDIMScheduler", timestep_spacing="trailing"),
            "Hyper-SDXL-4steps",
            False,
            ("ddim", 4, 0.0),
        ),
        (config("DDIMScheduler"), "sd", False, ("ddim", 20, 7.5)),
        (
            config("DPMSolverMultistepScheduler", use_karras_sigmas=True),
            "sd",
            False,
            ("dpmpp_2m_karras", 20, 7.5),
        ),
        (config("EulerAncestralDiscreteScheduler"), "sd", False, ("euler_a", 20, 7.5)),
        (config("LCMScheduler"), "lcm", True, ("lcm", 4, 8.5)),
        (config("LCMScheduler"), "lcm", False, ("lcm", 4, 1.0)),
        (
            config("EulerDiscreteScheduler", timestep_spacing="trailing"),
            "SD-Turbo",
            False,
            ("euler", 4, 0.0),
        ),
        (
            config("EulerDiscreteScheduler", timestep_spacing="trailing"),
            "sd",
            False,
            ("euler", 20, 7.5),
        ),
    ],
)
def test_defaults(
    scheduler: dict[str, Any], name: str, embedding: bool, expected: tuple[str, int, float]
) -> None:
    chosen = choose_sampling(scheduler, name=name, guidance_embedding=embedding)
    assert (chosen.sampler, chosen.steps, chosen.guidance_scale) == expected


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (config("EulerDiscreteScheduler", use_karras_sigmas=True), ("euler", "karras")),
        (config("UniPCMultistepScheduler", use_exponential_sigmas=True), ("unipc", "exponential")),
        (config("HeunDiscreteScheduler", use_beta_sigmas=True), ("heun", "beta")),
        (config("DPMSolverMultistepScheduler", use_beta_sigmas=True), ("dpmpp_2m", "beta")),
        (
            config("DPMSolverMultistepScheduler", use_karras_sigmas=True),
            ("dpmpp_2m_karras", None),
        ),
        (
            config(
                "DPMSolverMultistepScheduler",
                algorithm_type="sde-dpmsolver++",
                use_karras_sigmas=True,
            ),
            ("dpmpp_2m_sde", "karras"),
        ),
        (
            config("DPMSolverMultistepScheduler", use_lu_lambdas=True),
            ("dpmpp_2m", "exponential"),
        ),
        (
            config("DPMSolverSinglestepScheduler", algorithm_type="sde-dpmsolver++"),
            ("dpmpp_2s_sde", None),
        ),
        (config("DDIMScheduler"), ("ddim", None)),
        # Left over from another class.
        ({"_class_name": "EDMEulerScheduler", "use_karras_sigmas": True}, ("euler", None)),
    ],
)
def test_spacings(scheduler: dict[str, Any], expected: tuple[str, str | None]) -> None:
    read_schedule(scheduler)
    chosen = choose_sampling(scheduler, name="sd", guidance_embedding=False)
    assert (chosen.sampler, chosen.spacing) == expected


@pytest.mark.parametrize(
    ("name", "expected", "sampling"),
    [
        ("sdxl_lightning_4step_unet", ("trailing", "epsilon"), (4, 0.0)),
        ("sdxl_lightning_1step_unet_x0", ("trailing", "sample"), (1, 0.0)),
        ("Hyper-SDXL-8steps", ("trailing", "epsilon"), (8, 0.0)),
        ("hyper", ("trailing", "epsilon"), (4, 0.0)),
        ("stable-diffusion-xl-base-1.0", ("leading", "epsilon"), (20, 5.0)),
        ("hyperrealism", ("leading", "epsilon"), (20, 5.0)),
        ("footsteps-12", ("leading", "epsilon"), (20, 5.0)),
    ],
)
def test_a_unet_of_few_steps_is_sampled_as_its_name_says(
    name: str, expected: tuple[str, str], sampling: tuple[int, float]
) -> None:
    base = config("EulerDiscreteScheduler", timestep_spacing="leading", prediction_type="epsilon")
    adapted = adapt(base, name=name, timestep_spacing=None, prediction_type=None)
    assert (adapted["timestep_spacing"], adapted["prediction_type"]) == expected
    chosen = choose_sampling(adapted, name=name, guidance_embedding=False, xl=True)
    assert (chosen.steps, chosen.guidance_scale) == sampling


def test_a_few_step_model_gets_a_scheduler_that_has_its_timesteps() -> None:
    base = config("DPMSolverSinglestepScheduler")
    adapted = adapt(base, name="sdxl_lightning_4step", timestep_spacing=None, prediction_type=None)
    assert adapted["_class_name"] == "EulerDiscreteScheduler"
    assert adapted["timestep_spacing"] == "trailing"
    assert choose_sampling(adapted, name="4step lightning", guidance_embedding=False).steps == 4


def test_what_the_user_says_goes_before_the_name() -> None:
    base = config("EulerDiscreteScheduler", timestep_spacing="leading")
    adapted = adapt(
        base, name="lightning-1step", timestep_spacing="linspace", prediction_type="v_prediction"
    )
    assert adapted["timestep_spacing"] == "linspace"
    assert adapted["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("pipeline", "name", "given", "expected"),
    [
        ("StableDiffusionPipeline", "DDIMScheduler", {}, {"steps_offset": 1, "clip_sample": False}),
        ("StableDiffusionPipeline", "PNDMScheduler", {}, {"steps_offset": 1}),
        ("StableDiffusionPipeline", "EulerDiscreteScheduler", {}, {"steps_offset": 1}),
        (
            "StableDiffusionPipeline",
            "DDIMScheduler",
            {"steps_offset": 3, "clip_sample": False},
            {"steps_offset": 1},
        ),
        (
            "StableDiffusionInpaintPipeline",
            "PNDMScheduler",
            {},
            {"steps_offset": 1, "skip_prk_steps": True},
        ),
        ("StableDiffusionXLPipeline", "EulerDiscreteScheduler", {}, {}),
        ("LatentConsistencyModelPipeline", "LCMScheduler", {"clip_sample": True}, {}),
        ("StableDiffusionControlNetPipeline", "DDIMScheduler", {}, {}),
    ],
)
def test_configs_are_mended_as_in_diffusers(
    pipeline: str, name: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    mended = mend({**SD, **given}, pipeline=pipeline, class_name=name)
    assert mended == {**SD, **given, "_class_name": name, **expected}


def test_the_class_is_the_one_of_the_index() -> None:
    config = {"_class_name": "PNDMScheduler", **SD}
    mended = mend(
        config, pipeline="StableDiffusionXLPipeline", class_name="EulerAncestralDiscreteScheduler"
    )
    assert mended["_class_name"] == "EulerAncestralDiscreteScheduler"
    with pytest.raises(ExportError, match="scheduler NoScheduler: expected one of"):
        mend(config, pipeline="StableDiffusionPipeline", class_name="NoScheduler")


def test_options_of_other_classes_are_ignored_as_in_diffusers() -> None:
    schedule = read_schedule(config("PNDMScheduler", rescale_betas_zero_snr=True, use_lu_lambdas=1))
    assert schedule == read_schedule(config("PNDMScheduler"))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}),
        ("DDPMScheduler", {"variance_type": "learned_range"}),
        ("EDMDPMSolverMultistepScheduler", {"thresholding": True}),
    ],
)
def test_what_would_change_the_noise_levels_is_refused(name: str, changes: dict[str, Any]) -> None:
    (key,) = changes
    with pytest.raises(ExportError, match=f"scheduler {name}: {key} is .*cannot sample with: only"):
        read_schedule(config(name, **changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("DEISMultistepScheduler", {"solver_order": 3}, "solver_order 3 is sampled with order 2"),
        (
            "UniPCMultistepScheduler",
            {"solver_type": "bh1"},
            "solver_type 'bh1' is sampled as 'bh2', t",
        ),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
            "solver_order 3 of sde-dpmsolver\\+\\+ is sampled with order 2",
        ),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "with the corrector in every step"),
        (
            "DPMSolverMultistepScheduler",
            {"use_lu_lambdas": True},
            "use_lu_lambdas True is sampled with exponential spacing",
        ),
        ("PNDMScheduler", {"timestep_spacing": "linspace"}, "each step ends"),
    ],
)
def test_another_rule_of_a_step_is_reported(
    name: str, changes: dict[str, Any], message: str
) -> None:
    (note,) = check_options(name, config(name, **changes))
    assert re.search(message, note)


def test_a_file_that_was_trained_on_edms_schedule() -> None:
    """CosXL's says its ends, and predicts v over latents as they are."""
    said = Statements(edm=(0.002, 120.0), prediction_type="v_prediction")
    base = config("EulerDiscreteScheduler", timestep_spacing="leading")
    adapted = adapt(base, name="cosxl", timestep_spacing=None, prediction_type=None, said=said)
    assert read_schedule(adapted) == EDMSchedule(
        prediction_type="v_prediction",
        sigma_max=120.0,
        sigma_data=1.0,
        sigma_schedule="exponential",
    )
    assert choose_sampling(adapted, name="cosxl", guidance_embedding=False).sampler == "dpmpp_2m"
    with pytest.raises(ExportError, match="`zero_terminal_snr` is for schedules of betas"):
        adapt(
            base,
            name="cosxl",
            timestep_spacing=None,
            prediction_type=None,
            said=said,
            zero_terminal_snr=True,
        )


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "DPMSolverSinglestepScheduler"])
def test_a_spacing_that_a_scheduler_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=f"`timestep_spacing` is 'trailing': {name} has no such"):
        adapt({"_class_name": name}, name="sd", timestep_spacing="trailing", prediction_type=None)


def test_a_spacing_left_over_from_another_scheduler_is_ignored() -> None:
    schedule = read_schedule(config("DPMSolverSinglestepScheduler", timestep_spacing="trailing"))
    assert isinstance(schedule, DiscreteSchedule)
    assert schedule.timestep_spacing is None


def test_continuous_timesteps_are_those_of_edm() -> None:
    given = config(
        "EulerDiscreteScheduler",
        timestep_type="continuous",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=120.0,
    )
    expected = EDMSchedule(prediction_type="v_prediction", sigma_max=120.0, sigma_data=1.0)
    assert read_schedule(given) == expected
    with pytest.raises(ExportError, match="samples only with use_karras_sigmas or use_exp"):
        read_schedule({**given, "sigma_max": None})
    assert isinstance(read_schedule({**given, "prediction_type": "epsilon"}), DiscreteSchedule)


def test_numbers_of_edm_are_checked_and_those_without_use_may_be_empty() -> None:
    for key, value in (("sigma_max", None), ("rho", "7"), ("sigma_data", [0.5])):
        with pytest.raises(ExportError, match=f"{key} is .*: expected a number"):
            read_schedule({"_class_name": "EDMEulerScheduler", key: value})
    with pytest.raises(ExportError, match="sigma_min is '0': expected a number"):
        read_schedule(config("EulerDiscreteScheduler", sigma_min="0"))
    empty = config("DDIMScheduler", steps_offset=None, clip_sample_range=None, sigma_min=None)
    assert read_schedule(empty) == read_schedule(config("DDIMScheduler"))
