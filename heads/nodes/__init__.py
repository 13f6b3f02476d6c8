"""ONNX nodes of models with a head, written without PyTorch; the counterpart of `featuretap.heads.modules`."""
