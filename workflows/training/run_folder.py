"""The folder of a run: made, written into after each epoch, and found again to go on."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from featuretap import registry
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import TrainingError
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.training.configuration import Configuration, configured, read_configuration, written
from featuretap.workflows.training.epoch import Learner
from featuretap.workflows.training.state import HISTORY, IMAGES, Progress, write_history, write_state

__all__ = [
    "BEST",
    "CONFIGURATION",
    "LAST",
    "LOGS",
    "STATE",
    "claimed",
    "continued",
    "folder_of",
    "identity",
    "keep",
    "restore",
    "write_configuration",
]

BEST, LAST, STATE, CONFIGURATION = "best.safetensors", "last.safetensors", "resume.pt", "configuration.toml"
LOGS, LOCK = "logs", ".lock"
RUNS = Path("runs")

CHANGEABLE = frozenset({"data", "download_to", "epochs", "out", "workers"})
"""Settings in which a run may differ from what it began with."""


def folder_of(configuration: Configuration) -> Path:
    """Return the folder of a run: its own, or one named by data and backbone."""
    if configuration.out:
        return Path(configuration.out)
    backbone = configuration.backbone or Path(configuration.weights or "").stem
    return RUNS / f"{Path(configuration.data).resolve().name}-{backbone.replace('/', '-')}"


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[None]:
    """Keep a folder for one run while it goes on, and make it where there is none.

    Raises:
        TrainingError: there is something in the folder of a new run, or too little in that of one that is to go on;
            another run is writing into it; or it cannot be made.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check(folder, resume=resume)
        lock.acquire()
    except Timeout as error:
        raise TrainingError(
            f"another process is training into {str(folder)!r}; wait for it, or choose another folder with out"
        ) from error
    except OSError as error:
        raise TrainingError(f"cannot make the folder {str(folder)!r}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
        if {path.name for path in folder.iterdir()} <= {LOCK}:
            # Nothing has come of it.
            shutil.rmtree(folder, ignore_errors=True)


def _check(folder: Path, *, resume: bool) -> None:
    # What a run that was killed at its very beginning leaves is hidden, and one without an epoch has nothing to lose.
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {CONFIGURATION, LOGS}
    if not resume and there:
        run = (folder / CONFIGURATION).exists()
        what, instead = ("a run already", "go on with resume, or ") if run else ("something else", "")
        raise TrainingError(f"{str(folder)!r} holds {what}; {instead}choose another folder with out")
    history = folder / HISTORY
    # The state of the first epoch comes after its row.
    if resume and STATE not in there and history.exists() and history.read_text().count("\n") > 2:
        raise TrainingError(
            f"{str(folder)!r} has lost its {STATE}, without which its run cannot go on; begin another with its weights"
        )


def write_configuration(folder: Path, configuration: Configuration) -> None:
    """Write every setting of a run into its folder.

    Raises:
        WeightsError: it cannot be written.
    """
    replace_files({folder / CONFIGURATION: written(replace(configuration, out=str(folder))).encode()})


def continued(folder: Path, given: Mapping[str, Any]) -> Configuration:
    """Return the configuration of a run that is to go on.

    Args:
        folder: of the run.
        given: settings of its continuation; only those may differ that change nothing that was done.

    Raises:
        TrainingError: it is no folder of a run, or a setting differs that may not.
    """
    path = folder / CONFIGURATION
    if not path.is_file():
        kind = "a file" if folder.is_file() else "no folder of a run"
        raise TrainingError(
            f"{str(folder)!r} is {kind}, and a run goes on from its folder, which holds {CONFIGURATION}; "
            "to begin another run with the weights in a file, give weights"
        )
    settings = read_configuration(path)
    for name, value in given.items():
        if name not in CHANGEABLE and settings.get(name) != value:
            began = f"with {name}={settings[name]!r}" if name in settings else f"without {name}"
            raise TrainingError(
                f"the run in {str(folder)!r} began {began}, not {name}={value!r}; leave it out, or begin another run"
            )
    return configured({**settings, **given, "out": str(folder)}, str(path))


def identity(configuration: Configuration, data: DataSet) -> dict[str, Any]:
    """Return what may not differ between a run and its continuation."""
    values = {each.name: getattr(configuration, each.name) for each in fields(configuration)}
    kept = {name: value for name, value in values.items() if name not in CHANGEABLE and value is not None}
    images = {"images to learn from": len(data.train), "images to judge by": len(data.val)}
    return {**kept, **images, "classes": list(data.classes), IMAGES: _digest(data)}


def keep(folder: Path, learner: Learner, progress: Progress, *, better: bool) -> None:
    """Write what an epoch has brought.

    The state comes last, so that a run that is killed before goes on with the epoch before, and does this one again.

    Raises:
        WeightsError: the disk does not take it; what was there before stays.
    """
    if better:
        registry.save(learner.judged, folder / BEST)
    registry.save(learner.judged, folder / LAST)
    write_history(folder, progress.history)
    write_state(folder / STATE, progress, {name: part.state_dict() for name, part in _parts(learner).items()})


def restore(learner: Learner, states: Mapping[str, Any]) -> None:
    """Put a learner where another was when its states were written."""
    for name, part in _parts(learner).items():
        part.load_state_dict(states[name])


def _digest(data: DataSet) -> str:
    """Return a digest of the names of images, and of their classes; folders may move."""
    digest = hashlib.sha256()
    for samples in (data.train, data.val):
        labels = samples.labels
        for index in range(len(samples)):
            label = "" if labels is None else labels[index]
            digest.update(f"{Path(samples.name(index)).name}\n{label}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _parts(learner: Learner) -> dict[str, Any]:
    parts = {"model": learner.bare, "optimizer": learner.optimizer, "schedule": learner.schedule}
    if learner.average is not None:
        parts["average"] = learner.average.module
    if learner.accelerator.scaler is not None:
        parts["scaler"] = learner.accelerator.scaler
    return parts
