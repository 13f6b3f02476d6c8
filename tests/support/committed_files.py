"""Helpers for the tests of committed files: a deterministic image and recorded outputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def image(size: int = 64) -> Tensor:
    """Return an image (1, 3, size, size) that is the same in every version of PyTorch."""
    return (torch.arange(3 * size * size) * 0.37).sin().add(1).div(2).view(1, 3, size, size)


def recorded(model: Callable[..., Any], pixels: Tensor | None = None) -> dict[str, Any]:
    """Return the shape, mean and sampled values of each of the model's outputs for one image, in float32.

    For a detector, return only the scores and the best detection's box: rounding can reorder the other detections.
    """
    if isinstance(model, torch.nn.Module):
        model = model.float().eval()
    pixels = image() if pixels is None else pixels
    description = model.description  # type: ignore[attr-defined]
    with torch.no_grad():
        if description.head in ("ssdlite", "retinanet", "fcos", "faster_rcnn", "mask_rcnn"):
            (detections,) = model([pixels[0]])
            outputs = {"scores": detections["scores"][:5], "best box": detections["boxes"][0]}
        else:
            outputs = model(pixels)
            outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    return {name: summary(values) for name, values in outputs.items()}


def summary(values: Tensor) -> dict[str, Any]:
    flat = values.flatten().double()
    samples = flat[:: max(1, len(flat) // 5)][:6]
    return {
        "shape": list(values.shape),
        "mean": significant(flat.mean()),
        "deviation": significant(flat.std()),
        "samples": [significant(value) for value in samples],
    }


def significant(value: Tensor) -> float:
    return float(f"{value.item():.7g}")


def assert_close(outputs: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Assert that recorded outputs agree to `tolerance`, relative to the largest value of each output."""
    assert list(outputs) == list(expected)
    for name, values in expected.items():
        assert outputs[name]["shape"] == values["shape"], name
        largest = max(map(abs, values["samples"]))
        for kind in ("mean", "deviation", "samples"):
            assert outputs[name][kind] == pytest.approx(values[kind], abs=tolerance * largest), (name, kind)
