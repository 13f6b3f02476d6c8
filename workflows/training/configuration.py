"""The settings of a training run: help texts, allowed values, defaults, and reading and writing them as TOML."""

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
"""Modules that training and evaluation need; the `train` extra installs them."""

MAX_WORKERS = 8
"""Maximum default of `workers`; more worker processes rarely make training faster."""

OPTIMIZERS = {"adamw": {"lr": 1e-3, "weight_decay": 0.05}, "sgd": {"lr": 0.05, "weight_decay": 1e-4}}

QUANTIZED_EPOCHS = 5
"""Default of `epochs` with `quantize`."""

QUANTIZED_LR = 0.1
"""Default of `lr` with `quantize`, as a fraction of the default without."""


class Setting(NamedTuple):
    """A setting: its allowed values and default, and its help text."""

    option: Option
    help: str


def _setting(option: Option, help: str, **more: Any) -> Any:  # noqa: A002 - as in argparse and click
    """Return a field of `Configuration` for a setting. `more` overrides its default."""
    return field(metadata={"setting": Setting(option, help)}, **(more or {"default": option.default}))


def _text(default: str | None = None) -> Option:
    return Option(
        default, lambda value: value is None or (isinstance(value, str) and value != ""), "a non-empty string"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(map(_is_text, (*value, *value.values())))


def _optional(option: Option) -> Option:
    """Return the option with None as default, which lets the run choose a value."""
    return replace(option, default=None, accepts=lambda value: value is None or option.accepts(value))


def _whole(default: int) -> Option:
    return Option(default, lambda value: is_whole(value, 0), "a non-negative integer")


NO_HASH: Mapping[str, Any] = {"default": None, "hash": False}
"""Arguments of fields whose value can be a mapping, which has no hash."""

TAPS = Option(
    None, lambda taps: taps is None or is_list_of(taps, lambda tap: isinstance(tap, str)), "a list of tap addresses"
)
TABLE = Option({}, lambda value: isinstance(value, Mapping), "a table of options")
NAMED = Option(
    None, lambda value: value is None or _is_text(value) or _is_named(value), "a string or a table of strings"
)
FACTORS = Option(
    None,
    lambda value: value is None or (isinstance(value, Mapping) and all(is_number(each, 0) for each in value.values())),
    "a table of non-negative numbers",
)
SEED = Option(0, lambda value: is_whole(value, 0, 2**32 - 1), "an integer from 0 to 4294967295")


@dataclass(frozen=True)
class Configuration:
    """All settings of a run; `SETTINGS` describes each. `resolve_defaults` replaces values that are None."""

    data: str | Mapping[str, str] = _setting(
        NAMED,
        "Folder, YOLO data.yaml file, name of a torchvision data set, or 'digits'.",
        default=MISSING,
        hash=False,
    )
    backbone: str | None = _setting(_text(), "Name of the backbone.  [default: the backbone of the weights file]")
    head: str | Mapping[str, str] | None = _setting(
        NAMED,
        "Head to train; for several heads, repeat as NAME=HEAD.  [default: classification, ssdlite or lraspp, by type "
        "of data]",
        **NO_HASH,
    )
    format: str | None = _setting(
        _optional(choice(*FORMATS)),
        "Format of a folder. Required only if several formats match.  [default: detected]",
    )
    images_root: str | None = _setting(
        _text(), "Folder outside DATA from which COCO or YOLO annotations may load images."
    )
    taps: tuple[str, ...] | None = _setting(
        TAPS, "Comma-separated taps for the head to read.  [default: the default taps of the head]"
    )
    options: Mapping[str, Any] = _setting(
        TABLE, "An option of the backbone or the head.", default_factory=dict, hash=False
    )
    pretrained: bool = _setting(
        boolean(False), "Start from the catalogue's default weights instead of random initialization."
    )
    weights: str | None = _setting(_text(), "Weights to start from: tag, file or URL.")
    quantize: bool = _setting(
        boolean(False), "Fine-tune --weights with fake quantization, and also write an int8 model, best.onnx."
    )
    val_fraction: float = _setting(
        number(0.2, 0.01, 0.99), "Fraction of the images to hold out for validation, if the data has no validation set."
    )
    download_to: str | None = _setting(
        _text(), "Folder for downloaded torchvision data sets.  [default: the user's cache]"
    )
    batches: str | None = _setting(
        _optional(choice("alternate", "mixed")),
        "With several heads, alternate: one data set per update, larger sets more often; mixed: one batch of every set "
        "per update.  [default: alternate]",
    )
    loss_weight: Mapping[str, float] | None = _setting(
        FACTORS, "With several heads: weight of the loss of a head. Can be repeated.  [default: 1]", **NO_HASH
    )
    best: str | None = _setting(
        _text(),
        "With several heads: metric that selects the best epoch, as NAME.METRIC, such as objects.mAP; 'mean' averages "
        "the main metrics of all heads.  [default: mean]",
    )
    freeze: str | None = _setting(
        _optional(choice(*LEVELS)), "Freeze the backbone up to and including this level, with batch-norm statistics."
    )
    unfreeze_every: int = _setting(
        _whole(0), "With --freeze: unfreeze one more level every N epochs; 0 keeps all of them frozen."
    )
    epochs: int = _setting(count(20), "Number of epochs.  [default: 20, or 5 with --quantize]")
    batch_size: int = _setting(count(32), "Images per step, summed over all processes.")
    accumulate: int = _setting(count(1), "Gradient accumulation steps per weight update.")
    optimizer: str = _setting(choice("adamw", "sgd"), "AdamW, or SGD with momentum 0.9.")
    lr: float | None = _setting(
        _optional(number(0.0, 1e-9, 100.0)),
        "Peak learning rate.  [default: 0.001 for adamw, 0.05 for sgd; a tenth of it with --quantize]",
    )
    weight_decay: float | None = _setting(
        _optional(number(0.0, 0.0, 10.0)),
        "Weight decay, not applied to norms and biases.  [default: 0.05 for adamw, 0.0001 for sgd]",
    )
    layer_decay: float = _setting(
        number(1.0, 0.01, 1.0),
        "Layer-wise learning rate decay: factor from each backbone level to the level before it; 1 disables it.",
    )
    schedule: str = _setting(
        choice("cosine", "plateau"),
        "Learning rate schedule: cosine decay to 0, or division by 10 when the metric stops improving (plateau).",
    )
    warmup_epochs: float | None = _setting(
        _optional(number(1.0, 0.0, 1000.0)),
        "Epochs of linear learning rate warmup.  [default: 1, or epochs / 4 in runs shorter than 4 epochs]",
    )
    patience: int = _setting(_whole(5), "With --schedule plateau: epochs without improvement before a division.")
    label_smoothing: float | None = _setting(
        _optional(number(0.1, 0.0, 0.99)), "Label smoothing.  [default: 0.1 for classification, else 0]"
    )
    clip_norm: float = _setting(number(0.0, 0.0, 1e6), "Maximum gradient norm; 0 disables clipping.")
    ema: float = _setting(
        number(0.0, 0.0, 0.999999),
        "Decay of an exponential moving average of the weights, which is evaluated and saved; 0 disables it.",
    )
    norm_momentum: float | None = _setting(
        _optional(number(0.1, 0.0, 1.0)),
        "Momentum of the batch norms.  [default: the momentum of the model, increased in short runs]",
    )
    mixed_precision: str = _setting(choice("no", "bf16", "fp16"), "Mixed-precision training.")
    size: int | None = _setting(
        _optional(count(224)),
        "Image size in pixels (detectors: shorter side).  [default: the size in the weights' preprocessing]",
    )
    augment: str = _setting(
        choice("none", "trivial", "rand"),
        "TrivialAugment or RandAugment; detectors and segmenters use photometric distortion for both.",
    )
    crop_scale: float = _setting(
        number(0.35, 0.01, 1.0), "Minimum area of the random crop, as a fraction of the image; 1 disables cropping."
    )
    flip: float | None = _setting(
        _optional(number(0.5, 0.0, 1.0)),
        "Probability of a horizontal flip.  [default: 0.5, or 0 for data sets of digits and traffic signs]",
    )
    out: str | None = _setting(_text(), "Run folder.  [default: runs/DATA-BACKBONE]")
    seed: int = _setting(SEED, "Random seed.  [default: 0]")
    log_every: float = _setting(
        number(60.0, 0.0, 1e6),
        "Seconds between progress lines when the output is not a terminal; 0 disables them.",
    )
    workers: int | None = _setting(
        _optional(_whole(0)),
        "Data loader workers per training process.  [default: number of CPU cores - 1, at most 8]",
    )


SETTINGS: Mapping[str, Setting] = {each.name: each.metadata["setting"] for each in fields(Configuration)}
"""Name → setting, in the order of the command line's help."""


def make_configuration(settings: Mapping[str, Any], origin: str = "") -> Configuration:
    """Return a configuration with these settings, and defaults for all others.

    Args:
        settings: setting → value.
        origin: source of the settings for error messages: the path of a file, or "" for a call or a command line.

    Returns:
        The configuration.

    Raises:
        UnknownOptionError: a setting does not exist.
        OptionError: a value is invalid, or settings contradict each other.
        TrainingError: the setting `data` is missing.
    """
    prefix = f"{origin}: " if origin else ""
    for name, value in settings.items():
        if name not in SETTINGS:
            near = did_you_mean(name, SETTINGS) or "; featuretap train --help lists them"
            if name in OPTIONS:
                near = f"; it is a backbone option, so put it into the table `options`: options = {{ {name} = … }}"
            raise UnknownOptionError(f"{prefix}training has no setting {name!r}{near}")
        check_option(f"{prefix}training", name, SETTINGS[name].option, value)
    if not settings.get("data"):
        raise TrainingError("no training data; choose a folder, the name of a torchvision data set, or 'digits'")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    if values.get("quantize"):
        values.setdefault("epochs", QUANTIZED_EPOCHS)
    configuration = Configuration(**values)
    check_consistency(configuration)
    return configuration


def resolve_defaults(configuration: Configuration, task: str | None, *, mirrors: bool) -> Configuration:
    """Return the configuration with defaults for the settings that are None, by task, data and other settings.

    Args:
        configuration: the configuration to complete.
        task: task of the head; None (several heads) skips settings that depend on the task or the data.
        mirrors: whether a mirrored image keeps its class.

    Returns:
        The completed configuration.
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
    """Return the configuration with absolute paths, so that the run can be resumed from any folder.

    Args:
        configuration: settings of the run.

    Returns:
        The configuration with absolute paths of data and weights.

    Raises:
        TrainingError: a path is not UTF-8, so the settings file cannot store it.
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
            raise TrainingError(f"{name} is {value!r}, which is not valid UTF-8; rename it to save the run's settings")
    return replace(configuration, **paths)


def _absolute(path: str) -> str:
    """Return the absolute path of an existing file or folder; return any other value unchanged."""
    # The name of a data set is not a path, even if a folder has the same name.
    if path.lower() in NAMED_SETS or not os.path.exists(Path(path).expanduser()):
        return path
    return str(Path(path).expanduser().absolute())


def of_head(configuration: Configuration, name: str) -> Configuration:
    """Return the configuration for one head of a run with several heads.

    Args:
        configuration: configuration of the run; with a single data set it is returned unmodified.
        name: name of the head.

    Returns:
        The configuration with the data and the head of `name`.
    """
    data, head = configuration.data, configuration.head
    if isinstance(data, str):
        return configuration
    return replace(configuration, data=data[name], head=head.get(name) if isinstance(head, Mapping) else None)


def read_configuration(path: Path) -> dict[str, Any]:
    """Read settings from a TOML file.

    Args:
        path: the file.

    Returns:
        Setting → value, not checked yet.

    Raises:
        TrainingError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(read_settings(path))
    except OSError as error:
        raise TrainingError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"the configuration {str(path)!r} is not valid TOML: {error}") from error


def format_configuration(configuration: Configuration) -> str:
    """Return the configuration as TOML, without settings that are None."""
    import tomli_w

    return tomli_w.dumps({name: value for name, value in asdict(configuration).items() if value is not None})
