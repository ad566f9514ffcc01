"""Control networks (Zhang et al. 2023, arXiv:2302.05543) of a pipeline: where they come from, and
whether they fit its UNet."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgediff.bundle.latent import LatentSpec
from edgediff.errors import ExportError, InputError
from edgediff_export.quiet import quiet
from edgediff_export.source.config_file import read_config
from edgediff_export.source.hub import download_component, is_hub_id
from edgediff_export.source.origin import origin
from edgediff_export.source.pipeline import Source
from edgediff_export.source.weights import load_weights

_UNSUPPORTED = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "encoder_hid_dim",
    "global_pool_conditions",
)
"""Options of ControlNetModel that add an input or change what the UNet is to do with the rest."""


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """One control network: the name that it has in the bundle, and where its weights are.

    description: the hub id, or the name of the folder."""

    name: str
    description: str
    folder: Path
    config: Mapping[str, Any] = field(repr=False)

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(channels, by how much it is smaller than the latents) of each residual."""
        return residual_levels(self.config)

    def load(self) -> Any:
        """The torch module in float32, in eval mode. Raises ExportError."""
        with quiet():
            import diffusers

            return load_weights(self.folder, diffusers.ControlNetModel)


def open_controlnets(
    requests: Sequence[str], source: Source, latent: LatentSpec
) -> tuple[ControlNet, ...]:
    """Find control networks and check that they fit; no weights yet.

    requests: NAME=SOURCE, or SOURCE alone, whose last part becomes the name. A source is a folder
        or a hub id.

    Raises InputError for names that are none or come twice, ExportError where a network is absent,
    unsafe, or made for another UNet."""
    found: dict[str, ControlNet] = {}
    for request in requests:
        name, where = _split(request)
        if name in found:
            raise InputError(
                f"--controlnet {request}: there are two called {name!r}: give NAME=SOURCE"
            )
        folder = _find(where)
        if not (folder / "config.json").exists():
            raise ExportError(_no_network(where, folder))
        network = ControlNet(
            name=name,
            description=_described(where),
            folder=folder,
            config=read_config(folder / "config.json"),
        )
        _check(network, source, latent)
        found[name] = network
    return tuple(found.values())


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
            f"--controlnet {request}: {name!r} is no name (letters, digits, - _ and .): give"
            " NAME=SOURCE, such as canny=path/to/controlnet"
        )
    return name, where


def _find(where: str) -> Path:
    path = Path(where)
    if path.is_dir():
        return path
    if path.exists() or not is_hub_id(where):
        raise ExportError(
            f"--controlnet {where}: no such folder: give one that holds a control network's"
            " config.json and weights, or a hub id such as owner/name"
        )
    return download_component(where, flag="--controlnet")


def _described(where: str) -> str:
    """The hub id of a control network, or the name of its folder."""
    if not Path(where).exists():
        return where
    found = origin(Path(where))
    return found.hub or found.name


def _no_network(where: str, folder: Path) -> str:
    """What to do about a folder without config.json, such as that of a whole pipeline."""
    inside = folder / "controlnet"
    remedy = (
        f"did you mean {inside}?"
        if (inside / "config.json").exists() and folder == Path(where)
        else "give a control network's own folder, where config.json says _class_name"
        " ControlNetModel"
    )
    whole = (folder / "model_index.json").exists()
    what = "is a whole pipeline" if whole else "has no config.json"
    return f"--controlnet {where}: {what}: {remedy}"


def _check(network: ControlNet, source: Source, latent: LatentSpec) -> None:
    """Refuse what is none, what the runtime could not feed, and what was made for another UNet."""
    where, config, unet = f"--controlnet {network.description}", network.config, source.unet
    kind = config.get("_class_name")
    if kind != "ControlNetModel":
        raise ExportError(f"{where}: is a {kind}, expected a ControlNetModel")
    for key in _UNSUPPORTED:
        if config.get(key) not in (None, False):
            raise ExportError(f"{where}: has {key} {config[key]!r}, which is not supported")
    embedding = config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
    for what, its, expected in (
        ("image channels", config.get("conditioning_channels", 3), 3),
        ("pixels a latent", 2 ** (len(embedding) - 1), latent.downscale),
        ("latent channels", config.get("in_channels", 4), latent.channels),
        (
            "cross_attention_dim",
            _of(config, "cross_attention_dim"),
            _of(unet, "cross_attention_dim"),
        ),
        (
            "addition_embed_type",
            _of(config, "addition_embed_type"),
            _of(unet, "addition_embed_type"),
        ),
        (
            "channels of skip connections",
            [c for c, _ in residual_levels(config)],
            [c for c, _ in residual_levels(unet)],
        ),
    ):
        if its != expected:
            raise ExportError(
                f"{where}: made for another UNet: its {what}: {its}, and {source.name} has"
                f" {expected}: give one that was made for {source.name}, or its family"
            )


def _of(config: Mapping[str, Any], key: str) -> Any:
    value = config.get(key, 1280 if key == "cross_attention_dim" else None)
    return list(value) if isinstance(value, tuple) else value
