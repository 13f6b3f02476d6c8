"""Head specs and model specs: taps that a head reads, its options, outputs, parameters and multiply-adds.

Heads made of another library's modules are counted by building them on PyTorch's meta device, without allocating
memory, when the counts are first needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from featuretap.specs.backbone import COUNTING, BackboneSpec, check_size
from featuretap.specs.layers import Counted
from featuretap.specs.taps import Tap
from featuretap.specs.validation import (
    BOOLEAN,
    IMPORT_STRING,
    NAMED_STRINGS,
    OPTIONS,
    READS,
    STRING,
    STRINGS,
    Option,
    check_fields,
    check_name,
    is_whole,
)
from featuretap.support.errors import SpecError
from featuretap.support.import_strings import call_reference, load

if TYPE_CHECKING:
    from featuretap.specs.multi_head import MultiHeadSpec

Reads = tuple[str | tuple[str, ...], ...]
"""Tap addresses. A tuple in place of an address lists alternatives, the preferred first."""

Shape = tuple[int | str, ...]


FIELDS = {
    "reads": READS,
    **dict.fromkeys(("factory", "layers", "check", "taps", "outputs", "model", "nodes"), IMPORT_STRING),
    "num_classes": ("None or a positive integer", lambda value: value is None or is_whole(value, 1)),
    "options": OPTIONS,
    "per_class": STRINGS,
    "description": STRING,
    "min_classes": ("a non-negative integer", lambda value: is_whole(value, 0)),
    "consecutive": BOOLEAN,
    "optional_reads": (
        "a mapping from option to tap addresses",
        lambda value: isinstance(value, Mapping) and all(map(READS[1], value.values())),
    ),
    "backbone_options": OPTIONS,
    "images": ("'cropped', 'whole' or 'raw'", lambda value: value in ("cropped", "whole", "raw")),
    "task": (
        "'classification', 'segmentation', 'detection' or ''",
        lambda value: value in ("classification", "segmentation", "detection", ""),
    ),
    "layouts": NAMED_STRINGS,
}


@dataclass(frozen=True)
class HeadSpec:
    """A torch-free description of a head: the taps it reads, its options, and the functions that implement it.

    Functions are given by import string and called as `function(backbone, *, num_classes, **options)`, where `backbone`
    is the resolved `BackboneSpec` and `options` has a value for every option of the head. Only `factory`, `model` and
    `layouts` may import torch.

    Args:
        name: name of the head in the registry.
        reads: tap addresses that the head reads. A tuple in place of an address lists alternatives, the preferred
            first.
        factory: import string of the function that returns the head's module. The module takes the dict of taps.
        layers: import string of a function that returns the head's layers, `tuple[Counted, ...]`, all applied to the
            first tap. Without it, the head is built and run on the meta device to be counted.
        num_classes: default number of classes, or None for a head without classes.
        options: every option with its default value or an `Option`, which also defines the valid values. Names must
            differ from those of the backbones' options.
        per_class: prefixes of the names of tensors whose shape depends on the number of classes. Weights for another
            number of classes skip these tensors.
        description: one-line description.
        min_classes: minimum number of classes: 0 for a head that works without classes, 2 for a head that counts the
            background as a class.
        consecutive: whether the head reads any number of levels, each with the stride of the previous level or twice
            that. `taps=` may replace `reads`.
        optional_reads: mapping from option to tap addresses that the head also reads if the option is on.
        backbone_options: options of the backbone that the head sets unless the caller does.
        check: import string of a function that raises `HeadError` or `OptionError` for invalid combinations.
        taps: import string of a function that returns a mapping from address to `Tap` for a head that produces maps.
            Such a head also needs `outputs`.
        outputs: import string of a function that also takes `height=` and `width=` of an image in pixels, and returns a
            mapping from output name to shape.
        model: import string of `model(backbone, head) -> nn.Module`. The model holds the two modules as `backbone` and
            `head`.
        nodes: import string of a function that also takes `graph=`, a `featuretap.specs.graph.Graph`. It appends the
            nodes of backbone and head, and returns a mapping from output name to tensor. Without it, PyTorch traces the
            model for export.
        images: images that the model takes: "cropped" (normalized, all of one size), "whole" (normalized, any size), or
            "raw" (values from 0 to 1; the model resizes and normalizes them). A "raw" head has a method
            `normalize_as(preprocessing)`, which receives the preprocessing of the weights.
        layouts: mapping from layout name to the import string of `layout(model, backbone) -> Layout`, with a
            `ModelSpec` and the layout of its backbone with a classifier.
        task: task that the model is trained and evaluated on: "classification" (returns logits (N, classes)),
            "segmentation" (called like `SegmentationModel`), "detection" (called like `DetectionModel`), or "" for
            another task, which the command line cannot train or run.

    Raises:
        SpecError: the name or a field is invalid, or the head reads no taps.

    Examples:
        >>> from featuretap.registry.specs import HeadSpec
        >>> head = HeadSpec(
        ...     "edges",
        ...     reads=(("C2.depthwise", "C2"), "C4"),
        ...     factory="my_package.modules:edges",
        ...     num_classes=2,
        ...     options={"channels": 64, "auxiliary": False},
        ...     optional_reads={"auxiliary": ("C3",)},
        ... )
        >>> head.reads_with({"channels": 64, "auxiliary": True})
        (('C2.depthwise', 'C2'), 'C4', 'C3')
    """

    name: str
    reads: Reads
    factory: str
    layers: str = ""
    num_classes: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    per_class: tuple[str, ...] = ("logits.",)
    description: str = ""
    min_classes: int = 1
    consecutive: bool = False
    optional_reads: Mapping[str, Reads] = field(default_factory=dict, hash=False)
    backbone_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    check: str = ""
    taps: str = ""
    outputs: str = ""
    model: str = "featuretap.heads.modules.models:HeadedModel"
    nodes: str = ""
    images: Literal["cropped", "whole", "raw"] = "cropped"
    layouts: Mapping[str, str] = field(default_factory=dict, hash=False)
    task: Literal["classification", "segmentation", "detection", ""] = ""
    allowed: Mapping[str, Option] = field(init=False, default_factory=dict, hash=False, repr=False)

    def __repr__(self) -> str:
        return f"HeadSpec({self.name!r})"

    def __post_init__(self) -> None:
        check_name("head", self.name)
        check_fields(f"head {self.name!r}", self, FIELDS)
        unknown = sorted(set(self.optional_reads) - set(self.options))
        if unknown or not self.reads:
            problem = "reads no taps"
            if unknown:
                problem = f"has optional_reads for {unknown[0]!r}, which is not one of its options"
            raise SpecError(f"head {self.name!r} {problem}; correct its HeadSpec")
        declared = {name: option for name, option in self.options.items() if isinstance(option, Option)}
        defaults = {name: option.default for name, option in declared.items()}
        object.__setattr__(self, "allowed", declared)
        object.__setattr__(self, "options", {**self.options, **defaults})

    def reads_with(self, options: Mapping[str, Any]) -> Reads:
        """Return the taps that the head reads with `options`, which must have a value for each of its options."""
        optional = (reads for option, reads in self.optional_reads.items() if options[option])
        return sum(optional, start=self.reads)


@dataclass(frozen=True)
class ModelSpec:
    """A backbone with a head. Counts exactly what `registry.build` returns for the same arguments.

    `taps` and `tap_shapes` describe the maps that the head produces, such as the levels of a pyramid. For a head that
    produces no maps, such as a detector, they describe the levels of the backbone. For the taps the head reads, use
    `spec.backbone.taps`.

    Args:
        backbone: spec of the backbone with options applied; its `taps` are the taps that the head reads.
        head: spec of the head.
        num_classes: number of classes, or None for a head without classes.
        head_options: a value for each option of the head.
        levels: mapping from level of the backbone to `Tap`.

    Examples:
        >>> from featuretap import registry
        >>> spec = registry.spec("mobilenet_v3_large", head="ssdlite", num_classes=91)
        >>> spec
        ModelSpec(BackboneSpec('mobilenet_v3_large', taps=('C4.expansion', 'C5')), HeadSpec('ssdlite'), num_classes=91)
        >>> spec.outputs(320, 320)
        {'boxes': ('0…300', 4), 'labels': ('0…300',), 'scores': ('0…300',)}
    """

    backbone: BackboneSpec
    head: HeadSpec
    num_classes: int | None
    head_options: Mapping[str, Any]
    levels: Mapping[str, Tap]

    def __repr__(self) -> str:
        classes = "" if self.num_classes is None else f", num_classes={self.num_classes}"
        return f"ModelSpec({self.backbone!r}, {self.head!r}{classes})"

    @property
    def name(self) -> str:
        """Name of the backbone."""
        return self.backbone.name

    @cached_property
    def taps(self) -> Mapping[str, Tap]:
        """Mapping from map name to `Tap`: the maps of the head, or the levels of the backbone if the head has no maps.

        For the taps the head reads, use `spec.backbone.taps`.
        """
        taps: Mapping[str, Tap] = self.call(self.head.taps) if self.head.taps else self.levels
        return taps

    def tap_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Return a mapping from map name to (channels, height, width).

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            A mapping in the order of `taps`.
        """
        check_size(height, width)
        if self.head.taps:
            shapes = self.outputs(height, width)
            return {name: shapes[name] for name in self.taps}  # type: ignore[misc]
        return {name: tap.shape(height, width) for name, tap in self.taps.items()}

    def outputs(self, height: int, width: int) -> dict[str, Shape]:
        """Return a mapping from output name to shape for one image, without the batch dimension.

        A number of boxes that depends on the image is given as text, such as "0…300".

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            A mapping in the order in which the model returns its outputs.
        """
        check_size(height, width)
        shapes: dict[str, Shape] = self.call(self.head.outputs, height=height, width=width) if self.head.outputs else {}
        return shapes

    def call(self, reference: str, **others: Any) -> Any:
        """Call one of the head's functions with the arguments that the head is built with.

        Args:
            reference: import string of the function.
            **others: additional keyword arguments.

        Returns:
            The return value of the function.
        """
        arguments = {"num_classes": self.num_classes, **self.head_options, **others}
        return call_reference(f"head {self.head.name!r}", reference, self.backbone, **arguments)

    @cached_property
    def head_layers(self) -> tuple[Counted, ...]:
        """The layers of a head that lists its layers; empty for other heads."""
        layers: tuple[Counted, ...] = self.call(self.head.layers) if self.head.layers else ()
        return layers

    @cached_property
    def head_tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Mapping from tensor name, without "head.", to shape.

        A name that ends in a dot is the prefix of a layer that does not list its tensors.
        """
        if not self.head.layers:
            shapes: Mapping[str, tuple[int, ...]] = load(f"{COUNTING}:tensors")(self)
            return shapes
        tensors: dict[str, tuple[int, ...]] = {}
        for layer in self.head_layers:
            named = getattr(layer, "tensors", None)
            inner = {"": ()} if named is None else named
            tensors |= {f"{layer.name}.{name}": shape for name, shape in inner.items()}
        return tensors

    @property
    def head_parameters(self) -> int:
        """Number of parameters of the head."""
        if self.head.layers:
            return sum(layer.parameters for layer in self.head_layers)
        counted: int = load(f"{COUNTING}:parameters")(self)
        return counted

    @property
    def parameters(self) -> int:
        """Number of parameters of backbone and head."""
        return self.backbone.parameters + self.head_parameters

    def head_macs(self, height: int, width: int) -> int:
        """Return the multiply-adds of the head for one image, at the size that the backbone reads.

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            Multiply-adds for one image.
        """
        shapes = self.backbone.tap_shapes(height, width)
        if self.head.layers:
            _, *size = next(iter(shapes.values()))
            return sum(layer.macs(*size) for layer in self.head_layers)
        counted: int = load(f"{COUNTING}:macs")(self, shapes)
        return counted

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-adds of backbone and head for one image, at the size that the backbone reads.

        Convolutions and linear layers are counted. The second stage of a detector is counted for the number of
        proposals that it keeps in evaluation. Detectors resize their images first: pass the size that they resize to.

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            Multiply-adds for one image.
        """
        return self.backbone.macs(height, width) + self.head_macs(height, width)


def backbone_of(spec: BackboneSpec | ModelSpec | MultiHeadSpec) -> BackboneSpec:
    """Return the spec of the backbone in `spec`."""
    return spec if isinstance(spec, BackboneSpec) else spec.backbone
