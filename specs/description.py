"""The description of a built model: how it was requested, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featuretap.specs import BackboneSpec, ModelSpec, MultiHeadSpec
from featuretap.specs.agreement import Agreement
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import OptionError


@dataclass(frozen=True)
class Description:
    """How a model was requested, and where its weights come from.

    Args:
        name: the backbone's name in the registry.
        taps: the addresses that the backbone returns.
        options: the options that were given, of backbone and head.
        head: the head's name, or None for a bare backbone.
        num_classes: classes of the head, or None for a bare backbone and for a head without classes.
        preprocessing: what `registry.transforms` returns, as data.
        weights: name of the catalogue entry, path of the checkpoint, or None for random initialisation.
        classes: the label set of the weights, such as "imagenet1k", or the name of each class, the background of a
            detector that counts one included; empty where neither is known.
        random_head: whether the head, or its last layer, is randomly initialised although the backbone has weights.
        spec: of the model as it was built: options applied, and without the backbone's `norm`, which is code.
        heads: of a model with several heads: name → description of the model that the head and the backbone form. The
            other fields are then those of the backbone.
        agreement: of a model compiled with less precision: output → its similarity to that in float32. Not written to
            files.
    """

    name: str
    taps: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    head: str | None = None
    num_classes: int | None = None
    preprocessing: Preprocessing = Preprocessing()
    weights: str | Path | None = None
    classes: str | tuple[str, ...] = ""
    random_head: bool = False
    spec: BackboneSpec | ModelSpec | None = field(default=None, repr=False)
    heads: Mapping[str, Description] = field(default_factory=dict, hash=False)
    agreement: Mapping[str, Agreement] = field(default_factory=dict, hash=False, repr=False)

    @property
    def backbone(self) -> BackboneSpec | None:
        """The backbone as it was built."""
        return self.spec.backbone if isinstance(self.spec, ModelSpec) else self.spec


def spec_of(description: Description) -> BackboneSpec | ModelSpec | MultiHeadSpec | None:
    """Return the spec of the model of a `description`, with any number of heads; None where it is not known."""
    if not description.heads or description.backbone is None:
        return description.spec
    heads = {name: head.spec for name, head in description.heads.items() if isinstance(head.spec, ModelSpec)}
    return MultiHeadSpec(description.backbone, heads)


def adapt_preprocessing(spec: BackboneSpec | ModelSpec, preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing of images for a model.

    Args:
        spec: of the model.
        preprocessing: of the images that its weights, or its backbone's, were trained with.

    Raises:
        OptionError: `image_mean` or `image_std` is for another number of channels.
    """
    if not isinstance(spec, ModelSpec):
        return preprocessing.for_images("cropped").for_channels(spec.in_channels)
    prepared = preprocessing.for_images(spec.head.images).for_channels(spec.backbone.in_channels)
    mean, std = (spec.head_options.get(f"image_{name}") for name in ("mean", "std"))
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != spec.backbone.in_channels:
            raise OptionError(
                f"image_{name} is for {len(values)} channels, and the images have {spec.backbone.in_channels}"
            )
    return replace(prepared, mean=tuple(mean or prepared.mean), std=tuple(std or prepared.std))


def format_options(name: str, options: Mapping[str, Any]) -> str:
    """Return "'name' with a, b=1" for messages.

    Args:
        name: of a backbone.
        options: that it was asked for with.
    """
    formatted = [
        option if value is True else f"{option}={value.__name__ if hasattr(value, '__name__') else repr(value)}"
        for option, value in options.items()
    ]
    return f"{name!r} with {', '.join(formatted)}" if formatted else repr(name)
