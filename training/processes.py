"""Accelerate for the time of one run: one process or several, started by whatever started them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

__all__ = ["accelerated"]


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
