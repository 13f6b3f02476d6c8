"""What a run needs to go on where it was: one file, written whole or not at all after each epoch."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import TrainingError
from featuretap.workflows.training.tasks.task import ClassScore, Judgement

__all__ = ["Progress", "check_space", "read_state", "write_history", "write_state"]

HISTORY = "history.csv"
IMAGES = "images"
"""What of a run's identity is a digest, and says nothing to people."""

CHUNK = 2**20
"""Bytes of a trial that are written at a time."""

FILES = 2
"""Files of weights beside the state: the best and the last."""


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        identity: what may not differ between a run and its continuation: setting → value.
        history: a row for each epoch that is done.
        best: the epoch whose weights are kept as the best, from 1; 0 for none yet.
        judgement: of that epoch.
    """

    identity: Mapping[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    judgement: Judgement | None = None

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return len(self.history)


def write_state(path: Path, progress: Progress, parts: Mapping[str, Any]) -> None:
    """Write how far a run has come, and the states of its parts.

    Raises:
        WeightsError: the disk does not take it; what was there before stays.
    """
    judgement = progress.judgement
    said = None
    if judgement is not None:
        confusion = None if judgement.confusion is None else torch.from_numpy(judgement.confusion)
        said = {
            "scores": dict(judgement.scores),
            "per_class": [tuple(score) for score in judgement.per_class],
            "confusion": confusion,
        }
    table = {
        "identity": dict(progress.identity),
        "history": progress.history,
        "best": progress.best,
        "judgement": said,
        "parts": dict(parts),
    }
    buffer = io.BytesIO()
    torch.save(table, buffer)
    replace_files({path: buffer.getvalue()})


def read_state(path: Path, identity: Mapping[str, Any]) -> tuple[Progress, dict[str, Any]]:
    """Return how far a run has come, and the states of its parts. No code in the file is run.

    Args:
        path: of the file.
        identity: of the run that is to go on.

    Raises:
        TrainingError: the file cannot be read, or was written by another run.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    try:
        table = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        identified = table["identity"]
        progress = Progress(identified, table["history"], table["best"], _judgement(table["judgement"]))
        parts = dict(table["parts"])
    except Exception as error:
        # torch's reader lets through whatever its parsing of damaged bytes runs into.
        raise TrainingError(
            f"{str(path)!r} is damaged, so that its run cannot go on; begin another with the last weights beside it"
        ) from error
    for name, value in identity.items():
        if identified.get(name) == value:
            continue
        if name == IMAGES:
            raise TrainingError(
                f"{str(path)!r} was written by a run on other images, or on these in other classes; a run goes on as "
                "it began"
            )
        raise TrainingError(
            f"{str(path)!r} was written by a run with {name}={identified.get(name)!r}, and this one has "
            f"{name}={value!r}; a run goes on as it began"
        )
    return progress, parts


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write a row for each epoch as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    replace_files({folder / HISTORY: text.getvalue().encode()})


def check_space(folder: Path, model: nn.Module, *, moments: int, averaged: bool) -> None:
    """Refuse to begin a run whose files the disk cannot hold.

    Args:
        folder: of the run.
        model: of the run.
        moments: numbers that the optimiser keeps for each parameter.
        averaged: whether a moving average of the weights is kept.

    Raises:
        TrainingError: there is too little space.
    """
    weights = _bytes(model.state_dict().values())
    state = weights * (1 + averaged) + moments * _bytes(model.parameters())
    # A file is written beside the one that it replaces.
    needed, free = FILES * weights + 2 * state, shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            f"the files of this run take up to {needed / 1e6:.0f} MB, and the disk of {str(folder)!r} has "
            f"{free / 1e6:.0f} MB left; make room, or choose another folder with out"
        )
    try:
        # Quotas and limits of a file's size show only when it is written.
        with tempfile.TemporaryFile(dir=folder) as trial:
            for _ in range(0, state, CHUNK):
                trial.write(bytes(CHUNK))
    except OSError as error:
        raise TrainingError(
            f"cannot write the {state / 1e6:.0f} MB of a run's state into {str(folder)!r}: {error.strerror or error}"
        ) from error


def _judgement(said: Mapping[str, Any] | None) -> Judgement | None:
    if said is None:
        return None
    confusion = None if said["confusion"] is None else said["confusion"].numpy()
    return Judgement(said["scores"], tuple(ClassScore(*score) for score in said["per_class"]), confusion)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))
