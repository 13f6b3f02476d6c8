"""Variants: functions that derive a `BackboneSpec` from another one.

Examples:
    >>> from featuretap import registry
    >>> from featuretap.backbones.mobilenet_v3 import LARGE
    >>> from featuretap.specs.variants import reduced_tail, widened
    >>> registry.spec(widened(reduced_tail(LARGE), 0.6), features_only=True).taps["C5"]
    Tap(channels=288, stride=32, rounding='ceil')
"""

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
    """Return `spec` with every channel count multiplied by `width` and rounded, as in the papers' code.

    The hidden layer of the classifier keeps its size, as in TF-slim and timm.

    Args:
        spec: a table of rows.
        width: the width multiplier (MobileNetV1, section 3.3); 1.0 changes nothing.

    Returns:
        The new spec.

    Raises:
        OptionError: `width` is not positive, or above 100.

    Examples:
        >>> from featuretap.backbones.mobilenet_v2 import V2
        >>> from featuretap.specs.variants import widened
        >>> half = widened(V2, 0.5)
        >>> V2.parameters, half.parameters
        (2223872, 687680)
        >>> half.tap_shapes(224, 224)["C4"]
        (48, 14, 14)
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
    """Return `spec` with every channel count after C4 halved, including the hidden layer of the classifier.

    The layers at stride 32 were tuned for 1,000 classes, and detectors are as accurate with half their channels
    (MobileNetV3, section 6.3). The expansion that enters C5 computes at C4's resolution and keeps its channels.

    Args:
        spec: a table of rows.
        kind: True; or "segmentation", which also halves the expansion that enters C5 (section 6.4); or False, which
            changes nothing.

    Returns:
        The new spec.

    Raises:
        OptionError: the table has no level C5, or `kind` is unknown.

    Examples:
        >>> from featuretap.backbones.mobilenet_v3 import LARGE
        >>> from featuretap.specs.variants import reduced_tail
        >>> LARGE.taps["C5"].channels, reduced_tail(LARGE).taps["C5"].channels
        (960, 480)
    """
    check_option(repr(spec.name), "reduced_tail", REDUCED_TAIL, kind)
    if kind is False:
        return spec
    if len(spec.stages) < 5:
        raise OptionError(f"{spec.name!r} has no C5 for reduced_tail to halve; it ends at C{len(spec.stages)}")
    *body, tail = spec.stages
    entering, *others = tail
    halved = (
        entering.halved(expansion=kind == "segmentation"),
        *(row.halved(expansion=True) for row in others),
    )
    classifier = replace(spec.classifier, hidden=spec.classifier.hidden // 2)
    return replace(spec, stages=(*body, halved), classifier=classifier)


def with_output_stride(spec: BackboneSpec, output_stride: int, *, dilate_entry: bool = False) -> BackboneSpec:
    """Return `spec` with maps at a stride of at most `output_stride`. Later stages dilate instead of striding.

    Args:
        spec: a table of rows.
        output_stride: 32, 16 or 8.
        dilate_entry: whether the block that would have strided is dilated too (torchvision's rule for segmentation
            models).

    Returns:
        The new spec.

    Raises:
        OptionError: the output stride is invalid.

    Examples:
        >>> from featuretap.backbones.mobilenet_v3 import LARGE
        >>> from featuretap.specs.variants import with_output_stride
        >>> with_output_stride(LARGE, 16).tap_shapes(224, 224)["C5"]
        (960, 14, 14)
    """
    check_option(repr(spec.name), "output_stride", OUTPUT_STRIDE, output_stride)
    if (output_stride, dilate_entry) == (spec.output_stride, spec.dilate_entry):
        return spec
    return replace(spec, output_stride=output_stride, dilate_entry=dilate_entry)


def with_padding(spec: BackboneSpec, padding: str) -> BackboneSpec:
    """Return `spec` with another padding of its convolutions. Weights and shapes stay the same, values change.

    Args:
        spec: a table of rows.
        padding: "symmetric", or "same" for TensorFlow's rule, which weights trained in TensorFlow require: a strided
            convolution adds only as many pixels as the input size requires, with an odd pixel at the bottom and right.

    Returns:
        The new spec.

    Raises:
        OptionError: the padding is unknown.
        SpecError: a strided layer of a plugin does not support `padding`.

    Examples:
        >>> from featuretap.backbones.mobilenet_v2 import V2
        >>> from featuretap.specs.variants import with_padding
        >>> with_padding(V2, "same")
        BackboneSpec('mobilenet_v2', taps=('C1', 'C2', 'C3', 'C4', 'C5'), padding='same')
    """
    check_option(repr(spec.name), "padding", PADDING, padding)
    return replace(spec, padding=padding)
