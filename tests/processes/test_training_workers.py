"""Training with several processes: scores across processes, and images read by data loader workers."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support import detection_samples, segmentation_samples
from support.training_runs import coloured_folder, small_run
from torch import distributed, multiprocessing

from featuretap import registry
from featuretap.workflows.training.run import train


class Case(NamedTuple):
    """Predictions to score, and the number of images in each of two processes."""

    evaluate: Callable[[int, slice], Any]
    shares: tuple[int, int]


def evaluate_boxes(count: int, part: slice) -> Any:
    return detection_samples.evaluate(detection_samples.detection_task(), *detection_samples.random_pairs(count)[part])


def evaluate_boxes_and_masks(count: int, part: slice) -> Any:
    pairs = detection_samples.random_pairs(count, masks=True)[part]
    return detection_samples.evaluate(detection_samples.detection_task(masks=True), *pairs)


def evaluate_pixels(count: int, part: slice) -> Any:
    return segmentation_samples.evaluate(*segmentation_samples.random_pairs(count)[part])


CASES = {
    "boxes": Case(evaluate_boxes, (5, 2)),
    "boxes and masks, all in one process": Case(evaluate_boxes_and_masks, (0, 4)),
    "pixels": Case(evaluate_pixels, (5, 2)),
    "pixels, all in one process": Case(evaluate_pixels, (0, 3)),
}


def evaluate_share(rank: int, folder: Path) -> None:
    """Score the images of one of two processes, and save the result for all images."""
    warnings.simplefilter("error")
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'met'}", rank=rank, world_size=2)
    for name, (evaluate, shares) in CASES.items():
        part = slice(shares[0], None) if rank else slice(shares[0])
        torch.save(evaluate(sum(shares), part), folder / f"{name} {rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scores that two processes return for all cases."""
    folder = tmp_path_factory.mktemp("scores")
    multiprocessing.spawn(evaluate_share, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_count_every_image_once(folder: Path, name: str) -> None:
    evaluate, shares = CASES[name]
    alone = evaluate(sum(shares), slice(None))
    assert 0 < next(iter(alone.scores.values())) < 1
    for rank in range(2):
        together = torch.load(folder / f"{name} {rank}.pt", weights_only=False)
        assert together.scores == alone.scores
        assert together.per_class == alone.per_class
        assert np.array_equal(together.confusion, alone.confusion)


# Python 3.12 and later warn about forks of multi-threaded processes, and data loaders fork by default.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_run_trains_on_images_that_a_worker_reads(tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "data")
    result = train(small_run(data, tmp_path / "run", epochs=2, workers=1), log=lambda line: None)
    assert (result.folder / "history.csv").read_text().count("\n") == 3
    assert all(torch.isfinite(p).all() for p in registry.load(result.folder / "last.safetensors").parameters())
