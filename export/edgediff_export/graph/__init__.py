"""Reading, changing, watching and writing ONNX graphs."""
