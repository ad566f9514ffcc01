"""Control networks (Zhang et al. 2023, arXiv:2302.05543) of a pipeline: where they come from,
whether they fit its UNet, and the stages that they become."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.bundle import LatentSpec
from edgediff.control import CONTROLLED_UNET, NETWORK
from edgediff.errors import ExportError, InputError, first_line
from edgediff_export.fidelity.measure import Case, Named
from edgediff_export.quiet import quiet
from edgediff_export.source.pipeline import Source, load_weights, read_config
from edgediff_export.trace.stage import ADDED, Axes, Stage, forward

_SIDE = 16
"""Latents a side in the fixtures. Residuals are many: at 32 they would take 27 MB of Stable
Diffusion 1.5's, at 16 a quarter of that."""
_STRENGTH = np.float32(0.25)
"""Standard deviation of the made-up residuals that the controlled UNet is compared on."""
_UNSUPPORTED = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "encoder_hid_dim",
    "global_pool_conditions",
)
"""Options of ControlNetModel that add an input or change what the UNet is to do with the rest."""
_MID = "mid_residual"


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """One control network: the name that it has in the bundle, and where its weights are.

    description: the hub id, or the name of the folder."""

    name: str
    description: str
    folder: Path
    config: Mapping[str, Any] = field(repr=False)

    @property
    def stage(self) -> Stage:
        """The network as a stage; its further inputs, SDXL's, are free in their batch."""
        return Stage(
            name=NETWORK + self.name,
            component=NETWORK + self.name,
            inputs={
                "sample": {0: "batch", 2: "height", 3: "width"},
                "timestep": {},
                "encoder_hidden_states": {0: "batch", 1: "sequence"},
                "controlnet_cond": {0: "batch", 2: "picture_height", 3: "picture_width"},
                "conditioning_scale": {},
            },
            outputs=_residual_axes(self.config),
            evaluate=_evaluate,
        )

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
            description=where if not Path(where).exists() else folder.resolve().name,
            folder=folder,
            config=read_config(folder / "config.json"),
        )
        _check(network, source, latent)
        found[name] = network
    return tuple(found.values())


def controlled(unet: Stage, network: ControlNet) -> Stage:
    """The UNet with the residuals of a control network as further inputs."""
    names = list(_residual_axes(network.config))

    def evaluate(module: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        plain = {k: v for k, v in inputs.items() if k not in names}
        *down, mid = (inputs[k] for k in names)
        residuals = {
            "down_block_additional_residuals": tuple(down),
            "mid_block_additional_residual": mid,
        }
        return unet.evaluate(module, {**plain, **residuals})

    return Stage(
        name=CONTROLLED_UNET,
        component=unet.component,
        inputs={**unet.inputs, **_residual_axes(network.config)},
        outputs=unet.outputs,
        evaluate=evaluate,
    )


def network_inputs(unet: Sequence[Case], latent: LatentSpec) -> dict[str, Named]:
    """What the UNet's fixtures show, cut to _SIDE, under a picture of noise and one of lines."""
    rng = np.random.default_rng(3)
    cases: dict[str, Named] = {}
    for k, case in enumerate(unet):
        inputs = {name: v for name, v in case.inputs.items() if name != "timestep_cond"}
        sample = _cut(inputs["sample"])[:, : latent.channels]
        h, w = (side * latent.downscale for side in sample.shape[2:])
        noise = rng.random((1, 3, h, w), dtype=np.float32)
        lines = np.broadcast_to(rng.random((1, 1, h, 1)) > 0.9, noise.shape).astype(np.float32)
        cases[case.name] = {
            **inputs,
            "sample": sample,
            "controlnet_cond": lines if k % 2 else noise,
            "conditioning_scale": np.array(1.0, np.float32),
        }
    return cases


def controlled_inputs(unet: Sequence[Case], network: Sequence[Case]) -> dict[str, Named]:
    """What the UNet's fixtures show, cut to _SIDE, with made-up residuals: those of a network that
    was not trained for long are next to nothing."""
    rng = np.random.default_rng(4)
    cases: dict[str, Named] = {}
    for case, of in zip(unet[:1], network, strict=False):
        residuals = {
            name: rng.standard_normal(v.shape, dtype=np.float32) * _STRENGTH
            for name, v in of.outputs.items()
        }
        cases[case.name] = {**case.inputs, "sample": _cut(case.inputs["sample"]), **residuals}
    return cases


def _cut(sample: Any) -> Any:
    return np.ascontiguousarray(sample[:, :, :_SIDE, :_SIDE])


def _evaluate(module: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    plain = dict(inputs)
    added = {k: plain.pop(k) for k in ADDED if k in plain}
    if added:
        plain["added_cond_kwargs"] = added
    out = forward(module, plain)
    return (*out.down_block_res_samples, out.mid_block_res_sample)


def _levels(config: Mapping[str, Any]) -> list[tuple[int, int]]:
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


def _residual_axes(config: Mapping[str, Any]) -> Axes:
    """Names of the residuals and their free dimensions, in order."""
    axes: dict[str, Mapping[int, str]] = {}
    levels = _levels(config)
    for k, (_, smaller) in enumerate(levels):
        name = _MID if k == len(levels) - 1 else f"down_residual_{k}"
        suffix = "" if smaller == 1 else f"_{smaller}"
        axes[name] = {0: "batch", 2: f"height{suffix}", 3: f"width{suffix}"}
    return axes


def _split(request: str) -> tuple[str, str]:
    """NAME=SOURCE or SOURCE → (name, source)."""
    named = re.fullmatch(r"([A-Za-z0-9][\w.-]*)=(.+)", request)
    name, where = (named[1], named[2]) if named else (Path(request).name, request)
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
    if path.exists() or path.is_absolute() or not re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        raise ExportError(
            f"--controlnet {where}: no such folder: give one that holds a control network's"
            " config.json and weights, or a hub id such as owner/name"
        )
    with quiet():
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(where, allow_patterns=["config.json", "*.safetensors*"]))
        except Exception as e:  # the hub's client raises a dozen unrelated classes
            raise ExportError(
                f"--controlnet {where}: neither a folder here nor to be had from the hub"
                f" ({first_line(e)}): check the name and the connection, or give a local folder"
            ) from e


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
        ("picture channels", config.get("conditioning_channels", 3), 3),
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
            [c for c, _ in _levels(config)],
            [c for c, _ in _levels(unet)],
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
