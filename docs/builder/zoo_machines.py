"""Latency on named machines: the files in `benchmarks/machines/`, which `python -m benchmarks.latency` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["MACHINES", "Machine", "Times", "read_machines"]

MACHINES = Path(__file__).parents[2] / "benchmarks" / "machines"

SCHEMA = 1

LABELS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "eager": "PyTorch"}
"""Runtime → its name on the page."""

Times = tuple[float, float, float]
"""First quartile, median and third quartile of the milliseconds of a call."""


@dataclass(frozen=True)
class Machine:
    """Latencies that were measured on one machine.

    Attributes:
        machine: name of the machine.
        note: how the latencies were measured.
        date: day of the measurement, as year-month-day.
        processor: name of the processor.
        vector_units: its vector units, such as "AVX2".
        system: operating system and architecture.
        cores: processor cores that were available.
        threads: threads of each runtime.
        versions: package → version.
        size: height and width of the images in pixels.
        batch: images of a call.
        rounds: timed calls of each network.
        runs: repetitions of the measurement, of which each network's lowest median counts.
        milliseconds: backbone → runtime → first quartile, median and third quartile.
    """

    machine: str
    note: str
    date: str
    processor: str
    vector_units: tuple[str, ...]
    system: str
    cores: int
    threads: int
    versions: Mapping[str, str]
    size: tuple[int, int]
    batch: int
    rounds: int
    runs: int
    milliseconds: Mapping[str, Mapping[str, Times]]

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Names of the runtimes that were measured."""
        return tuple(dict.fromkeys(runtime for times in self.milliseconds.values() for runtime in times))

    def label(self, runtime: str) -> str:
        """Return the text of a choice on the page.

        Args:
            runtime: the runtime's name.

        Returns:
            The text.
        """
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.machine}: {LABELS.get(runtime, runtime)}, {threads}"


def read_machines(folder: Path = MACHINES) -> dict[str, Machine]:
    """Return file name → machine for each file of a folder, sorted by name.

    Args:
        folder: the folder with the machines' JSON files.

    Returns:
        File name → machine.

    Raises:
        ValueError: a file has another schema, lacks a field, or has an unknown one.
    """
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def _read(path: Path) -> Machine:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path} does not have schema {SCHEMA}; write it with python -m benchmarks.latency")
    expected = {field.name for field in fields(Machine)}
    if found.keys() != expected:
        differing = ", ".join(sorted(found.keys() ^ expected))
        raise ValueError(
            f"{path} has unknown or missing fields: {differing}; write it with python -m benchmarks.latency"
        )
    times = {
        backbone: {runtime: (low, median, high) for runtime, (low, median, high) in runtimes.items()}
        for backbone, runtimes in found["milliseconds"].items()
    }
    height, width = found["size"]
    return Machine(
        **{**found, "size": (height, width), "vector_units": (*found["vector_units"],), "milliseconds": times}
    )
