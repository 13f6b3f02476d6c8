"""Timing networks on images of several sizes and numbers, and the machine that they are timed on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from featuretap.support.timing import PAUSE, Timing, time_interleaved
from featuretap.support.version import __version__
from featuretap.workflows.measuring.baselines import Baseline

WARM_UP = 5
"""Rounds before the timed ones."""

DISTRIBUTIONS = ("torch", "torchvision", "timm", "onnxruntime", "openvino")

SIDE = 1024
"""Rows and columns of the matrices: large enough to keep the cores busy, small enough for their caches."""


@dataclass(frozen=True)
class Machine:
    """A processor, its cores available to this process, the threads of PyTorch and runtimes, and installed versions."""

    processor: str
    cores: int
    threads: int
    versions: Mapping[str, str]


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


def this_machine() -> Machine:
    """Return the machine of this process, with PyTorch's current number of threads."""
    versions = {"featuretap": __version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(_processor(), cores, torch.get_num_threads(), versions)


@contextmanager
def set_torch_threads(count: int | None) -> Iterator[int]:
    """Set PyTorch's number of threads within the context unless it is None, and yield it."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield count or before
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def measure_limit(repeats: int = 30) -> float:
    """Return the maximum float32 multiply-adds a second in matrix multiplication, with PyTorch's current threads.

    Convolutions are not faster, so that a network's multiply-adds divided by it are its minimum seconds.
    """
    left, right, product = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE), torch.empty(SIDE, SIDE)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        best = min(best, time.perf_counter() - start)
    return SIDE**3 / best


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(errors="replace").splitlines() if known.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
