"""Checks that the settings of a training run do not contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from featuretap.catalogue.addresses import is_address
from featuretap.support.errors import Hint, OptionError, did_you_mean

if TYPE_CHECKING:
    from featuretap.workflows.training.configuration import Configuration

MEAN = "mean"
"""Value of the setting `best` that averages the main metrics of all heads."""


def check_consistency(configuration: Configuration) -> None:
    """Check that a configuration names a model and that its settings do not contradict each other.

    Args:
        configuration: settings of the run.

    Raises:
        DataError: there is neither a backbone nor a weights file, and the data set does not exist either.
        OptionError: settings contradict each other, or there is neither a backbone nor a weights file.
    """
    backbone, weights = configuration.backbone, configuration.weights
    _check_names(configuration)
    if configuration.pretrained and weights is not None:
        raise OptionError(f"pretrained and weights={weights!r} both select initial weights; use one of them")
    if backbone is None and weights is not None and not (is_address(weights) or Path(weights).exists()):
        raise OptionError(
            f"no weights file {weights!r}; choose an existing file, or set backbone if {weights!r} is a weights tag"
        )
    if backbone is None and weights is None:
        from featuretap.workflows.datasets.formats import check_source

        assert isinstance(configuration.data, str)
        check_source(configuration.data)
        raise OptionError(
            "no backbone to train",
            hint=Hint("choose a weights file, or a backbone such as", "backbone='mobilenet_v3_large'"),
        )
    if configuration.quantize:
        _check_quantization(configuration)
    if configuration.unfreeze_every and configuration.freeze is None:
        raise OptionError("unfreeze_every needs frozen levels; set freeze, such as freeze='C4'")
    warmup, epochs = configuration.warmup_epochs, configuration.epochs
    if warmup is not None and warmup >= epochs:
        raise OptionError(f"warmup_epochs={warmup:g} must be less than epochs={epochs}; lower warmup_epochs")


def _check_quantization(configuration: Configuration) -> None:
    """Check the settings of a run with fake quantization."""
    if not isinstance(configuration.data, str):
        raise OptionError("quantize supports models with one head only; fine-tune each head in its own run")
    if configuration.weights is None:
        raise OptionError(
            "quantize fine-tunes a trained model, and no weights are set",
            hint=Hint("set its weights, such as", "weights='best.safetensors'"),
        )
    if configuration.norm_momentum is not None:
        raise OptionError(
            f"norm_momentum={configuration.norm_momentum:g} has no effect with quantize, which freezes batch-norm "
            "statistics; leave it out"
        )


def _check_names(configuration: Configuration) -> None:
    """Check that settings by head go with several data sets, that other settings do not, and that names exist."""
    data = configuration.data
    if isinstance(data, str):
        for name in ("head", "loss_weight", "best", "batches"):
            value = getattr(configuration, name)
            if isinstance(value, Mapping) or (name != "head" and value is not None):
                raise OptionError(
                    f"{name}={value!r} needs several data sets, but data is a single one; leave {name} out, or name "
                    "the data sets: data={'objects': ..., 'road': ...}"
                )
        return
    first = next(iter(data))
    for name in ("head", "taps"):
        value = getattr(configuration, name)
        if value is not None and not isinstance(value, Mapping):
            where = f"head={{{first!r}: {value!r}}}" if name == "head" else f"options={{{first!r}: {{'taps': ...}}}}"
            raise OptionError(f"{name}={value!r} applies to one head, but the run has several; set it by name: {where}")
    if configuration.backbone is None:
        raise OptionError(
            "no backbone for the heads",
            hint=Hint("choose one, such as", "backbone='mobilenet_v3_large'"),
        )
    best = (configuration.best or MEAN).partition(".")[0]
    named = {
        "head": configuration.head or {},
        "loss_weight": configuration.loss_weight or {},
        "best": [best] if best != MEAN else [],
    }
    for setting, names in named.items():
        for name in names:
            if name not in data:
                hint = did_you_mean(name, data) or ";"
                raise OptionError(
                    f"{setting} names {name!r}, which has no data set{hint} the data sets are {', '.join(data)}"
                )
