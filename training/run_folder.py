"""The folder of a run: made, written into after each epoch, and found again to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from featuretap import registry
from featuretap.datasets.data_set import DataSet
from featuretap.registry.errors import TrainingError
from featuretap.registry.weights.replacing import replace_files
from featuretap.training.configuration import Configuration, configured, read_configuration, written
from featuretap.training.epoch import Learner
from featuretap.training.state import Progress, write_history, write_state

__all__ = [
    "BEST",
    "CONFIGURATION",
    "LAST",
    "STATE",
    "check_folder",
    "continued",
    "identity",
    "keep",
    "make_folder",
    "restore",
]

BEST, LAST, STATE, CONFIGURATION = "best.safetensors", "last.safetensors", "resume.pt", "configuration.toml"

CHANGEABLE = frozenset({"data", "download_to", "epochs", "out", "workers"})
"""Settings in which a run may differ from what it began with."""


def check_folder(folder: Path) -> None:
    """Refuse a folder for a new run in which there is something.

    Raises:
        TrainingError: there is, or it cannot be looked into.
    """
    try:
        # What a run that was killed at its very beginning leaves is hidden.
        if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
            return
    except OSError as error:
        raise TrainingError(f"cannot use the folder {str(folder)!r}: {error.strerror or error}") from error
    run = (folder / CONFIGURATION).exists()
    there, instead = ("a run already", "go on with resume, or ") if run else ("something else", "")
    raise TrainingError(f"{str(folder)!r} holds {there}; {instead}choose another folder with out")


def make_folder(folder: Path, configuration: Configuration) -> None:
    """Make the folder of a run where there is none, and write its configuration into it.

    Raises:
        TrainingError: it cannot be made.
        WeightsError: it cannot be written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot make the folder {str(folder)!r}: {error.strerror or error}") from error
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
    return {**kept, **images, "classes": list(data.classes)}


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


def _parts(learner: Learner) -> dict[str, Any]:
    parts = {"model": learner.bare, "optimizer": learner.optimizer, "schedule": learner.schedule}
    if learner.average is not None:
        parts["average"] = learner.average.module
    if learner.accelerator.scaler is not None:
        parts["scaler"] = learner.accelerator.scaler
    return parts
