"""Rows in their places: paths, strides, dilations and shortcuts, and what is left when a backbone is cut."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from featuretap.specs.layers import SYMMETRIC, Convolution, Layer
from featuretap.specs.rows import Row
from featuretap.support.errors import SpecError


@dataclass(frozen=True)
class Block:
    """A row at its place in the network.

    `path` is that of its submodule, such as "stages.C3.0". A row of several layers has them below that path by their
    names; a row of one layer is that layer.
    """

    path: str
    row: Row
    layers: tuple[Layer, ...]
    shortcut: bool
    nested: bool

    @property
    def level(self) -> str:
        """The level that the block belongs to: C1 to C5."""
        return self.path.split(".")[1]

    @property
    def out_channels(self) -> int:
        """Channels of its output."""
        return self.layers[-1].out_channels

    def layer_paths(self) -> Iterator[tuple[str, Layer]]:
        """Yield each layer with the path of its submodule, in order of execution."""
        for layer in self.layers:
            yield (f"{self.path}.{layer.name}" if self.nested else self.path), layer


def place_rows(
    stages: Sequence[Sequence[Row]],
    in_channels: int,
    output_stride: int,
    dilate_entry: bool,
    padding: str = SYMMETRIC,
) -> tuple[Block, ...]:
    """Place the rows of `stages` one after the other.

    The first row of stage n strides by 2 while 2ⁿ does not exceed `output_stride`. Beyond it the stage keeps its
    resolution: its first row keeps the dilation reached so far, the rows after it double it (DeepLab, arXiv 1706.05587,
    section 3.1); with `dilate_entry` the first row doubles it too, as torchvision's segmentation models do.

    Raises:
        SpecError: `padding` is "same", and a layer that strides has no such field.
    """
    blocks = []
    channels, dilation = in_channels, 1
    for level, rows in enumerate(stages, start=1):
        strides = 2**level <= output_stride
        entry = dilation
        if not strides:
            dilation *= 2
            entry = dilation if dilate_entry else entry
        for index, row in enumerate(rows):
            enters = index == 0
            stride, dilated = 2 if enters and strides else 1, entry if enters else dilation
            layers = tuple(_place(layer, stride, dilated, padding) for layer in row.layers(channels))
            out_channels = layers[-1].out_channels
            # A block that strided in the table never gets a shortcut, not even where an output stride stops it.
            shortcut = row.shortcut and not enters and channels == out_channels
            blocks.append(Block(f"stages.C{level}.{index}", row, layers, shortcut, nested=len(layers) > 1))
            channels = out_channels
    return tuple(blocks)


def _place(layer: Layer, stride: int, dilation: int, padding: str) -> Layer:
    if hasattr(layer, "padding"):
        # Most have it already, and there are thousands of them.
        layer = layer if layer.padding == padding else replace(layer, padding=padding)  # type: ignore[type-var]
    elif padding != SYMMETRIC and layer.strided and stride > 1:
        raise SpecError(
            f"{type(layer).__name__} {layer.name!r} cannot take padding={padding!r}; give the class a field padding"
        )
    if layer.strided and (stride, dilation) != (1, 1):
        return replace(layer, stride=stride, dilation=dilation)  # type: ignore[type-var]
    # What looks around before or after the layer that strides has to look as far as that.
    if isinstance(layer, Convolution) and layer.kernel > 1 and dilation != 1:
        return replace(layer, dilation=dilation)
    return layer


def truncate(blocks: Sequence[Block], wanted: Collection[str]) -> tuple[Block, ...]:
    """Return the blocks up to the one that holds the last of the paths `wanted`, that block cut behind it."""
    missing = set(wanted)
    kept: list[Block] = []
    for block in blocks:
        for count, (path, _) in enumerate(block.layer_paths(), start=1):
            missing.discard(path)
            if not missing:
                whole = count == len(block.layers)
                return (*kept, block if whole else replace(block, layers=block.layers[:count], shortcut=False))
        missing.discard(block.path)
        kept.append(block)
        if not missing:
            break
    return tuple(kept)
