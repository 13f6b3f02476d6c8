"""A reduced tail out of whole weights: the strongest half of the channels behind C4.

Nobody publishes weights of reduced tails. Everything through C4 is the same network; behind it every set of channels
loses its weaker half. How strong a channel is follows from the weights alone: the scale that its last batch norm gives
it, times the norm of the weights that read it. On a residual path the scales of all blocks that add to it count, those
of depthwise layers that begin a block, and the weights of all that read it. Where the hidden layer of a classifier has
no norm, the norm of its rows takes the scale's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featuretap.specs import BackboneSpec
from featuretap.specs.layers import BatchNorm, Convolution, Counted, Linear, SqueezeExcite
from featuretap.weights.expected_tensors import HEAD
from featuretap.weights.layouts import MismatchError

__all__ = ["prune_tail"]


@dataclass
class Channels:
    """One set of channels that layers write and read: how many there are, how many are to stay, and how strong each is.

    `scale` and `reach` are sums of squares, one for each channel; without readers all reach as far.
    """

    count: int
    wanted: int
    scale: Tensor
    reach: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.reach = torch.zeros(self.count, dtype=torch.float64)

    def kept(self) -> Tensor:
        """Return the indices of the channels that stay, in their order."""
        reach = self.reach if self.reach.any() else torch.ones_like(self.reach)
        return (self.scale * reach).topk(self.wanted).indices.sort().values


@dataclass(frozen=True)
class Step:
    """A layer with the channels that it reads and writes."""

    path: str
    layer: Counted
    read: Channels
    written: Channels
    squeezed: Channels | None = None


def prune_tail(
    tensors: Mapping[str, Tensor],
    whole: BackboneSpec,
    reduced: BackboneSpec,
    head: Sequence[tuple[Linear | BatchNorm, Linear | BatchNorm]],
) -> dict[str, Tensor]:
    """Return the tensors of a network with a reduced tail out of those of the whole one.

    Args:
        tensors: the whole network's, in our names.
        whole: the whole network.
        reduced: the same network with `reduced_tail`.
        head: the classifier's layers, (whole, reduced), those whose tensors there are.

    Raises:
        MismatchError: the tail has a layer of a kind that nobody knows how to halve.
    """
    changed = dict(tensors)
    for step in list(_steps(tensors, whole, reduced, head)):
        read, written = step.read.kept(), step.written.kept()
        for name in (name for name in tensors if name.startswith(f"{step.path}.")):
            changed[name] = _selected(name.removeprefix(f"{step.path}."), tensors[name], step, read, written)
    return changed


def _selected(name: str, tensor: Tensor, step: Step, read: Tensor, written: Tensor) -> Tensor:
    if tensor.ndim == 0:
        return tensor
    if step.squeezed is not None:
        inner = step.squeezed.kept()
        read, written = (read, inner) if name.startswith("reduce.") else (inner, written)
    tensor = tensor[written]
    depthwise = isinstance(step.layer, Convolution) and step.layer.groups > 1
    return tensor if tensor.ndim == 1 or depthwise else tensor[:, read]


def _steps(
    tensors: Mapping[str, Tensor],
    whole: BackboneSpec,
    reduced: BackboneSpec,
    head: Sequence[tuple[Linear | BatchNorm, Linear | BatchNorm]],
) -> Iterator[Step]:
    def squares(name: str, *dims: int) -> Tensor:
        return tensors[name].double().square().sum(dims)

    def scale(path: str) -> Tensor:
        return tensors[f"{path}.norm.weight"].double().square()

    tail = [pair for pair in zip(whole.all_blocks, reduced.all_blocks, strict=True) if pair[0].level == "C5"]
    entering = whole.with_taps(("C4",)).taps["C4"].channels
    current = Channels(entering, entering, torch.ones(entering, dtype=torch.float64))
    for block, small in tail:
        into = current
        pairs = list(zip(block.layer_paths(), small.layer_paths(), strict=True))
        for index, ((path, layer), (_, less)) in enumerate(pairs):
            if isinstance(layer, Convolution) and layer.groups > 1:
                # Before anything is expanded it works on the channels of the shortcut, which earlier blocks scale too.
                shared = block.shortcut and current is into
                current.scale = current.scale + scale(path) if shared else scale(path)
                yield Step(path, layer, current, current)
            elif isinstance(layer, Convolution):
                current.reach += squares(f"{path}.conv.weight", 0, 2, 3)
                if block.shortcut and index == len(pairs) - 1:
                    into.scale = into.scale + scale(path)
                    written = into
                else:
                    written = Channels(layer.out_channels, less.out_channels, scale(path))
                yield Step(path, layer, current, written)
                current = written
            elif isinstance(layer, SqueezeExcite) and isinstance(less, SqueezeExcite):
                squeezed = Channels(layer.squeeze, less.squeeze, squares(f"{path}.reduce.weight", 1, 2, 3))
                squeezed.reach += squares(f"{path}.expand.weight", 0, 2, 3)
                yield Step(path, layer, current, current, squeezed)
            else:
                raise MismatchError(f"{path} is a {type(layer).__name__}, of which nobody knows which half to keep")
    for own, smaller in head:
        path = f"{HEAD}{own.name}"
        if isinstance(own, Linear) and isinstance(smaller, Linear):
            current.reach += squares(f"{path}.weight", 0)
            written = Channels(own.out_channels, smaller.out_channels, squares(f"{path}.weight", 1))
            yield Step(path, own, current, written)
            current = written
        else:
            current.scale = tensors[f"{path}.weight"].double().square()
            yield Step(path, own, current, current)
