"""The files that a graph names for its weights, against graphs that onnx wrote."""

import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgediff.bundle.external_data import MAX_DEPTH, check_file_name, external_files
from edgediff.errors import BundleError


def external(location: str | None, name: str = "w") -> TensorProto:
    """A tensor of four floats in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    if location is not None:
        tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph)


def graph(nodes: list[onnx.NodeProto] | None = None, **fields: object) -> onnx.GraphProto:
    return helper.make_graph(nodes or [], "g", [], [], **fields)


def sparse(location: str, *, indices: bool = False) -> onnx.SparseTensorProto:
    found = onnx.SparseTensorProto(dims=[4])
    (found.indices if indices else found.values).CopyFrom(external(location))
    return found


def in_attribute(**fields: object) -> onnx.ModelProto:
    return model(graph([helper.make_node("Op", [], ["y"], **fields)]))


def in_function(name: str) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["y"], value=external(name))
    function = helper.make_function("d", "f", [], ["y"], [node], [helper.make_opsetid("", 20)])
    made = model(graph())
    made.functions.append(function)
    return made


def in_function_default(name: str) -> onnx.ModelProto:
    made = in_function("unused")
    made.functions[0].ClearField("node")
    made.functions[0].attribute_proto.append(helper.make_attribute("a", external(name)))
    return made


def in_training(name: str) -> onnx.ModelProto:
    made = model(graph())
    made.training_info.add().algorithm.initializer.append(external(name))
    return made


PLACES: dict[str, Callable[[str], onnx.ModelProto]] = {
    "initializer": lambda n: model(graph(initializer=[external(n)])),
    "sparse initializer": lambda n: model(graph(sparse_initializer=[sparse(n)])),
    "sparse indices": lambda n: model(graph(sparse_initializer=[sparse(n, indices=True)])),
    "attribute": lambda n: in_attribute(value=external(n)),
    "attribute of tensors": lambda n: in_attribute(values=[external("a"), external(n)]),
    "sparse attribute": lambda n: in_attribute(value=sparse(n)),
    "sparse attributes": lambda n: in_attribute(values=[sparse("a"), sparse(n)]),
    "subgraph": lambda n: in_attribute(body=graph(initializer=[external(n)])),
    "subgraphs": lambda n: in_attribute(bodies=[graph(), graph(initializer=[external(n)])]),
    "subgraph of a subgraph": lambda n: in_attribute(
        body=graph([helper.make_node("If", [], [], then_branch=graph(initializer=[external(n)]))])
    ),
    "function": in_function,
    "default of a function's attribute": in_function_default,
    "training graph": in_training,
}


@pytest.mark.parametrize("place", PLACES)
def test_finds_a_location_wherever_a_graph_may_hold_one(place: str) -> None:
    serialized = PLACES[place]("weights.bin").SerializeToString()
    assert "weights.bin" in external_files(serialized, "g.onnx")


@pytest.mark.parametrize("place", PLACES)
def test_refuses_a_path_wherever_a_graph_may_hold_one(place: str) -> None:
    with pytest.raises(BundleError, match=r"g\.onnx: has weights in '\.\./w'"):
        external_files(PLACES[place]("../w").SerializeToString(), "g.onnx")


def test_a_graph_with_its_weights_inside_names_no_file() -> None:
    inside = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    serialized = model(graph(initializer=[inside])).SerializeToString()
    assert external_files(serialized, "g.onnx") == frozenset()


def test_text_that_looks_like_a_location_names_no_file() -> None:
    made = model(graph([helper.make_node("Op", ["location"], ["../x"], text="location")]))
    made.metadata_props.add(key="location", value="../x")
    inside = helper.make_tensor("w", TensorProto.UINT8, [11], list(b"location../"))
    made.graph.initializer.append(inside)
    assert external_files(made.SerializeToString(), "g.onnx") == frozenset()


def test_agrees_with_onnx_on_a_real_graph(tiny_bundle: Path) -> None:
    for path in tiny_bundle.glob("*.onnx"):
        loaded = onnx.load(path, load_external_data=False)
        expected = {
            entry.value
            for tensor in loaded.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert external_files(path.read_bytes(), path.name) == expected


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "../x",
        "C:x",
        "a\\b",
        "*/_ORT_MEM_ADDR_/*",
        "a\0b",
        "a\nb",
        "a\x1b[31m",
        "a" * 256,
        "\u202eexe.bin",
    ],
)
def test_a_location_is_the_plain_name_of_a_file(location: str) -> None:
    with pytest.raises(BundleError, match="expected the plain name of a file"):
        check_file_name(location, "g.onnx")


@pytest.mark.parametrize("location", ["unet.onnx.data", "Gewichte-ü.bin", "..data", "a b"])
def test_plain_names_are_taken(location: str) -> None:
    assert check_file_name(location, "g.onnx") == location


def test_every_location_of_a_tensor_counts() -> None:
    """onnxruntime takes one of several, others another."""
    tensor = external("a")
    tensor.external_data.add(key="location", value="b")
    serialized = model(graph(initializer=[tensor])).SerializeToString()
    assert external_files(serialized, "g.onnx") == {"a", "b"}


def test_a_tensor_that_lies_nowhere_is_refused() -> None:
    serialized = model(graph(initializer=[external(None)])).SerializeToString()
    with pytest.raises(BundleError, match="a file without a name"):
        external_files(serialized, "g.onnx")


def test_external_data_counts_without_a_data_location() -> None:
    tensor = external("w.bin")
    tensor.ClearField("data_location")
    serialized = model(graph(initializer=[tensor])).SerializeToString()
    assert external_files(serialized, "g.onnx") == {"w.bin"}


def test_what_a_provider_compiled_is_refused() -> None:
    node = helper.make_node("EPContext", [], [], ep_cache_context="/lib/x.so", embed_mode=0)
    with pytest.raises(BundleError, match="EPContext"):
        external_files(model(graph([node])).SerializeToString(), "g.onnx")


def test_a_message_that_is_split_in_two_is_read_whole() -> None:
    """protobuf merges a message that comes twice."""
    first = model(graph())
    second = onnx.ModelProto()
    second.graph.initializer.append(external("w.bin"))
    both = first.SerializeToString() + second.SerializeToString()
    assert external_files(both, "g.onnx") == {"w.bin"}


def field(number: int, body: bytes) -> bytes:
    """A field of bytes as protobuf writes it."""
    assert number < 16
    length = len(body)
    out = bytearray([number << 3 | 2])
    while True:
        out.append(length & 0x7F | (0x80 if length > 0x7F else 0))
        length >>= 7
        if not length:
            return bytes(out) + body


def test_deep_nesting_is_refused_without_a_deep_stack() -> None:
    nested = b""
    for _ in range(MAX_DEPTH * 100):
        nested = field(1, field(5, field(6, nested)))  # node, attribute, graph
    with pytest.raises(BundleError, match="nest more than"):
        external_files(field(7, nested), "g.onnx")


def test_too_many_fields_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgediff.bundle.external_data.MAX_FIELDS", 100)
    with pytest.raises(BundleError, match="more than 100 fields"):
        external_files(field(7, field(1, b"") * 101), "g.onnx")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x3a", "cut off"),
        (b"\x3a\x05abc", "ends outside"),
        (b"\xff" * 11, "cut off"),
        (b"\x3b\x3c", "wire type 3"),
        (b"\x3f", "wire type 7"),
        (b"\x00\x00", "field number 0"),
        (b"\x39abc", "ends outside"),
    ],
)
def test_bytes_that_are_not_a_message_are_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        external_files(raw, "g.onnx")


def test_a_location_that_is_not_text_is_refused() -> None:
    entry = field(1, b"location") + field(2, b"\xff\xfe")
    tensor = field(13, entry)
    with pytest.raises(BundleError, match="not UTF-8"):
        external_files(field(7, field(5, tensor)), "g.onnx")


def test_mutated_graphs_either_name_the_files_that_onnx_reads_or_are_refused() -> None:
    """Of each mutated graph that onnx still parses, every location that it finds is found."""
    source = random.Random(0)
    small = [build("weights.bin").SerializeToString() for build in PLACES.values()]
    parsed = 0
    for _ in range(3000):
        raw = bytearray(source.choice(small))
        for _ in range(source.randint(1, 3)):
            raw[source.randrange(len(raw))] = source.randrange(256)
        try:
            found = external_files(bytes(raw), "g.onnx")
        except BundleError:
            continue
        try:
            loaded = onnx.ModelProto.FromString(bytes(raw))
        except Exception:
            continue
        parsed += 1
        assert {
            entry.value
            for tensor in loaded.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        } <= found
    assert parsed > 300
