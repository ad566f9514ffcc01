"""Where a pipeline comes from: a hub id, a diffusers folder, or one safetensors file.

Only the Stable Diffusion family, and only safetensors: a pickle can run any code when it is read.
Components are loaded one at a time, and never two at once.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgediff.errors import ExportError, first_line
from edgediff_export.quiet import quiet
from edgediff_export.source import lora, textual_inversion
from edgediff_export.source.families import (
    PIPELINES,
    SUPPORTED,
    TEXT_ENCODERS,
    check_components,
    check_index,
)
from edgediff_export.source.lora import Lora, Matched
from edgediff_export.source.safetensors_file import PICKLES, open_tensors
from edgediff_export.source.textual_inversion import Embedding, Learned
from edgediff_export.source.tokenizer import open_tokenizer

LARGE = 1.5e9
"""Weights, of which a float32 copy would take 6 GB: SDXL's UNet has 2.6e9."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened pipeline: its configs, and the folders from which components are loaded.

    `description` is the hub id, or the name of the folder or file; `license` is the model card's,
    where it has one. `unet_path` is a folder, or a file with the weights alone. `text_encoders` are
    their configs, in the order in which the UNet reads what they give. `loras` and `embeddings` are
    merged into components as these are loaded."""

    description: str
    name: str
    pipeline: str
    license: str | None
    folder: Path
    unet_path: Path
    vae_folder: Path
    index: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: Mapping[str, Mapping[str, Any]]
    scheduler: Mapping[str, Any]
    loras: tuple[Matched, ...] = ()
    embeddings: tuple[Learned, ...] = ()

    def load(self, component: str) -> Any:
        """A text encoder, `unet` or `vae` as a torch module in eval mode, see `load_weights`.

        Raises ExportError where weights are missing, damaged or only there as a pickle."""
        path = {"vae": self.vae_folder, "unet": self.unet_path}.get(
            component, self.folder / component
        )
        if path.is_file():
            module = load_file_weights(path, self._skeleton(component))
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

    def merged(self, loras: Sequence[Lora], embeddings: Sequence[Embedding]) -> "Source":
        """The same pipeline with LoRAs and textual inversions, which were read and fit it.

        Raises ExportError as `lora.match` and `textual_inversion.learn`."""
        for asked in loras:  # before torch builds anything
            open_tensors(asked.path, flag="--lora")
        components = ("unet", *self.text_encoders)
        shapes = {c: lora.layers(self._skeleton(c)) for c in components} if loras else {}
        widths = {c: config["hidden_size"] for c, config in self.text_encoders.items()}
        return replace(
            self,
            loras=tuple(lora.match(asked, shapes) for asked in loras),
            embeddings=tuple(textual_inversion.learn(asked, widths) for asked in embeddings),
        )

    @property
    def inpaints(self) -> bool:
        """Whether the UNet takes a mask and a picture beside the latents."""
        return bool(self.unet.get("in_channels", 4) != self.unet.get("out_channels", 4))

    @property
    def zeros_for_no_negative(self) -> bool:
        """Whether guidance without a negative prompt takes zeros, as SDXL was trained."""
        xl = "text_encoder_2" in self.text_encoders
        return xl and bool(self.index.get("force_zeros_for_empty_prompt", True))

    def overflows(self, component: str) -> bool:
        """Whether a component says that it gives wrong pictures in float16: SDXL's VAE does, unless
        it was mended. Stable Diffusion's config may say so too, where diffusers wrote it anew."""
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
                if component == "unet":
                    return cls.from_config(dict(self.unet))
                return cls(cls.config_class.from_dict(dict(self.text_encoders[component])))


def load_file_weights(path: Path, module: Any) -> Any:
    """The weights alone of a UNet in a .safetensors file, under diffusers' names → the module with
    them, which came without any, as `load_weights` has it. Raises ExportError."""

    with open_tensors(path, flag="--unet") as tensors:
        weights = {k: tensors.get_tensor(k) for k in tensors.keys()}  # noqa: SIM118
    if sum(tensor.numel() for tensor in weights.values()) <= LARGE:
        weights = {k: tensor.float() for k, tensor in weights.items()}
    wanted = module.state_dict()
    unknown, missing = sorted(weights.keys() - wanted), sorted(wanted.keys() - weights)
    if unknown or missing:
        what = f"holds {unknown[0]}, which" if unknown else f"lacks {missing[0]}, which"
        has = "has not" if unknown else "has"
        raise ExportError(
            f"--unet {path}: {what} this pipeline's UNet {has}: give a UNet of this family under"
            " diffusers' names, or a folder with its config.json"
        )
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as e:
        raise ExportError(
            f"--unet {path}: of another shape than this pipeline's UNet ({first_line(e)}): give a"
            " folder with its config.json"
        ) from e
    return module.eval().requires_grad_(False)


def open_source(
    source: str, *, work: Path, vae: Path | None = None, unet: Path | None = None
) -> Source:
    """Find a pipeline and read its configs; no weights yet.

    source: a hub id such as "owner/name", a diffusers folder, or a .safetensors file.
    work: an existing folder for what has to be unpacked.
    vae: a folder holding another VAE (AutoencoderKL or AutoencoderTiny) or a pipeline with one.
    unet: a folder holding another UNet or a pipeline with one, or a .safetensors file of the
        weights of one that is shaped like the pipeline's.

    Raises ExportError where it is absent, unsafe or of a kind that is not supported."""
    path = Path(source)
    if path.is_dir():
        folder = path
    elif path.is_file():
        folder = _unpack(path, work / "source")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.is_absolute():
        folder = _download(source)
    else:
        raise ExportError(
            f"{source}: no such folder or file: give a diffusers folder, a .safetensors file, or a"
            " hub id such as owner/name"
        )
    index = read_config(folder / "model_index.json")
    check_index(source, index)
    vae_folder = folder / "vae" if vae is None else _find_component("vae", vae)
    unet_path = folder / "unet" if unet is None else _find_component("unet", unet)
    unet_folder = unet_path if unet_path.is_dir() else folder / "unet"
    # A local path says something about the machine, and nothing about the model.
    name = path.resolve().stem if path.is_file() else path.resolve().name
    description = name if path.exists() else source
    for part, other in (("UNet", unet), ("VAE", vae)):
        if other is not None:
            description += f" with the {part} {other.name}"
    encoders = [e for e in TEXT_ENCODERS if e in PIPELINES[str(index["_class_name"])]]
    opened = Source(
        description=description,
        name=name if unet is None else unet.resolve().stem,
        pipeline=str(index["_class_name"]),
        license=_license(folder / "README.md"),
        folder=folder,
        unet_path=unet_path,
        vae_folder=vae_folder,
        index=index,
        unet=read_config(unet_folder / "config.json"),
        vae=read_config(vae_folder / "config.json"),
        text_encoders={e: read_config(folder / e / "config.json") for e in encoders},
        scheduler=read_config(folder / "scheduler" / "scheduler_config.json"),
    )
    check_components(opened)
    return opened


def load_weights(folder: Path, cls: Any) -> Any:
    """A component's folder as a torch module of a class of diffusers or transformers, in eval mode:
    in float32, or in the half precision that the file has where there are more than LARGE weights.

    Raises ExportError where weights are missing, damaged or only there as a pickle."""
    variant = find_weights(folder)
    with quiet():
        import torch
        from safetensors import SafetensorError

        try:
            count, stored = _stored(folder, variant)
            large = count > LARGE and stored in ("F16", "BF16")
            half = torch.float16 if stored == "F16" else torch.bfloat16
            module, report = cls.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                torch_dtype=half if large else torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as e:
            raise ExportError(
                f"{folder}: the weights cannot be loaded ({first_line(e)}):"
                " download or save the pipeline again"
            ) from e
    missing = sorted(report["missing_keys"])
    if missing:
        raise ExportError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}:"
            " download or save the pipeline again"
        )
    return module.eval().requires_grad_(False)


def _stored(folder: Path, variant: str | None) -> tuple[int, str]:
    """How many numbers the weights in a component's folder are, and what most of them are stored
    as: "F32", "F16", "BF16"…"""
    from safetensors import safe_open

    counts: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        if (".fp16" in path.name) == (variant == "fp16"):
            with safe_open(path, framework="numpy") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(key)
                    counts[part.get_dtype()] += math.prod(part.get_shape())
    return counts.total(), counts.most_common(1)[0][0]


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a pipeline's folder. Raises ExportError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ExportError(
            f"{path}: missing: give a whole diffusers folder, the kind that"
            " pipeline.save_pretrained(folder) writes"
        ) from e
    except (OSError, ValueError) as e:
        raise ExportError(f"{path}: cannot be read ({first_line(e)})") from e
    if not isinstance(raw, dict):
        raise ExportError(f"{path}: expected a JSON object")
    return raw


def find_weights(folder: Path) -> str | None:
    """The variant of the safetensors weights in a component's folder: None, or "fp16".

    Raises ExportError where there are none."""
    names = {p.name for p in folder.glob("*")} if folder.is_dir() else set()
    for variant in (None, "fp16"):
        mark = "" if variant is None else f"\\.{variant}"
        pattern = re.compile(
            rf"(diffusion_pytorch_model|model)(\.safetensors\.index{mark}\.json"
            rf"|{mark}(-\d+-of-\d+)?\.safetensors|-\d+-of-\d+{mark}\.safetensors)"
        )
        if any(pattern.fullmatch(name) for name in names):
            return variant
    pickles = sorted(n for n in names if n.endswith(PICKLES))
    if pickles:
        raise ExportError(
            f"{folder / pickles[0]}: a pickle, which can run any code when it is read; edgediff"
            " reads safetensors only: where you trust it, convert it with"
            " DiffusionPipeline.from_pretrained(folder, use_safetensors=False)"
            ".save_pretrained(new_folder)"
        )
    raise ExportError(f"{folder}: holds no weights (*.safetensors): download the pipeline again")


def _find_component(component: str, path: Path) -> Path:
    """The folder of a component that stands in for the pipeline's, or the file of a UNet."""
    if component == "unet" and path.is_file():
        return path
    for folder in (path, path / component):
        if (folder / "config.json").is_file():
            return folder
    what = "VAE" if component == "vae" else "UNet"
    raise ExportError(
        f"--{component} {path}: no {what} there: give a folder with config.json and its weights"
    )


def _unpack(path: Path, folder: Path) -> Path:
    """A single-file checkpoint → a diffusers folder. The configs that it lacks are diffusers' own,
    from the hub or from the hub's local cache."""
    if path.suffix in PICKLES:
        raise ExportError(
            f"{path}: a pickle, which can run any code when it is read; edgediff reads safetensors"
            " only: where you trust it, convert it with"
            f' StableDiffusionPipeline.from_single_file("{path.name}").save_pretrained(folder)'
        )
    if path.suffix != ".safetensors":
        raise ExportError(f"{path}: give a .safetensors file, a diffusers folder or a hub id")
    with quiet():
        import diffusers

        # diffusers finds the rest out by itself, but not the pipeline.
        xl = "conditioner.embedders.1.model.ln_final.weight" in _keys(path)
        cls = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
        try:
            pipeline = cls.from_single_file(path)
        except Exception as e:  # diffusers raises anything for a file of another kind
            raise ExportError(f"{path}: cannot be loaded ({first_line(e)}); {SUPPORTED}") from e
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _keys(path: Path) -> set[str]:
    """The names of the tensors in a .safetensors file; none where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as tensors:
            return set(tensors.keys())
    except (OSError, SafetensorError):
        return set()


def _download(hub_id: str) -> Path:
    with quiet():
        from diffusers import DiffusionPipeline

        try:
            # What is passed is not downloaded: the safety checker is larger than some UNets.
            folder = DiffusionPipeline.download(
                hub_id, use_safetensors=True, safety_checker=None, feature_extractor=None
            )
        except Exception as e:  # the hub's client raises a dozen unrelated classes
            raise ExportError(
                f"{hub_id}: neither a folder here nor to be had from the hub ({first_line(e)}):"
                " check the name and the connection, or give a local diffusers folder"
            ) from e
    return Path(folder)


def _license(card: Path) -> str | None:
    """The license that a model card's front matter states."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
