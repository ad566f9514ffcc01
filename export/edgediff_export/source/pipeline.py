"""An opened pipeline, whose components are loaded one at a time, and never two at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgediff_export.quiet import quiet
from edgediff_export.source import lora, textual_inversion
from edgediff_export.source.configs import Kind
from edgediff_export.source.families import PIPELINES, TEXT_ENCODERS
from edgediff_export.source.lora import Lora, Matched
from edgediff_export.source.safetensors_file import open_tensors
from edgediff_export.source.statements import Statements
from edgediff_export.source.textual_inversion import Embedding, Learned
from edgediff_export.source.tokenizer import open_tokenizer
from edgediff_export.source.weights import load_file_weights, load_weights


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened pipeline: its configs, and the folders from which components are loaded.

    `description` is the hub id, or the name of the folder or file; `names` are all names that the
    UNet goes by (see `Origin`); `license` is the model card's, or the file's, if it has one.
    `folder` has the tokenizers. `weights` are components' folders, or files of weights; `flags`
    are the options that named those which do not come from the pipeline itself. `text_encoders`
    are their configs, in the order in which the UNet reads their outputs. `said` is the training
    as the file of the UNet states it; `kind` is the model that a checkpoint in one file was taken
    for; `bare` says that it came without a config of its own.
    `credits` name the makers of components that were put in. `loras` and `embeddings` are merged
    into components as these are loaded."""

    description: str
    name: str
    names: tuple[str, ...]
    pipeline: str
    license: str | None
    folder: Path
    weights: Mapping[str, Path]
    flags: Mapping[str, str]
    index: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: Mapping[str, Mapping[str, Any]]
    scheduler: Mapping[str, Any]
    said: Statements = field(default_factory=Statements)
    kind: Kind | None = None
    bare: bool = False
    credits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    loras: tuple[Matched, ...] = ()
    embeddings: tuple[Learned, ...] = ()

    def load(self, component: str) -> Any:
        """A text encoder, `unet` or `vae` as a torch module in eval mode, see `load_weights`.

        Raises ExportError if weights are missing, damaged or only there as a pickle."""
        path = self.weights[component]
        if path.is_file():
            flag = self.flags.get(component, "")
            module = load_file_weights(
                path, component, self._skeleton(component), flag=flag, kind=self.kind
            )
        else:
            module = load_weights(path, self._class(component))
        for matched in self.loras:
            matched.merge(component, module)
        if component in TEXT_ENCODERS and self.embeddings:
            tokens = [learned.tokens for learned in self.embeddings]
            tokenizer = open_tokenizer(self.folder / TEXT_ENCODERS[component], tokens)
            for learned in self.embeddings:
                ids = tokenizer.convert_tokens_to_ids(list(learned.tokens))
                learned.merge(component, module, ids)
        return module

    def merged(
        self,
        loras: Sequence[Lora],
        embeddings: Sequence[Embedding],
        *,
        allow_partial: bool = False,
    ) -> "Source":
        """The same pipeline with LoRAs and textual inversions, which were read and fit it.

        Raises ExportError as `lora.match` and `textual_inversion.learn`."""
        for asked in loras:  # before torch builds anything
            open_tensors(asked.path, flag="--lora")
        components = ("unet", *self.text_encoders)
        shapes = {c: lora.layers(self._skeleton(c)) for c in components} if loras else {}
        widths = {c: config["hidden_size"] for c, config in self.text_encoders.items()}
        return replace(
            self,
            loras=tuple(lora.match(asked, shapes, allow_partial=allow_partial) for asked in loras),
            embeddings=tuple(textual_inversion.learn(asked, widths) for asked in embeddings),
        )

    @property
    def inpaints(self) -> bool:
        """Whether the UNet takes a mask and an image beside the latents."""
        return bool(self.unet.get("in_channels", 4) != self.unet.get("out_channels", 4))

    @property
    def zeros_for_no_negative(self) -> bool:
        """Whether guidance without a negative prompt takes zeros, as SDXL was trained."""
        xl = "text_encoder_2" in self.text_encoders
        return xl and bool(self.index.get("force_zeros_for_empty_prompt", True))

    def overflows(self, component: str) -> bool:
        """Whether a component says that it gives wrong images in float16: SDXL's VAE does, unless
        it was mended. Stable Diffusion's config may say so too, if diffusers wrote it again."""
        xl = "text_encoder_2" in self.text_encoders
        kl = self.vae["_class_name"] == "AutoencoderKL"
        return component == "vae" and xl and kl and bool(self.vae.get("force_upcast", True))

    def _class(self, component: str) -> Any:
        import diffusers
        import transformers

        if component == "unet":
            return diffusers.UNet2DConditionModel
        if component == "vae":
            return getattr(diffusers, self.vae["_class_name"])
        (name,) = PIPELINES[self.pipeline][component]
        return getattr(transformers, name)

    def _skeleton(self, component: str) -> Any:
        """The module without its weights."""
        with quiet():
            import torch

            cls = self._class(component)
            with torch.device("meta"):
                if component in ("unet", "vae"):
                    config = self.unet if component == "unet" else self.vae
                    return cls.from_config(dict(config))
                return cls(cls.config_class.from_dict(dict(self.text_encoders[component])))
