"""Control networks (Zhang et al. 2023, arXiv:2302.05543) of a pipeline: where they come from, and
whether they fit its UNet."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgediff.bundle.latent import LatentSpec
from edgediff.errors import ExportError, InputError, first_line
from edgediff_export.quiet import quiet
from edgediff_export.source.config_file import read_config
from edgediff_export.source.controlnet_file import file_config
from edgediff_export.source.controlnet_kinds import check_class, check_tensors
from edgediff_export.source.file_kinds import BY_TEXT_WIDTH
from edgediff_export.source.hub import download_component, is_hub_id
from edgediff_export.source.origin import origin
from edgediff_export.source.pipeline import Source
from edgediff_export.source.safetensors_file import read_header
from edgediff_export.source.weights import find_weights, load_file_weights, load_weights

_UNSUPPORTED = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "encoder_hid_dim",
)
"""Options of ControlNetModel that add an input."""


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """One control network: the name that it has in the bundle, and where its weights are.

    description: the hub id, or the name of the folder or file. path: the folder, or the
    .safetensors file. notes: what was read from its name, and how it differs from diffusers."""

    name: str
    description: str
    path: Path
    config: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(channels, by how much it is smaller than the latents) of each residual."""
        return residual_levels(self.config)

    @property
    def pools(self) -> bool:
        """Whether its residuals are averages over the image, as the "shuffle" network's. These
        steer the prompt's half of guidance and not the negative one's."""
        return bool(self.config.get("global_pool_conditions"))

    def load(self) -> Any:
        """The torch module in float32, in eval mode, whose residuals are not averaged yet. Raises
        ExportError."""
        where = f"--controlnet {self.path}"
        with quiet():
            import diffusers
            import torch

            cls = diffusers.ControlNetModel
            if self.path.is_dir():
                module = load_weights(self.path, cls)
                unknown = sorted(_tensor_names(self.path) - module.state_dict().keys())
                if unknown:
                    raise ExportError(
                        f"{where}: holds {unknown[0]}, which a ControlNetModel of its config does"
                        " not have: download it again, or give a ControlNetModel"
                    )
            else:
                try:
                    with torch.device("meta"):
                        skeleton = cls.from_config(dict(self.config))
                except (TypeError, ValueError) as e:
                    raise ExportError(
                        f"{where}: is shaped like no ControlNetModel ({first_line(e)}): give a"
                        " folder with its config.json"
                    ) from e
                module = load_file_weights(self.path, "controlnet", skeleton, flag="--controlnet")
        module.register_to_config(global_pool_conditions=False)
        return module


def open_controlnets(
    requests: Sequence[str], source: Source, latent: LatentSpec
) -> tuple[ControlNet, ...]:
    """Find control networks and check that they fit; no weights yet.

    requests: NAME=SOURCE, or only SOURCE, whose last part becomes the name. A source is a folder,
        a .safetensors file or a hub id.

    Raises InputError for names that are none or come twice, ExportError where a network is absent,
    unsafe, of another kind, or made for another UNet."""
    found: dict[str, ControlNet] = {}
    for request in requests:
        name, where = _split(request)
        if name in found:
            raise InputError(
                f"--controlnet {request}: there are two called {name!r}: give NAME=SOURCE"
            )
        path = _find(where)
        read = _read_folder if path.is_dir() else _read_file
        network = read(name, where, path, source)
        _check(network, source, latent)
        found[name] = network
    return _with_notes(tuple(found.values()))


def _with_notes(networks: tuple[ControlNet, ...]) -> tuple[ControlNet, ...]:
    """The same, with a note if their rules of guidance differ."""
    if len({network.pools for network in networks}) < 2:
        return networks
    names = ", ".join(network.name for network in networks if network.pools)
    note = (
        f"only the prompt's half of guidance is steered by {names}, and both halves by the other"
        " control networks: in one call each keeps its rule, and diffusers would apply the first"
        " one's to all"
    )
    return (replace(networks[0], notes=(*networks[0].notes, note)), *networks[1:])


def _read_folder(name: str, where: str, folder: Path, _source: Source) -> ControlNet:
    if not (folder / "config.json").exists():
        raise ExportError(_no_network(where, folder))
    config = read_config(folder / "config.json")
    shown = f"--controlnet {_described(where)}"
    check_class(shown, config.get("_class_name"))
    check_tensors(shown, _tensor_names(folder))
    return ControlNet(name=name, description=_described(where), path=folder, config=config)


def _read_file(name: str, where: str, file: Path, source: Source) -> ControlNet:
    """A single file; it does not say whether its residuals are averaged, so its name has to."""
    header = read_header(file, flag="--controlnet")
    shown = f"--controlnet {where}"
    check_tensors(shown, header.shapes)
    config = file_config(shown, header, source.unet)
    pools = any("shuffle" in n.lower() for n in (*origin(file).names, name))
    note = (
        f'control network {name}: its residuals are averaged over the image, as those of "shuffle"'
        " networks are, because of its name"
    )
    return ControlNet(
        name=name,
        description=_described(where),
        path=file,
        config={**config, "global_pool_conditions": pools},
        notes=(note,) if pools else (),
    )


def _tensor_names(folder: Path) -> set[str]:
    """The names of the weights in a folder; none if they cannot be loaded, which `load` reports."""
    try:
        paths = find_weights(folder).paths
    except ExportError:
        return set()
    return {name for path in paths for name in read_header(path, flag="--controlnet").shapes}


def residual_levels(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(channels, by how much it is smaller than the latents) of each residual, the middle's last:
    one of the first convolution, of each layer, and of each halving."""
    channels = config.get("block_out_channels", (320, 640, 1280, 1280))
    layers = config.get("layers_per_block", 2)
    each = layers if isinstance(layers, list | tuple) else [layers] * len(channels)
    found = [(channels[0], 1)]
    for k, (c, n) in enumerate(zip(channels, each, strict=True)):
        found += [(c, 2**k)] * n
        if k < len(channels) - 1:
            found.append((c, 2 ** (k + 1)))
    return [*found, (channels[-1], 2 ** (len(channels) - 1))]


def _split(request: str) -> tuple[str, str]:
    """NAME=SOURCE or SOURCE → (name, source)."""
    named = re.fullmatch(r"([A-Za-z0-9][\w.-]*)=(.+)", request)
    where = named[2] if named else request
    if named:
        name = named[1]
    else:
        name = origin(Path(where)).name if Path(where).exists() else Path(where).name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(
            f"--controlnet {request}: {name!r} is not a name of letters, digits, - _ and .: give"
            " NAME=SOURCE, such as canny=path/to/controlnet"
        )
    return name, where


def _find(where: str) -> Path:
    path = Path(where)
    if path.exists():
        return path
    if not is_hub_id(where):
        raise ExportError(
            f"--controlnet {where}: no such folder: give one that holds a control network's"
            " config.json and weights, a .safetensors file, or a hub id such as owner/name"
        )
    return download_component(where, flag="--controlnet")


def _described(where: str) -> str:
    """The hub id of a control network, or the name of its folder or file."""
    if not Path(where).exists():
        return where
    found = origin(Path(where))
    return found.hub or found.name


def _no_network(where: str, folder: Path) -> str:
    """What to do about a folder without config.json, such as that of a whole pipeline."""
    inside = folder / "controlnet"
    file = min(folder.glob("[!.]*.safetensors"), default=None)
    whole = (folder / "model_index.json").exists()
    if (inside / "config.json").exists() and folder == Path(where):
        remedy = f"did you mean {inside}?"
    elif file is not None and not whole:
        remedy = f"did you mean the file {file}?"
    else:
        remedy = (
            "give a control network's own folder, where config.json says _class_name"
            " ControlNetModel"
        )
    what = "is a whole pipeline" if whole else "has no config.json"
    return f"--controlnet {where}: {what}: {remedy}"


def _check(network: ControlNet, source: Source, latent: LatentSpec) -> None:
    """Refuse a network that the runtime could not feed, or that was made for another UNet."""
    where, config, unet = f"--controlnet {network.description}", network.config, source.unet
    for key in _UNSUPPORTED:
        if config.get(key) not in (None, False):
            raise ExportError(
                f"{where}: has {key} {config[key]!r}, which is not supported: give a ControlNet"
                " without it"
            )
    _check_image(where, config, latent)
    _check_text(where, config, source)
    given, taken = config.get("in_channels", 4), latent.channels
    if given != taken:
        raise ExportError(
            f"{where}: takes {given} latent channels, and {source.name} has {taken}: give one that"
            f" was made for {source.name}, or its family"
        )
    its, expected = ([c for c, _ in residual_levels(each)] for each in (config, unet))
    if its != expected:
        raise ExportError(
            f"{where}: made for another UNet: its residuals have {its} channels, and the skip"
            f" connections of {source.name} {expected}: give one that was made for {source.name},"
            " or its family"
        )


def _check_image(where: str, config: Mapping[str, Any], latent: LatentSpec) -> None:
    """Of the control image: its channels, their order, and its size."""
    channels = config.get("conditioning_channels", 3)
    if channels != 3:
        raise ExportError(
            f"{where}: takes control images of {channels} channels, and bundles give RGB: give a"
            " ControlNet with `conditioning_channels` 3"
        )
    order = config.get("controlnet_conditioning_channel_order", "rgb")
    if order not in ("rgb", "bgr"):
        raise ExportError(
            f"{where}: has `controlnet_conditioning_channel_order` {order!r}, expected 'rgb' or"
            " 'bgr': correct its config.json"
        )
    embedding = config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
    smaller = 2 ** (len(embedding) - 1)
    if smaller != latent.downscale:
        raise ExportError(
            f"{where}: makes its control image {smaller} times smaller, and latents are"
            f" {latent.downscale} times smaller than images: give one that was made for this VAE's"
            " family"
        )


def _check_text(where: str, config: Mapping[str, Any], source: Source) -> None:
    """Of the text and SDXL's sizes: they are the UNet's own inputs."""
    unet, added = source.unet, config.get("addition_embed_type")
    if added == "text" or _attends(config):
        its, expected = _widths(config), _widths(unet)
        if set(its) != set(expected):
            made = BY_TEXT_WIDTH.get(max(its), "another UNet")
            family = BY_TEXT_WIDTH.get(max(expected))
            raise ExportError(
                f"{where}: made for {made}: it reads text of {_listed(its)} values a token, and"
                f" {source.name} gives {_listed(expected)}: give a ControlNet for"
                f" {family or f'{source.name}, or its family'}"
            )
    if added not in (None, "text", "text_time"):
        raise ExportError(
            f"{where}: has addition_embed_type {added!r}, which is not supported: give a ControlNet"
            " without it"
        )
    if added == "text_time":
        size = "projection_class_embeddings_input_dim"
        takes, given = config.get(size), unet.get(size)
        if unet.get("addition_embed_type") != added or takes != given:
            raise ExportError(
                f"{where}: made for another UNet: it takes {takes} values about prompt and size, as"
                f" SDXL's do, and {source.name} gives {given or 'none'}: give one that was made for"
                f" {source.name}, or its family"
            )


def _attends(config: Mapping[str, Any]) -> bool:
    """Whether it reads the text at all: SDXL's "small" networks do not."""
    blocks = config.get("down_block_types", ("CrossAttnDownBlock2D",))
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    return any("CrossAttn" in block for block in (*blocks, middle or ""))


def _widths(config: Mapping[str, Any]) -> list[int]:
    value = config.get("cross_attention_dim") or 1280
    return list(value) if isinstance(value, list | tuple) else [value]


def _listed(widths: Sequence[int]) -> str:
    return " or ".join(str(w) for w in dict.fromkeys(widths))
