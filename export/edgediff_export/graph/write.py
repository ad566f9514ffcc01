"""Graphs on disk, with weights that can be memory-mapped."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgediff.bundle.manifest import DType, GraphSpec, Precision, Role, TensorSpec
from edgediff.errors import ExportError

INLINE_LIMIT = 1024
"""Bytes; smaller tensors stay in the graph, for ONNX Runtime's shape inference to read."""
_DTYPES: dict[ir.DataType, DType] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.BOOL: "bool",
}


def write_graph(model: ir.Model, path: Path) -> tuple[str, ...]:
    """Write `path` and, beside it, `path`.data with the weights. Returns the data files' names.

    Weights are written in order of use, one at a time, at offsets that any system can map: large
    ones at multiples of 64 KiB, the others at multiples of a page or of 64 bytes, so that a small
    model does not consist of gaps. `model` then refers to the new file."""
    data = path.with_name(path.name + ".data")
    used = _in_order_of_use(model.graph)
    external = [v for v in used if _size(v) >= INLINE_LIMIT]
    for value in used:
        if _size(value) < INLINE_LIMIT and isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    with data.open("wb") as f:
        offset = 0
        for value in external:
            tensor = value.const_value
            if tensor is None or value.name is None:
                raise ExportError(f"{path.name}: {value.name} has no value")
            size = _size(value)
            start = _align(offset, size)
            f.write(b"\0" * (start - offset))
            f.write(np.ascontiguousarray(tensor.numpy()).data)
            value.const_value = ir.ExternalTensor(
                location=data.name,
                offset=start,
                length=size,
                dtype=tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name,
                base_dir=path.parent,
            )
            offset = start + size
    if not external:
        data.unlink()
    shorten(model.graph)
    ir.save(model, path)
    return (data.name,) if external else ()


def tensor_specs(values: list[ir.Value]) -> tuple[TensorSpec, ...]:
    """A graph's inputs or outputs as bundle.json describes them."""
    specs = []
    for value in values:
        if value.name is None or value.shape is None or value.dtype not in _DTYPES:
            raise ExportError(
                f"{value.name}: an input or output of type {value.type} is not supported"
            )
        shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
        specs.append(TensorSpec(name=value.name, dtype=_DTYPES[value.dtype], shape=shape))
    return tuple(specs)


def graph_spec(
    model: ir.Model, path: Path, data: tuple[str, ...], precision: Precision, role: Role
) -> GraphSpec:
    """A written graph as bundle.json describes it."""
    return GraphSpec(
        role=role,
        file=path.name,
        data=data,
        precision=precision,
        inputs=tensor_specs(list(model.graph.inputs)),
        outputs=tensor_specs(list(model.graph.outputs)),
    )


def shorten(graph: ir.Graph) -> None:
    """Drop the types and shapes of intermediate values, which any reader infers, and give these
    values short names; nodes and weights keep theirs. It halves the graph's file."""
    values = [v for node in graph for v in node.outputs if not v.is_graph_output()]
    for value in values:  # in two passes, so that a new name never meets an old one
        value.type, value.shape, value.name = None, None, f"/{id(value)}"
    for k, value in enumerate(values):
        value.name = f"v{k}"


def _in_order_of_use(graph: ir.Graph) -> list[ir.Value]:
    used = dict.fromkeys(
        v for node in graph for v in node.inputs if v is not None and v.is_initializer()
    )
    return list(used)


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _align(offset: int, size: int) -> int:
    unit = 65536 if size >= 1 << 20 else 4096 if size >= 1 << 16 else 64
    return -(-offset // unit) * unit
