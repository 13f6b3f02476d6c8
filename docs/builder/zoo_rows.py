"""The rows of the zoo: every backbone of a catalogue with each of its published weights, as plain numbers and words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from featuretap.registry import Registry
from featuretap.registry.errors import HeadError
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.specs import BackboneSpec, ModelSpec

__all__ = ["LEVELS", "SIZE", "TORCHVISION", "Row", "rows"]

LEVELS = ("C1", "C2", "C3", "C4", "C5")
SIZE = 224
"""Height and width in pixels of the image that multiply-adds are counted for."""

NAMESPACE = "torchvision/"
TORCHVISION = tuple(
    f"{NAMESPACE}{name}"
    for name in (
        "efficientnet_b0",
        "mnasnet0_5",
        "mnasnet1_0",
        "regnet_y_400mf",
        "resnet18",
        "resnet34",
        "resnet50",
        "shufflenet_v2_x0_5",
        "shufflenet_v2_x1_0",
        "shufflenet_v2_x2_0",
    )
)
"""Classifiers of torchvision that are listed beside the catalogue's. Each is a pooled C5 and one linear layer, as our
classifier is, so that what is counted is what has the accuracy."""

MEASURES = {"classification": "top-1", "detection": "box AP", "segmentation": "mean IoU"}
"""A head's task → what a publisher states of it."""

FAMILY = re.compile(r"[a-z]+(_?v\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A backbone with one of its published weights, or with none.

    Attributes:
        name: what `registry.build` calls the backbone.
        plugin: who provides it.
        parameters: of what `line` builds with its head; of the backbone alone where it has no classifier.
        macs: multiply-adds of the classifier for an image of `SIZE`; None where the head is no classifier.
        channels: of the taps C1 to C5, None where there is none.
        line: the Python that builds it.
        tag: of the weights, "" where there are none; what follows is then empty too.
        megabytes: size of the file in millions of bytes, 0 where it is not known.
        crop: height and width in pixels of the images that the accuracy is of, None for whole images.
        head: the head of the weights.
        measure: what `accuracy` is: "top-1", "box AP" or "mean IoU".
        accuracy: in percent, as the publisher states it.
        measured_macs: multiply-adds of the classifier for an image of `crop`.
        licence: an SPDX identifier.
    """

    name: str
    plugin: str
    parameters: int
    macs: int | None
    channels: tuple[int | None, ...]
    line: str
    tag: str = ""
    megabytes: float = 0.0
    crop: int | None = None
    head: str = ""
    measure: str = ""
    accuracy: float | None = None
    measured_macs: int | None = None
    licence: str = ""

    @property
    def key(self) -> str:
        """The backbone, and the tag of the weights if there are any."""
        return f"{self.name}.{self.tag}" if self.tag else self.name

    @property
    def family(self) -> str:
        """The letters that the name begins with, and the version behind them: "mobilenet_v3", "resnet"."""
        name = self.name.rpartition("/")[2]
        found = FAMILY.match(name)
        return found[0].lower() if found else name

    @property
    def top_1(self) -> float | None:
        """Top-1 accuracy on ImageNet-1k in percent, None where another measure is stated or none."""
        return self.accuracy if self.measure == "top-1" else None


def rows(registry: Registry, beside: Iterable[str] = TORCHVISION) -> list[Row]:
    """Return the rows of every backbone that a registry lists, and of those of open namespaces that are named beside.

    Args:
        registry: whose backbones are listed.
        beside: names in the namespace `torchvision/`.
    """
    listed = (row for name in registry.list_backbones() for row in _of_backbone(registry, name))
    more = (row for name in beside for row in _of_torchvision(registry, name))
    return [*listed, *more]


def _of_backbone(registry: Registry, name: str) -> Iterator[Row]:
    plugin, entries = registry.provider(name), registry.weights_of(name)
    if not entries:
        spec = _described(registry, name)
        yield Row(name, plugin, spec.parameters, spec.macs(SIZE, SIZE), _channels(registry, name), _line(name))
    for entry in entries:
        yield _of_entry(registry, name, plugin, entry)


def _of_entry(registry: Registry, name: str, plugin: str, entry: WeightsEntry) -> Row:
    asked = {"pretrained": entry.tag}
    task = registry.head(entry.head).task
    spec, channels = _described(registry, name, **asked), _channels(registry, name, **asked)
    macs = crop = measured = None
    if task == "classification":
        # Detectors and segmenters run at sizes of their own, which the preprocessing does not state.
        macs, crop = spec.macs(SIZE, SIZE), entry.preprocessing.crop
        measured = spec.macs(crop, crop) if crop else None
    return Row(
        name,
        plugin,
        spec.parameters,
        macs,
        channels,
        _line(name, **asked),
        entry.tag,
        entry.megabytes,
        crop,
        entry.head,
        MEASURES.get(task, "accuracy"),
        entry.accuracy,
        measured,
        entry.license,
    )


def _of_torchvision(registry: Registry, name: str) -> Iterator[Row]:
    """Yield a row for each of the weights that torchvision states of one of its classifiers."""
    from torchvision.models import get_model_weights

    spec, channels = registry.spec(name), _channels(registry, name)
    parameters, macs = spec.parameters, cache(lambda size: spec.macs(size, size))
    for weights in get_model_weights(name.removeprefix(NAMESPACE)):
        (crop,) = weights.transforms().crop_size
        yield Row(
            name,
            NAMESPACE.rstrip("/"),
            parameters,
            macs(SIZE),
            channels,
            _line(name, features_only=True, pretrained=weights.name),
            weights.name,
            # torchvision states the size in units of 2²⁰ bytes.
            weights.meta["_file_size"] * 2**20 / 10**6,
            crop,
            "classification",
            "top-1",
            weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
            macs(crop),
            # That of the package: torchvision states none for these weights.
            weights.meta.get("license", "BSD-3-Clause"),
        )


def _described(registry: Registry, name: str, **asked: Any) -> BackboneSpec | ModelSpec:
    try:
        return registry.spec(name, **asked)
    except HeadError:
        # A backbone that does not reach C5 has no classifier.
        return registry.spec(name, features_only=True, **asked)


def _channels(registry: Registry, name: str, **asked: Any) -> tuple[int | None, ...]:
    taps = registry.spec(name, features_only=True, **asked).taps
    return tuple(taps[level].channels if level in taps else None for level in LEVELS)


def _line(name: str, **asked: Any) -> str:
    """Return the call of `registry.build`, its strings in double quotes as a formatter would have them."""
    words = [_quoted(name), *(f"{key}={_quoted(value)}" for key, value in asked.items())]
    return f"registry.build({', '.join(words)})"


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) and '"' not in value and "\\" not in value else repr(value)
