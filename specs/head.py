"""A head as data, and a backbone with a head: what is read, taken, returned and counted.

Heads that are made of other libraries' modules are counted by building them without memory (torch's meta device), when
their counts are asked for and not before.
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
"""Tap addresses; a tuple in place of an address names alternatives, the preferred first."""

Shape = tuple[int | str, ...]


FIELDS = {
    "reads": READS,
    **dict.fromkeys(("factory", "layers", "check", "taps", "outputs", "model", "nodes"), IMPORT_STRING),
    "num_classes": ("None or a positive whole number", lambda value: value is None or is_whole(value, 1)),
    "options": OPTIONS,
    "per_class": STRINGS,
    "description": STRING,
    "min_classes": ("a whole number", lambda value: is_whole(value, 0)),
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
    """What a head reads and takes, and where its code is.

    Import strings name functions of `(backbone, *, num_classes, **options)`, where `backbone` is the resolved
    `BackboneSpec` and `options` are all of the head's. Only `factory`, `model` and `layouts` may need torch.

    Args:
        name: what `registry.build(..., head=name)` knows it by.
        reads: the tap addresses that it reads; a tuple in place of an address names alternatives, the preferred first.
        factory: import string of the function that returns the head's module, which maps the dict of taps to the
            head's output.
        layers: import string of a function that returns `tuple[Counted, ...]`, layers that work on the first tap;
            without it the head is built and run on the meta device to be counted.
        num_classes: classes where the caller names no number; None for a head that has no classes.
        options: every option with its default, or with an `Option`, which also says what values it takes; the names
            must differ from those of backbones.
        per_class: beginnings of the names of its tensors whose size follows the number of classes; weights for another
            number leave these out.
        description: one line for people.
        min_classes: the least number of classes: 0 where the head does something without, 2 where it counts the
            background among them.
        consecutive: whether it reads any number of levels, each of the stride before or twice that; `reads` are then
            those of its own choice.
        optional_reads: option → what it reads besides where that option is on.
        backbone_options: options of the backbone that it sets where the caller does not.
        check: import string of a function that raises a `HeadError` or an `OptionError` for what does not go together.
        taps: import string of a function that returns address → `Tap` of maps that the head makes, if it makes any;
            `outputs` then states their shapes.
        outputs: import string of a function that also takes `height=` and `width=` of an image in pixels, and returns
            name → shape of what the model returns for it.
        model: import string of `model(backbone, head) -> nn.Module`, both modules as `backbone` and `head` inside.
        nodes: import string of a function that also takes `graph=`, a `featuretap.specs.graph.Graph`, appends the nodes
            of backbone and head to it, and returns name → tensor of the model's outputs; without it, PyTorch traces
            the model where it is exported.
        images: how the model wants its images: "cropped" to one size, "whole" and of any size, both normalised, or
            "raw", with values from 0 to 1, resized and normalised by the model; the method
            `normalise_as(preprocessing)` of a head receives how the weights were trained.
        layouts: layout name → import string of `layout(model, backbone) -> Layout`, of a `ModelSpec` and the layout of
            its backbone with a classifier.
        task: what the model is trained and evaluated for: "classification" (logits (N, classes)), "segmentation"
            (called as `SegmentationModel` is), "detection" (called as `DetectionModel` is), or "" for a head that makes
            something else, which the command line can neither train nor ask.

    Raises:
        SpecError: the name is no name, a field is of another kind, or it reads nothing.
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
            problem = f"reads more with an option {unknown[0]!r} that it lacks" if unknown else "reads no taps"
            raise SpecError(f"head {self.name!r} {problem}; correct its HeadSpec")
        stated = {name: option for name, option in self.options.items() if isinstance(option, Option)}
        defaults = {name: option.default for name, option in stated.items()}
        object.__setattr__(self, "allowed", stated)
        object.__setattr__(self, "options", {**self.options, **defaults})

    def reads_with(self, options: Mapping[str, Any]) -> Reads:
        """Return what it reads with these `options`, a value for each of its own."""
        besides = (reads for option, reads in self.optional_reads.items() if options[option])
        return sum(besides, start=self.reads)


@dataclass(frozen=True)
class ModelSpec:
    """A backbone with a head: counts exactly what `registry.build` returns for the same arguments.

    `taps` and `tap_shapes` are those of the maps that the head makes, as a pyramid does, and of every level of the
    backbone where it makes none.

    Args:
        backbone: its spec, options applied; its `taps` are those that the head reads.
        head: its spec.
        num_classes: classes of the head, or None for one that has none.
        head_options: a value for each option of the head.
        levels: every level of the backbone → channels and stride.
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
        """The backbone's name."""
        return self.backbone.name

    @cached_property
    def taps(self) -> Mapping[str, Tap]:
        """Map → channels and stride: the head's own, or every level of the backbone."""
        made: Mapping[str, Tap] = self.call(self.head.taps) if self.head.taps else self.levels
        return made

    def tap_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Map → (channels, height, width) for images of `height` × `width` pixels."""
        check_size(height, width)
        if self.head.taps:
            made = self.outputs(height, width)
            return {name: made[name] for name in self.taps}  # type: ignore[misc]
        return {name: tap.shape(height, width) for name, tap in self.taps.items()}

    def outputs(self, height: int, width: int) -> dict[str, Shape]:
        """Return name → shape of what the model returns for one image of `height` × `width` pixels, without its batch.

        A number of boxes is given as text, such as "0…300", where it depends on what is in the image.
        """
        check_size(height, width)
        made: dict[str, Shape] = self.call(self.head.outputs, height=height, width=width) if self.head.outputs else {}
        return made

    def call(self, reference: str, **more: Any) -> Any:
        """Call one of the head's functions, by its import string, with what the head is built with.

        Args:
            reference: the import string.
            **more: keyword arguments besides.
        """
        given = {"num_classes": self.num_classes, **self.head_options, **more}
        return call_reference(f"head {self.head.name!r}", reference, self.backbone, **given)

    @cached_property
    def head_layers(self) -> tuple[Counted, ...]:
        """The layers of a head that states them; empty for one that is built to be counted."""
        stated: tuple[Counted, ...] = self.call(self.head.layers) if self.head.layers else ()
        return stated

    @cached_property
    def head_tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name below `head` → shape of every tensor of the head.

        A name that ends in a dot is that of a layer that does not say which tensors it has.
        """
        if not self.head.layers:
            counted: Mapping[str, tuple[int, ...]] = load(f"{COUNTING}:tensors")(self)
            return counted
        tensors: dict[str, tuple[int, ...]] = {}
        for layer in self.head_layers:
            named = getattr(layer, "tensors", None)
            inner = {"": ()} if named is None else named
            tensors |= {f"{layer.name}.{name}": shape for name, shape in inner.items()}
        return tensors

    @property
    def head_parameters(self) -> int:
        """Parameters of the head."""
        if self.head.layers:
            return sum(layer.parameters for layer in self.head_layers)
        counted: int = load(f"{COUNTING}:parameters")(self)
        return counted

    @property
    def parameters(self) -> int:
        """Parameters of backbone and head."""
        return self.backbone.parameters + self.head_parameters

    def head_macs(self, height: int, width: int) -> int:
        """Multiply-adds of the head for one image of `height` × `width` pixels, as the backbone sees it."""
        shapes = self.backbone.tap_shapes(height, width)
        if self.head.layers:
            _, *size = next(iter(shapes.values()))
            return sum(layer.macs(*size) for layer in self.head_layers)
        counted: int = load(f"{COUNTING}:macs")(self, shapes)
        return counted

    def macs(self, height: int, width: int) -> int:
        """Multiply-adds of backbone and head for one image of `height` × `width` pixels, as the backbone sees it.

        Those of convolutions and linear layers; the boxes that a detector looks at a second time are as many as it
        keeps in evaluation. Detectors resize their images first: give the size that they resize to.
        """
        return self.backbone.macs(height, width) + self.head_macs(height, width)


def backbone_of(spec: BackboneSpec | ModelSpec | MultiHeadSpec) -> BackboneSpec:
    """Return the backbone of a `spec`."""
    return spec if isinstance(spec, BackboneSpec) else spec.backbone
