"""The formulas by which adapters change a weight: LoRA and its kin.

Each layer of a file becomes a `Change`: the keys of its tensors by their role, and what scales it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# kohya-ss: X.lora_down.weight; PEFT: X.lora_A.weight, with the adapter's name or without; diffusers
# before it: X.lora.down.weight, X_lora.down.weight and X.lora_linear_layer.down.weight.
_DOWN, _UP = (
    rf"(?:\.lora_{short}|\.lora_{letter}(?:\.(?!weight|bias)\w+)?|[._]lora\.{short}"
    rf"|\.lora_linear_layer\.{short})"
    for short, letter in (("down", "A"), ("up", "B"))
)
_ROLES: Mapping[str, re.Pattern[str]] = {
    "down": re.compile(rf"(.+?){_DOWN}\.weight"),
    "up": re.compile(rf"(.+?){_UP}\.weight"),
    "up_bias": re.compile(rf"(.+?){_UP}\.bias"),
    "mid": re.compile(r"(.+)\.lora_mid\.weight"),
    "magnitude": re.compile(
        r"(.+?)\.(?:dora_scale|lora_magnitude_vector(?:\.(?!weight)\w+)?(?:\.weight)?)"
    ),
    "diff": re.compile(r"(.+)\.diff"),
    "diff_b": re.compile(r"(.+)\.diff_b"),
    "w_norm": re.compile(r"(.+)\.w_norm"),
    "b_norm": re.compile(r"(.+)\.b_norm"),
    **{
        role: re.compile(rf"(.+)\.{role}")
        for role in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        )
    },
}
"""The role of a tensor → its name, whose first group is the layer's."""
OTHER_KINDS: Mapping[str, re.Pattern[str]] = {
    "OFT": re.compile(r"\.oft_"),
    "BOFT": re.compile(r"\.boft_"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "(IA)³": re.compile(r"\.on_input$|\.ia3_"),
    "a set of weights, not of changes": re.compile(r"\.set_weight$|\.reshape_weight$"),
}
"""What changes weights by another formula, and cannot be merged."""
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_BIASES = ("diff_b", "b_norm", "up_bias")
_ALTERNATIVES = (
    ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff", "w_norm"),
    ("lokr_w2", "lokr_w2_a"),
    _BIASES,
)
"""Roles of which a layer has one at most."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of one layer. keys: role → the file's key; factor: alpha / rank."""

    keys: Mapping[str, str] = field(default_factory=dict)
    factor: float = 1.0

    @property
    def changes_bias(self) -> bool:
        """Whether it changes the layer's bias too."""
        return any(role in self.keys for role in _BIASES)

    @property
    def changes_weight(self) -> bool:
        """Whether it changes the layer's weight."""
        return any(role not in _BIASES for role in self.keys)

    def bias_delta(self, tensors: Any) -> Any:
        """The change of the bias at scale 1, float32."""
        role = next(r for r in _BIASES if r in self.keys)
        delta = tensors.get_tensor(self.keys[role]).float()
        return delta * self.factor if role == "up_bias" else delta

    def weight_delta(self, tensors: Any) -> Any:
        """The change of the weight at scale 1, float32, in the file's own shape."""
        import torch

        part = {role: tensors.get_tensor(key).float() for role, key in self.keys.items()}
        for role in ("diff", "w_norm"):
            if role in part:
                return part[role]
        if "hada_w1_a" in part:
            # Hyeon-Woo et al. 2021, arXiv:2108.06098, proposition 2 and 3.
            first = _product(part["hada_w1_a"], part["hada_w1_b"], part.get("hada_t1"))
            second = _product(part["hada_w2_a"], part["hada_w2_b"], part.get("hada_t2"))
            return self.factor * first * second
        if "lokr_w1" in part or "lokr_w1_a" in part:
            # Yeh et al. 2023, arXiv:2309.14859, section 3.3.
            first = part.get("lokr_w1")
            if first is None:
                first = part["lokr_w1_a"] @ part["lokr_w1_b"]
            second = part.get("lokr_w2")
            if second is None:
                second = _product(part["lokr_w2_a"], part["lokr_w2_b"], part.get("lokr_t2"))
            first = first.reshape(*first.shape, *(1,) * (second.ndim - first.ndim))
            return self.factor * torch.kron(first.contiguous(), second.contiguous())
        up, down = part["up"].flatten(1), part["down"]
        if "mid" in part:
            # A convolution between the two: the same document, section 3.2.
            product = torch.einsum("ijkl,jr,pi->prkl", part["mid"], down.flatten(1), up)
            return self.factor * product
        return self.factor * (up @ down.flatten(1))

    def decomposed(self, weight: Any, delta: Any, tensors: Any) -> Any:
        """The sum of a weight and its change; with DoRA (Liu et al. 2024, arXiv:2402.09353), of
        the length that the file has for each row or column."""
        key = self.keys.get("magnitude")
        if key is None:
            return weight + delta
        magnitude = tensors.get_tensor(key).float()
        rows = is_of_rows(key, tuple(magnitude.shape), tuple(weight.shape))
        return decompose(weight, delta, magnitude, rows=rows is not False)


def find_role(key: str) -> tuple[str, str] | None:
    """A file's key → (its role, the layer's name in the file)."""
    for role, pattern in _ROLES.items():
        if m := pattern.fullmatch(key):
            return role, m[1]
    return None


def lacking(roles: Mapping[str, str]) -> bool:
    """Whether tensors that belong together are not all there."""
    low_rank = ("down" in roles) != ("up" in roles)
    extra = ("mid" in roles or "magnitude" in roles or "up_bias" in roles) and "up" not in roles
    hada = any(r in roles for r in _HADA) and not all(r in roles for r in _HADA)
    has_lokr = any(r.startswith("lokr_") for r in roles)
    lokr = has_lokr and not all(
        f"lokr_w{i}" in roles or {f"lokr_w{i}_a", f"lokr_w{i}_b"} <= roles.keys() for i in (1, 2)
    )
    extra = extra and not ("magnitude" in roles and ("hada_w1_a" in roles or has_lokr))
    return low_rank or extra or hada or lokr


def rivals(roles: Mapping[str, str]) -> tuple[str, str] | None:
    """The keys of two tensors that change the same weights by different formulas."""
    for alternatives in _ALTERNATIVES:
        its = [roles[role] for role in alternatives if role in roles]
        if len(its) > 1:
            return its[0], its[1]
    return None


def rank_of(roles: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The rank that alpha is divided by; None if a change has none, and no scale."""
    for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if role in roles:
            return next(iter(shapes[roles[role]]), 1)
    return None


def fits(
    roles: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], weight: tuple[int, ...]
) -> bool:
    """Whether a change has the shape of a layer's weight, before it is computed."""
    its = {role: shapes[key] for role, key in roles.items()}
    if "diff" in its or "w_norm" in its:
        return _squeezed(its.get("diff", its.get("w_norm", ()))) == _squeezed(weight)
    if "down" in its:
        return _low_rank_fits(its["down"], its["up"], its.get("mid"), weight)
    if "hada_w1_a" in its:
        first, second = (
            _product_shape(its[f"hada_w{i}_a"], its[f"hada_w{i}_b"], its.get(f"hada_t{i}"))
            for i in (1, 2)
        )
        return first is not None and first == second and _is_shape_of(first, weight)
    if "lokr_w1" in its or "lokr_w1_a" in its:
        first, second = (
            its[f"lokr_w{i}"]
            if f"lokr_w{i}" in its
            else _product_shape(its[f"lokr_w{i}_a"], its[f"lokr_w{i}_b"], its.get(f"lokr_t{i}"))
            for i in (1, 2)
        )
        if first is None or second is None or len(first) != 2 or len(second) not in (2, 4):
            return False
        product = (first[0] * second[0], first[1] * second[1], *second[2:])
        return _is_shape_of(product, weight)
    return True


def is_of_rows(key: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> bool | None:
    """Whether a magnitude of DoRA has the length of each row of a weight (True) or of each column
    (False); None if it has another size.

    PEFT has rows only, in the shape (out,), or (1, out, 1, 1) of a convolution. LyCORIS has rows as
    (out, 1, …) and columns as (1, in, …)."""
    if len(weight) < 2:
        return None
    size = math.prod(shape)
    rows = size == weight[0]
    if not key.endswith(".dora_scale") or shape[:1] == weight[:1]:
        return True if rows else None
    if size == weight[1]:
        return False
    return True if rows else None


def _low_rank_fits(
    down: tuple[int, ...],
    up: tuple[int, ...],
    mid: tuple[int, ...] | None,
    weight: tuple[int, ...],
) -> bool:
    if len(down) < 2 or len(up) < 2 or math.prod(up[2:]) != 1 or up[0] != weight[0]:
        return False
    if mid is not None:
        inner = len(mid) == 4 and mid[:2] == (up[1], down[0]) and mid[2:] == weight[2:]
        return inner and down[1] == weight[1] and math.prod(down[2:]) == 1
    flat = len(down) == 2 and down[1] == math.prod(weight[1:])
    same = down[1] == weight[1] and math.prod(down[2:]) == math.prod(weight[2:])
    return up[1] == down[0] and (flat or same)


def decompose(weight: Any, delta: Any, magnitude: Any, *, rows: bool) -> Any:
    """DoRA, eq. 5: magnitude · (W + ΔW) / ‖W + ΔW‖, the norm taken of each row, that is of each
    output, or of each column."""
    changed = weight + delta
    axis = 0 if rows else 1
    norm = changed.transpose(0, axis).flatten(1).norm(dim=1)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return changed * (magnitude.flatten() / norm).reshape(shape)


def _product(a: Any, b: Any, core: Any) -> Any:
    """a·b, or Tucker's product of both with a core."""
    import torch

    return a @ b if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a)


def _product_shape(
    a: tuple[int, ...], b: tuple[int, ...], core: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """The shape of their product; None if they do not fit together."""
    if len(a) != 2 or len(b) != 2:
        return None
    if core is None:
        return (a[0], b[1]) if a[1] == b[0] else None
    fit = len(core) == 4 and core[:2] == (a[0], b[0])
    return (a[1], b[1], *core[2:]) if fit else None


def _is_shape_of(change: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a change has a weight's shape, or is its matrix: (out, in · height · width)."""
    flat = len(change) == 2 and change == (weight[0], math.prod(weight[1:]))
    return flat or _squeezed(change) == _squeezed(weight)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
