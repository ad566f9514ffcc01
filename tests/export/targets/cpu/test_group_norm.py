"""Group norms that are recognised, and how they are written out."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from edgediff_export.graph.build import Builder
from edgediff_export.targets.cpu.group_norm import Affine, fuse_group_norms, write_group_norm


def found(model: ir.Model) -> int:
    """How many norms are recognised; the model itself stays as it is."""
    return fuse_group_norms(model.clone())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (8, 24), (5, 3)])
def test_norms_of_images(
    batch: int, groups: int, size: tuple[int, int], net: Any, assert_unchanged: Any, lower: Any
) -> None:
    model = net.model(net.group_norm(net.input("x", ("b", 8, "h", "w")), 8, groups))
    assert found(model) == 1
    assert_unchanged(model, lower, b=batch, h=size[0], w=size[1])
    assert not {n.op_type for n in model.graph} & {"InstanceNormalization", "GroupNorm"}


def test_norms_of_tokens(net: Any, assert_unchanged: Any, lower: Any) -> None:
    model = net.model(net.group_norm(net.input("x", ("b", 8, "s")), 8, 2, rank=3))
    assert found(model) == 1
    assert_unchanged(model, lower)


@pytest.mark.parametrize("mean", [0.0, -10.0])
@pytest.mark.parametrize("deviation", [1e-3, 1.0, 100.0])
def test_norms_of_what_lies_far_from_zero(
    mean: float, deviation: float, net: Any, example: Any, assert_unchanged: Any, lower: Any
) -> None:
    model = net.model(net.group_norm(net.input("x", ("b", 8, "h", "w")), 8, 4))
    x = (example(model, h=24, w=40)["x"] + np.float32(mean)) * np.float32(deviation)
    assert_unchanged(model, lower, inputs={"x": x})


def test_norms_of_a_constant_image_are_the_shift(
    net: Any, assert_unchanged: Any, lower: Any
) -> None:
    model = net.model(net.group_norm(net.input("x", ("b", 8, "h", "w")), 8, 4))
    assert_unchanged(model, lower, inputs={"x": np.zeros((1, 8, 4, 4), np.float32)})


def norm(net: Any, case: str) -> Any:
    """A norm that differs in one thing from a group norm."""
    rank5 = case == "rank 5"
    x = net.input("x", ("b", 8, 2, 4, 6) if rank5 else ("b", 8, 8, 8))
    cut = {"batch as one": [1, 4, -1], "half the batch": [-1, 4, 64]}.get(case, [0, 4, -1])
    ones = np.full(4, 2.0 if case == "weights of its own" else 1.0)
    normal = net.op("InstanceNormalization", net.op("Reshape", x, cut), ones, np.zeros(4))
    whole = net.op("Reshape", normal, net.op("Shape", x))
    trailing = (1, 1, 1) if rank5 else (1, 1)
    weight = net.rng.random((8, *trailing))
    shift = net.rng.random((8, *trailing))
    if case == "weight by column":
        weight = net.rng.random(8)
    if case == "shift by row":
        shift = net.rng.random((8, 1))
    if case == "no weight":
        return net.op("Relu", whole)
    if case == "other readers":
        return net.op("Add", net.op("Mul", whole, weight), whole)
    return net.op("Add", net.op("Mul", whole, weight), shift)


@pytest.mark.parametrize(
    "case",
    [
        "batch as one", "half the batch", "weights of its own", "weight by column",
        "shift by row", "no weight", "other readers",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_group_norm_stays(
    case: str, net: Any, assert_unchanged: Any, lower: Any
) -> None:
    model = net.model(norm(net, case))
    assert found(model) == 0
    assert_unchanged(model, lower)


def test_norms_of_videos_stay_right(net: Any, assert_unchanged: Any, lower: Any) -> None:
    assert_unchanged(net.model(norm(net, "rank 5")), lower)


@pytest.mark.parametrize("by_image", [False, True], ids=["shift (c)", "shift (b, 1, c)"])
def test_a_scale_and_a_shift_are_taken_into_the_norm(by_image: bool, net: Any, run: Any) -> None:
    """GroupNorm(x · scale + shift), as after a layer that writes bytes."""
    x = net.input("x", ("b", 5, 7, 8))
    shift = net.input("shift", ("b", 1, 8)) if by_image else net.constant(net.rng.random(8) - 0.5)
    scale, weight, bias = (net.constant(net.rng.random(8) + 0.1) for _ in range(3))
    model = net.model(net.op("Identity", x))
    (last,) = model.graph
    template = ir.node("GroupNorm", [x, weight, bias], {"groups": 4, "epsilon": 1e-3})
    normal = write_group_norm(
        Builder(model.graph, last), template, x, Affine(scale=scale, shift=shift)
    )
    last.replace_input_with(0, normal)
    values = {"x": net.rng.standard_normal((2, 5, 7, 8), dtype=np.float32)}
    if by_image:
        values["shift"] = net.rng.standard_normal((2, 1, 8), dtype=np.float32)
    moved = values["shift"][:, :, None] if by_image else shift.const_value.numpy()
    expected = torch.nn.functional.group_norm(
        torch.from_numpy(values["x"] * scale.const_value.numpy() + moved).permute(0, 3, 1, 2),
        4,
        torch.from_numpy(weight.const_value.numpy()),
        torch.from_numpy(bias.const_value.numpy()),
        eps=1e-3,
    ).permute(0, 2, 3, 1)
    np.testing.assert_allclose(run(model, values)[0], expected.numpy(), atol=1e-4)
