"""Which opened pipelines the runtime can run; others are refused before anything is traced."""

from edgediff.errors import ExportError
from edgediff_export.source.families import TEXT_ENCODERS, TIME_IDS, VAES
from edgediff_export.source.file_kinds import FAMILIES
from edgediff_export.source.pipeline import Source
from edgediff_export.source.pipeline_folder import component_class, place_of

_EXTRA_INPUTS = {
    "class_embed_type": "takes a class beside the prompt, as upscalers do",
    "num_class_embeds": "takes a class beside the prompt, as upscalers do",
    "encoder_hid_dim_type": "takes an image as a prompt, or states of another text encoder",
    "encoder_hid_dim": "takes an image as a prompt, or states of another text encoder",
}
"""Options of UNet2DConditionModel that add an input, which no pipeline of the family feeds."""
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")


def check_components(source: Source) -> None:
    """Refuse what traces but could not be run by the runtime."""
    where = source.description
    _check_classes(source)
    _check_channel_scales(source)
    for key, what in _EXTRA_INPUTS.items():
        if source.unet.get(key) is not None:
            raise ExportError(
                f"{where}: the UNet has {key} {source.unet[key]!r}: it {what}: give a model that"
                f" takes a prompt only, of {FAMILIES}"
            )
    _check_added_embedding(source)
    _check_channels(source)
    width = sum(config.get("hidden_size", 0) for config in source.text_encoders.values())
    needed = source.unet.get("cross_attention_dim")
    if set(needed if isinstance(needed, list) else [needed]) != {width}:
        encoder = "text encoder gives" if len(source.text_encoders) == 1 else "text encoders give"
        raise ExportError(
            f"{where}: the {encoder} {width} values a token, the UNet takes {needed}: give"
            f" {_mismatched(source)}"
        )


def _mismatched(source: Source) -> str:
    """Which of two parts that do not fit each other to replace: the one that was given."""
    flag = next((source.flags[c] for c in TEXT_ENCODERS if c in source.flags), None)
    if flag is not None:
        return f"with {flag} a text encoder of this pipeline's own family"
    if "unet" in source.flags:
        return "with --unet a UNet of this pipeline's own family"
    return "a pipeline whose parts were made for each other, or the right one with --text-encoder"


def _check_classes(source: Source) -> None:
    """Refuse a component whose config is that of something else."""
    found = {"unet": source.unet, "vae": source.vae, **source.text_encoders}
    for component, config in found.items():
        expected = {"unet": ("UNet2DConditionModel",), "vae": VAES}.get(component, _CLIP)
        cls = component_class(config)
        if cls == "CLIPModel" and "vocab_size" in config:  # what some call the text model
            continue
        if cls is not None and cls not in expected:
            given = f"{source.flags[component]} " if component in source.flags else ""
            raise ExportError(
                f"{given}{source.weights[component]}: is a {cls}, expected"
                f" {' or '.join(expected)}{place_of(cls) or ': give one of those'}"
            )


def _check_added_embedding(source: Source) -> None:
    """The additions to the timestep's embedding: the runtime feeds what SDXL's UNet takes."""
    where, unet = source.description, source.unet
    added = unet.get("addition_embed_type")
    if added not in (None, "text", "text_time"):  # "text" is made of encoder_hidden_states
        raise ExportError(
            f"{where}: the UNet has addition_embed_type {added!r}: it takes more than a prompt:"
            f" give a model of {FAMILIES}"
        )
    if added != "text_time":
        return
    if "text_encoder_2" not in source.text_encoders:
        raise ExportError(
            f"{where}: the UNet takes an embedding of the whole prompt, which a {source.pipeline}"
            " does not give: give SDXL's pipeline for an SDXL UNet"
        )
    pooled = source.text_encoders["text_encoder_2"].get("projection_dim", 512)
    width = pooled + TIME_IDS * (unet.get("addition_time_embed_dim") or 0)
    if unet.get("projection_class_embeddings_input_dim") != width:
        if "text_encoder_2" in source.flags:
            raise ExportError(
                f"{source.flags['text_encoder_2']} {source.weights['text_encoder_2']}: embeds a"
                f" prompt in {pooled} values, which this UNet does not take: give the second text"
                " encoder of an SDXL pipeline"
            )
        raise ExportError(
            f"{where}: the UNet takes {unet.get('projection_class_embeddings_input_dim')} values"
            f" about prompt and image, SDXL's base models {width}: refiners only finish another"
            " model's images: give SDXL's base model or a model made from it"
        )


def _check_channel_scales(source: Source) -> None:
    """The mean and standard deviation of each channel of the latents, which few VAEs have."""
    mean, std = source.vae.get("latents_mean"), source.vae.get("latents_std")
    if not mean and not std:
        return
    channels = source.vae.get("latent_channels", 4)
    kl = source.vae.get("_class_name") == "AutoencoderKL"
    if not (kl and mean and std and len(mean) == len(std) == channels and min(std) > 0.0):
        raise ExportError(
            f"{source.description}: the VAE has latents_mean {mean} and latents_std {std}: expected"
            f" {channels} numbers in each, those of latents_std above 0, in an AutoencoderKL's"
            " config: mend it, or give another VAE of its family with --vae"
        )


def _check_channels(source: Source) -> None:
    where = source.description
    latents = source.vae.get("latent_channels", 4)
    takes, gives = source.unet.get("in_channels", 4), source.unet.get("out_channels", 4)
    if gives != latents:
        raise ExportError(
            f"{where}: the UNet has {gives} latent channels, the VAE {latents}:"
            " give a VAE that was made for this UNet"
        )
    if takes not in (latents, 2 * latents + 1):
        raise ExportError(
            f"{where}: the UNet takes {takes} channels, expected {latents}, or {2 * latents + 1}"
            " for inpainting: models that edit, enlarge or read depth take more: give a"
            " text-to-image or an inpainting model"
        )
