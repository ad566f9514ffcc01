"""Torch modules whose weights are kept in half precision, evaluated in float32."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def in_float32(module: Any) -> Iterator[None]:
    """Let each layer widen its weights while it runs, and no longer: the results are those of a
    float32 copy, which need not fit into memory. A float32 module is left as it is."""
    import torch

    hooks = []
    for layer in module.modules():
        own = [
            p for p in layer.parameters(recurse=False) if p.dtype in (torch.float16, torch.bfloat16)
        ]
        if own:
            halves = [p.data for p in own]
            hooks += [
                layer.register_forward_pre_hook(lambda *_, own=own: _widen(own)),
                layer.register_forward_hook(
                    lambda *_, own=own, halves=halves: _put_back(own, halves), always_call=True
                ),
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _widen(weights: list[Any]) -> None:
    for weight in weights:
        weight.data = weight.data.float()


def _put_back(weights: list[Any], halves: list[Any]) -> None:
    for weight, half in zip(weights, halves, strict=True):
        weight.data = half
