"""The files that an ONNX graph names for its weights, read without onnx and before onnxruntime.

onnxruntime opens every file that a graph names. So a graph's protobuf is walked first, along the
fields that can lead to a tensor: tensors among initializers, sparse initializers and attributes,
in subgraphs, functions and training graphs. Field numbers are those of onnx.proto (ONNX, IR
version 13).

Whatever a parser might take for a location counts as one. A message that is cut off, nests too
deep, or holds protobuf's groups, which ONNX does not use, is refused.
"""

from collections.abc import Iterator

from edgediff.errors import BundleError
from edgediff.files import is_file_name

MAX_DEPTH = 64
"""Nesting of messages; graphs of diffusion models have 6, and 3 more for each subgraph."""
MAX_FIELDS = 5_000_000
"""Fields of all messages that are looked into; the UNet of SDXL's shape has some 300,000."""

_Fields = list[tuple[int, int, int]]
"""(field number, start, end) of fields of bytes."""

# Message → field number → the message in that field.
_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_OP_TYPE = 4
_COMPILED = b"EPContext"
"""The operator of a part that a provider compiled; it may name a file for the provider to run."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


def external_files(graph: bytes, name: str) -> frozenset[str]:
    """A serialized ONNX model → the names of the files that its tensors lie in.

    name: the graph's, for errors. Raises BundleError for bytes that are not a model, for an
    external tensor without a location, for a location that is not the plain name of a file, and
    for a part that a provider compiled, which would run unseen."""
    return frozenset(_Walk(graph, name).locations())


def check_file_name(location: str, graph: str) -> str:
    """A location as a graph has it, if it is the plain name of a file. Raises BundleError."""
    if not is_file_name(location):
        raise BundleError(
            f"{graph}: has weights in {location[:80]!r}, expected the plain name of a file in the"
            " bundle: export the bundle again"
        )
    return location


class _Walk:
    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._left = MAX_FIELDS

    def locations(self) -> Iterator[str]:
        """Every external location, depth first."""
        # A stack of its own: a graph must not be able to exhaust Python's.
        stack = [("model", 0, len(self._data), 1)]
        while stack:
            message, start, end, depth = stack.pop()
            if depth > MAX_DEPTH:
                raise self._refuse(f"messages nest more than {MAX_DEPTH} deep")
            if message == "tensor":
                yield from self._tensor(start, end)
                continue
            children = _CHILDREN[message]
            texts, _ = self._fields(start, end)
            for number, at, behind in texts:
                if number in children:
                    stack.append((children[number], at, behind, depth + 1))
                elif message == "node" and number == _OP_TYPE:
                    self._check_operator(at, behind)

    def _tensor(self, start: int, end: int) -> Iterator[str]:
        """The locations of one tensor: each that is given, since readers differ on which counts."""
        texts, located = self._fields(start, end)
        entries = [(at, behind) for number, at, behind in texts if number == _EXTERNAL_DATA]
        # Also one without data_location counts: external_data has no other use.
        external = bool(entries) or located
        pairs = [self._entry(at, behind) for at, behind in entries]
        found = [value for key, value in pairs if key == "location"]
        if external and not found:
            raise self._refuse("a tensor lies in a file without a name")
        yield from (check_file_name(location, self._name) for location in found)

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        found = {_KEY: "", _VALUE: ""}
        for number, at, behind in self._fields(start, end)[0]:
            try:
                found[number] = self._data[at:behind].decode()
            except UnicodeDecodeError as e:
                raise self._refuse("the name of a file is not UTF-8") from e
        return found[_KEY], found[_VALUE]

    def _check_operator(self, start: int, end: int) -> None:
        if self._data[start:end] == _COMPILED:
            raise BundleError(
                f"{self._name}: holds an {_COMPILED.decode()} node, which a provider would run"
                " unseen: export the bundle again"
            )

    def _fields(self, start: int, end: int) -> tuple[_Fields, bool]:
        """The fields of bytes between two offsets, and whether a tensor's data_location is set."""
        data = self._data
        texts: _Fields = []
        located = False
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise self._refuse(f"it has more than {MAX_FIELDS} fields")
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = self._varint(at - 1, end)
            number, wire = tag >> 3, tag & 7
            if wire == _BYTES:
                length, body = self._varint(at, end)
                at = body + length
                texts.append((number, body, at))
            elif wire == _VARINT:
                value, at = self._varint(at, end)
                located |= number == _DATA_LOCATION and value != 0
            elif wire in _FIXED:
                at += _FIXED[wire]
            else:
                raise self._refuse(f"wire type {wire}")
            if number == 0 or number >= 2**29:
                raise self._refuse(f"field number {number}")
        if at != end:
            raise self._refuse("a field ends outside its message")
        return texts, located

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of at most 64 bits, and the offset behind it."""
        value = shift = 0
        data = self._data
        while at < end and shift < 70:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (2**64 - 1), at
            shift += 7
        raise self._refuse("a number is cut off")

    def _refuse(self, reason: str) -> BundleError:
        return BundleError(
            f"{self._name}: is not an ONNX graph ({reason}): copy or export the bundle again"
        )
