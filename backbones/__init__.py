"""Backbone architectures, one torch-free table each, and the PyTorch modules and ONNX nodes built from tables."""
