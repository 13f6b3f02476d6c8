"""Accelerate for the time of one run: one process or several, started by whatever started them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from featuretap.support.errors import FeaturetapError, TrainingError

__all__ = ["accelerated", "first_alone", "together"]

Result = TypeVar("Result")


@contextmanager
def accelerated(**settings: Any) -> Iterator[Accelerator]:
    """Yield an accelerator, and let another with other settings follow it in the same process.

    Args:
        **settings: of `accelerate.Accelerator`.
    """
    # Without being told, Accelerate takes each of torchrun's processes for the only one where there is no GPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), **settings)
    try:
        yield accelerator
    finally:
        accelerator.end_training()
        # Accelerate remembers its settings for as long as a process lives, and a notebook trains more than one model.
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Let all processes go on only once the first has done what is in here, and fail with its words if it fails.

    Raises:
        TrainingError: the first process failed, in the others.
    """
    problem: FeaturetapError | None = None
    try:
        yield
    except FeaturetapError as error:
        problem = error
    said = broadcast_object_list([None if problem is None else str(problem)])
    if problem is not None:
        raise problem
    if said[0] is not None:
        raise TrainingError(said[0])


def first_alone(accelerator: Accelerator, do: Callable[[], Result]) -> Result:
    """Return what something returns in each process, the first having done it before the others, as downloads want it.

    Raises:
        TrainingError: it failed in the first process, in the others.
        Exception: whatever it raises itself.
    """
    done: list[Result] = []
    with together(accelerator):
        if accelerator.is_main_process:
            done.append(do())
    return done[0] if done else do()
