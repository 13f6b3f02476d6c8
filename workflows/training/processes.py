"""Accelerate's processes: opening it, sharing failures, and what the main process does first."""

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
    """Yield an accelerator, and allow another with other `settings` after it in the same process."""
    # By default, Accelerate takes each of torchrun's processes for the only one where there is no GPU.
    accelerator = Accelerator(**{"cpu": not torch.accelerator.is_available(), **settings})
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        # Accelerate keeps its settings for the life of a process, and a notebook trains more than one model.
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def share_failure() -> Iterator[None]:
    """Let all processes wait until the main one has left this block, and fail with its message if it fails.

    Raises:
        TrainingError: the main process failed, and this is another one.
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
    """Return what a function returns in each process; the main process runs it first, as downloads need."""
    results: list[Value] = []
    with share_failure():
        if accelerator.is_main_process:
            results.append(function())
    return results[0] if results else function()
