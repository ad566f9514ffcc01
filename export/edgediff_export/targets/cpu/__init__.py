"""Graph passes for ONNX Runtime's CPU provider: the same computation, in a faster form."""
