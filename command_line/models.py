"""The model that a command's NAME|FILE stands for. Torch is imported when it is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featuretap import registry
from featuretap.catalogue.pretrained import CHECKPOINT_SUFFIXES
from featuretap.support.errors import UnknownBackboneError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["named_or_in_a_file"]


def named_or_in_a_file(source: str, weights: str | None, *, bare: bool, **asked: Any) -> nn.Module:
    """Build the backbone of a name, or load what is in a file or a folder.

    Args:
        source: which of them.
        weights: of a name: a tag, a file, "none" for fresh ones, or None for the catalogue's default.
        bare: whether to leave out the head.
        **asked: arguments of `registry.build` and `registry.load`.

    Raises:
        UsageError: weights beside a file.
        the errors of `registry.build` and `registry.load`.
    """
    if _is_file(source):
        if weights is not None:
            raise click.UsageError(f"the file {source!r} has the weights; leave --weights out")
        return registry.load(source, features_only=bare or None, **asked)
    pretrained: bool | str = {None: True, "none": False}.get(weights, weights or "")
    return registry.build(source, features_only=bare, pretrained=pretrained, **asked)


def _is_file(source: str) -> bool:
    """Say whether a file or a folder is meant; what is the name of a backbone is one wherever one stands."""
    if Path(source).suffix in CHECKPOINT_SUFFIXES:
        return True
    try:
        registry.default.provider(source)
    except UnknownBackboneError:
        return Path(source).exists()
    return False
