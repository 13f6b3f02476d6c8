"""The machine of a measurement: processor, cores, threads, versions, and its speed in matrix multiplication."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from featuretap.support.version import __version__

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
