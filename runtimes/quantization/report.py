"""The result of a quantisation."""

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
    """The result of a quantisation.

    Args:
        path: of the quantised file.
        bytes_before: size of the float model as ONNX.
        bytes_after: size of the quantised file.
        timings: "float32" and "int8" → time of a call with one image in ONNX Runtime.
        shape: of the images of the calls, (1, C, H, W).
        calibrated: number of images that ranges were measured on.
        evaluated: names of the images that `agreement` was measured on; none of them was calibrated on.
        held_back: whether those were a part of the given images.
        bad: names of images that could not be read → why.
        agreement: output → similarity to the float model's; of a detector, of the predictions "cls_logits" and
            "bbox_regression" that its boxes are selected from.
        budget: the limit and what of it is used; None without one.
        in_float32: layers that are computed in float32 to hold the budget, most sensitive first. A layer is the name of
            its weights without ".weight".
        bytes_added: that these layers add to the file.
        sensitivity: layer → relative error of the outputs with only this layer in integers, largest first: that of the
            worst output, a mean over a few of the images of `agreement`. Empty without a budget.
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
        """Return everything as JSON values; times are in seconds."""
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
