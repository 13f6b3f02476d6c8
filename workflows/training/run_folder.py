"""The run folder: creating it, writing it after each epoch, and reading it to resume a run."""

import csv
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from featuretap import registry
from featuretap.support.atomic_write import replace_files
from featuretap.support.errors import TrainingError
from featuretap.support.regular_files import open_regular
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.training.configuration import (
    SETTINGS,
    Configuration,
    make_configuration,
    read_configuration,
)
from featuretap.workflows.training.loop import Trainer
from featuretap.workflows.training.plots import loss_of
from featuretap.workflows.training.tasks.task import ClassScore, Metrics

BEST, LAST, STATE, CONFIGURATION = "best.safetensors", "last.safetensors", "resume.pt", "configuration.toml"
HISTORY, LOGS, LOCK = "history.csv", "logs", ".lock"

CHANGEABLE = frozenset({"data", "download_to", "epochs", "log_every", "out", "workers"})
"""Settings that can change when a run is resumed."""

IMAGES = "images"
"""Key of the digest of the images in a run's identity."""

FORMER_KEYS = {"images to learn from": "training images", "images to judge by": "validation images"}
"""Keys of a run's identity in older state files → current keys."""

CHUNK = 2**20
"""Number of bytes per write when testing disk space."""

MOMENTS = {"adamw": 2, "sgd": 1}
"""Number of values that an optimizer stores per parameter."""


@dataclass
class Progress:
    """The progress of a run.

    Args:
        identity: settings and data that must be equal when the run is resumed.
        history: a row of values for each completed epoch.
        best: the best epoch, counted from 1; 0 before the first epoch.
        metrics: metrics of the best epoch.
    """

    identity: Mapping[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    metrics: Metrics | None = None

    @property
    def epochs(self) -> int:
        """Number of completed epochs."""
        return len(self.history)

    def is_better(self, metrics: Metrics) -> bool:
        """Return whether the last epoch, with these metrics, is the best so far.

        With equal scores, the lower loss is better: the validation loss, or the training loss if there is none.
        """
        if self.metrics is None:
            return True
        last, best = loss_of(self.history[-1]), loss_of(self.history[self.best - 1])
        return (metrics.deciding_score, -last) > (self.metrics.deciding_score, -best)


def folder_of(configuration: Configuration) -> Path:
    """Return the folder of a run: the setting `out`, or a folder named after data and backbone."""
    if configuration.out:
        return Path(configuration.out)
    backbone, data = configuration.backbone or Path(configuration.weights or "").stem, configuration.data
    name = Path(os.path.realpath(data)).name if isinstance(data, str) else "-".join(data)
    return Path("runs") / f"{name}-{backbone.replace('/', '-')}"


@contextmanager
def lock_folder(folder: Path, *, resume: bool) -> Iterator[None]:
    """Create the folder of a run if necessary, and lock it inside the `with` block.

    Args:
        folder: the run folder.
        resume: whether the run is resumed.

    Raises:
        TrainingError: the folder cannot be created, another run is writing to it, the folder of a new run is not empty,
            or the folder of a resumed run has no state.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_folder(folder, resume=resume)
        lock.acquire()
    except Timeout as error:
        raise TrainingError(
            f"another process is training in {str(folder)!r}; wait until it ends, or set out to another folder"
        ) from error
    except OSError as error:
        raise TrainingError(f"cannot create the folder {str(folder)!r}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
        if {path.name for path in folder.iterdir()} <= {LOCK}:
            # Remove the folder if the run failed before it wrote anything.
            shutil.rmtree(folder, ignore_errors=True)


def _check_folder(folder: Path, *, resume: bool) -> None:
    # A killed run leaves hidden files, and a run without a complete epoch has nothing to lose.
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {CONFIGURATION, LOGS}
    if not resume and found:
        is_run = (folder / CONFIGURATION).exists()
        content, instead = ("already contains a run", "resume it, or ") if is_run else ("contains other files", "")
        raise TrainingError(f"{str(folder)!r} {content}; {instead}set out to another folder")
    history = folder / HISTORY
    # The first epoch writes its row before its state, so a single row without state is a run killed in between.
    if resume and STATE not in found and history.is_file() and history.read_text().count("\n") > 2:
        raise TrainingError(
            f"{str(folder)!r} has no {STATE}, so the run cannot be resumed; start a new run with its weights"
        )


def check_space(folder: Path, model: nn.Module, configuration: Configuration) -> None:
    """Check that the disk has room for the files of a run.

    Args:
        folder: the run folder.
        model: the model to train.
        configuration: settings of the run.

    Raises:
        TrainingError: the disk space is not sufficient.
    """
    weights = _count_bytes(model.state_dict().values())
    copies = 2 if configuration.ema > 0 else 1
    state = weights * copies + MOMENTS[configuration.optimizer] * _count_bytes(model.parameters())
    # The best and the last weights, and the state twice: a new file is complete before it replaces the old one.
    needed, free = 2 * weights + 2 * state, shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            f"the files of this run need up to {needed / 1e6:.0f} MB, but the disk of {str(folder)!r} has only "
            f"{free / 1e6:.0f} MB free; free some space, or set out to another folder"
        )
    try:
        # Quotas and file size limits show only on writing.
        with tempfile.TemporaryFile(dir=folder) as trial:
            for _ in range(0, state, CHUNK):
                trial.write(bytes(CHUNK))
    except OSError as error:
        raise TrainingError(
            f"cannot write the run's state ({state / 1e6:.0f} MB) to {str(folder)!r}: {error.strerror or error}"
        ) from error


def _count_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


def read_run(folder: Path, changes: Mapping[str, Any]) -> Configuration:
    """Return the configuration of a run to resume.

    Args:
        folder: the run folder.
        changes: settings that replace the saved ones; only the ones in `CHANGEABLE` can have other values.

    Returns:
        The configuration.

    Raises:
        TrainingError: `folder` is not a run folder, or a setting differs that cannot change.
    """
    path = folder / CONFIGURATION
    if not path.is_file():
        kind = "a file" if folder.is_file() else "not a run folder"
        raise TrainingError(
            f"{str(folder)!r} is {kind}; resume needs the folder that contains the run's {CONFIGURATION} (to start a "
            "new run from a weights file, set weights)"
        )
    settings = read_configuration(path)
    for name, value in changes.items():
        if name not in CHANGEABLE and settings.get(name) != value:
            started = f"with {name}={settings[name]!r}" if name in settings else f"without {name}"
            raise TrainingError(
                f"the run in {str(folder)!r} was started {started}, not {name}={value!r}; leave it out, or "
                "start a new run"
            )
    return make_configuration({**settings, **changes, "out": str(folder)}, str(path))


def _identity(configuration: Configuration, data: Mapping[str, DataSet]) -> dict[str, Any]:
    """Return everything that must be equal when a run is resumed, with a digest of image names and labels."""
    settings = asdict(configuration)
    identity = {name: value for name, value in settings.items() if name not in CHANGEABLE and value is not None}
    for name, own in data.items():
        prefix = f"{name}: " if name else ""
        identity |= {prefix + key: value for key, value in _data_identity(own).items()}
    return identity


def _data_identity(data: DataSet) -> dict[str, Any]:
    digest = hashlib.sha256()
    for part in (data.train, data.val):
        for sample in part:
            label = "" if sample.label is None else sample.label
            # Only the file name: folders may move.
            digest.update(f"{Path(sample.name).name}\n{label}\n".encode("utf-8", "surrogateescape"))
    images = {"training images": len(data.train), "validation images": len(data.val)}
    return {**images, "classes": list(data.classes), IMAGES: digest.hexdigest()}


def save_epoch(folder: Path, trainer: Trainer, progress: Progress, *, better: bool) -> None:
    """Write weights, history and state after an epoch.

    The state is written last. A run that is killed earlier resumes from the previous epoch and repeats this one.

    Args:
        folder: the run folder.
        trainer: the model in training.
        progress: progress including this epoch.
        better: whether this epoch is the best so far.
    """
    if better:
        registry.save(trainer.evaluated, folder / BEST)
    registry.save(trainer.evaluated, folder / LAST)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(progress.history[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(progress.history)
    replace_files({folder / HISTORY: text.getvalue().encode()})
    table = None if progress.metrics is None else _metrics_to_table(progress.metrics)
    state = {
        "identity": dict(progress.identity),
        "history": progress.history,
        "best": progress.best,
        "judgement": table,
        "parts": {name: part.state_dict() for name, part in _stateful(trainer).items()},
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace_files({folder / STATE: buffer.getvalue()})


def _metrics_to_table(metrics: Metrics) -> dict[str, Any]:
    """Return metrics, without detections, in types that `torch.load` reads with `weights_only=True`."""
    table: dict[str, Any] = {
        "scores": dict(metrics.scores),
        "per_class": [tuple(score) for score in metrics.per_class],
        "confusion": None if metrics.confusion is None else torch.from_numpy(metrics.confusion),
        "class_columns": dict(metrics.class_columns),
        "details": dict(metrics.details),
        "precisions": None if metrics.precisions is None else torch.from_numpy(metrics.precisions),
    }
    if metrics.heads:
        table["heads"] = {name: _metrics_to_table(own) for name, own in metrics.heads.items()}
    return table


def _metrics_from_table(table: Mapping[str, Any]) -> Metrics:
    confusion = None if table["confusion"] is None else table["confusion"].numpy()
    # Runs of earlier versions have fewer entries.
    curves = table.get("precisions")
    return Metrics(
        table["scores"],
        tuple(ClassScore(*score) for score in table["per_class"]),
        confusion,
        table.get("class_columns", {}),
        table.get("details", {}),
        None if curves is None else curves.numpy(),
        heads={name: _metrics_from_table(own) for name, own in table.get("heads", {}).items()},
    )


def read_progress(
    folder: Path, configuration: Configuration, data: Mapping[str, DataSet], *, resume: bool
) -> tuple[Progress, Mapping[str, Any]]:
    """Read the progress of a run from its state file. No code in the file is run.

    Args:
        folder: the run folder.
        configuration: resolved settings of the run.
        data: name of the head → data set.
        resume: whether the run is resumed.

    Returns:
        The progress, and the states for `restore_states`, which are empty for a new run.

    Raises:
        TrainingError: the file cannot be read, or was written with other settings or data, or after more epochs.
    """
    identity, path = _identity(configuration, data), folder / STATE
    if not (resume and path.exists()):
        return Progress(identity), {}
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise TrainingError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        table = state["judgement"]
        metrics = None if table is None else _metrics_from_table(table)
        progress = Progress(state["identity"], state["history"], state["best"], metrics)
        states = dict(state["parts"])
        known = {FORMER_KEYS.get(name, name): value for name, value in progress.identity.items()}
    except Exception as error:
        # torch.load raises errors of many types on damaged files.
        raise TrainingError(
            f"{str(path)!r} is damaged, so the run cannot be resumed; start a new run with weights="
            f"{str(folder / LAST)!r}"
        ) from error
    # An earlier version may have had fewer settings.
    known = {name: setting.option.default for name, setting in SETTINGS.items()} | known
    for name, value in identity.items():
        if known.get(name) == value:
            continue
        if name.rpartition(": ")[2] == IMAGES:
            raise TrainingError(
                f"{str(path)!r} was written by a run on other images or classes; resume with the data of the run"
            )
        raise TrainingError(
            f"{str(path)!r} was written by a run with {name}={known.get(name)!r}, but now {name}={value!r}; resume "
            "with the settings and data of the run"
        )
    if configuration.epochs < progress.epochs:
        raise TrainingError(
            f"the run in {str(folder)!r} has already completed {progress.epochs} epochs, more than "
            f"epochs={configuration.epochs}; increase epochs, or leave it out"
        )
    return progress, states


def restore_states(trainer: Trainer, states: Mapping[str, Any]) -> None:
    """Load the states that `read_progress` returned into the trainer."""
    for name, part in _stateful(trainer).items():
        part.load_state_dict(states[name])


def _stateful(trainer: Trainer) -> dict[str, Any]:
    parts = {"model": trainer.unwrapped, "optimizer": trainer.optimizer, "schedule": trainer.schedule}
    if trainer.average is not None:
        parts["average"] = trainer.average.module
    if trainer.quantization is not None:
        parts["quantization"] = trainer.quantization
    if trainer.accelerator.scaler is not None:
        parts["scaler"] = trainer.accelerator.scaler
    return parts
