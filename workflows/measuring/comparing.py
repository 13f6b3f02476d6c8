"""Contenders side by side, for images of several sizes and numbers, and what was measured as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from featuretap.support.timing import PAUSE, Timing, time_interleaved
from featuretap.workflows.measuring.contenders import Contender
from featuretap.workflows.measuring.machine import Machine, multiply_adds_per_second, this_machine

__all__ = ["WARM_UP", "Comparison", "Measurement", "Setting", "compare"]

WARM_UP = 5
"""Rounds before those that count."""


@dataclass(frozen=True)
class Setting:
    """The images of a call.

    Args:
        size: (height, width) in pixels.
        batch: how many they are.
    """

    size: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.batch} image{'s' * (self.batch > 1)} of {height}×{width} pixels"


@dataclass(frozen=True)
class Measurement:
    """How long a contender took for a setting.

    Args:
        name: the backbone's.
        by: what computed it: "eager", a runtime, or a library.
        setting: the images.
        parameters: that the contender holds.
        macs: multiply-adds for one image.
        timing: of a call.
        limit: multiply-adds a second that the machine does at best.
    """

    name: str
    by: str
    setting: Setting
    parameters: int
    macs: int
    timing: Timing
    limit: float

    @property
    def limit_share(self) -> float:
        """The time that the machine needs for as many multiply-adds at best, to the median of a call's."""
        return self.macs * self.setting.batch / self.limit / self.timing.median

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON has it; times are in seconds."""
        timing = self.timing
        return {
            "name": self.name,
            "by": self.by,
            "size": list(self.setting.size),
            "batch": self.setting.batch,
            "parameters": self.parameters,
            "macs": self.macs,
            "median": timing.median,
            "quartiles": list(timing.quartiles),
            "median_per_image": timing.median / self.setting.batch,
            "ratio": timing.ratio,
            "ratio_quartiles": list(timing.ratio_quartiles),
            "limit_share": self.limit_share,
            "seconds": list(timing.seconds),
        }


@dataclass(frozen=True)
class Comparison:
    """What was measured, and on what.

    Args:
        machine: with its threads and versions.
        limit: multiply-adds a second that it does at best.
        rounds: that counted.
        measurements: by setting, and by contender in each.
    """

    machine: Machine
    limit: float
    rounds: int
    measurements: Sequence[Measurement]

    @property
    def by_setting(self) -> dict[Setting, list[Measurement]]:
        """The measurements of each setting."""
        settings = dict.fromkeys(measured.setting for measured in self.measurements)
        return {setting: [m for m in self.measurements if m.setting == setting] for setting in settings}

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON has it; times are in seconds."""
        return {
            "machine": {**asdict(self.machine), "multiply_adds_per_second": self.limit},
            "rounds": self.rounds,
            "warm_up": WARM_UP,
            "pause": PAUSE,
            "measurements": [measured.as_json() for measured in self.measurements],
        }


@torch.inference_mode()
def compare(
    contenders: Sequence[Contender],
    settings: Iterable[Setting],
    rounds: int,
    done: Callable[[], object] = lambda: None,
) -> Comparison:
    """Time contenders on the same images, interleaved, with as many threads as torch has now.

    Args:
        contenders: the first is what the others are compared with; all of them are called with every setting.
        settings: images.
        rounds: that count, 1 or more, for each setting.
        done: called after each call of each round, `WARM_UP` more than those that count.

    Raises:
        PluginError: a contender cannot be counted at a size.
        Exception: whatever a contender's call raises.
    """
    asked = [(setting, [(c, c.spec.macs(*setting.size)) for c in contenders]) for setting in settings]
    limit = multiply_adds_per_second()
    timed = []
    for setting, counted in asked:
        channels = {contender.spec.in_channels for contender in contenders}
        images = {count: torch.randn(setting.batch, count, *setting.size) for count in channels}
        runs = {c: (lambda c=c, images=images: c.run(images[c.spec.in_channels])) for c in contenders}
        timings = time_interleaved(runs, rounds, WARM_UP, PAUSE, done)
        timed += [(setting, contender, macs, timings[contender]) for contender, macs in counted]
    # The machine may have been busy at the beginning.
    limit = max(limit, multiply_adds_per_second())
    measurements = [Measurement(c.name, c.by, setting, c.parameters, n, t, limit) for setting, c, n, t in timed]
    return Comparison(this_machine(), limit, rounds, measurements)
