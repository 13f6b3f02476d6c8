"""One training step: forward, backward, and optimizer step."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.networks import CLASSIFIERS, NAME
from benchmarks.results import milliseconds, section, timed

__all__ = ["training"]

BATCH = 16


def training() -> Iterator[str]:
    """Yield a table of the three libraries in both memory formats."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    calls = {
        f"{name}, {label}": _step(build(), memory_format)
        for label, memory_format in formats.items()
        for name, build in CLASSIFIERS.items()
    }
    yield section(
        f"A training step, {BATCH} × 3 × 224 × 224",
        f"Classifier {NAME}: forward, cross-entropy, backward, SGD with momentum, float32. 9 rounds.",
        milliseconds(timed(calls, rounds=9, warm_up=1)),
    )


def _step(model: nn.Module, memory_format: torch.memory_format) -> Callable[[], object]:
    model = model.train().to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9)
    images = torch.randn(BATCH, 3, 224, 224).to(memory_format=memory_format)
    classes = torch.randint(1000, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), classes).backward()
        optimizer.step()

    return step
