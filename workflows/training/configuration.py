"""The settings of a run as data: what each is, what it may be, and how several make one configuration.

No torch at module level.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from featuretap.specs.addresses import LEVELS
from featuretap.specs.options import OPTIONS
from featuretap.specs.validation import Option, check_option, choice, count, is_list_of, is_whole, number
from featuretap.support.errors import Hint, OptionError, TrainingError, UnknownOptionError, did_you_mean
from featuretap.workflows.datasets.named_sets import NAMED_SETS

__all__ = ["SETTINGS", "Configuration", "Setting", "configured", "located", "read_configuration", "resolved", "written"]

AUTOMATIC = {
    "classification": {"label_smoothing": 0.1},
    "segmentation": {"label_smoothing": 0.0},
    "detection": {"label_smoothing": 0.0},
}
MOST_WORKERS = 8
"""Beyond which more processes that read rarely make training faster."""

OPTIMIZERS = {"adamw": {"lr": 1e-3, "weight_decay": 0.05}, "sgd": {"lr": 0.05, "weight_decay": 1e-4}}


@dataclass(frozen=True)
class Setting:
    """What a setting is for, and what it may be."""

    option: Option
    help: str


def _text(default: str | None = None) -> Option:
    return Option(default, lambda value: value is None or (isinstance(value, str) and value != ""), "some text")


def _optional(option: Option) -> Option:
    """Return an option that may also be left to the run to decide."""
    return replace(option, default=None, accepts=lambda value: value is None or option.accepts(value))


def _whole(default: int, least: int) -> Option:
    return Option(default, lambda value: is_whole(value, least), f"a whole number from {least} up")


SETTINGS: Mapping[str, Setting] = {
    "data": Setting(_text(), "A folder, a data set of torchvision's by its name, or 'digits'."),
    "val_fraction": Setting(
        number(0.2, 0.01, 0.99), "Share of the images to judge by, where the data does not say which."
    ),
    "download_to": Setting(_text(), "Folder of torchvision's data sets.  [default: the user's cache]"),
    "backbone": Setting(_text(), "Name of the backbone.  [default: that of the file of weights]"),
    "head": Setting(_text("classification"), "Name of the head."),
    "taps": Setting(
        Option(
            None,
            lambda value: value is None or is_list_of(value, lambda tap: isinstance(tap, str)),
            "tap addresses",
        ),
        "What the head reads, separated by commas.  [default: the head's own choice]",
    ),
    "pretrained": Setting(
        Option(False, lambda value: isinstance(value, bool), "true or false"),
        "Begin with the catalogue's default weights instead of random ones.",
    ),
    "weights": Setting(_text(), "Begin with these weights: a tag or a file."),
    "options": Setting(
        Option({}, lambda value: isinstance(value, Mapping), "a table of options"),
        "An option of the backbone or the head.",
    ),
    "freeze": Setting(
        _optional(choice(*LEVELS)), "Keep everything through this level as it is, batch-norm statistics too."
    ),
    "unfreeze_every": Setting(
        _whole(0, 0), "With --freeze: let one level more learn after each so many epochs; 0 for never."
    ),
    "epochs": Setting(count(20), "How often every image is learned from."),
    "batch_size": Setting(count(32), "Images a step, over all processes."),
    "accumulate": Setting(count(1), "Steps whose gradients are added up before the weights change."),
    "optimizer": Setting(choice("adamw", "sgd"), "AdamW, or SGD with a momentum of 0.9."),
    "lr": Setting(_optional(number(0.0, 1e-9, 100.0)), "Highest learning rate.  [default: adamw 0.001, sgd 0.05]"),
    "weight_decay": Setting(
        _optional(number(0.0, 0.0, 10.0)), "Of all but norms and biases.  [default: adamw 0.05, sgd 0.0001]"
    ),
    "layer_decay": Setting(
        number(1.0, 0.01, 1.0), "Share of the learning rate that a level has of that of the one behind it."
    ),
    "schedule": Setting(
        choice("cosine", "plateau"), "How the learning rate falls: to 0, or by ten where nothing improves."
    ),
    "warmup_epochs": Setting(
        _optional(number(1.0, 0.0, 1000.0)),
        "Epochs in which the learning rate rises from 0.  [default: 1, or a quarter of fewer than 4]",
    ),
    "patience": Setting(_whole(5, 0), "Epochs without improvement before a plateau is one."),
    "label_smoothing": Setting(
        _optional(number(0.1, 0.0, 0.99)),
        "Share of the target that all classes have alike.  [default: 0.1 for classification, else 0]",
    ),
    "clip_norm": Setting(number(0.0, 0.0, 1e6), "Largest norm of the gradients; 0 for any."),
    "ema": Setting(
        number(0.0, 0.0, 0.999999), "Judge and keep a moving average of the weights with this decay; 0 for none."
    ),
    "mixed_precision": Setting(choice("no", "bf16", "fp16"), "Type of the numbers in most layers."),
    "size": Setting(
        _optional(count(224)),
        "Pixels of a side (detectors: of the shorter side).  [default: what the weights were trained with]",
    ),
    "augment": Setting(choice("none", "trivial", "rand"), "TrivialAugment or RandAugment of colours and shapes."),
    "crop_scale": Setting(
        number(0.35, 0.01, 1.0), "Least share of an image's area in a random crop; 1 for the whole image."
    ),
    "flip": Setting(
        _optional(number(0.5, 0.0, 1.0)), "Probability of mirroring.  [default: 0.5, or 0 for sets of digits and signs]"
    ),
    "out": Setting(_text(), "Folder of the run.  [default: runs/DATA-BACKBONE]"),
    "seed": Setting(
        Option(0, lambda value: is_whole(value, 0) and value < 2**32, "a whole number from 0 up to 4294967295"),
        "Whatever is random follows from it.  [default: 0]",
    ),
    "workers": Setting(
        _optional(_whole(0, 0)),
        "Processes that read images, for each process that trains.  [default: one a core but one, up to 8]",
    ),
}
"""Setting → what it is, in the order of the command line's help."""


@dataclass(frozen=True)
class Configuration:
    """Everything that decides a run; `SETTINGS` says what each is. What is None is decided by `resolved`."""

    data: str
    backbone: str | None = None
    head: str = "classification"
    taps: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    pretrained: bool = False
    weights: str | None = None
    val_fraction: float = 0.2
    download_to: str | None = None
    freeze: str | None = None
    unfreeze_every: int = 0
    epochs: int = 20
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    layer_decay: float = 1.0
    schedule: str = "cosine"
    warmup_epochs: float | None = None
    patience: int = 5
    label_smoothing: float | None = None
    clip_norm: float = 0.0
    ema: float = 0.0
    mixed_precision: str = "no"
    size: int | None = None
    augment: str = "none"
    crop_scale: float = 0.35
    flip: float | None = None
    out: str | None = None
    seed: int = 0
    workers: int | None = None


def configured(given: Mapping[str, Any], origin: str = "") -> Configuration:
    """Return the configuration of some settings, the others at their defaults.

    Args:
        given: setting → value.
        origin: where they come from, for messages: the path of a file, or "" for a call or a command line.

    Raises:
        UnknownOptionError: a setting that there is none of.
        OptionError: a value that a setting cannot take, or settings that contradict each other.
        TrainingError: no data.
    """
    prefix = f"{origin}: " if origin else ""
    for name, value in given.items():
        if name not in SETTINGS:
            near = did_you_mean(name, SETTINGS) or "; featuretap train --help names them all"
            if name in OPTIONS:
                near = f"; it is an option of the backbone, and belongs into the table of options: {{ {name} = … }}"
            raise UnknownOptionError(f"{prefix}training has no setting {name!r}{near}")
        check_option(f"{prefix}training", name, SETTINGS[name].option, value)
    if not given.get("data"):
        raise TrainingError(
            "no data to learn from; give a folder, a data set of torchvision's by its name, or 'digits'"
        )
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    made = Configuration(**values)
    if made.pretrained and made.weights is not None:
        raise OptionError(
            f"pretrained asks for the catalogue's weights, and weights={made.weights!r} for others; leave one out"
        )
    if made.backbone is None and made.weights is not None and not Path(made.weights).exists():
        raise OptionError(
            f"there is no file {made.weights!r} to begin with; give a file of weights, or name the backbone that has "
            "weights of this tag"
        )
    if made.backbone is None and made.weights is None:
        raise OptionError(
            "no backbone to train",
            hint=Hint("give a weights file, or name a backbone, such as", "backbone='mobilenet_v3_large'"),
        )
    if made.unfreeze_every and made.freeze is None:
        raise OptionError("unfreeze_every lets frozen levels learn, and none is; name one, such as freeze='C4'")
    if made.warmup_epochs is not None and made.warmup_epochs >= made.epochs:
        raise OptionError(
            f"warmup_epochs={made.warmup_epochs:g} leaves nothing of epochs={made.epochs} to learn in; lower it"
        )
    return made


def resolved(configuration: Configuration, task: str, *, mirrors: bool) -> Configuration:
    """Return it with every setting decided that follows from the task, the data and other settings.

    Args:
        configuration: as it was given.
        task: of the head.
        mirrors: whether a mirrored image of the data is still of its class.
    """
    automatic: dict[str, Any] = {
        **OPTIMIZERS[configuration.optimizer],
        **AUTOMATIC[task],
        "flip": 0.5 if mirrors else 0.0,
        "warmup_epochs": min(1.0, configuration.epochs / 4),
        "workers": _usual_workers(),
    }
    decided = {name: value for name, value in automatic.items() if getattr(configuration, name) is None}
    return replace(configuration, **decided)


def located(configuration: Configuration) -> Configuration:
    """Return it with whole paths for data and weights, so that the run can go on wherever one stands."""
    whole: dict[str, Any] = {}
    for name in ("data", "weights", "download_to"):
        value = getattr(configuration, name)
        # A data set's name is no path, even where a folder of that name lies.
        if value is not None and value.lower() not in NAMED_SETS and Path(value).expanduser().exists():
            whole[name] = str(Path(value).expanduser().absolute())
    return replace(configuration, **whole)


def _usual_workers() -> int:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MOST_WORKERS, (os.cpu_count() or 1) // processes - 1))


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file.

    Raises:
        TrainingError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"the configuration {str(path)!r} is no TOML: {error}") from error


def written(configuration: Configuration) -> str:
    """Return it as TOML, what is None left out."""
    import tomli_w

    return tomli_w.dumps({name: value for name, value in _values(configuration).items() if value is not None})


def _values(configuration: Configuration) -> dict[str, Any]:
    return {each.name: getattr(configuration, each.name) for each in fields(configuration)}
