"""Data loaders of a part of a data set: read, transformed and divided between processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from featuretap.support.workers import ignore_sigint
from featuretap.workflows.datasets.data_set import Sample
from featuretap.workflows.training.tasks.task import Task, Transform

Loader = DataLoader[Any]


class _Transformed(Dataset[Any]):
    """Samples as tensors."""

    def __init__(self, samples: Sequence[Sample], transform: Transform) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.transform(*self.samples[index].read())


def training_loader(task: Task, samples: Sequence[Sample], batch_size: int, workers: int) -> Loader:
    """Return shuffled batches of one size over all processes; the last images are left out if they fill no batch."""
    transformed = _Transformed(samples, task.training_transform())
    return _loader(transformed, task, workers, batch_size=batch_size, shuffle=True, drop_last=True)


def evaluation_loader(task: Task, samples: Sequence[Sample], batch_size: int, workers: int) -> Loader:
    """Return batches of samples in order: one process's share, so that each sample is evaluated once."""
    return _loader(_Transformed(samples, task.evaluation_transform()), task, workers, batch_size=batch_size)


def _loader(dataset: Dataset[Any], task: Task, workers: int, **more: Any) -> Loader:
    # Workers start again each epoch, with seeds that follow from the epoch's, so that a resumed run sees the same.
    return DataLoader(dataset, collate_fn=task.collate, num_workers=workers, worker_init_fn=ignore_sigint, **more)
