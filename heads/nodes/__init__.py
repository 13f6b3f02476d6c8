"""Models with a head as ONNX nodes, written without PyTorch; `featuretap.heads.modules` has the same as modules."""
