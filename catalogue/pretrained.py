"""Resolve `pretrained=` to published weights, a checkpoint, or weights that a factory downloads itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from featuretap.catalogue.addresses import is_address
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.weights_index import WeightsIndex
from featuretap.specs import BackboneSpec
from featuretap.support.errors import OptionError, UnknownWeightsError, did_you_mean

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Suffixes of files written by torch.save; the last one is for `.pth.tar`."""

PADDLE_SUFFIX = ".pdparams"
"""Suffix of files written by paddle.save."""

TENSORFLOW_SUFFIXES = (".pb", ".index")
"""Suffixes of TensorFlow's frozen graphs and of the index files of its checkpoints."""

CHECKPOINT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES, PADDLE_SUFFIX, *TENSORFLOW_SUFFIXES)
"""Suffixes that distinguish the path of a checkpoint from a tag."""


@dataclass(frozen=True)
class WeightsSource:
    """The source of a model's weights. Exactly one field is set.

    Args:
        entry: published weights, cached or to be downloaded.
        path: path or address of a checkpoint.
        factory_tag: tag of weights that the backbone's factory downloads itself.
    """

    entry: WeightsEntry | None = None
    path: str | os.PathLike[str] | None = None
    factory_tag: str = ""


def resolve_pretrained(
    backbone: BackboneSpec, pretrained: bool | str | os.PathLike[str], published: WeightsIndex
) -> WeightsSource | None:
    """Return the source of the weights that `pretrained` selects.

    Args:
        backbone: spec of the backbone.
        pretrained: True for the default weights, a tag, `distribution:tag`, a name, an address, or a path. A string
            that is not a tag is a path if it has the form of one or exists.
        published: index of published weights.

    Returns:
        The source, or None for no weights.

    Raises:
        OptionError: `pretrained` has another type.
        UnknownWeightsError: the weights do not exist, or two plugins provide them.
    """
    if pretrained is False:
        return None
    if isinstance(pretrained, os.PathLike):
        return WeightsSource(path=Path(pretrained))
    if not isinstance(pretrained, bool | str):
        raise OptionError(
            f"{backbone.name!r} cannot take pretrained={pretrained!r}; it must be True, False, a tag, or the path or "
            "address of a file"
        )
    entries = published.of(backbone)
    tags = [*backbone.tags, *(entry.tag for entry in entries)]
    known = f"its tags are {', '.join(tags)}" if tags else "the catalogue has no weights for it"
    if isinstance(pretrained, bool):
        if entries and entries[0].default:
            return WeightsSource(entry=entries[0])
        if backbone.tags:
            return WeightsSource(factory_tag=backbone.tags[0])
        raise UnknownWeightsError(
            f"{backbone.name!r} has no default weights ({known}); name a tag, or give the path of a file"
        )
    if pretrained in backbone.tags:
        return WeightsSource(factory_tag=pretrained)
    entry = next((entry for entry in entries if pretrained in (entry.tag, entry.name)), None)
    entry = entry or published.find(backbone, pretrained)
    if entry:
        return WeightsSource(entry=entry)
    if is_address(pretrained):
        return WeightsSource(path=pretrained)
    path = Path(pretrained)
    if os.sep in pretrained or path.suffix in CHECKPOINT_SUFFIXES or path.exists():
        return WeightsSource(path=path)
    hint = did_you_mean(pretrained, tags) or ";"
    raise UnknownWeightsError(f"{backbone.name!r} has no weights {pretrained!r}{hint} {known}")


def is_location(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether `source` is the path or address of weights, rather than the name of a model."""
    if isinstance(source, str) and not is_address(source):
        return Path(source).suffix in CHECKPOINT_SUFFIXES or Path(source).exists()
    return isinstance(source, str | os.PathLike)


def with_weights_defaults(
    entry: WeightsEntry,
    backbone_options: Mapping[str, Any],
    features_only: bool,
    taps: Sequence[str] | None,
    head: str | None,
    num_classes: int | None,
    options: Mapping[str, Any],
) -> tuple[Sequence[str] | None, str | None, int | None, dict[str, Any]]:
    """Return taps, head, classes and options of `build`, completed with the values that published weights define.

    Weights of a model with a head define head, taps, classes and options. If the caller requests another head or none,
    they only define the options of the backbone.

    Args:
        entry: the published weights.
        backbone_options: options of the backbone.
        features_only: as for `build`.
        taps: as for `build`.
        head: as for `build`.
        num_classes: as for `build`.
        options: as for `build`.

    Returns:
        Taps, head, number of classes, and options.
    """
    same_head = not features_only and head in (None, entry.head)
    defaults = {name: value for name, value in entry.options.items() if same_head or name in backbone_options}
    defined_taps, defined_classes = defaults.pop("taps", None), defaults.pop("num_classes", None)
    return (
        defined_taps if taps is None else taps,
        entry.head if same_head else head,
        defined_classes if num_classes is None else num_classes,
        {**defaults, **options},
    )
