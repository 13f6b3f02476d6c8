"""Pruning of the tail: weights of a reduced tail from the full network's weights, keeping the stronger half of
channels.

No ImageNet weights are published for reduced tails. All layers through C4 are equal. After C4, each set of channels
loses its weaker half. The strength of a channel is the scale of its last batch norm times the norm of the weights that
read the channel. On a residual path, this includes the scales of all blocks that add to the path, the scales of
depthwise layers at the start of a block, and the weights of all layers that read the path. Without a norm, as in the
hidden layer of a classifier, the norm of the channel's rows replaces the scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featuretap.specs import BackboneSpec
from featuretap.specs.layers import BatchNorm, Convolution, Counted, Linear, SqueezeExcite
from featuretap.weights.expected_tensors import HEAD
from featuretap.weights.layouts import MismatchError
from featuretap.weights.reading import Tensor

Head = Sequence[tuple[Linear | BatchNorm, Linear | BatchNorm]]

Squares = tuple[str, tuple[int, ...]]
"""Name of a tensor, and the dimensions over which its squares are summed to one value per channel."""


@dataclass(eq=False)
class Channels:
    """A set of channels: their number, the number to keep, and the tensors that write and read the channels."""

    count: int
    keep: int
    writers: list[Squares] = field(default_factory=list)
    readers: list[Squares] = field(default_factory=list)

    def strongest(self, tensors: Mapping[str, Tensor]) -> NDArray[np.int64]:
        """Return the sorted indices of the channels to keep, by the `tensors` of the full network."""
        strength = self._sum(self.writers, tensors) * self._sum(self.readers, tensors)
        # A stable sort keeps the first of equally strong channels.
        return np.sort(np.argsort(-strength, kind="stable")[: self.keep])

    def _sum(self, terms: list[Squares], tensors: Mapping[str, Tensor]) -> NDArray[np.float64]:
        total = np.zeros(self.count)
        for name, dims in terms:
            total += np.square(_as_double(tensors[name])).sum(axis=dims)
        return total if total.any() else np.ones_like(total)


class Use(NamedTuple):
    """A layer with the channels that it reads and writes, and the squeezed channels of a squeeze-excite."""

    path: str
    layer: Counted
    read: Channels
    written: Channels
    squeezed: Channels | None = None


def prune_tail(
    tensors: Mapping[str, Tensor], full: BackboneSpec, reduced: BackboneSpec, head: Head
) -> dict[str, Tensor]:
    """Return the tensors of a network with a reduced tail from the tensors of the full network.

    Args:
        tensors: native name → tensor of the full network.
        full: spec of the full network.
        reduced: spec of the network with `reduced_tail`.
        head: pairs (full, reduced) of the classifier's layers that have tensors.

    Returns:
        Native name → tensor of the reduced network.

    Raises:
        MismatchError: the tail has a layer of a type that cannot be pruned.
    """
    uses, last = _backbone_uses(full, reduced)
    uses += _head_uses(head, last)
    kept = {
        channels: channels.strongest(tensors)
        for use in uses
        for channels in (use.read, use.written, use.squeezed)
        if channels
    }
    pruned = dict(tensors)
    for use in uses:
        for name in (name for name in tensors if name.startswith(f"{use.path}.")):
            pruned[name] = _select(name.removeprefix(f"{use.path}."), tensors[name], use, kept)
    return pruned


def _backbone_uses(full: BackboneSpec, reduced: BackboneSpec) -> tuple[list[Use], Channels]:
    """Return the layers of C5 with their channels, and the channels of the last map."""
    uses = []
    count = full.with_taps(("C4",)).taps["C4"].channels
    current = Channels(count, keep=count)
    for block, small in zip(full.all_blocks, reduced.all_blocks, strict=True):
        if block.level != "C5":
            continue
        entering = current
        pairs = list(zip(block.layer_paths(), small.layer_paths(), strict=True))
        for index, ((path, layer), (_, less)) in enumerate(pairs):
            squeezed = None
            read = written = current
            scale: Squares = (f"{path}.norm.weight", ())
            if isinstance(layer, SqueezeExcite) and isinstance(less, SqueezeExcite):
                writers: list[Squares] = [(f"{path}.reduce.weight", (1, 2, 3))]
                squeezed = Channels(layer.squeeze, less.squeeze, writers, [(f"{path}.expand.weight", (0, 2, 3))])
            elif not isinstance(layer, Convolution):
                raise MismatchError(f"{path} is a {type(layer).__name__}, which cannot be pruned")
            elif layer.groups > 1:
                # Before the expansion, the channels are the channels of the shortcut, which earlier blocks also scale.
                shared = block.shortcut and current is entering
                current.writers = [*current.writers, scale] if shared else [scale]
            else:
                current.readers.append((f"{path}.conv.weight", (0, 2, 3)))
                if block.shortcut and index == len(pairs) - 1:
                    written = entering
                    written.writers.append(scale)
                else:
                    written = Channels(layer.out_channels, less.out_channels, [scale])
            uses.append(Use(path, layer, read, written, squeezed))
            current = written
    return uses, current


def _head_uses(head: Head, current: Channels) -> list[Use]:
    uses = []
    for layer, less in head:
        path = f"{HEAD}{layer.name}"
        written = current
        if isinstance(layer, Linear) and isinstance(less, Linear):
            current.readers.append((f"{path}.weight", (0,)))
            written = Channels(layer.out_channels, less.out_channels, [(f"{path}.weight", (1,))])
        else:
            current.writers = [(f"{path}.weight", ())]
        uses.append(Use(path, layer, current, written))
        current = written
    return uses


def _select(name: str, tensor: Tensor, use: Use, kept: Mapping[Channels, NDArray[np.int64]]) -> Tensor:
    """Return the kept channels of a layer's tensor."""
    if tensor.ndim == 0:
        return tensor
    read, written = kept[use.read], kept[use.written]
    if use.squeezed:
        inner = kept[use.squeezed]
        read, written = (read, inner) if name.startswith("reduce.") else (inner, written)
    depthwise = isinstance(use.layer, Convolution) and use.layer.groups > 1
    return tensor[written] if tensor.ndim == 1 or depthwise else tensor[written][:, read]


def _as_double(tensor: Tensor) -> NDArray[np.float64]:
    # NumPy does not support all of PyTorch's dtypes.
    return np.asarray(tensor, np.float64) if isinstance(tensor, np.ndarray) else tensor.double().numpy()
