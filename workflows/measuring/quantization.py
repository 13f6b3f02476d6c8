"""The metric of quantised files on labelled images, for their budget."""

import os
from collections.abc import Callable
from math import isnan
from pathlib import Path

from featuretap import registry
from featuretap.runtimes.quantization.budget import Score
from featuretap.support.errors import DataError, Hint
from featuretap.support.extras import check_extra
from featuretap.workflows.training.configuration import NEEDED


def evaluation_on(data: str | os.PathLike[str]) -> Callable[[Path], Score]:
    """Return what evaluates an ONNX file on the validation part of a data set.

    Args:
        data: as for `evaluate`, of a format that can be recognised.

    Raises:
        MissingExtraError: packages for evaluation are not installed.
    """
    check_extra("a budget on labelled images", "train", NEEDED)
    from featuretap.workflows.training.evaluation import evaluate

    def score(path: Path) -> Score:
        try:
            metrics, task, _ = evaluate(registry.compile(path), os.fspath(data), quiet=True)
        except DataError as error:
            # Hints of evaluation name options of its own.
            advice = Hint("give data that `featuretap evaluate` takes without options") if error.hint else None
            raise DataError(error.problem, hint=advice) from error
        name = task.metrics[0]
        if isnan(metrics.scores[name]):
            raise DataError(f"{os.fspath(data)!r} has no labels that {name} can be measured on; give other data")
        return Score(name, 100 * metrics.scores[name])

    return score
