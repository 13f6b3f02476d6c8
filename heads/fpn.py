"""The feature pyramid (FPN, arXiv 1612.03144): levels P2, P3, … that all have the same number of channels."""

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
"""Options of every head with a pyramid.

- `out_channels`: channels of every level.
- `extra_levels`: levels added after the last one. "pool" subsamples it once (Faster R-CNN), "p6p7" adds two
  convolutions of stride 2 (RetinaNet).
- `fpn_norm`: norm after each convolution: batch norm, or group norm with 32 groups.
- `depthwise`: depthwise separable 3×3 convolutions, as in FPNLite of TensorFlow's model zoo.
"""

GROUPS = 32

EXTRA_LEVELS = {None: 0, "pool": 1, "p6p7": 2}


def pyramid_taps(
    backbone: BackboneSpec, *, out_channels: int, extra_levels: str | None, **others: Any
) -> dict[str, Tap]:
    """Return a mapping from level of the pyramid to `Tap`, the finest first.

    The first level has the number of the tap it is computed from, such as P3 for C3. If the tap's address has no
    number, the number follows from its stride, such as P3 for stride 8. The other levels are numbered consecutively,
    whatever their strides.

    Args:
        backbone: spec of the backbone.
        out_channels: channels of every level.
        extra_levels: option of the pyramid.
        **others: other options, which have no effect.

    Returns:
        The mapping.
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
    """Return a mapping from level to (channels, height, width) for one image.

    Each extra level has half the size of the previous one, rounded up.
    """
    shapes: dict[str, tuple[int, int, int]] = {}
    for index, (name, tap) in enumerate(pyramid_taps(backbone, **options).items()):
        if index < len(backbone.taps):
            shapes[name] = tap.shape(height, width)
        else:
            channels, rows, columns = shapes[next(reversed(shapes))]
            shapes[name] = channels, -(-rows // 2), -(-columns // 2)
    return shapes


def check_pyramid(backbone: BackboneSpec, *, out_channels: int, fpn_norm: str | None, **others: Any) -> None:
    """Check that group norm divides the channels of the pyramid.

    Args:
        backbone: spec of the backbone.
        out_channels: channels of every level.
        fpn_norm: norm of the pyramid.
        **others: other options, which have no effect.

    Raises:
        OptionError: `fpn_norm` is "group_norm", and `out_channels` is not a multiple of 32.
    """
    if fpn_norm == "group_norm" and out_channels % GROUPS:
        raise OptionError(
            f"fpn_norm='group_norm' uses {GROUPS} groups; out_channels must be a multiple of {GROUPS}, got "
            f"{out_channels}"
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
    description="feature pyramid: levels from P2 up, with equal channels",
)
