"""Model descriptions: the request that a model was built from, and the origin of its weights."""

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
    """The request that a model was built from, and the origin of its weights.

    Args:
        name: name of the backbone in the registry.
        taps: addresses of the maps that the backbone returns.
        options: options of backbone and head that were passed to `build`.
        head: name of the head, or None for a bare backbone.
        num_classes: number of classes, or None for a bare backbone or a head without classes.
        preprocessing: preprocessing that `registry.transforms` returns.
        weights: name of the catalogue entry, path of the checkpoint, or None for random initialization.
        classes: name of the weights' label set, such as "imagenet1k", or the class names, including the background for
            a detector that counts it; empty if unknown.
        random_head: whether the head, or its last layer, is randomly initialized although the backbone has weights.
        spec: spec of the model as built, with options applied. `norm` is omitted because it is code.
        heads: for a model with several heads, mapping from head name to the description of backbone and head. The other
            fields then describe the backbone.
        agreement: for a model compiled at reduced precision, mapping from output to its similarity to float32. Not
            written to files.
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
        """The spec of the backbone as built."""
        return self.spec.backbone if isinstance(self.spec, ModelSpec) else self.spec


def spec_of(description: Description) -> BackboneSpec | ModelSpec | MultiHeadSpec | None:
    """Return the spec of the model that `description` describes, with one or several heads; None if it is unknown."""
    if not description.heads or description.backbone is None:
        return description.spec
    heads = {name: head.spec for name, head in description.heads.items() if isinstance(head.spec, ModelSpec)}
    return MultiHeadSpec(description.backbone, heads)


def adapt_preprocessing(spec: BackboneSpec | ModelSpec, preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing for a model, derived from that of its weights.

    Args:
        spec: spec of the model.
        preprocessing: preprocessing that the weights of the model or its backbone were trained with.

    Returns:
        The preprocessing for the images of the model.

    Raises:
        OptionError: `image_mean` or `image_std` does not have one value per image channel.
    """
    if not isinstance(spec, ModelSpec):
        return preprocessing.for_images("cropped").for_channels(spec.in_channels)
    prepared = preprocessing.for_images(spec.head.images).for_channels(spec.backbone.in_channels)
    mean, std = (spec.head_options.get(f"image_{name}") for name in ("mean", "std"))
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != spec.backbone.in_channels:
            raise OptionError(
                f"image_{name} has {len(values)} values, but the images have {spec.backbone.in_channels} "
                "channels; give one value for each channel"
            )
    return replace(prepared, mean=tuple(mean or prepared.mean), std=tuple(std or prepared.std))


def format_options(name: str, options: Mapping[str, Any]) -> str:
    """Return text such as "'name' with a, b=1" for messages.

    Args:
        name: name of a backbone.
        options: options it was requested with.

    Returns:
        The quoted name, followed by the options if there are any.
    """
    formatted = [
        option if value is True else f"{option}={value.__name__ if hasattr(value, '__name__') else repr(value)}"
        for option, value in options.items()
    ]
    return f"{name!r} with {', '.join(formatted)}" if formatted else repr(name)
