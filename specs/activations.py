"""Peak memory of a table's activations, computed from the lifetimes of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from featuretap.specs.blocks import Block

FLOAT32 = 4
"""Bytes per value."""


def peak_bytes(blocks: Iterable[Block], kept: Collection[str], in_channels: int, height: int, width: int) -> int:
    """Return the maximum number of bytes that tensors occupy at one time, in float32, for one image.

    A convolution with its norm and activation is one step, and needs its input and output at the same time. The
    addition of a shortcut is another step.

    Args:
        blocks: the blocks to compute, in execution order.
        kept: paths of the submodules whose outputs are kept until the end.
        in_channels: channels of the image.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        The peak memory in bytes.
    """
    current, peak = "image", 0
    # Sizes of the tensors that are kept or that later steps read: name → bytes.
    alive = {current: FLOAT32 * in_channels * height * width}
    kept_names: set[str] = set()
    for block in blocks:
        entry = current
        needed = {entry} if block.shortcut else set()
        for path, layer in block.layer_paths():
            height, width = layer.output_size(height, width)
            alive[path] = FLOAT32 * layer.out_channels * height * width
            peak = max(peak, sum(alive.values()) + FLOAT32 * getattr(layer, "workspace", 0))
            if path in kept:
                kept_names.add(path)
            current = path
            alive = {name: size for name, size in alive.items() if name in {current, *needed, *kept_names}}
        if block.shortcut:
            output = f"{block.path} + shortcut"
            alive[output] = alive[current]
            peak = max(peak, sum(alive.values()))
            current = output
        if block.path in kept:
            kept_names.add(current)
        alive = {name: size for name, size in alive.items() if name in {current, *kept_names}}
    return peak
