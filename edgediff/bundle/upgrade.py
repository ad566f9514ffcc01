"""Upgrades earlier versions of bundle.json to the present one, as parsed JSON.

Values that do not fit are left as they are: the parser refuses them."""

from collections.abc import Callable
from typing import Any

Raw = dict[str, Any]

_ROLES = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder",
    "unet": "denoiser",
    "unet_controlled": "controlled_denoiser",
    "vae_decoder": "decoder",
    "vae_encoder": "encoder",
}
"""Stage → role, in version 1, which identified stages by name; the others were control networks."""


def upgraded(raw: Raw, version: int) -> Raw:
    """A manifest of an earlier version → the same manifest in the present version. `raw` is not
    changed."""
    for step in _STEPS[version - 1 :]:
        raw = step(raw)
    return raw


def _from_1(raw: Raw) -> Raw:
    """Version 2 states each graph's role, the lengths of prompts, how the states of text encoders
    join, and the types of latents and schedule."""
    raw = _with_images(raw)
    graphs = _objects(raw.get("graphs"))
    tokenizers = _objects(raw.get("tokenizers"))
    added = {
        "graphs": {name: {"role": _role(name), **graph} for name, graph in graphs.items()},
        "tokenizers": {
            name: {**spec, "min_length": spec.get("max_length")}
            for name, spec in tokenizers.items()
        },
        "latent": {"type": "image", **_object(raw.get("latent"))},
        "schedule": {"type": "discrete", **_object(raw.get("schedule"))},
    }
    upgraded = {**raw, "format_version": 2}
    for key, value in added.items():
        given = raw.get(key)
        if isinstance(given, dict):
            upgraded[key] = {**given, **value}
    pooled = [n for n in tokenizers if "text_embeds" in _names(graphs.get(n), "outputs")]
    taken = "text_embeds" in _names(graphs.get("unet"), "inputs")
    upgraded["conditioning"] = {
        "states": [list(tokenizers)],
        "pooled": pooled[-1:] if taken else [],
    }
    return upgraded


_STEPS: tuple[Callable[[Raw], Raw], ...] = (_from_1,)
"""The step from version k + 1 to the next."""


def _role(name: str) -> str | None:
    return _ROLES.get(name) or ("controlnet" if name.startswith("controlnet.") else None)


def _object(raw: Any) -> Raw:
    return raw if isinstance(raw, dict) else {}


def _objects(raw: Any) -> dict[str, Raw]:
    """The members of a JSON object that are objects themselves."""
    return {k: v for k, v in _object(raw).items() if isinstance(v, dict)}


def _with_images(raw: Raw) -> Raw:
    """The manifest with version 1's word "pictures" replaced in its keys."""
    renamed = {**raw}
    if isinstance(raw.get("fidelity"), dict):
        renamed["fidelity"] = _renamed(raw["fidelity"], "pictures", "images")
    quantization = raw.get("quantization")
    if isinstance(quantization, dict) and isinstance(quantization.get("search"), dict):
        search = _renamed(quantization["search"], "unseen_pictures", "unseen_images")
        renamed["quantization"] = {**quantization, "search": search}
    return renamed


def _renamed(raw: Raw, old: str, new: str) -> Raw:
    return {new if key == old else key: value for key, value in raw.items()}


def _names(graph: Any, of: str) -> list[Any]:
    tensors = _object(graph).get(of)
    return [_object(t).get("name") for t in tensors] if isinstance(tensors, list) else []
