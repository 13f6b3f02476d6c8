"""What `pretrained=` means: nothing, published weights, or a file. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.weights_index import Published
from featuretap.specs import BackboneSpec
from featuretap.specs.options import options_of
from featuretap.support.errors import OptionError, UnknownWeightsError, did_you_mean

__all__ = ["CHECKPOINT_SUFFIXES", "brought", "chosen"]

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""Suffixes that tell the path of a checkpoint from a tag."""


def chosen(
    backbone: BackboneSpec, pretrained: bool | str | os.PathLike[str], published: Published
) -> WeightsEntry | Path | str | None:
    """Return the entry or the file that is asked for, the tag of weights that the backbone's factory fetches, or None.

    Args:
        backbone: its spec.
        pretrained: True for the default, a tag, `distribution:tag`, a name, or a path; a name that is no tag is a path
            where there is one.
        published: the weights that are known.

    Raises:
        OptionError: `pretrained` is of another type.
        UnknownWeightsError: there are no such weights, or two plugins have them.
    """
    if pretrained is False:
        return None
    if isinstance(pretrained, os.PathLike):
        return Path(pretrained)
    if not isinstance(pretrained, bool | str):
        raise OptionError(
            f"{backbone.name!r} cannot take pretrained={pretrained!r}; it is True, False, a tag, or the path of a file"
        )
    entries = published.of(backbone)
    if isinstance(pretrained, bool):
        if entries and entries[0].default:
            return entries[0]
        if backbone.tags:
            return backbone.tags[0]
        raise UnknownWeightsError(
            f"{backbone.name!r} has no default weights ({_known(backbone, entries)}); name a tag, or give the path of "
            "a file"
        )
    if pretrained in backbone.tags:
        return pretrained
    for entry in entries:
        if pretrained in (entry.tag, entry.name):
            return entry
    of_a_plugin = published.whose(backbone, pretrained)
    if of_a_plugin:
        return of_a_plugin
    path = Path(pretrained)
    if os.sep in pretrained or path.suffix in CHECKPOINT_SUFFIXES or path.exists():
        return path
    hint = did_you_mean(pretrained, _tags(backbone, entries)) or ";"
    raise UnknownWeightsError(f"{backbone.name!r} has no weights {pretrained!r}{hint} {_known(backbone, entries)}")


def brought(
    weights: WeightsEntry | Path | str | None, backbone: BackboneSpec, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `build` that are asked for, with those that published weights bring.

    Weights that were trained with a head and with options bring them where the caller names none; under another head,
    or under none, they bring the options of the backbone.
    """
    arguments = dict(asked)
    if not isinstance(weights, WeightsEntry) or (not weights.options and weights.head == "classification"):
        return arguments
    options = dict(weights.options)
    same_head = not asked["features_only"] and asked["head"] in (None, weights.head)
    if not same_head:
        takes = options_of(backbone)
        options = {name: value for name, value in options.items() if name in takes}
    elif asked["head"] is None:
        arguments["head"] = weights.head
    if arguments["taps"] is None:
        arguments["taps"] = options.get("taps")
    options.pop("taps", None)
    return {**options, **arguments}


def _tags(backbone: BackboneSpec, entries: Sequence[WeightsEntry]) -> list[str]:
    return [*backbone.tags, *(entry.tag for entry in entries)]


def _known(backbone: BackboneSpec, entries: Sequence[WeightsEntry]) -> str:
    tags = _tags(backbone, entries)
    return f"its tags are {', '.join(tags)}" if tags else "the catalogue has none for it"
