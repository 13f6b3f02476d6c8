"""Blocks: rows placed in a network, with paths, strides, dilations and shortcuts, and their truncation at a tap."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from featuretap.specs.layers import SYMMETRIC, Convolution, Layer
from featuretap.specs.rows import Row
from featuretap.support.errors import SpecError


@dataclass(frozen=True)
class Block:
    """A row at its place in the network.

    If the row has several layers, each is a submodule of `path`. If it has one layer, `path` is that layer.

    Args:
        path: path of the submodule, such as "stages.C3.0".
        row: the row of the table.
        layers: the layers of the row, with stride, dilation and padding set.
        shortcut: whether the input is added to the output.
        nested: whether the layers are submodules of `path`.

    Examples:
        >>> from featuretap.backbones.mobilenet_v2 import V2
        >>> block = V2.all_blocks[2]
        >>> block.path, block.level, block.shortcut, block.out_channels
        ('stages.C2.0', 'C2', False, 24)
        >>> [path for path, layer in block.layer_paths()]
        ['stages.C2.0.expand', 'stages.C2.0.depthwise', 'stages.C2.0.project']
    """

    path: str
    row: Row
    layers: tuple[Layer, ...]
    shortcut: bool
    nested: bool

    @property
    def level(self) -> str:
        """The level of the block, C1 to C5."""
        return self.path.split(".")[1]

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.layers[-1].out_channels

    def layer_paths(self) -> Iterator[tuple[str, Layer]]:
        """Yield (submodule path, layer) in execution order."""
        for layer in self.layers:
            yield (f"{self.path}.{layer.name}" if self.nested else self.path), layer


def place_rows(
    stages: Sequence[Sequence[Row]],
    in_channels: int,
    output_stride: int,
    dilate_entry: bool,
    padding: str = SYMMETRIC,
) -> tuple[Block, ...]:
    """Return the blocks of a table, in execution order.

    The first row of stage n has stride 2 as long as 2ⁿ does not exceed `output_stride`. Later stages keep the
    resolution: the first row keeps the dilation reached so far, and the following rows double it (DeepLab, arXiv
    1706.05587, section 3.1). With `dilate_entry`, the first row doubles it too, as in torchvision's segmentation
    models.

    Args:
        stages: the rows of each stage.
        in_channels: channels of the images.
        output_stride: maximum stride of a map.
        dilate_entry: whether the first row of a dilated stage uses the doubled dilation.
        padding: "symmetric" or "same".

    Returns:
        The blocks in execution order.

    Raises:
        SpecError: `padding` is "same", and a strided layer has no field `padding`.
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
            # The first block of a stage has no shortcut even when the output stride keeps its resolution, so that the
            # network stays the same function of its weights.
            shortcut = row.shortcut and not enters and channels == out_channels
            blocks.append(Block(f"stages.C{level}.{index}", row, layers, shortcut, nested=len(layers) > 1))
            channels = out_channels
    return tuple(blocks)


def _place(layer: Layer, stride: int, dilation: int, padding: str) -> Layer:
    if hasattr(layer, "padding"):
        # `replace` is slow, and most layers already have this padding.
        layer = layer if layer.padding == padding else replace(layer, padding=padding)  # type: ignore[type-var]
    elif padding != SYMMETRIC and layer.strided and stride > 1:
        raise SpecError(
            f"{type(layer).__name__} {layer.name!r} cannot take padding={padding!r}; add a field padding to the class"
        )
    if layer.strided and (stride, dilation) != (1, 1):
        return replace(layer, stride=stride, dilation=dilation)  # type: ignore[type-var]
    # Other convolutions of the row need the same dilation to cover the same distance in the image.
    if isinstance(layer, Convolution) and layer.kernel > 1 and dilation != 1:
        return replace(layer, dilation=dilation)
    return layer


def truncate(blocks: Sequence[Block], paths: Collection[str]) -> tuple[Block, ...]:
    """Return the blocks up to the last of the submodule `paths`, with the last block cut after that layer."""
    missing = set(paths)
    kept: list[Block] = []
    for block in blocks:
        for count, (path, _) in enumerate(block.layer_paths(), start=1):
            missing.discard(path)
            if not missing:
                complete = count == len(block.layers)
                return (*kept, block if complete else replace(block, layers=block.layers[:count], shortcut=False))
        missing.discard(block.path)
        kept.append(block)
        if not missing:
            break
    return tuple(kept)
