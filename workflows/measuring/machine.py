"""What was measured on: processor, cores, threads, versions, and how fast it multiplies matrices."""

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

__all__ = ["Machine", "multiply_adds_per_second", "this_machine", "torch_threads"]

DISTRIBUTIONS = ("torch", "torchvision", "timm", "onnxruntime", "openvino")

SIDE = 1024
"""Rows and columns of the matrices: large enough to keep the cores busy, small enough for their caches."""


@dataclass(frozen=True)
class Machine:
    """A machine and what runs on it.

    Args:
        processor: its model, as the system calls it.
        cores: that this process may use.
        threads: of torch, and of the runtimes.
        versions: distribution → version, of those that are installed, "python" among them.
    """

    processor: str
    cores: int
    threads: int
    versions: Mapping[str, str]


def this_machine() -> Machine:
    """Return what this process runs on, with as many threads as torch has now."""
    versions = {"featuretap": __version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Machine(_processor(), _cores(), torch.get_num_threads(), versions)


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Give torch so many threads for a while, or leave it those that it has, and yield how many they are."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield count or before
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def multiply_adds_per_second(repeats: int = 30) -> float:
    """Return how many float32 multiply-adds a second matrix multiplication does at best, with torch's threads now.

    What a network computes in convolutions cannot be had faster, so that its multiply-adds divided by this are the
    least seconds that it may take.

    Args:
        repeats: products of 1024×1024 matrices, of which the fastest counts.
    """
    left, right, product = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE), torch.empty(SIDE, SIDE)
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        torch.mm(left, right, out=product)
        best = min(best, time.perf_counter() - begin)
    return SIDE**3 / best


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(errors="replace").splitlines() if known.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
