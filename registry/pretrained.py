"""What `pretrained=` means: nothing, published weights, or a file. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from featuretap.registry.errors import OptionError, UnknownWeightsError, did_you_mean
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.weights.files import ENDINGS

__all__ = ["chosen"]


def chosen(
    backbone: str,
    pretrained: bool | str | os.PathLike[str],
    entries: Sequence[WeightsEntry],
    contested: Mapping[str, tuple[str, str]],
) -> WeightsEntry | Path | None:
    """Return the entry or the file that is asked for, None for fresh weights.

    Args:
        backbone: its name.
        pretrained: True for the default, a tag, a name, or a path; a name that is no tag is a path where there is one.
        entries: the backbone's published weights, the default first.
        contested: names of weights that two plugins have → the plugins.

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
            f"{backbone!r} cannot take pretrained={pretrained!r}; it is True, False, a tag, or the path of a file"
        )
    if isinstance(pretrained, bool):
        if entries and entries[0].default:
            return entries[0]
        raise UnknownWeightsError(
            f"{backbone!r} has no default weights ({_tags(entries)}); name a tag, or give the path of a file"
        )
    for entry in entries:
        if pretrained in (entry.tag, entry.name):
            return entry
    both = contested.get(pretrained) or contested.get(f"{backbone}.{pretrained}")
    if both:
        raise UnknownWeightsError(
            f"two plugins have weights {pretrained!r} for {backbone!r}: {' and '.join(both)}; disable one"
        )
    path = Path(pretrained)
    if os.sep in pretrained or path.suffix in ENDINGS or path.exists():
        return path
    hint = did_you_mean(pretrained, [entry.tag for entry in entries]) or ";"
    raise UnknownWeightsError(f"{backbone!r} has no weights {pretrained!r}{hint} {_tags(entries)}")


def _tags(entries: Sequence[WeightsEntry]) -> str:
    return f"its tags are {', '.join(entry.tag for entry in entries)}" if entries else "the catalogue has none for it"
