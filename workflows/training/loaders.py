"""From a part of a data set to batches: read, prepared and shared out between processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset

from featuretap.support.workers import ignore_sigint
from featuretap.workflows.datasets.data_set import Samples
from featuretap.workflows.training.tasks.task import Task, Transform

__all__ = ["judging_loader", "training_loader"]

Loader = DataLoader[Any]


class _Prepared(Dataset[Any]):
    def __init__(self, samples: Samples, transform: Transform) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.transform(*self.samples[index])


def training_loader(task: Task, samples: Samples, batch_size: int, workers: int) -> Loader:
    """Return batches in random order, all of one size: the last images of an order that fill no batch are left out.

    Args:
        task: of the model.
        samples: to learn from.
        batch_size: over all processes; Accelerate shares the loader out.
        workers: processes that read.
    """
    return _loader(
        _Prepared(samples, task.training_transform()),
        task,
        workers,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
    )


def judging_loader(task: Task, samples: Samples, batch_size: int, workers: int, share: tuple[int, int]) -> Loader:
    """Return batches in order, of one process's share of the samples: each sample is in one share, once.

    Args:
        task: of the model.
        samples: to judge by.
        batch_size: of one process.
        workers: processes that read.
        share: which process this is, from 0, and how many there are.
    """
    rank, processes = share
    own = Subset(_Prepared(samples, task.judging_transform()), range(rank, len(samples), processes))
    return _loader(own, task, workers, batch_size=batch_size)


def _loader(prepared: Dataset[Any], task: Task, workers: int, **more: Any) -> Loader:
    collate: Callable[[Sequence[Any]], Any] = task.collate
    # Workers begin anew each epoch, with seeds that follow from the epoch's, so that a resumed run sees the same.
    return DataLoader(prepared, collate_fn=collate, num_workers=workers, worker_init_fn=ignore_sigint, **more)
