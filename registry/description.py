"""What a built model says of itself. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.specs import BackboneSpec

__all__ = ["Description", "options_in_words"]


@dataclass(frozen=True)
class Description:
    """How a model was asked for, and where its weights come from.

    Args:
        name: the backbone's name in the registry.
        taps: the addresses that the backbone returns.
        options: the options that were given, of backbone and head.
        head: the head's name, or None for a bare backbone.
        num_classes: classes of the head, or None for a bare backbone.
        preprocessing: what `registry.transforms` makes of it.
        weights: name of the catalogue entry, path of the file, or None for fresh weights.
        classes: the label set of the weights, such as "imagenet1k", where it is known.
        backbone: the backbone as it was built: options applied, and without its `norm`, which is code.
    """

    name: str
    taps: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    head: str | None = None
    num_classes: int | None = None
    preprocessing: Preprocessing = Preprocessing()
    weights: str | Path | None = None
    classes: str = ""
    backbone: BackboneSpec | None = field(default=None, repr=False)


def options_in_words(name: str, options: Mapping[str, Any]) -> str:
    """Return "'name' with a, b=1" for messages."""
    words = [option if value is True else f"{option}={_in_words(value)}" for option, value in options.items()]
    return f"{name!r} with {', '.join(words)}" if words else repr(name)


def _in_words(value: Any) -> str:
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)
