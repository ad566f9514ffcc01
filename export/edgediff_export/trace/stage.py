"""The stages of a pipeline: the component that each is made of, its inputs and outputs, and how
torch evaluates it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgediff.bundle.manifest import Role, controlnet_stage
from edgediff.bundle.tensor_names import (
    CONTROL_IMAGE,
    CONTROL_SCALE,
    ENCODER_HIDDEN_STATES,
    INPUT_IDS,
    LATENT_PARAMETERS,
    LATENT_SAMPLE,
    LATENTS,
    POOLED_STATES,
    SAMPLE,
    TIME_IDS,
    TIMESTEP,
    clip_skip_output,
)
from edgediff_export.source import families
from edgediff_export.source.controlnet import ControlNet
from edgediff_export.source.pipeline import Source

Axes = Mapping[str, Mapping[int, str]]
"""Name of an input or output → {axis: the name of its free dimension}."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One graph of a bundle, with its role there. component: the name that `Source.load` takes.

    inputs, outputs: see Axes; `height` and `width` count latents. Further inputs, which only some
    models have, are free only in their batch.
    evaluate: (module, inputs by name, torch tensors) → the outputs, in order."""

    name: str
    role: Role
    component: str
    inputs: Axes
    outputs: Axes
    evaluate: Callable[[Any, Mapping[str, Any]], tuple[Any, ...]]

    def axes(self, name: str) -> Mapping[int, str]:
        """The free dimensions of an input or output."""
        return {**self.inputs, **self.outputs}.get(name, {0: "batch"})

    def bind(self, module: Any, names: Sequence[str]) -> None:
        """Let `module(*inputs)` be the stage, its inputs in the order of `names`."""

        def bound(*inputs: Any) -> tuple[Any, ...]:
            return self.evaluate(module, dict(zip(names, inputs, strict=True)))

        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        bound.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, positional) for name in names]
        )
        module.forward = bound


CLIP_SKIPS = 2
"""How many of its last layers a text encoder can leave out; a further output each, whose cost is
that of a norm."""


def stages_of(source: Source, *, with_encoder: bool = False) -> list[Stage]:
    """The stages that a pipeline becomes, in the order in which they run."""
    stages = [_text_encoder(source, component) for component in source.text_encoders]
    stages += [UNET, VAE_DECODER]
    return [*stages, _vae_encoder(source)] if with_encoder else stages


def forward(module: Any, inputs: Mapping[str, Any]) -> Any:
    """The forward pass of a module's class, whether `Stage.bind` replaced it or not."""
    return type(module).forward(module, **inputs)


def _text_encoder(source: Source, component: str) -> Stage:
    """Token ids → hidden states, first those that condition the UNet as it was trained, then those
    of `clip_skip_1` and so on, which are as many layers before them.

    Stable Diffusion takes the last layer's, through the final norm; SDXL (Podell et al. 2023,
    arXiv:2307.01952, section 2.1) those of the last but one, of both its encoders, and of the
    second one also `text_embeds`, the projected embedding of the whole prompt."""
    xl = "text_encoder_2" in source.text_encoders
    projected = component == "text_encoder_2"
    # CLIPTextConfig's own default, which its files may leave out.
    layers = source.text_encoders[component].get("num_hidden_layers", 12)
    usual = "penultimate_hidden_state" if xl else "last_hidden_state"
    skips = range(1, min(CLIP_SKIPS, layers - xl) + 1)

    def encode(module: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        encoded = forward(module, {**inputs, "output_hidden_states": True})
        states = encoded.hidden_states
        if xl:
            taken = (states[-2], *(states[-2 - n] for n in skips))
        else:
            norm = module.text_model.final_layer_norm
            taken = (encoded.last_hidden_state, *(norm(states[-1 - n]) for n in skips))
        return (*taken, encoded.text_embeds) if projected else taken

    names = [usual, *map(clip_skip_output, skips), *([POOLED_STATES] if projected else [])]
    return Stage(
        name=component,
        role="text_encoder",
        component=component,
        inputs={INPUT_IDS: {0: "batch"}},
        outputs={name: {0: "batch"} for name in names},
        evaluate=encode,
    )


ADDED = (POOLED_STATES, TIME_IDS)
"""Inputs of SDXL's UNet: the embedding of the whole prompt, and sizes, see `families.TIME_IDS`."""


def _predict(module: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    plain = {name: value for name, value in inputs.items() if name not in ADDED}
    added = {name: inputs[name] for name in ADDED if name in inputs}
    return (forward(module, {**plain, "added_cond_kwargs": added}).sample,)


UNET = Stage(
    name=families.UNET,
    role="denoiser",
    component="unet",
    inputs={
        SAMPLE: {0: "batch", 2: "height", 3: "width"},
        # A float32 scalar, since some samplers stop between the timesteps of training.
        TIMESTEP: {},
        ENCODER_HIDDEN_STATES: {0: "batch", 1: "sequence"},
    },
    outputs={"out_sample": {0: "batch", 2: "height", 3: "width"}},
    evaluate=_predict,
)


def _channel_scales(module: Any) -> tuple[Any, Any] | None:
    """The mean and the standard deviation of each channel of a VAE's latents, (c, 1, 1), by which
    the denoiser's are normalized, as Playground v2.5's are; or None."""
    import torch

    if not module.config.get("latents_mean"):
        return None
    mean, std = (module.config[key] for key in ("latents_mean", "latents_std"))
    return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]


def _decode(module: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    latents = inputs[LATENT_SAMPLE]
    scales = _channel_scales(module)
    if scales is not None:
        mean, std = scales
        latents = latents * std + mean
    return (module.decode(latents).sample,)


VAE_DECODER = Stage(
    name=families.VAE_DECODER,
    role="decoder",
    component="vae",
    inputs={LATENT_SAMPLE: {0: "batch", 2: "height", 3: "width"}},
    outputs={SAMPLE: {0: "batch", 2: "image_height", 3: "image_width"}},
    evaluate=_decode,
)


def _vae_encoder(source: Source) -> Stage:
    """Images (n, 3, h, w) in [-1, 1] → AutoencoderTiny's latents, or the mean and the logarithm
    of the variance of AutoencoderKL's (Kingma and Welling 2013, arXiv:1312.6114), one after the
    other along the channels; both before scaling, but normalized by channel."""
    import torch

    tiny = source.vae["_class_name"] == "AutoencoderTiny"

    def encode(module: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        encoded = module.encode(inputs[SAMPLE])
        if tiny:
            return (encoded.latents,)
        scales = _channel_scales(module)
        if scales is None:
            return (encoded.latent_dist.parameters,)
        center, std = scales
        mean, logvar = encoded.latent_dist.mean, encoded.latent_dist.logvar
        return (torch.cat(((mean - center) / std, logvar - 2.0 * std.log()), dim=1),)

    return Stage(
        name=families.VAE_ENCODER,
        role="encoder",
        component="vae",
        inputs={SAMPLE: {0: "batch", 2: "image_height", 3: "image_width"}},
        outputs={
            LATENTS if tiny else LATENT_PARAMETERS: {0: "batch", 2: "height", 3: "width"},
        },
        evaluate=encode,
    )


_MID = "mid_residual"


def network_stage(network: ControlNet) -> Stage:
    """A control network as a stage; its further inputs, SDXL's, are free in their batch. Residuals
    that are averaged over the image are as large as others, so that the UNet takes either."""
    name = controlnet_stage(network.name)

    def evaluate(module: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        residuals = _control(module, inputs)
        if not network.pools:
            return residuals
        return tuple(r.mean(dim=(2, 3), keepdim=True).expand_as(r) for r in residuals)

    return Stage(
        name=name,
        role="controlnet",
        component=name,
        inputs={
            SAMPLE: {0: "batch", 2: "height", 3: "width"},
            TIMESTEP: {},
            ENCODER_HIDDEN_STATES: {0: "batch", 1: "sequence"},
            CONTROL_IMAGE: {0: "batch", 2: "image_height", 3: "image_width"},
            CONTROL_SCALE: {},
        },
        outputs=_residual_axes(network),
        evaluate=evaluate,
    )


def controlled(unet: Stage, network: ControlNet) -> Stage:
    """The UNet with the residuals of a control network as further inputs."""
    names = list(_residual_axes(network))

    def evaluate(module: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        plain = {k: v for k, v in inputs.items() if k not in names}
        *down, mid = (inputs[k] for k in names)
        residuals = {
            "down_block_additional_residuals": tuple(down),
            "mid_block_additional_residual": mid,
        }
        return unet.evaluate(module, {**plain, **residuals})

    return Stage(
        name=families.CONTROLLED_UNET,
        role="controlled_denoiser",
        component=unet.component,
        inputs={**unet.inputs, **_residual_axes(network)},
        outputs=unet.outputs,
        evaluate=evaluate,
    )


def _control(module: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    plain = dict(inputs)
    added = {k: plain.pop(k) for k in ADDED if k in plain}
    if added:
        plain["added_cond_kwargs"] = added
    out = forward(module, plain)
    return (*out.down_block_res_samples, out.mid_block_res_sample)


def _residual_axes(network: ControlNet) -> Axes:
    """Names of the residuals and their free dimensions, in order."""
    axes: dict[str, Mapping[int, str]] = {}
    levels = network.levels
    for k, (_, smaller) in enumerate(levels):
        name = _MID if k == len(levels) - 1 else f"down_residual_{k}"
        suffix = "" if smaller == 1 else f"_{smaller}"
        axes[name] = {0: "batch", 2: f"height{suffix}", 3: f"width{suffix}"}
    return axes
