"""Whether the settings of a training run fit together.

No torch at module level.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from featuretap.catalogue.addresses import is_address
from featuretap.support.errors import Hint, OptionError, did_you_mean

if TYPE_CHECKING:
    from featuretap.workflows.training.configuration import Configuration

MEAN = "mean"
"""The mean of the heads' deciding scores, as the setting `best`."""


def check_consistency(configuration: Configuration) -> None:
    """Refuse settings that contradict each other, and a configuration without a model.

    Raises:
        OptionError: it is such a one.
    """
    backbone, weights = configuration.backbone, configuration.weights
    _check_names(configuration)
    if configuration.pretrained and weights is not None:
        raise OptionError(
            f"pretrained selects the catalogue's weights, and weights={weights!r} selects others; leave one out"
        )
    if backbone is None and weights is not None and not (is_address(weights) or Path(weights).exists()):
        raise OptionError(
            f"there is no weights file {weights!r}; give a weights file, or name the backbone that has weights of this "
            "tag"
        )
    if backbone is None and weights is None:
        raise OptionError(
            "no backbone to train",
            hint=Hint("give a weights file, or name a backbone, such as", "backbone='mobilenet_v3_large'"),
        )
    if configuration.quantize:
        _check_quantization(configuration)
    if configuration.unfreeze_every and configuration.freeze is None:
        raise OptionError("unfreeze_every unfreezes levels, and none is frozen; freeze some, such as freeze='C4'")
    warmup, epochs = configuration.warmup_epochs, configuration.epochs
    if warmup is not None and warmup >= epochs:
        raise OptionError(f"warmup_epochs={warmup:g} leaves nothing of epochs={epochs} to train; lower it")


def _check_quantization(configuration: Configuration) -> None:
    """Refuse what a run with fake quantisation cannot do."""
    if not isinstance(configuration.data, str):
        raise OptionError("quantize is for a model with one head, and there are several; fine-tune them one by one")
    if configuration.weights is None:
        raise OptionError(
            "quantize fine-tunes a trained model, and there is none",
            hint=Hint("give its weights, such as", "weights='best.safetensors'"),
        )
    if configuration.norm_momentum is not None:
        raise OptionError(
            f"norm_momentum={configuration.norm_momentum:g} has no effect with quantize, which keeps the statistics of "
            "batch norms; leave it out"
        )


def _check_names(configuration: Configuration) -> None:
    """Refuse settings of several data sets where there is one, the reverse, and names of no data set."""
    data = configuration.data
    if isinstance(data, str):
        for name in ("head", "loss_weight", "best", "batches"):
            value = getattr(configuration, name)
            if isinstance(value, Mapping) or (name != "head" and value is not None):
                raise OptionError(
                    f"{name}={value!r} is for several data sets, and there is one; leave it out, or name the data "
                    "sets: data={'objects': ..., 'road': ...}"
                )
        return
    first = next(iter(data))
    for name in ("head", "taps"):
        value = getattr(configuration, name)
        if value is not None and not isinstance(value, Mapping):
            where = f"head={{{first!r}: {value!r}}}" if name == "head" else f"options={{{first!r}: {{'taps': ...}}}}"
            raise OptionError(f"{name}={value!r} is of one head, and there are several; give it by name: {where}")
    if configuration.backbone is None:
        raise OptionError(
            "no backbone for several heads",
            hint=Hint("name one, such as", "backbone='mobilenet_v3_large'"),
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
                    f"{setting} is of {name!r}, which has no data{hint} the data sets are {', '.join(data)}"
                )
