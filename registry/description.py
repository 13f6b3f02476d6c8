"""What a built model says of itself. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featuretap.registry.preprocessing import Preprocessing

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
        weights: name of the catalogue entry or path of the file, or None for fresh weights.
        classes: the label set of the weights, such as "imagenet1k", where it is known.
    """

    name: str
    taps: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    head: str | None = None
    num_classes: int | None = None
    preprocessing: Preprocessing = Preprocessing()
    weights: str | None = None
    classes: str = ""


def options_in_words(name: str, options: Mapping[str, Any]) -> str:
    """Return "'name' with a, b=1" for messages."""
    words = [option if value is True else f"{option}={value!r}" for option, value in options.items()]
    return f"{name!r} with {', '.join(words)}" if words else repr(name)
