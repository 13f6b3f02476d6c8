"""Selection of the best epoch of a run."""

import pytest

from featuretap.workflows.training.run_folder import Progress
from featuretap.workflows.training.tasks.task import Metrics


def rows(*losses: float, key: str) -> list[dict[str, float]]:
    return [{"train_loss": 1.0, key: loss} for loss in losses]


@pytest.mark.parametrize("key", ["loss", "train_loss"])
@pytest.mark.parametrize(
    ("score", "loss", "better"), [(0.6, 9.0, True), (0.4, 0.1, False), (0.5, 0.1, True), (0.5, 0.3, False)]
)
def test_ties_go_to_the_lower_loss(key: str, score: float, loss: float, better: bool) -> None:
    best = Metrics({"accuracy": 0.5}, ())
    progress = Progress({}, rows(0.3, 0.8, loss, key=key), best=1, metrics=best)
    assert progress.is_better(Metrics({"accuracy": score}, ())) is better


def test_the_first_epoch_is_the_best_so_far() -> None:
    assert Progress({}, rows(0.3, key="loss")).is_better(Metrics({"accuracy": 0.0}, ()))
