"""Post-training quantization to 8-bit integers, written as ONNX files."""
