"""Latency of int8 models compared with float32, by runtime, for one image."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.results import section, table
from featuretap import registry
from featuretap.runtimes import onnx_runtime, openvino_runtime
from featuretap.runtimes.agreement import random_images
from featuretap.runtimes.exportable import prepare_model
from featuretap.runtimes.model_graphs import write_from_spec
from featuretap.runtimes.quantization.method import calibrate
from featuretap.support.timing import PAUSE, time_interleaved
from featuretap.workflows.measuring.comparing import this_machine

ROUNDS, WARM_UP, CALIBRATED = 30, 3, 4

FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
"""Processor flags that speed up integer arithmetic."""

RUNTIMES = {"ONNX Runtime": onnx_runtime.open_session, "OpenVINO": openvino_runtime.open_session}


def speed() -> Iterator[str]:
    """Yield a table of the latency of int8 models divided by the latency in float32."""
    torch.manual_seed(0)
    models: dict[str, tuple[nn.Module, int]] = {
        "mobilenet_v2, C1 to C5": (registry.build("mobilenet_v2", features_only=True, pretrained=True), 224),
        "mobilenet_v3_large, C1 to C5": (registry.build("mobilenet_v3_large", features_only=True), 224),
        "mobilenet_v3_large, lraspp": (registry.build("mobilenet_v3_large", head="lraspp"), 520),
    }
    rows = [
        [f"{title} at {size}×{size}", runtime, *cells]
        for title, (model, size) in models.items()
        for runtime, cells in _ratios(model, size)
    ]
    columns = ["", "runtime", "float32, ms", "one thread", "quartiles", "two threads", "quartiles"]
    yield section(
        "Speed of 8-bit integers",
        f"Ratio of int8 to float32, one image, {ROUNDS} interleaved rounds on {this_machine().processor} ({_flags()}). "
        "One thread: CPU time, which other processes affect least; two threads: wall time. mobilenet_v3_large is "
        "randomly initialized.",
        table(columns, rows),
    )


def _ratios(model: nn.Module, size: int) -> Iterator[tuple[str, list[str]]]:
    images = random_images((CALIBRATED, 3, size, size))
    graph = write_from_spec(prepare_model(model))
    calibrated = calibrate(graph, torch.from_numpy(images).split(1), lambda label, parts: lambda: None)
    graphs = {"float32": graph, "int8": calibrated.write()}
    for runtime, open_session in RUNTIMES.items():
        cells = []
        for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
            sessions = [open_session(each.SerializeToString(), threads=threads) for each in graphs.values()]
            calls = {name: partial(each.run, images[:1]) for name, each in zip(graphs, sessions, strict=True)}
            timings = time_interleaved(calls, ROUNDS, WARM_UP, PAUSE, clock=clock)
            low, high = timings["int8"].ratio_quartiles
            if threads == 1:
                cells.append(f"{timings['float32'].median * 1000:.2f}")
            cells += [f"{timings['int8'].ratio:.2f}", f"{low:.2f}–{high:.2f}"]
        yield runtime, cells


def _flags() -> str:
    """Return the processor flags that speed up integer arithmetic."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = next((line for line in lines if line.startswith("flags")), "").split()
    return ", ".join(flag for flag in FLAGS if flag in found)
