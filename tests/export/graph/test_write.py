"""Graphs on disk: their weights beside them, at offsets that can be memory-mapped."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from edgediff_export.graph.write import write_graph


def test_a_graph_and_its_weights(tmp_path: Path) -> None:
    sizes = [10, 300, 50_000, 300_000]
    weights = [np.random.default_rng(k).standard_normal(n, np.float32) for k, n in enumerate(sizes)]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    values = [
        ir.Value(
            name=f"w{k}",
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(w.shape),
            const_value=ir.tensor(w),
        )
        for k, w in enumerate(weights)
    ]
    nodes = [ir.node("Mul", [x, value]) for value in values]
    outputs = [node.outputs[0] for node in nodes]
    for k, value in enumerate(outputs):
        value.name, value.type = f"y{k}", ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([sizes[k]])
    graph = ir.Graph(
        [x], outputs, nodes=nodes, initializers=values, opset_imports={"": 18}, name="graph"
    )
    assert write_graph(ir.Model(graph, ir_version=8), tmp_path / "g.onnx") == ("g.onnx.data",)
    onnx.checker.check_model(str(tmp_path / "g.onnx"))
    read = onnx.load(tmp_path / "g.onnx")
    for tensor, w in zip(read.graph.initializer, weights, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), w)
    bare = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    offsets = [{e.key: e.value for e in t.external_data} for t in bare.graph.initializer]
    assert [int(o["offset"]) for o in offsets if o] == [0, 4096, 262144]
