"""Timing networks on images of several sizes and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from featuretap.support.timing import PAUSE, Timing, time_interleaved
from featuretap.workflows.measuring.baselines import Baseline
from featuretap.workflows.measuring.machine import Machine, measure_limit, this_machine

WARM_UP = 5
"""Rounds before the timed ones."""


@dataclass(frozen=True)
class Setting:
    """The images of a call: their (height, width) in pixels, and their number."""

    size: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.batch} image{'s' * (self.batch > 1)} of {height}×{width} pixels"


@dataclass(frozen=True)
class Measurement:
    """The time of a call of a baseline, its multiply-adds for one image, and the machine's maximum of them a second."""

    name: str
    by: str
    setting: Setting
    parameters: int
    macs: int
    timing: Timing
    limit: float

    @property
    def limit_share(self) -> float:
        """Minimum time for as many multiply-adds, as a fraction of the median time of a call."""
        return self.macs * self.setting.batch / self.limit / self.timing.median

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values; times are in seconds."""
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
    """Measurements by setting and by network in each, and the machine with its maximum multiply-adds a second."""

    machine: Machine
    limit: float
    rounds: int
    measurements: Sequence[Measurement]

    @property
    def by_setting(self) -> dict[Setting, list[Measurement]]:
        """The measurements of each setting."""
        settings = dict.fromkeys(measurement.setting for measurement in self.measurements)
        return {setting: [m for m in self.measurements if m.setting == setting] for setting in settings}

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values; times are in seconds."""
        return {
            "machine": {**asdict(self.machine), "multiply_adds_per_second": self.limit},
            "rounds": self.rounds,
            "warm_up": WARM_UP,
            "pause": PAUSE,
            "measurements": [measurement.as_json() for measurement in self.measurements],
        }


@torch.inference_mode()
def compare(
    baselines: Sequence[Baseline],
    settings: Iterable[Setting],
    rounds: int,
    done: Callable[[], object] = lambda: None,
) -> Comparison:
    """Time networks on the same images, interleaved, with PyTorch's current number of threads.

    Ratios are to the first network. `done` is called after each call of each round, `WARM_UP` more than the timed ones.
    """
    # Counts first, since a network that cannot be counted at a size cannot be timed.
    counted = [(setting, [(b, b.spec.macs(*setting.size)) for b in baselines]) for setting in settings]
    limit = measure_limit()
    timed = []
    for setting, counts in counted:
        channels = {baseline.spec.in_channels for baseline in baselines}
        images = {count: torch.randn(setting.batch, count, *setting.size) for count in channels}
        runs = {baseline: partial(baseline.run, images[baseline.spec.in_channels]) for baseline in baselines}
        timings = time_interleaved(runs, rounds, WARM_UP, PAUSE, done)
        timed += [(setting, baseline, macs, timings[baseline]) for baseline, macs in counts]
    # The machine may have been busy at the beginning.
    limit = max(limit, measure_limit())
    measurements = [Measurement(b.name, b.by, setting, b.parameters, n, t, limit) for setting, b, n, t in timed]
    return Comparison(this_machine(), limit, rounds, measurements)
