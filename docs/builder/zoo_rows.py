"""The rows of the zoo: every backbone of a catalogue with each of its published weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from docs.builder.zoo_machines import Machine, Times
from featuretap.registry import Registry
from featuretap.registry.errors import HeadError
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.specs import BackboneSpec, ModelSpec

__all__ = ["LEVELS", "SIZE", "TORCHVISION", "Row", "rows"]

LEVELS = ("C1", "C2", "C3", "C4", "C5")
SIZE = 224
"""Height and width in pixels of the image for which multiply-adds, memory and latency are given."""

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
"""Classifiers of torchvision that are listed for comparison.

Each is a pooled C5 with one linear layer, as featuretap's classifier, so the published accuracy is that of the backbone
with such a classifier.
"""

MEASURES = {"classification": "top-1", "detection": "box AP", "segmentation": "mean IoU"}
"""Task of a head → the metric that publishers state."""

FAMILY = re.compile(r"[a-z]+(_?v\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A backbone with one of its published weights, or without weights.

    Attributes:
        name: name for `registry.build`.
        plugin: plugin that provides the backbone.
        parameters: parameters of the backbone, without its head.
        macs: multiply-adds of the backbone for an image of `SIZE`.
        channels: channels of the taps C1 to C5, None for a missing tap.
        line: Python code that builds it.
        tag: tag of the weights, or "" without weights; the fields below are then empty.
        megabytes: size of the weights file in millions of bytes, 0 if unknown.
        crop: height and width in pixels of the images that the accuracy is stated for, None for images of any size.
        head: head of the weights.
        measure: the metric of `accuracy`: "top-1", "box AP" or "mean IoU".
        accuracy: published accuracy in percent.
        measured_macs: multiply-adds of the backbone for an image of `crop`; None for other heads than classifiers.
        license: license of the weights as an SPDX identifier.
        memory: peak bytes of the activations of the feature maps C1 to C5 for an image of `SIZE`, None if unknown.
        latency: "machine/runtime" → milliseconds for the feature maps C1 to C5 of an image of `SIZE`.
        model_parameters: parameters of the model with its head; None for a backbone without a classifier.
        model_macs: multiply-adds of the classifier for an image of `SIZE`; None for other heads.
    """

    name: str
    plugin: str
    parameters: int
    macs: int
    channels: tuple[int | None, ...]
    line: str
    tag: str = ""
    megabytes: float = 0.0
    crop: int | None = None
    head: str = ""
    measure: str = ""
    accuracy: float | None = None
    measured_macs: int | None = None
    license: str = ""
    memory: int | None = None
    latency: Mapping[str, Times] = field(default_factory=dict)
    model_parameters: int | None = None
    model_macs: int | None = None

    @property
    def key(self) -> str:
        """Name of the backbone with the tag of its weights."""
        return f"{self.name}.{self.tag}" if self.tag else self.name

    @property
    def family(self) -> str:
        """The first letters of the name with a version, such as "mobilenet_v3" or "resnet"."""
        name = self.name.rpartition("/")[2]
        found = FAMILY.match(name)
        return found[0].lower() if found else name

    @property
    def top_1(self) -> float | None:
        """Top-1 accuracy on ImageNet-1k in percent, or None."""
        return self.accuracy if self.measure == "top-1" else None


def rows(
    registry: Registry, others: Iterable[str] = TORCHVISION, machines: Mapping[str, Machine] | None = None
) -> list[Row]:
    """Return a row for every listed backbone with each of its weights.

    Args:
        registry: the registry whose backbones are listed.
        others: names in the namespace `torchvision/` to add.
        machines: file name → measured latencies.

    Returns:
        The rows.
    """
    listed = (row for name in registry.list_backbones() for row in _of_backbone(registry, name))
    more = (row for name in others for row in _of_torchvision(registry, name))
    return [_with_latency(row, machines or {}) for row in (*listed, *more)]


def _with_latency(row: Row, machines: Mapping[str, Machine]) -> Row:
    """Return a row with its latencies, unless its head runs another backbone or another image size."""
    if row.head not in ("", "classification"):
        return row
    latency = {
        f"{key}/{runtime}": times
        for key, machine in machines.items()
        if (machine.size, machine.batch) == ((SIZE, SIZE), 1)
        for runtime, times in machine.milliseconds.get(row.name, {}).items()
    }
    return replace(row, latency=latency)


def _of_backbone(registry: Registry, name: str) -> Iterator[Row]:
    plugin, entries = registry.provider(name), registry.weights_of(name)
    if not entries:
        backbone, model = registry.spec(name, features_only=True), _model_spec(registry, name)
        yield Row(
            name,
            plugin,
            backbone.parameters,
            backbone.macs(SIZE, SIZE),
            _channels(backbone),
            _line(name),
            memory=_memory(backbone),
            model_parameters=model.parameters if model else None,
            model_macs=model.macs(SIZE, SIZE) if model else None,
        )
    for entry in entries:
        yield _of_entry(registry, name, plugin, entry)


def _of_entry(registry: Registry, name: str, plugin: str, entry: WeightsEntry) -> Row:
    task = registry.head(entry.head).task
    backbone = registry.spec(name, features_only=True, pretrained=entry.tag)
    model = _model_spec(registry, name, pretrained=entry.tag)
    model_macs = crop = measured = None
    if task == "classification":
        # The preprocessing of detectors and segmenters does not state their image sizes.
        model_macs, crop = model.macs(SIZE, SIZE) if model else None, entry.preprocessing.crop
        measured = backbone.macs(crop, crop) if crop else None
    return Row(
        name,
        plugin,
        backbone.parameters,
        backbone.macs(SIZE, SIZE),
        _channels(backbone),
        _line(name, pretrained=entry.tag),
        entry.tag,
        entry.megabytes,
        crop,
        entry.head,
        MEASURES.get(task, "accuracy"),
        entry.accuracy,
        measured,
        entry.license,
        _memory(backbone),
        model_parameters=model.parameters if model else None,
        model_macs=model_macs,
    )


def _of_torchvision(registry: Registry, name: str) -> Iterator[Row]:
    """Yield a row for each of torchvision's weights of a classifier."""
    from torchvision.models import get_model_weights

    backbone, model = registry.spec(name, features_only=True), registry.spec(name)
    macs, model_macs = cache(lambda size: backbone.macs(size, size)), model.macs(SIZE, SIZE)
    for weights in get_model_weights(name.removeprefix(NAMESPACE)):
        (crop,) = weights.transforms().crop_size
        yield Row(
            name,
            NAMESPACE.rstrip("/"),
            backbone.parameters,
            macs(SIZE),
            _channels(backbone),
            _line(name, features_only=True, pretrained=weights.name),
            weights.name,
            # torchvision states the size in units of 2²⁰ bytes.
            weights.meta["_file_size"] * 2**20 / 10**6,
            crop,
            "classification",
            "top-1",
            weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
            macs(crop),
            # torchvision does not state a license for these weights; this is the license of the package.
            weights.meta.get("license", "BSD-3-Clause"),
            model_parameters=model.parameters,
            model_macs=model_macs,
        )


def _model_spec(registry: Registry, name: str, pretrained: str | bool = False) -> BackboneSpec | ModelSpec | None:
    """Return the spec of a backbone with its head; None for a backbone without C5, which has no classifier."""
    try:
        return registry.spec(name, pretrained=pretrained)
    except HeadError:
        return None


def _channels(spec: BackboneSpec | ModelSpec) -> tuple[int | None, ...]:
    return tuple(spec.taps[level].channels if level in spec.taps else None for level in LEVELS)


def _memory(spec: BackboneSpec | ModelSpec) -> int | None:
    return spec.activation_memory(SIZE, SIZE) if isinstance(spec, BackboneSpec) and spec.stages else None


def _line(name: str, **asked: Any) -> str:
    """Return the call of `registry.build`, with double quotes."""
    words = [_quoted(name), *(f"{key}={_quoted(value)}" for key, value in asked.items())]
    return f"registry.build({', '.join(words)})"


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) and '"' not in value and "\\" not in value else repr(value)
