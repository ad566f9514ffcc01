"""All passes together: on the stages of small pipelines, on random graphs, on unknown ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from diffusers.models.attention_processor import Attention
from edgediff_export.graph.build import dims
from edgediff_export.targets.cpu.dense import Range
from edgediff_export.targets.cpu.passes import Choices, Layer, layers, restructure, write_out

SIZES = [
    {"batch": 1, "height": 8, "width": 8, "sequence": 77},
    {"batch": 2, "height": 8, "width": 24, "sequence": 1},
    {"batch": 1, "height": 24, "width": 40, "sequence": 5},
]
STAGES = [
    ("sd1", "unet"),
    ("sd1", "vae_decoder"),
    *(pytest.param(shape, "unet", marks=pytest.mark.slow) for shape in ("sd2", "lcm")),
]
FORMATS = ["int8", "int8-weights", "int4", "fp16"]


@pytest.fixture(scope="module")
def stage(exported: Callable[[str], Any], tiny_bundle: Path) -> Callable[[str, str], ir.Model]:
    """Shape, stage → its float32 graph, weights in memory, a fresh one each time."""
    found: dict[tuple[str, str], ir.Model] = {}

    def load(shape: str, name: str) -> ir.Model:
        if (shape, name) not in found:
            bundle = tiny_bundle if shape == "tiny-vae" else exported(shape).bundle
            found[shape, name] = ir.load(bundle / f"{name}.onnx")
            ir.external_data.load_to_model(found[shape, name])
        return found[shape, name].clone()

    return load


def inputs_of(model: ir.Model, example: Any, sizes: dict[str, int]) -> dict[str, Any]:
    found = example(model, **sizes)
    if "timestep" in found:
        found["timestep"] = np.array(501.25, np.float32)
    return found


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("shape", "name"), STAGES)
def test_stages_are_unchanged_in_float(
    shape: str, name: str, sizes: Any, stage: Any, example: Any, assert_unchanged: Any, lower: Any
) -> None:
    model = stage(shape, name)
    assert_unchanged(model, lower, inputs=inputs_of(model, example, sizes))
    assert_only_known_operators(model)


def test_a_tiny_decoder_is_unchanged(
    stage: Any, example: Any, assert_unchanged: Any, lower: Any
) -> None:
    model = stage("tiny-vae", "vae_decoder")
    assert_unchanged(model, lower, inputs=inputs_of(model, example, SIZES[1]))


def assert_only_known_operators(model: ir.Model) -> None:
    assert {n.domain for n in model.graph} <= {"", "com.microsoft"}
    assert not {n.op_type for n in model.graph} & {"ConvInteger", "Dense", "GroupNorm"}


def moves_an_image(node: ir.Node) -> bool:
    """Whether a node transposes more than one number for each channel."""
    found = dims(node.inputs[0]) or []
    return node.op_type == "Transpose" and found[2:] != [1, 1]


@pytest.mark.parametrize(("shape", "name"), [*STAGES, ("tiny-vae", "vae_decoder")])
def test_only_the_ends_are_transposed(shape: str, name: str, stage: Any) -> None:
    model = stage(shape, name)
    restructure(model)
    first, last = (n for n in model.graph if moves_an_image(n))
    assert list(last.outputs) == list(model.graph.outputs)
    assert last.inputs[0].producer().op_type in ("Dense", "Sub")
    assert first.outputs[0].uses()[0].node.op_type == "Dense"
    assert layers(model)[0 if name != "unet" else -1].node in (
        first.outputs[0].uses()[0].node,
        last.inputs[0].producer(),
    )


def modules(folder: Path, name: str, kind: type) -> int:
    """How many modules of a kind a pipeline's torch stage has."""
    if name == "unet":
        module = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    else:
        module = diffusers.AutoencoderKL.from_pretrained(folder / "vae").decoder
    return sum(isinstance(m, kind) for m in module.modules())


@pytest.mark.parametrize(("shape", "name"), STAGES)
def test_every_attention_and_norm_is_recognised(
    shape: str, name: str, stage: Any, small_pipeline: Callable[[str], Path], ops: Any
) -> None:
    model = stage(shape, name)
    restructure(model)
    folder = small_pipeline(shape)
    assert len(ops(model, "MultiHeadAttention")) == modules(folder, name, Attention)
    assert len(ops(model, "GroupNorm")) == modules(folder, name, torch.nn.GroupNorm)
    assert not ops(model, "Softmax") + ops(model, "InstanceNormalization")
    assert not ops(model, "Conv") + ops(model, "Gemm") + ops(model, "MatMul")
    # Neither a GEGLU's halves nor the swapped sine and cosine are cut out.
    assert all(n.outputs[0].dtype == ir.DataType.INT64 for n in ops(model, "Slice"))


@pytest.mark.parametrize("form", FORMATS)
def test_a_unet_in_each_format(
    form: str, stage: Any, example: Any, run: Any, assert_close: Any, lower: Any
) -> None:
    model = stage("sd1", "unet")
    inputs = inputs_of(model, example, SIZES[1])
    expected = run(model, inputs)
    lower(model, form)
    assert_only_known_operators(model)
    assert_close(run(model, inputs), expected, {"fp16": 2e-3, "int4": 0.25}.get(form, 0.06))


def seen_by(layer: Layer, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Range:
    bias = 0.0 if layer.bias is None else layer.bias.const_value.numpy()
    most = np.abs(y - bias).max(axis=tuple(range(y.ndim - 1)))
    return Range(low=float(x.min()), high=float(x.max()), output=np.asarray(most, np.float32))


def watched(model: ir.Model, choices: Choices | None) -> tuple[list[Layer], ir.Model]:
    """A graph written out, whose outputs include the input and the output of each layer."""
    restructure(model)
    found = layers(model)
    extra = {v: None for layer in found for v in (layer.x, layer.node.outputs[0])}
    for i, value in enumerate(extra):
        if not value.is_graph_output() and not value.is_graph_input():
            value.name = f"watched.{i}"
            value.type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(value)
    names = {layer.name: (layer.x.name, layer.node.outputs[0].name) for layer in found}
    model.meta["names"] = names
    write_out(model, choices or Choices())
    return found, model


def values_of(model: ir.Model, inputs: dict[str, Any], run: Any) -> dict[str, Any]:
    results = run(model, inputs)
    return {v.name: r for v, r in zip(model.graph.outputs, results, strict=True)} | inputs


@pytest.mark.parametrize("kernel", ["gather", "direct"])
@pytest.mark.parametrize(("shape", "name"), [("sd1", "unet"), ("sd1", "vae_decoder")])
def test_every_int8_layer_of_a_stage_keeps_to_its_bound(
    shape: str,
    name: str,
    kernel: Any,
    stage: Any,
    example: Any,
    run: Any,
    error_bound: Any,
    ops: Any,
) -> None:
    """Each layer against float64, on its own input in the int8 graph."""
    source = stage(shape, name)
    inputs = inputs_of(source, example, SIZES[1])
    found, model = watched(source.clone(), None)
    values = values_of(model, inputs, run)
    ranges = {}
    for layer in found:
        x, y = (values[v] for v in model.meta["names"][layer.name])
        ranges[layer.name] = seen_by(layer, x, y)
    choices = Choices(formats=dict.fromkeys(ranges, "int8"), kernel=lambda _: kernel, ranges=ranges)
    found, model = watched(source.clone(), choices)
    values = values_of(model, inputs, run)
    assert len(ranges) == len(found) > 30
    direct = 0
    for layer in found:
        x, y = (values[v] for v in model.meta["names"][layer.name])
        bytes_out = kernel == "direct" and x.ndim in (3, 4)
        direct += bytes_out
        expected, allowed = error_bound(layer, x, ranges[layer.name] if bytes_out else None)
        assert (np.abs(y - expected) <= allowed).all(), layer.name
    assert len(ops(model, "QLinearConv")) == direct
    assert (direct > 25) == (kernel == "direct")


def test_norms_take_the_scale_of_a_direct_layer(net: Any, run: Any, assert_close: Any) -> None:
    """conv → + time embedding → norm: the norm reads bytes and multiplies no image."""
    y = net.conv(net.input("x", ("b", 4, "h", "w")), (4, 8))
    time = net.op("Unsqueeze", net.linear(net.input("time", ("b", 6)), 6, 8), [2, 3])
    once = net.group_norm(y, 8, 4)
    model = net.model(net.group_norm(net.op("Add", y, time), 8, 2), once)
    inputs = {
        "x": net.rng.standard_normal((2, 4, 8, 24), dtype=np.float32),
        "time": net.rng.standard_normal((2, 6), dtype=np.float32),
    }
    expected = run(model, inputs)
    restructure(model)
    seen = Range(low=-4, high=4, output=np.full(8, 3, np.float32))
    names = [layer.name for layer in layers(model) if len(layer.x.shape) == 4]
    write_out(
        model,
        Choices(
            formats=dict.fromkeys(names, "int8"),
            kernel=lambda _: "direct",
            ranges=dict.fromkeys(names, seen),
        ),
    )
    assert_close(run(model, inputs), expected, 0.03)


@pytest.mark.parametrize("shape", ["sd1", "sd2"])
def test_a_text_encoder_keeps_its_masked_attention(
    shape: str, stage: Any, example: Any, assert_unchanged: Any, lower: Any, ops: Any
) -> None:
    model = stage(shape, "text_encoder")
    softmaxes = len(ops(model, "Softmax"))
    assert_unchanged(model, lower, inputs=example(model, batch=2))
    assert len(ops(model, "Softmax")) == softmaxes > 0
    assert not ops(model, "MultiHeadAttention")


def random_graph(net: Any) -> ir.Model:
    """A few layers in a random order, with skip connections if the shapes agree."""
    x = net.input("x", ("b", 4, "h", "w"))
    time = net.input("time", ("b", 6))
    y, channels = net.conv(x, (4, 8)), 8
    skips = [y]
    for kind in net.rng.choice(list("cnsatrdgx"), size=7):
        if kind == "c":
            n = int(net.rng.choice([4, 8, 12]))
            y, channels = net.conv(y, (channels, n), int(net.rng.choice([1, 3]))), n
        elif kind == "n":
            y = net.group_norm(y, channels, 4)
        elif kind == "s":
            y = net.silu(y)
        elif kind == "a":
            tokens = net.op("Transpose", net.op("Reshape", y, [0, channels, -1]), perm=[0, 2, 1])
            q, k, v = (net.linear(tokens, channels, 8) for _ in range(3))
            mixed = net.linear(net.attention(q, k, v, 2, 4), 8, channels)
            back = net.op("Transpose", net.op("Add", mixed, tokens), perm=[0, 2, 1])
            y = net.op("Reshape", back, net.op("Shape", y))
        elif kind == "t":
            shift = net.op("Unsqueeze", net.linear(time, 6, channels), [2, 3])
            y = net.op("Add", y, shift)
        elif kind == "r":
            y = net.op("Resize", y, None, np.array([1.0, 1, 2, 2]), mode="nearest")
            skips = [
                net.op("Resize", s, None, np.array([1.0, 1, 2, 2]), mode="nearest") for s in skips
            ]
        elif kind == "d":
            y = net.conv(y, (channels, channels), 3, strides=[2, 2], pads=[0, 0, 1, 1])
            skips = []
        elif kind == "g":
            tokens = net.op("Transpose", y, perm=[0, 2, 3, 1])
            whole = net.linear(tokens, channels, 2 * channels)
            halves = [
                net.op("Slice", whole, [a * channels], [(a + 1) * channels], [3]) for a in (0, 1)
            ]
            y = net.op(
                "Transpose", net.op("Mul", halves[0], net.op("Erf", halves[1])), perm=[0, 3, 1, 2]
            )
        elif skips:
            other = skips[int(net.rng.integers(len(skips)))]
            y = net.conv(net.op("Concat", y, other, axis=1), (channels + 8, channels), 1)
    return net.model(net.op("Tanh", net.conv(y, (channels, 4))))


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_are_unchanged(
    seed: int, new_net: Any, example: Any, run: Any, assert_unchanged: Any, lower: Any,
    assert_close: Any,
) -> None:  # fmt: skip
    model = random_graph(new_net(seed))
    other = model.clone()
    assert_unchanged(model, lower, h=8, w=24)
    assert_only_known_operators(model)
    inputs = example(other, b=2, h=40, w=8)
    expected = run(other, inputs)
    lower(other, "int8")
    assert_close(run(other, inputs), expected, 0.2)


def foreign(net: Any, case: str) -> tuple[ir.Value, ...]:
    """Something that no pass knows, between layers that are rewritten."""
    y = net.conv(net.input("x", ("b", 4, 8, 8)), (4, 8))
    if case == "grouped":
        return (net.op("Relu", net.op("Conv", y, net.weight(8, 2, 3, 3), group=4)),)
    if case == "dilated":
        return (net.op("Conv", net.silu(y), net.weight(6, 8, 3, 3), dilations=[2, 2]),)
    if case == "same upper":
        return (net.op("Conv", y, net.weight(6, 8, 3, 3), auto_pad="SAME_UPPER"),)
    if case == "weight from an input":
        return (net.op("Conv", y, net.input("weight", (6, 8, 3, 3))),)
    if case == "1-D":
        return (
            net.op(
                "Conv",
                net.op("Reshape", y, [0, 8, -1]),
                net.weight(6, 8).const_value.numpy()[..., None],
            ),
        )
    if case == "transposed":
        return (net.op("ConvTranspose", y, net.weight(8, 4, 2, 2), strides=[2, 2]),)
    if case == "TopK":
        values, indices = net.op("TopK", y, [3], axis=1, outputs=2)
        return (net.op("Relu", values), indices)
    if case == "Einsum":
        return (net.conv(net.op("Einsum", y, y, equation="bchw,bdhw->bdhw"), (8, 4)),)
    if case == "Split":
        a, b = net.op("Split", y, axis=1, num_outputs=2, outputs=2)
        return (net.op("Mul", a, net.op("Sigmoid", b)), a)
    if case == "rank 5":
        five = net.op("Reshape", y, [0, 2, 4, 8, 8])
        five = net.op("Relu", net.op("Transpose", five, perm=[0, 2, 1, 3, 4]))
        return (net.conv(net.op("Reshape", five, [0, 8, 8, 8]), (8, 4)),)
    if case == "softmax over channels":
        return (net.op("Mul", net.op("Softmax", y, axis=1), y),)
    if case == "mean":
        return (net.op("Sub", y, net.op("ReduceMean", y, [2, 3])), net.op("ReduceMax", y, [1]))
    if case == "padded":
        return (net.conv(net.op("Pad", y, [0, 0, 0, 1, 0, 0, 2, 0]), (8, 4)),)
    return (
        net.op("GlobalAveragePool", y),
        net.op("Gather", y, [3, 1], axis=1),
        net.op("Flatten", y),
    )


@pytest.mark.parametrize("form", ["fp32", "int8"])
@pytest.mark.parametrize(
    "case",
    [
        "grouped", "dilated", "same upper", "weight from an input", "1-D", "transposed", "TopK",
        "Einsum", "Split", "rank 5", "softmax over channels", "mean", "padded", "others",
    ],
)  # fmt: skip
def test_what_no_pass_knows_goes_through(
    case: str, form: str, net: Any, assert_unchanged: Any, lower: Any
) -> None:
    model = net.model(*foreign(net, case))
    if form == "int8" and case == "TopK":
        lower(model, form)  # which channels are largest may well change
        return
    tolerance = 1e-4 if form == "fp32" else 0.05
    assert_unchanged(model, lambda m: lower(m, form), tolerance)
    assert_only_known_operators(model)


def test_a_branch_may_read_what_was_moved(net: Any, assert_unchanged: Any, lower: Any) -> None:
    y = net.conv(net.input("x", ("b", 4, "h", "w")), (4, 4))
    condition = net.op("Greater", net.op("ReduceMax", y, keepdims=0), 0.0)
    branches = []
    for name, op_type in (("then", "Relu"), ("else", "Neg")):
        node = ir.node(op_type, [y], name=f"/net/{name}")
        node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        branches.append(ir.Graph([], node.outputs, nodes=[node], name=name))
    either = net.op("If", condition, then_branch=branches[0], else_branch=branches[1])
    assert_unchanged(net.model(net.op("Abs", either), net.silu(y)), lower)
