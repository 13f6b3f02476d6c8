"""The settings of a training run: their help, allowed values and defaults, and reading and writing them as TOML.

No torch at module level.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from featuretap.specs.addresses import LEVELS
from featuretap.specs.options import OPTIONS
from featuretap.specs.validation import (
    Option,
    boolean,
    check_option,
    choice,
    count,
    is_list_of,
    is_number,
    is_whole,
    number,
)
from featuretap.support.errors import TrainingError, UnknownOptionError, did_you_mean
from featuretap.support.regular_files import read_settings
from featuretap.workflows.datasets.named_sets import NAMED_SETS
from featuretap.workflows.datasets.recognition import FORMATS
from featuretap.workflows.training.consistency import check_consistency

__all__ = [
    "NEEDED",
    "SETTINGS",
    "Configuration",
    "Setting",
    "format_configuration",
    "make_configuration",
    "of_head",
    "read_configuration",
    "resolve_defaults",
    "with_absolute_paths",
]

NEEDED = ("torch", "accelerate", "faster_coco_eval", "matplotlib", "tensorboard", "tomli_w", "torchmetrics", "yaml")
"""Modules that training and evaluation need, of the extra `train`."""

MAX_WORKERS = 8
"""Beyond which more worker processes rarely make training faster."""

OPTIMIZERS = {"adamw": {"lr": 1e-3, "weight_decay": 0.05}, "sgd": {"lr": 0.05, "weight_decay": 1e-4}}

QUANTIZED_EPOCHS = 5
"""Default of `epochs` with `quantize`."""

QUANTIZED_LR = 0.1
"""Default of `lr` with `quantize`, as a fraction of that without."""


class Setting(NamedTuple):
    """A setting: which values it takes, and its help."""

    option: Option
    help: str


def _setting(option: Option, help: str, **more: Any) -> Any:  # noqa: A002 - as in argparse and click
    """Return a field of `Configuration` that has a setting's default."""
    return field(metadata={"setting": Setting(option, help)}, **(more or {"default": option.default}))


def _text(default: str | None = None) -> Option:
    return Option(default, lambda value: value is None or (isinstance(value, str) and value != ""), "some text")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(map(_is_text, (*value, *value.values())))


def _optional(option: Option) -> Option:
    """Return an option whose default is None: the run decides."""
    return replace(option, default=None, accepts=lambda value: value is None or option.accepts(value))


def _whole(default: int) -> Option:
    return Option(default, lambda value: is_whole(value, 0), "a whole number from 0 up")


NO_HASH: Mapping[str, Any] = {"default": None, "hash": False}
"""Of fields that may hold a mapping."""

TAPS = Option(None, lambda taps: taps is None or is_list_of(taps, lambda tap: isinstance(tap, str)), "tap addresses")
TABLE = Option({}, lambda value: isinstance(value, Mapping), "a table of options")
NAMED = Option(
    None, lambda value: value is None or _is_text(value) or _is_named(value), "some text or a table of texts"
)
FACTORS = Option(
    None,
    lambda value: value is None or (isinstance(value, Mapping) and all(is_number(each, 0) for each in value.values())),
    "a table of numbers from 0 up",
)
SEED = Option(0, lambda value: is_whole(value, 0, 2**32 - 1), "a whole number from 0 up to 4294967295")


@dataclass(frozen=True)
class Configuration:
    """Everything that decides a run; `SETTINGS` describes each. `resolve_defaults` replaces those that are None."""

    data: str | Mapping[str, str] = _setting(
        NAMED,
        "A folder, YOLO's data.yaml, the name of a torchvision data set, or 'digits'.",
        default=MISSING,
        hash=False,
    )
    backbone: str | None = _setting(_text(), "Name of the backbone.  [default: that of the weights file]")
    head: str | Mapping[str, str] | None = _setting(
        NAMED, "Name of the head.  [default: classification, ssdlite or lraspp, as the data is for]", **NO_HASH
    )
    format: str | None = _setting(
        _optional(choice(*FORMATS)), "Format of a folder, where it can be read as several.  [default: recognised]"
    )
    images_root: str | None = _setting(
        _text(), "Folder outside DATA that annotations in COCO's or YOLO's format may name images in."
    )
    taps: tuple[str, ...] | None = _setting(
        TAPS, "Taps that the head reads, separated by commas.  [default: the head's choice]"
    )
    options: Mapping[str, Any] = _setting(
        TABLE, "An option of the backbone or the head.", default_factory=dict, hash=False
    )
    pretrained: bool = _setting(
        boolean(False), "Start from the catalogue's default weights instead of a random initialisation."
    )
    weights: str | None = _setting(_text(), "Start from these weights: a tag, a file or its address.")
    quantize: bool = _setting(
        boolean(False), "Fine-tune the model of --weights for 8-bit integers, and write it as best.onnx too."
    )
    val_fraction: float = _setting(
        number(0.2, 0.01, 0.99), "Fraction of the images to validate on, where the data has no validation part."
    )
    download_to: str | None = _setting(_text(), "Folder of torchvision's data sets.  [default: the user's cache]")
    batches: str | None = _setting(
        _optional(choice("alternate", "mixed")),
        "Of several data sets: a batch of one in each update, in proportion to their sizes, or one of each.  "
        "[default: alternate]",
    )
    loss_weight: Mapping[str, float] | None = _setting(
        FACTORS, "Factor of the loss of each head, of several data sets.  [default: 1]", **NO_HASH
    )
    best: str | None = _setting(
        _text(),
        "What decides on the best epoch, of several data sets: NAME.METRIC, such as objects.mAP, or the mean of the "
        "first metrics of all heads.  [default: mean]",
    )
    freeze: str | None = _setting(
        _optional(choice(*LEVELS)), "Freeze the backbone through this level, batch-norm statistics included."
    )
    unfreeze_every: int = _setting(
        _whole(0), "With --freeze: unfreeze one more level after every so many epochs; 0 for never."
    )
    epochs: int = _setting(count(20), "Number of epochs.  [default: 20, or 5 with --quantize]")
    batch_size: int = _setting(count(32), "Images per step, over all processes.")
    accumulate: int = _setting(count(1), "Steps whose gradients are accumulated before the weights are updated.")
    optimizer: str = _setting(choice("adamw", "sgd"), "AdamW, or SGD with a momentum of 0.9.")
    lr: float | None = _setting(
        _optional(number(0.0, 1e-9, 100.0)),
        "Highest learning rate.  [default: adamw 0.001, sgd 0.05; a tenth with --quantize]",
    )
    weight_decay: float | None = _setting(
        _optional(number(0.0, 0.0, 10.0)),
        "Weight decay of all but norms and biases.  [default: adamw 0.05, sgd 0.0001]",
    )
    layer_decay: float = _setting(
        number(1.0, 0.01, 1.0), "Learning rate of a level, as a fraction of that of the next one."
    )
    schedule: str = _setting(
        choice("cosine", "plateau"), "How the learning rate falls: to 0, or by a factor of ten at each plateau."
    )
    warmup_epochs: float | None = _setting(
        _optional(number(1.0, 0.0, 1000.0)),
        "Epochs in which the learning rate rises from 0.  [default: 1, or a quarter of fewer than 4]",
    )
    patience: int = _setting(_whole(5), "Epochs without improvement that count as a plateau.")
    label_smoothing: float | None = _setting(
        _optional(number(0.1, 0.0, 0.99)), "Label smoothing.  [default: 0.1 for classification, else 0]"
    )
    clip_norm: float = _setting(number(0.0, 0.0, 1e6), "Largest norm of the gradients; 0 disables clipping.")
    ema: float = _setting(
        number(0.0, 0.0, 0.999999),
        "Evaluate and keep a moving average of the weights with this decay; 0 disables it.",
    )
    norm_momentum: float | None = _setting(
        _optional(number(0.1, 0.0, 1.0)),
        "Momentum of the batch norms' running statistics.  [default: the model's own, higher in short runs]",
    )
    mixed_precision: str = _setting(choice("no", "bf16", "fp16"), "Data type of most layers.")
    size: int | None = _setting(
        _optional(count(224)),
        "Pixels of a side (detectors: of the shorter side).  [default: what the weights were trained with]",
    )
    augment: str = _setting(choice("none", "trivial", "rand"), "TrivialAugment or RandAugment of colours and shapes.")
    crop_scale: float = _setting(
        number(0.35, 0.01, 1.0), "Minimum area of the random crop, as a fraction of the image; 1 disables cropping."
    )
    flip: float | None = _setting(
        _optional(number(0.5, 0.0, 1.0)), "Probability of mirroring.  [default: 0.5, or 0 for sets of digits and signs]"
    )
    out: str | None = _setting(_text(), "Folder of the run.  [default: runs/DATA-BACKBONE]")
    seed: int = _setting(SEED, "Seed of everything random.  [default: 0]")
    log_every: float = _setting(
        number(60.0, 0.0, 1e6), "Seconds between lines of progress where no terminal shows it; 0 for none."
    )
    workers: int | None = _setting(
        _optional(_whole(0)),
        "Processes that read images, for each training process.  [default: one per core but one, up to 8]",
    )


SETTINGS: Mapping[str, Setting] = {each.name: each.metadata["setting"] for each in fields(Configuration)}
"""Name → setting, in the order of the command line's help."""


def make_configuration(settings: Mapping[str, Any], origin: str = "") -> Configuration:
    """Return the configuration of some settings, the others at their defaults.

    Args:
        settings: setting → value.
        origin: where they come from, for messages: the path of a file, or "" for a call or a command line.

    Raises:
        UnknownOptionError: a setting does not exist.
        OptionError: a value is invalid, or settings contradict each other.
        TrainingError: no data.
    """
    prefix = f"{origin}: " if origin else ""
    for name, value in settings.items():
        if name not in SETTINGS:
            near = did_you_mean(name, SETTINGS) or "; featuretap train --help lists them"
            if name in OPTIONS:
                near = f"; it is an option of the backbone, and belongs into the table of options: {{ {name} = … }}"
            raise UnknownOptionError(f"{prefix}training has no setting {name!r}{near}")
        check_option(f"{prefix}training", name, SETTINGS[name].option, value)
    if not settings.get("data"):
        raise TrainingError("no training data; give a folder, the name of a torchvision data set, or 'digits'")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    if values.get("quantize"):
        values.setdefault("epochs", QUANTIZED_EPOCHS)
    configuration = Configuration(**values)
    check_consistency(configuration)
    return configuration


def resolve_defaults(configuration: Configuration, task: str | None, *, mirrors: bool) -> Configuration:
    """Return it with the settings that are None set by the task, the data and other settings.

    Args:
        configuration: as it was given.
        task: of the head; None leaves out what depends on the task and the data, for several heads.
        mirrors: whether a mirrored image of the data keeps its class.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    usual = OPTIMIZERS[configuration.optimizer]
    defaults: dict[str, Any] = {
        **usual,
        "lr": usual["lr"] * (QUANTIZED_LR if configuration.quantize else 1),
        "label_smoothing": 0.1 if task == "classification" else 0.0,
        "flip": 0.5 if mirrors else 0.0,
        "warmup_epochs": min(1.0, configuration.epochs / 4),
        "workers": max(0, min(MAX_WORKERS, (os.cpu_count() or 1) // processes - 1)),
    }
    if task is None:
        del defaults["label_smoothing"], defaults["flip"]
    unset = {name: value for name, value in defaults.items() if getattr(configuration, name) is None}
    return replace(configuration, **unset)


def with_absolute_paths(configuration: Configuration) -> Configuration:
    """Return it with absolute paths of data and weights, so that the run can be resumed from any folder.

    Raises:
        TrainingError: a path is not UTF-8, as the file of settings is.
    """
    paths: dict[str, Any] = {}
    for name in ("data", "weights", "download_to", "images_root"):
        value = getattr(configuration, name)
        if isinstance(value, Mapping):
            paths[name] = {key: _absolute(path) for key, path in value.items()}
        elif value is not None:
            paths[name] = _absolute(value)
    settings = {**asdict(configuration), **paths}
    if isinstance(configuration.data, Mapping):
        settings |= paths["data"]
    for name, value in settings.items():
        if isinstance(value, str) and not value.isascii() and value.encode(errors="replace").decode() != value:
            raise TrainingError(f"{name} is {value!r}, which is not UTF-8, as the run's settings are; rename it")
    return replace(configuration, **paths)


def _absolute(path: str) -> str:
    """Return a path as an absolute one, and what is no path as it is."""
    # A data set's name is not a path, even where there is a folder of that name.
    if path.lower() in NAMED_SETS or not os.path.exists(Path(path).expanduser()):
        return path
    return str(Path(path).expanduser().absolute())


def of_head(configuration: Configuration, name: str) -> Configuration:
    """Return the configuration of a run with several heads as one of its heads by itself has it.

    Args:
        configuration: of the run; that of a run with one data set is returned unmodified.
        name: of the head.
    """
    data, head = configuration.data, configuration.head
    if isinstance(data, str):
        return configuration
    return replace(configuration, data=data[name], head=head.get(name) if isinstance(head, Mapping) else None)


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file.

    Raises:
        TrainingError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(read_settings(path))
    except OSError as error:
        raise TrainingError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"the configuration {str(path)!r} is not TOML: {error}") from error


def format_configuration(configuration: Configuration) -> str:
    """Return it as TOML, without the settings that are None."""
    import tomli_w

    return tomli_w.dumps({name: value for name, value in asdict(configuration).items() if value is not None})
