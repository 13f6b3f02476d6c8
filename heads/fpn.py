"""The feature pyramid (FPN, arXiv 1612.03144): levels of one number of channels, named by P and a number."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from featuretap.specs import BackboneSpec, HeadSpec, Tap
from featuretap.specs.validation import boolean, choice, count
from featuretap.support.errors import OptionError

PYRAMID_OPTIONS = {
    "out_channels": count(256),
    "extra_levels": choice(None, "pool", "p6p7"),
    "fpn_norm": choice(None, "batch_norm", "group_norm"),
    "depthwise": boolean(False),
}
"""Options of every head that has a pyramid: its channels; whether levels are added above the last one, by subsampling
it (one, as Faster R-CNN does) or by two convolutions of stride 2 (as RetinaNet does); a norm behind its convolutions,
batch norm or group norm of 32 groups; depthwise separable 3×3 convolutions, as in the FPNLite of TensorFlow's model
zoo."""

GROUPS = 32

EXTRA_LEVELS = {None: 0, "pool": 1, "p6p7": 2}


def pyramid_taps(
    backbone: BackboneSpec, *, out_channels: int, extra_levels: str | None, **others: Any
) -> dict[str, Tap]:
    """Return name → channels and stride of every level of the pyramid, the finest first.

    The first is numbered as the level that it is made of (P3 of C3, or of any map of stride 8 that bears no number),
    the others count on from there, whatever their strides.
    """
    (name, finest), *_ = backbone.taps.items()
    taps = [Tap(out_channels, tap.stride, tap.rounding) for tap in backbone.taps.values()]
    for _ in range(EXTRA_LEVELS[extra_levels]):
        taps.append(replace(taps[-1], stride=2 * taps[-1].stride))
    numbered = re.match(r"C(\d)", name)
    first = int(numbered[1]) if numbered else finest.stride.bit_length() - 1
    return {f"P{number}": tap for number, tap in enumerate(taps, start=first)}


def pyramid_outputs(
    backbone: BackboneSpec, *, height: int, width: int, **options: Any
) -> dict[str, tuple[int, int, int]]:
    """Return level → (channels, height, width) for an image; each added level is half the one before, rounded up."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for index, (name, tap) in enumerate(pyramid_taps(backbone, **options).items()):
        if index < len(backbone.taps):
            shapes[name] = tap.shape(height, width)
        else:
            channels, above, beside = shapes[next(reversed(shapes))]
            shapes[name] = channels, -(-above // 2), -(-beside // 2)
    return shapes


def check_pyramid(backbone: BackboneSpec, *, out_channels: int, fpn_norm: str | None, **others: Any) -> None:
    """Refuse channels that cannot be normalised in groups.

    Raises:
        OptionError: `fpn_norm` is "group_norm", and `out_channels` no multiple of 32.
    """
    if fpn_norm == "group_norm" and out_channels % GROUPS:
        raise OptionError(
            f"fpn_norm='group_norm' has {GROUPS} groups, so that out_channels={out_channels} should be a multiple of "
            f"{GROUPS}"
        )


FPN = HeadSpec(
    "fpn",
    reads=("C2", "C3", "C4", "C5"),
    consecutive=True,
    factory="featuretap.heads.modules.fpn:fpn",
    options=PYRAMID_OPTIONS,
    check="featuretap.heads.fpn:check_pyramid",
    taps="featuretap.heads.fpn:pyramid_taps",
    nodes="featuretap.heads.nodes.fpn:fpn_nodes",
    outputs="featuretap.heads.fpn:pyramid_outputs",
    model="featuretap.heads.modules.models:PyramidModel",
    per_class=(),
    description="feature pyramid: P levels of one number of channels",
)
