"""Evaluate quantized files on labeled images for an accuracy budget."""

import os
from collections.abc import Callable
from math import isnan
from pathlib import Path

from featuretap import registry
from featuretap.runtimes.quantization.budget import Score
from featuretap.support.errors import DataError, Hint
from featuretap.support.extras import check_extra
from featuretap.workflows.training.configuration import NEEDED


def make_evaluation(data: str | os.PathLike[str]) -> Callable[[Path], Score]:
    """Return a function that evaluates an ONNX file on the validation part of a data set.

    Args:
        data: path of the data set, as for `evaluate`, in a format that is detected automatically.

    Returns:
        A function from the path of a file to its score.

    Raises:
        MissingExtraError: packages for evaluation are not installed.
    """
    check_extra("a budget on labeled images", "train", NEEDED)
    from featuretap.workflows.training.evaluation import evaluate

    def score(path: Path) -> Score:
        try:
            metrics, task, _ = evaluate(registry.compile(path), os.fspath(data), quiet=True)
        except DataError as error:
            # The evaluation's hints mention options that quantization does not have.
            advice = Hint("use data that `featuretap evaluate` reads without options") if error.hint else None
            raise DataError(error.problem, hint=advice) from error
        name = task.metrics[0]
        if isnan(metrics.scores[name]):
            raise DataError(f"{os.fspath(data)!r} has no labels for measuring {name}; use other data")
        return Score(name, 100 * metrics.scores[name], metrics.images)

    return score
