"""Measurements against timm and torchvision, side by side in one run: `make bench`, or `python -m benchmarks`."""
