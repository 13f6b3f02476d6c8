"""The folder of a run: created, written after each epoch, and read to resume the run."""

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
"""Settings that may be changed when a run is resumed."""

IMAGES = "images"
"""Key of the digest of the images in a run's identity."""

FORMER_KEYS = {"images to learn from": "training images", "images to judge by": "validation images"}
"""Keys of a run's identity in older state files → their names now."""

CHUNK = 2**20
"""Bytes that are written at a time when disk space is tested."""

MOMENTS = {"adamw": 2, "sgd": 1}
"""Values that an optimiser keeps for each parameter."""


@dataclass
class Progress:
    """The progress of a run: what a resumed run must share, a row for each epoch that is done, and the best epoch.

    The best epoch counts from 1 (0: none yet), and the metrics are its.
    """

    identity: Mapping[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    metrics: Metrics | None = None

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return len(self.history)

    def is_better(self, metrics: Metrics) -> bool:
        """Return whether the last epoch, which has these metrics, is better than the best before it.

        Of equal scores, that of the lower loss is better: in evaluation, or in training where evaluation has none.
        """
        if self.metrics is None:
            return True
        last, best = loss_of(self.history[-1]), loss_of(self.history[self.best - 1])
        return (metrics.deciding_score, -last) > (self.metrics.deciding_score, -best)


def folder_of(configuration: Configuration) -> Path:
    """Return the folder of a run: its setting, or one named after data and backbone."""
    if configuration.out:
        return Path(configuration.out)
    backbone, data = configuration.backbone or Path(configuration.weights or "").stem, configuration.data
    name = Path(os.path.realpath(data)).name if isinstance(data, str) else "-".join(data)
    return Path("runs") / f"{name}-{backbone.replace('/', '-')}"


@contextmanager
def lock_folder(folder: Path, *, resume: bool) -> Iterator[None]:
    """Lock the folder of a run while the run goes on, and create it where there is none.

    Raises:
        TrainingError: the folder of a new run is not empty, or that of a resumed one has lost its state; another run is
            writing into it; or it cannot be created.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_folder(folder, resume=resume)
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
            # The run failed before it wrote anything.
            shutil.rmtree(folder, ignore_errors=True)


def _check_folder(folder: Path, *, resume: bool) -> None:
    # What a run that was killed early leaves is hidden, and one without an epoch has nothing to lose.
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {CONFIGURATION, LOGS}
    if not resume and found:
        is_run = (folder / CONFIGURATION).exists()
        content, instead = ("a run already", "go on with resume, or ") if is_run else ("something else", "")
        raise TrainingError(f"{str(folder)!r} holds {content}; {instead}choose another folder with out")
    history = folder / HISTORY
    # The state of the first epoch is written after its row.
    if resume and STATE not in found and history.is_file() and history.read_text().count("\n") > 2:
        raise TrainingError(
            f"{str(folder)!r} has lost its {STATE}, without which its run cannot go on; begin another with its weights"
        )


def check_space(folder: Path, model: nn.Module, configuration: Configuration) -> None:
    """Refuse to start a run whose files the disk cannot hold.

    Raises:
        TrainingError: there is too little space.
    """
    weights = _count_bytes(model.state_dict().values())
    copies = 2 if configuration.ema > 0 else 1
    state = weights * copies + MOMENTS[configuration.optimizer] * _count_bytes(model.parameters())
    # The best and the last weights, and the state twice: a file is written beside the one that it replaces.
    needed, free = 2 * weights + 2 * state, shutil.disk_usage(folder).free
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


def _count_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


def read_run(folder: Path, changes: Mapping[str, Any]) -> Configuration:
    """Return the configuration of a run that is to be resumed with changed settings, of which `CHANGEABLE` may differ.

    Raises:
        TrainingError: it is not the folder of a run, or a setting differs that may not.
    """
    path = folder / CONFIGURATION
    if not path.is_file():
        kind = "a file" if folder.is_file() else "no folder of a run"
        raise TrainingError(
            f"{str(folder)!r} is {kind}, and a run goes on from its folder, which holds {CONFIGURATION}; "
            "to begin another run with the weights in a file, give weights"
        )
    settings = read_configuration(path)
    for name, value in changes.items():
        if name not in CHANGEABLE and settings.get(name) != value:
            began = f"with {name}={settings[name]!r}" if name in settings else f"without {name}"
            raise TrainingError(
                f"the run in {str(folder)!r} began {began}, not {name}={value!r}; leave it out, or begin another run"
            )
    return make_configuration({**settings, **changes, "out": str(folder)}, str(path))


def _identity(configuration: Configuration, data: Mapping[str, DataSet]) -> dict[str, Any]:
    """Return what must be equal in a run and its continuation, a digest of the names and labels of images included."""
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
            # Folders may move.
            digest.update(f"{Path(sample.name).name}\n{label}\n".encode("utf-8", "surrogateescape"))
    images = {"training images": len(data.train), "validation images": len(data.val)}
    return {**images, "classes": list(data.classes), IMAGES: digest.hexdigest()}


def save_epoch(folder: Path, trainer: Trainer, progress: Progress, *, better: bool) -> None:
    """Write weights, history and state after an epoch.

    The state is last, so that a run that is killed before resumes after the epoch before, and repeats this one.
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
    """Return metrics as what PyTorch reads without running code, the detections left out."""
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
    # Runs of earlier versions have no further columns.
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
    """Return the progress of the run, and the states for `restore_states`; no states for a new run.

    No code in the file is run.

    Raises:
        TrainingError: the file cannot be read, or was written by another run or by one of more epochs.
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
        # PyTorch's reader lets through whatever its parsing of damaged bytes runs into.
        raise TrainingError(
            f"{str(path)!r} is damaged, so that its run cannot go on; begin another with the last weights beside it"
        ) from error
    # Settings that the version that wrote it did not have.
    known = {name: setting.option.default for name, setting in SETTINGS.items()} | known
    for name, value in identity.items():
        if known.get(name) == value:
            continue
        if name.rpartition(": ")[2] == IMAGES:
            raise TrainingError(
                f"{str(path)!r} was written by a run on other images, or on these in other classes; a run goes on as "
                "it began"
            )
        raise TrainingError(
            f"{str(path)!r} was written by a run with {name}={known.get(name)!r}, and this one has "
            f"{name}={value!r}; a run goes on as it began"
        )
    if configuration.epochs < progress.epochs:
        raise TrainingError(
            f"the run in {str(folder)!r} has done {progress.epochs} epochs, more than "
            f"epochs={configuration.epochs}; give more, or leave epochs out"
        )
    return progress, states


def restore_states(trainer: Trainer, states: Mapping[str, Any]) -> None:
    """Load the states that a run wrote."""
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
