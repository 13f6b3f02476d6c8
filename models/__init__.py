"""Requests to modules and back: build, freeze, count, prepare images, save and load."""

from featuretap.support.extras import explain_missing_torch

with explain_missing_torch("building or counting this model"):
    import torch  # noqa: F401 - every module here imports it
