"""Helpers for several processes under Accelerate: opening it, sharing failures, running on the main process first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from featuretap.support.errors import FeaturetapError, TrainingError

Value = TypeVar("Value")


@contextmanager
def open_accelerator(**settings: Any) -> Iterator[Accelerator]:
    """Yield an accelerator. Afterwards, the same process can open another one with other `settings`."""
    # Without a GPU and without cpu=True, Accelerate treats each process of torchrun as the only one.
    accelerator = Accelerator(**{"cpu": not torch.accelerator.is_available(), **settings})
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        # Accelerate keeps its settings as long as the process runs, but a notebook may train several models.
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def share_failure() -> Iterator[None]:
    """Make all processes wait until the main process has left this block; if it fails, all fail with its message.

    Raises:
        TrainingError: the main process failed (raised in all other processes).
    """
    problem: FeaturetapError | None = None
    try:
        yield
    except FeaturetapError as error:
        problem = error
    message = broadcast_object_list([None if problem is None else str(problem)])[0]
    if problem is not None:
        raise problem
    if message is not None:
        raise TrainingError(message)


def run_on_main_first(accelerator: Accelerator, function: Callable[[], Value]) -> Value:
    """Call a function in every process and return its result. The main process runs first, so that it downloads."""
    results: list[Value] = []
    with share_failure():
        if accelerator.is_main_process:
            results.append(function())
    return results[0] if results else function()
