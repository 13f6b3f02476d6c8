"""The quantization report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featuretap.runtimes.quantization.budget import Budget
from featuretap.specs.agreement import Agreement
from featuretap.support.timing import Timing


@dataclass(frozen=True)
class Report:
    """The result of a quantization.

    Args:
        path: the quantized file.
        bytes_before: size of the float32 ONNX file.
        bytes_after: size of the quantized file.
        timings: "float32" and "int8" → time per call with one image in ONNX Runtime.
        shape: shape of the timed image, (1, C, H, W).
        calibrated: number of calibration images.
        evaluated: names of the images that `agreement` was measured on. None of them is a calibration image.
        held_back: whether the evaluated images were held out from `images`.
        bad: unreadable file → reason.
        agreement: output → agreement with the float32 model. For detectors, the outputs are the predictions
            "cls_logits" and "bbox_regression" before box selection.
        budget: the budget and the loss; None without a budget.
        in_float32: layers that stay in float32 to meet the budget, most sensitive first. A layer's name is the name of
            its weights without ".weight".
        bytes_added: increase of the file size by these layers.
        sensitivity: layer → relative error of the worst output if only this layer is quantized, averaged over a few of
            the evaluated images; largest first. Empty without a budget.
    """

    path: Path
    bytes_before: int
    bytes_after: int
    timings: Mapping[str, Timing]
    shape: tuple[int, ...]
    calibrated: int
    evaluated: Sequence[str]
    held_back: bool
    bad: Mapping[str, str]
    agreement: Mapping[str, Agreement]
    budget: Budget | None = None
    in_float32: Sequence[str] = ()
    bytes_added: int = 0
    sensitivity: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values, with times in seconds."""
        summary = ("median", "quartiles", "ratio", "ratio_quartiles")
        return {
            "path": str(self.path),
            "bytes": {"float32": self.bytes_before, "int8": self.bytes_after},
            "seconds": {name: {key: getattr(t, key) for key in summary} for name, t in self.timings.items()},
            "shape": list(self.shape),
            "calibrated": self.calibrated,
            "evaluated": list(self.evaluated),
            "held_back": self.held_back,
            "bad": dict(self.bad),
            "agreement": {name: asdict(agreement) for name, agreement in self.agreement.items()},
            "budget": None if self.budget is None else asdict(self.budget),
            "in_float32": {"layers": list(self.in_float32), "bytes_added": self.bytes_added},
            "sensitivity": dict(self.sensitivity),
        }
