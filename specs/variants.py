"""Variants: functions from spec to spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from featuretap.specs import BackboneSpec
from featuretap.specs.layers import PADDINGS
from featuretap.specs.rows import Row
from featuretap.specs.validation import Option, check_option, choice, is_number
from featuretap.support.errors import OptionError

WIDEST = 100


WIDTH = Option(
    1.0,
    lambda value: is_number(value, 0, WIDEST) and value != 0,
    f"a positive number up to {WIDEST}, such as 0.75",
)
REDUCED_TAIL = choice(False, True, "segmentation")
OUTPUT_STRIDE = choice(32, 16, 8)
PADDING = choice(*PADDINGS)


def widened(spec: BackboneSpec, width: float) -> BackboneSpec:
    """Return `spec` with every channel count multiplied by `width` and rounded as the papers' code does.

    The hidden layer of the classifier keeps its size, as in TF-slim and timm.

    Args:
        spec: a table of rows.
        width: the width multiplier of MobileNetV1, section 3.3; 1.0 changes nothing.

    Raises:
        OptionError: `width` is not positive, or above 100.
    """
    check_option(repr(spec.name), "width", WIDTH, width)
    if width == 1:
        return spec
    stages: list[tuple[Row, ...]] = []
    before = after = spec.in_channels
    for rows in spec.stages:
        stage = []
        for row in rows:
            wide = row.widened(width, before, after)
            before, after = (r.layers(c)[-1].out_channels for r, c in ((row, before), (wide, after)))
            stage.append(wide)
        stages.append(tuple(stage))
    return replace(spec, stages=tuple(stages), width=spec.width * width)


def reduced_tail(spec: BackboneSpec, kind: bool | Literal["segmentation"] = True) -> BackboneSpec:
    """Return `spec` with every channel count behind C4 halved, the classifier's hidden layer included.

    The layers at stride 32 were tuned for 1,000 classes; detectors do as well with half of them (MobileNetV3, section
    6.3). The expansion that enters C5 works at C4's resolution and stays, unless `kind` is "segmentation", which halves
    it too (section 6.4); False changes nothing.

    Raises:
        OptionError: the table has no level C5, or there is no such kind.
    """
    check_option(repr(spec.name), "reduced_tail", REDUCED_TAIL, kind)
    if kind is False:
        return spec
    if len(spec.stages) < 5:
        raise OptionError(f"{spec.name!r} has no C5 whose tail could be reduced; it ends at C{len(spec.stages)}")
    *body, tail = spec.stages
    entering, *others = tail
    halved = (
        entering.halved(expansion=kind == "segmentation"),
        *(row.halved(expansion=True) for row in others),
    )
    classifier = replace(spec.classifier, hidden=spec.classifier.hidden // 2)
    return replace(spec, stages=(*body, halved), classifier=classifier)


def with_output_stride(spec: BackboneSpec, output_stride: int, *, dilate_entry: bool = False) -> BackboneSpec:
    """Return `spec` with no map smaller than 1/`output_stride` of the image; later stages dilate instead.

    Args:
        spec: a table of rows.
        output_stride: 32, 16 or 8.
        dilate_entry: dilate the block that would have strided, too (torchvision's rule for segmentation models).

    Raises:
        OptionError: another output stride.
    """
    check_option(repr(spec.name), "output_stride", OUTPUT_STRIDE, output_stride)
    if (output_stride, dilate_entry) == (spec.output_stride, spec.dilate_entry):
        return spec
    return replace(spec, output_stride=output_stride, dilate_entry=dilate_entry)


def with_padding(spec: BackboneSpec, padding: str) -> BackboneSpec:
    """Return `spec` with other padding of its convolutions: the same weights and shapes, and other values.

    Args:
        spec: a table of rows.
        padding: "symmetric", or "same" for TensorFlow's rule, which weights that were trained there need: a strided
            convolution adds only the pixels that are missing for the input's size, and the odd one at the bottom and
            the right.

    Raises:
        OptionError: another padding.
        SpecError: a layer of a plugin that strides, and does not take it.
    """
    check_option(repr(spec.name), "padding", PADDING, padding)
    return replace(spec, padding=padding)
