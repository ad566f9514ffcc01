"""The kind of a safetensors file, known by the names of its tensors: for files that are given in
the place of another, and for models that edgediff does not export."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SOURCE = "SOURCE"
FAMILIES = "SD 1.x, SD 2.x or SDXL"
"""The models that edgediff exports, for messages."""
BY_TEXT_WIDTH: Mapping[int, str] = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "SDXL",
}
"""Families of models by the values of a token that their UNet reads."""
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """called: with its article. option: the one that takes it, "" if none does; then `why` says why
    not."""

    called: str
    option: str = ""
    why: str = ""


_TRANSFORMER = "whose denoiser is a transformer, not a UNet"
_VIDEO = "which makes video"
_LORA = FileKind(called="a LoRA", option="--lora")
_CHECKPOINT = FileKind(called="a checkpoint of a whole pipeline", option=SOURCE)
_CONTROLNET = FileKind(called="a control network", option="--controlnet")
_PATTERNS: Sequence[tuple[FileKind, str]] = (
    (
        _LORA,
        r".*(?:[._]lora[._]|\.lora_(?:up|down|mid|A|B|linear_layer)\b|\.(?:hada|lokr)_w|\.oft_"
        r"|\.dora_scale)|lora_(?:unet|te\d?|transformer)_|lycoris_|(?:unet\.)?base_model\.",
    ),
    (
        FileKind(called="a textual inversion", option="--embedding"),
        r"emb_params$|clip_[lg]$|string_to_|<.+>$",
    ),
    (
        FileKind(called="an IP-Adapter", why="which makes a prompt of an image"),
        r"image_proj\.|ip_adapter\.",
    ),
    (
        _CONTROLNET,
        r"control_model\.|(?:controlnet\.)?controlnet_|input_hint_block\.|zero_convs\.",
    ),
    (FileKind(called="a motion module", why=_VIDEO), r".*motion_modules\."),
    (
        FileKind(called="a video model", why=_VIDEO),
        r".*\.(?:time_stack|time_mixer|temporal_transformer_blocks|temp_convs|temp_attentions)\b",
    ),
    (
        FileKind(called="an upscaling network", why="which enlarges finished images"),
        r"conv_first\.|model\.\d+\.weight|model\.1\.sub\.|(?:params_ema\.)?body\.\d+\.rdb",
    ),
    (
        FileKind(called="a T2I-Adapter", why="which is not a control network (ControlNet)"),
        r"(?:adapter\.)?body\.\d+\.",
    ),
    (
        FileKind(called="a PixArt model", why=_TRANSFORMER),
        r"(?:model\.diffusion_model\.)?(?:adaln_single|t_block|caption_projection|y_embedder)\.",
    ),
    (
        FileKind(called="a Stable Diffusion 3 model", why=_TRANSFORMER),
        r"(?:model\.diffusion_model\.)?joint_blocks\.",
    ),
    (
        FileKind(called="a FLUX model", why=_TRANSFORMER),
        r"(?:model\.diffusion_model\.)?(?:double_blocks|single_blocks|single_transformer_blocks)\.",
    ),
    (
        FileKind(called="a Wan model", why=_VIDEO),
        r"(?:model\.diffusion_model\.)?(?:blocks\.\d+\.(?:self|cross)_attn\.|patch_embedding\.)",
    ),
    (
        FileKind(called="the denoiser of another model", why=_TRANSFORMER),
        r"(?:model\.diffusion_model\.|transformer\.)?(?:transformer_blocks|cap_embedder)\.",
    ),
    (
        FileKind(called="a T5 text encoder", why="which these models do not use"),
        r"(?:text_encoders\.t5xxl\.)?(?:transformer\.)?(?:encoder\.block\.|shared\.weight)",
    ),
    (
        FileKind(called="a Stable Cascade model", why="which has three stages of its own"),
        r"down_blocks\.\d+\.\d+\.|down_repeat_mappers\.|effnet\.",
    ),
    (
        FileKind(called="a UNet", option="--unet"),
        r"(?:model\.)?(?:diffusion_model\.)?input_blocks\.|(?:unet\.)?(?:down_blocks|mid_block)\."
        r"|unet\.",
    ),
    (
        FileKind(called="a VAE", option="--vae"),
        r"(?:first_stage_model\.|vae\.)?(?:decoder|encoder)\.|first_stage_model\.|vae\.",
    ),
    (
        FileKind(called="a text encoder", option="--text-encoder"),
        r"text_model\.|cond_stage_model\.|conditioner\.|text_encoders\.|transformer\.resblocks\."
        r"|text_projection|token_embedding\.",
    ),
    (
        FileKind(called="an image encoder", why="which reads images"),
        r"vision_model\.|visual\.",
    ),
)
_KINDS = tuple((kind, re.compile(pattern)) for kind, pattern in _PATTERNS)
_PARTS = ("first_stage_model.", "cond_stage_model.", "conditioner.")
_UNET = "model.diffusion_model.input_blocks."


def kind_of(shapes: Shapes) -> FileKind | None:
    """The first kind of which a file has a tensor; None for one that is not known."""
    whole = any(k.startswith(_UNET) for k in shapes) and any(k.startswith(_PARTS) for k in shapes)
    for kind, pattern in _KINDS:
        if whole and kind.option in ("--unet", "--vae", "--text-encoder"):
            return _CHECKPOINT
        if any(map(pattern.match, shapes)):
            return kind
    return None


def misplaced(shapes: Shapes, wanted: str) -> str | None:
    """The real kind of a file, and where it belongs; None if that is not known.

    wanted: the kind that was expected, such as "a VAE"."""
    kind = kind_of(shapes)
    if not shapes:
        return "holds no tensors: download it again"
    if kind is None or kind.called == wanted:
        return None
    if not kind.option:
        return f"is {kind.called}, {kind.why}, and not {wanted}: give {wanted} of {FAMILIES}"
    return f"is {kind.called}, and not {wanted}: give it as {kind.option}, or leave it out"


# LoRAs

_LORAS_OF_OTHERS: Sequence[tuple[str, re.Pattern[str]]] = (
    ("FLUX", re.compile(r".*(?:double_blocks|single_blocks|single_transformer_blocks)[._]")),
    ("Stable Diffusion 3", re.compile(r".*joint_blocks[._]")),
    ("Wan", re.compile(r".*blocks[._]\d+[._](?:self|cross)_attn[._]")),
    ("a model with a transformer", re.compile(r"transformer\.|lora_transformer_")),
)
_DOWN = re.compile(r".*attn2[._](?:processor\.)?to_k.*[._](?:down|lora_A(?:\.\w+)?)\.weight")


def lora_of_another(lora: Shapes, unet: Shapes) -> str | None:
    """Which other model a LoRA was trained for, and what shows it; None if nothing does.

    unet: the pipeline's layers: name → the shape of its weight."""
    for called, pattern in _LORAS_OF_OTHERS:
        if any(map(pattern.match, lora)):
            return f"was trained for {called}"
    theirs = next((s[1] for k, s in lora.items() if len(s) > 1 and _DOWN.fullmatch(k)), None)
    ours = next((s[1] for k, s in unet.items() if k.endswith("attn2.to_k")), None)
    if theirs is None or ours is None or theirs == ours:
        return None
    another = BY_TEXT_WIDTH.get(theirs, "another model")
    return (
        f"was trained for {another}, with {theirs} values a token of the prompt, and this"
        f" pipeline{_like(ours)} has {ours}"
    )


def _like(width: int) -> str:
    return f", like {BY_TEXT_WIDTH[width]}," if width in BY_TEXT_WIDTH else ""
