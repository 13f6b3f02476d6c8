"""Training of several heads, each on its own data set: batches, losses and metrics."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

from featuretap.support.errors import FeaturetapError, TrainingError
from featuretap.support.workers import collate_or_error, ignore_sigint
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.training.configuration import Configuration
from featuretap.workflows.training.consistency import MEAN
from featuretap.workflows.training.loop import TransformedSamples
from featuretap.workflows.training.models import select_model
from featuretap.workflows.training.tasks.task import Metrics, Task

Targets = tuple[str, Any]
"""Name of a head, and the targets of a batch for this head."""


@dataclass(frozen=True)
class HeadsTask:
    """The tasks of several heads. Each batch belongs to one head.

    Args:
        tasks: name of the head → task.
        weights: name of the head → weight of its loss.
        models: name of the head → its model, which shares layers with the model in training.
    """

    tasks: Mapping[str, Task]
    weights: Mapping[str, float]
    models: dict[str, nn.Module] = field(default_factory=dict)

    def select_models(self, model: nn.Module) -> list[nn.Module]:
        """Return the model of each head of a model, and use these models to compute losses."""
        model.train()
        self.models.update({name: select_model(model, name) for name in self.tasks})
        return list(self.models.values())

    def loss(self, model: nn.Module, images: Any, targets: Targets) -> Tensor:
        """Return the weighted loss of a batch for one head."""
        name, own = targets
        return self.weights[name] * self.tasks[name].loss(self.models[name], images, own)

    def collate(self, samples: Sequence[tuple[str, tuple[Any, Any]]]) -> tuple[Any, Targets]:
        """Return the images and targets of a batch, whose samples all belong to one head."""
        name = samples[0][0]
        images, own = self.tasks[name].collate([sample for _, sample in samples])
        return images, (name, own)


def make_heads_task(configuration: Configuration, tasks: Mapping[str, Task]) -> HeadsTask:
    """Return the tasks of a run's heads, with the weights of their losses.

    With mixed batches, the losses of all heads should add up. Accumulated gradients are averaged, so the weights are
    multiplied by the number of heads.
    """
    given, factor = configuration.loss_weight or {}, len(tasks) if configuration.batches == "mixed" else 1
    return HeadsTask(tasks, {name: given.get(name, 1.0) * factor for name in tasks})


def accumulated_steps(configuration: Configuration) -> int:
    """Return the number of batches per weight update."""
    together = len(configuration.data) if configuration.batches == "mixed" else 1
    return configuration.accumulate * together


class HeadBatches(Sampler[list[int]]):
    """A batch sampler for concatenated data sets, in which each batch comes from one data set.

    By default, the batches of each data set are spread evenly over the epoch, and each image occurs at most once. With
    `mixed`, the data sets take turns until the longest is used up, and shorter ones are repeated in another order.

    Args:
        lengths: lengths of the data sets.
        batch_size: images per batch.
        seed: seed of the order, together with the epoch.
        mixed: whether the data sets take turns.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, *, mixed: bool) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.mixed = mixed
        self.epoch = 0

    def __len__(self) -> int:
        counts = [length // self.batch_size for length in self.lengths]
        return max(counts) * len(counts) if self.mixed else sum(counts)

    def __iter__(self) -> Iterator[list[int]]:
        seed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        places = [(number, index) for index, length in enumerate(self.lengths) for number in range(self._count(length))]
        if not self.mixed:
            # Sort by the middle of the part of the epoch that each batch covers.
            places.sort(key=lambda place: (place[0] + 0.5) / self._count(self.lengths[place[1]]))
        else:
            longest = max(map(self._count, self.lengths))
            places = [(number, index) for number in range(longest) for index in range(len(self.lengths))]
        starts = [sum(self.lengths[:index]) for index in range(len(self.lengths))]
        orders: dict[int, list[int]] = {}
        for _, index in places:
            order = orders.get(index, [])
            if len(order) < self.batch_size:
                order = torch.randperm(self.lengths[index], generator=generator).tolist()
            orders[index] = order[self.batch_size :]
            yield [starts[index] + place for place in order[: self.batch_size]]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next order. Accelerate calls this method."""
        self.epoch = epoch

    def _count(self, length: int) -> int:
        return length // self.batch_size


def make_order(configuration: Configuration, data: Mapping[str, DataSet]) -> HeadBatches:
    """Return the batch sampler of a run."""
    lengths = [len(own.train) for own in data.values()]
    mixed = configuration.batches == "mixed"
    return HeadBatches(lengths, configuration.batch_size, configuration.seed, mixed=mixed)


class _Named(Dataset[Any]):
    """Samples with the name of their head."""

    def __init__(self, name: str, samples: TransformedSamples) -> None:
        self.name = name
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, tuple[Any, Any]] | FeaturetapError:
        sample = self.samples[index]
        return sample if isinstance(sample, FeaturetapError) else (self.name, sample)


def make_heads_loader(
    task: HeadsTask, data: Mapping[str, DataSet], order: HeadBatches, workers: int
) -> DataLoader[Any]:
    """Return a data loader with the training batches of several heads, as `make_loader` does for one head.

    Args:
        task: the tasks of the heads.
        data: name of the head → data set.
        order: the batch sampler.
        workers: number of worker processes.

    Returns:
        The loader.
    """
    samples = [
        _Named(name, TransformedSamples(own.train, task.tasks[name].training_transform())) for name, own in data.items()
    ]
    return DataLoader(
        ConcatDataset(samples),
        batch_sampler=order,
        collate_fn=partial(collate_or_error, task.collate),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_sigint,
    )


def combine_metrics(metrics: Mapping[str, Metrics], best: str) -> Metrics:
    """Return the combined metrics of several heads, with scores named "NAME.METRIC".

    The deciding score is the one that `best` names; "mean" is the mean of the heads' deciding scores.
    """
    scores = {f"{name}.{metric}": value for name, own in metrics.items() for metric, value in own.scores.items()}
    mean = fmean(next(iter(own.scores.values())) for own in metrics.values())
    deciding = {MEAN: mean, **scores}[best]
    return Metrics({best: deciding, **scores}, (), heads=metrics)


def resolve_best(best: str | None, tasks: Mapping[str, Task]) -> str:
    """Return the name of the score that selects the best epoch.

    Args:
        best: value of the setting `best`, in upper or lower case; None means the mean.
        tasks: name of the head → task.

    Returns:
        The name, in the spelling of the metrics.

    Raises:
        TrainingError: no head has this metric.
    """
    scores = [MEAN, *(f"{name}.{metric}" for name, task in tasks.items() for metric in task.metrics)]
    for score in scores:
        if (best or MEAN).lower() == score.lower():
            return score
    raise TrainingError(f"best={best!r} is not a metric of these heads; choose one of {', '.join(scores)}")
