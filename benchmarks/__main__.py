"""featuretap, timm and torchvision interleaved in one run: `make bench`, which writes benchmarks/RESULTS.md."""

import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import (
    extraction,
    gpu,
    inference,
    memory,
    qat,
    quantization,
    quantized_heads,
    session_options,
    sessions,
    several_heads,
    starting,
    training_step,
)
from benchmarks.results import limit
from featuretap.workflows.measuring.comparing import this_machine

RESULTS = Path(__file__).parent / "RESULTS.md"

SECTIONS = {
    "listing": starting.listing,
    "building": starting.building,
    "loading": starting.loading,
    "eager": inference.eager,
    "truncated": inference.truncated,
    "runtimes": inference.runtimes,
    "sessions": sessions.calls,
    "processes": sessions.processes,
    "compiling": sessions.compiling,
    "extraction": extraction.sessions,
    "heads": several_heads.several_heads,
    "overhead": inference.overhead,
    "options": session_options.session_options,
    "sizes": inference.sizes,
    "training": training_step.training,
    "memory": memory.memory,
    "quantization": quantization.quantization,
    "qat": qat.qat,
    "quantized_heads": quantized_heads.quantized_heads,
}

ON_REQUEST = {"gpu": gpu.gpu}
"""Sections for other machines, which `make bench` does not run."""


def main(*requested: str) -> None:
    """Run the requested sections and print them. Without arguments, run all sections and write RESULTS.md."""
    # Measure the limit first, before the machine is warmed up or slowed down.
    limit()
    texts = [text for name in requested or SECTIONS for text in {**SECTIONS, **ON_REQUEST}[name]()]
    if not requested:
        RESULTS.write_text("\n\n".join([_heading(), *texts]) + "\n")


def _heading() -> str:
    machine = this_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        "# Results\n\n"
        f"`make bench` on {datetime.now(UTC):%Y-%m-%d}, one run: {machine.processor}, {machine.cores} cores, "
        f"{machine.threads} threads for PyTorch and each runtime; {versions}. Matrix multiplication (1024×1024, "
        f"float32) reaches {limit() / 1e9:.1f} G multiply-adds per second. The columns `of the limit` compare with "
        "this value.\n\n"
        "The entries of a table run in turn, once per round. Ratios compare with the first entry within each round; "
        "the tables show their median and quartiles. Each timed forward pass follows a pause of 50 ms and one untimed "
        "call. Weights are randomly initialized unless stated otherwise."
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
