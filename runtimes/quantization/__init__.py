"""Models in 8-bit integers, as ONNX files."""
