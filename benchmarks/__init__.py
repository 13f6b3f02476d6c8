"""Benchmarks against timm and torchvision, interleaved in one run: `make bench`, or `python -m benchmarks`."""
