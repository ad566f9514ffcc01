"""Graphs and bundles on disk: memory-mappable weights, and a folder that appears whole or not at
all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgediff.bundle import (
    DType,
    GraphSpec,
    Manifest,
    Precision,
    TensorSpec,
    describe_files,
    write_manifest,
)
from edgediff.errors import ExportError

INLINE_LIMIT = 1024
"""Bytes; smaller tensors stay in the graph, where ONNX Runtime's shape inference reads them."""
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


def write_bundle(folder: Path, manifest: Manifest) -> Manifest:
    """Write bundle.json for the files that lie in `folder`; returns it with their hashes."""
    names = [n for g in manifest.graphs.values() for n in (g.file, *g.data)]
    names += [t.file for t in manifest.tokenizers.values()]
    names += [manifest.fixtures] if manifest.fixtures else []
    manifest = replace(manifest, files=describe_files(folder, names))
    write_manifest(folder, manifest)
    return manifest


def tensor_specs(values: list[ir.Value]) -> tuple[TensorSpec, ...]:
    """A graph's inputs or outputs as bundle.json describes them."""
    specs = []
    for value in values:
        if value.name is None or value.shape is None or value.dtype not in _DTYPES:
            raise ExportError(f"{value.name}: an input or output of type {value.type} is no use")
        shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
        specs.append(TensorSpec(name=value.name, dtype=_DTYPES[value.dtype], shape=shape))
    return tuple(specs)


def graph_spec(
    model: ir.Model, path: Path, data: tuple[str, ...], precision: Precision
) -> GraphSpec:
    """A written graph as bundle.json describes it."""
    return GraphSpec(
        file=path.name,
        data=data,
        precision=precision,
        inputs=tensor_specs(list(model.graph.inputs)),
        outputs=tensor_specs(list(model.graph.outputs)),
    )


def shorten(graph: ir.Graph) -> None:
    """Drop what any reader infers, the types and shapes of intermediate values, and give these
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


@contextlib.contextmanager
def folder_in_one_piece(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder beside `out` to work in; its subfolder `bundle` becomes `out` at the
    end.

    Whatever happens in between, killing the process included, `out` is either what it was or the
    finished bundle. What a killed export left behind is removed by the next one.

    Raises ExportError where `out` exists (unless `force`), cannot be written, or the disk is
    full."""
    out = out.parent.resolve() / out.name  # a link at `out` is replaced, not followed
    if not out.name:
        raise ExportError(f"{out}: is no place for a bundle: give the path of a new folder")
    work = out.with_name(f".{out.name}.partial")
    old = out.with_name(f".{out.name}.replaced")
    try:
        if old.exists() and not out.exists():  # killed between the two renames
            old.rename(out)
        _check_out(out, force=force)
        _remove(work)
        _remove(old)
        work.mkdir()
    except OSError as e:
        raise ExportError(f"{out}: cannot be written ({e.strerror}): choose another folder") from e
    try:
        yield work
        finished = work / "bundle"
        if out.exists():
            out.rename(old)
        finished.rename(out)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(out.parent).free
            raise ExportError(
                f"{out}: the disk is full ({free / 1e9:.1f} GB free): an export needs room for the"
                " float model twice and for the bundle; nothing was written"
            ) from e
        raise ExportError(f"{e.filename or out}: {e.strerror or e}; nothing was written") from e
    finally:
        _remove(work)
        if out.exists():
            _remove(old)


def _check_out(out: Path, *, force: bool) -> None:
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent}: no such folder: create it first (mkdir -p {out.parent})")
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"{out.parent}: not writable: choose another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out}: is a file: give the path of a folder that does not exist yet")
    if not force:
        raise ExportError(f"{out}: exists already: choose another folder, or --force to replace it")
    if any(out.iterdir()) and not (out / "bundle.json").is_file():
        raise ExportError(f"{out}: exists and is not a bundle: --force replaces bundles only")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
