"""featuretap, timm and torchvision side by side, in one run: `make bench`, which writes benchmarks/RESULTS.md."""

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
"""Sections for other machines, which `make bench` leaves out."""


def main(*asked: str) -> None:
    """Run everything and write the document, or run the sections that are asked for and only print them."""
    # Before anything else has warmed the machine up or slowed it down.
    limit()
    made = [text for name in asked or SECTIONS for text in {**SECTIONS, **ON_REQUEST}[name]()]
    if not asked:
        RESULTS.write_text("\n\n".join([_heading(), *made]) + "\n")


def _heading() -> str:
    machine = this_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        "# Results\n\n"
        f"`make bench` on {datetime.now(UTC):%Y-%m-%d}, one run: {machine.processor}, {machine.cores} cores, "
        f"{machine.threads} threads of torch and of every runtime; {versions}. Matrix multiplication (1024×1024, "
        f"float32) reaches {limit() / 1e9:.1f} G multiply-adds a second, which is the limit that "
        "columns compare with.\n\n"
        "All contenders of a table run in turn, each once a round. The ratio is to the first of them, round by round: "
        "its median and quartiles. Before each timed forward pass there are 50 ms of rest and one call that is not "
        "timed. Weights are fresh where nothing else is said."
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
