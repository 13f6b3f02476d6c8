"""Run, compile, export and quantize models outside eager PyTorch."""
