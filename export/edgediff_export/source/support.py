"""Which opened pipelines the runtime can run; others are refused before anything is traced."""

from edgediff.errors import ExportError
from edgediff_export.source.families import SUPPORTED, TIME_IDS, VAES
from edgediff_export.source.pipeline import Source

# Options of UNet2DConditionModel that add an input, which no pipeline of the family feeds.
_EXTRA_INPUTS = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "encoder_hid_dim",
)


def check_components(source: Source) -> None:
    """Refuse what traces but could not be run by the runtime."""
    where = source.description
    vae_class = source.vae.get("_class_name")
    if vae_class not in VAES:
        raise ExportError(
            f"{source.weights['vae']}: is a {vae_class}, expected {' or '.join(VAES)}"
        )
    if source.vae.get("latents_mean") is not None:
        raise ExportError(
            f"{where}: the VAE has a mean for each channel of its latents; {SUPPORTED}"
        )
    for key in _EXTRA_INPUTS:
        if source.unet.get(key) is not None:
            raise ExportError(f"{where}: the UNet has {key} {source.unet[key]!r}; {SUPPORTED}")
    _check_added_embedding(source)
    _check_channels(source)
    width = sum(config.get("hidden_size", 0) for config in source.text_encoders.values())
    needed = source.unet.get("cross_attention_dim")
    if set(needed if isinstance(needed, list) else [needed]) != {width}:
        encoder = "text encoder gives" if len(source.text_encoders) == 1 else "text encoders give"
        raise ExportError(f"{where}: the {encoder} {width} values a token, the UNet takes {needed}")


def _check_added_embedding(source: Source) -> None:
    """What is added to the timestep's embedding: the runtime feeds what SDXL's UNet takes."""
    where, unet = source.description, source.unet
    added = unet.get("addition_embed_type")
    if added not in (None, "text", "text_time"):  # "text" is made of encoder_hidden_states
        raise ExportError(f"{where}: the UNet has addition_embed_type {added!r}; {SUPPORTED}")
    if added != "text_time":
        return
    if "text_encoder_2" not in source.text_encoders:
        raise ExportError(
            f"{where}: the UNet takes an embedding of the whole prompt, which a {source.pipeline}"
            f" does not give; {SUPPORTED}"
        )
    pooled = source.text_encoders["text_encoder_2"].get("projection_dim", 512)
    width = pooled + TIME_IDS * (unet.get("addition_time_embed_dim") or 0)
    if unet.get("projection_class_embeddings_input_dim") != width:
        raise ExportError(
            f"{where}: the UNet takes {unet.get('projection_class_embeddings_input_dim')} values"
            f" about prompt and image, SDXL's base models {width}: refiners are not supported;"
            f" {SUPPORTED}"
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
            f" for inpainting; {SUPPORTED}"
        )
