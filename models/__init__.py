"""PyTorch models: build, load, freeze, count and save them, and prepare their images."""

from featuretap.support.extras import explain_missing_torch

with explain_missing_torch("building or counting this model"):
    import torch  # noqa: F401 - all modules of this package import torch
