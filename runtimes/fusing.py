"""Batch norms folded into the layers before them, which compute the same in evaluation with half the passes over a map.

The layers are those that are known to run one right behind the other: neighbours in a plain chain, nodes of a traced
graph, and the two of the classification head. Everything else stays as it is.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.segmentation.deeplabv3 import ASPPPooling
from torchvision.ops import FrozenBatchNorm2d

from featuretap.heads.modules.classification import ClassificationHead
from featuretap.registry.description import Description, options_in_words
from featuretap.registry.errors import OptionError, TrainingError

__all__ = ["InferenceOnly", "fold", "fuse", "is_fused"]

logger = logging.getLogger("featuretap")

NORMS = {
    nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d),
    nn.Linear: (nn.BatchNorm1d,),
}
"""Layer → norms that can be folded into it. Subclasses of either may compute something else."""

CHAINS = (nn.Sequential.forward, ASPPPooling.forward)
"""Forward passes that run the children in turn."""

MARK = "for_inference"


class InferenceOnly(nn.Module):
    """The part by which a fused model refuses to be trained; it computes nothing."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation.

        Raises:
            TrainingError: training mode was asked for.
        """
        if mode:
            raise TrainingError(
                "a fused model is for inference, since its batch norms have become a part of its convolutions; train "
                "the model that it was made from, and fuse that afterwards"
            )
        return super().train(mode)


class Pair(NamedTuple):
    """A layer, and the norm right behind it: the child `name` of `parent`."""

    layer: nn.Module
    norm: nn.Module
    parent: nn.Module
    name: str


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy for inference whose batch norms are folded into the convolutions before them.

    Its outputs are those of the model in evaluation, to rounding. Modules keep their paths, with an `nn.Identity` where
    a norm was. A batch norm that cannot be folded, because it is not known to run right behind a convolution, because
    one of the two has hooks or runs in several places, or because the norm has no running statistics, stays, and its
    number is logged as a warning.

    Args:
        model: what `registry.build` or `registry.load` returned, in any mode; it stays as it is.

    Returns:
        a model in evaluation that no gradient reaches the parameters of, and that cannot be put into training.

    Raises:
        OptionError: the model was not built by featuretap, is fused already, or has no batch norm that can be folded.
    """
    description = getattr(model, "description", None)
    if not isinstance(description, Description):
        raise OptionError(
            f"{type(model).__name__} carries no description; registry.fuse takes models that registry.build or "
            "registry.load returned"
        )
    words = options_in_words(description.name, description.options)
    if is_fused(model):
        raise OptionError(f"{words} is fused already; use it as it is")
    norms = _norms(model)
    if not norms:
        raise OptionError(f"cannot fuse {words}: it has no batch norms; use it as it is")
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    # A copy of torch.fx's modules loses what was set on them.
    for name in ("description", "taps"):
        if hasattr(model, name):
            setattr(fused, name, getattr(model, name))
    fold(fused)
    left = _norms(fused)
    if left == norms:
        raise OptionError(
            f"cannot fuse {words}: none of its {norms} batch norms is known to run right behind a convolution, without "
            "hooks on either; registry.compile(model) folds them by itself"
        )
    if left:
        logger.warning(
            "%s: %d of %d batch norms stay, since they are not known to run right behind a convolution",
            words,
            left,
            norms,
        )
    # First, so that nothing else has changed its mode when it refuses.
    fused._modules = {MARK: InferenceOnly().eval(), **fused._modules}
    return fused


def fold(model: nn.Module) -> None:
    """Fold what can be folded of a model in evaluation mode, in place."""
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    for pair in list(_pairs(model)):
        if _can_be_folded(pair, uses):
            _fold(pair)


def is_fused(model: nn.Module) -> bool:
    """Say whether `fuse` made a model."""
    return isinstance(model._modules.get(MARK), InferenceOnly)


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm | FrozenBatchNorm2d) for module in model.modules())


def _pairs(model: nn.Module) -> Iterator[Pair]:
    """Yield what runs one right behind the other, of any kind, each output read by nothing else."""
    for module in model.modules():
        if type(module).forward in CHAINS:
            for (_, first), (name, second) in pairwise(module._modules.items()):
                if first is not None and second is not None:
                    yield Pair(first, second, module, name)
        elif isinstance(module, fx.GraphModule):
            yield from _pairs_of_graph(module)
        elif isinstance(module, ClassificationHead):
            yield Pair(module.hidden, module.norm, module, "norm")


def _pairs_of_graph(module: fx.GraphModule) -> Iterator[Pair]:
    nodes = [node for node in module.graph.nodes if node.op == "call_module"]
    calls = Counter(node.target for node in nodes)
    for second in nodes:
        first: Any = second.args[0] if len(second.args) == 1 else None
        if first in nodes and len(first.users) == 1 and calls[first.target] == calls[second.target] == 1:
            above, _, name = second.target.rpartition(".")
            parent = module.get_submodule(above)
            yield Pair(module.get_submodule(first.target), module.get_submodule(second.target), parent, name)


def _can_be_folded(pair: Pair, uses: Counter[int]) -> bool:
    both = (pair.layer, pair.norm)
    return (
        type(pair.norm) in NORMS.get(type(pair.layer), ())
        and pair.norm.running_var is not None
        and all(uses[id(module)] == 1 for module in both)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in both)
    )


def _fold(pair: Pair) -> None:
    layer: Any = pair.layer
    norm: Any = pair.norm
    dtype = layer.weight.dtype

    def precise(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    # A linear layer's weight has the outputs first, as a convolution's has, which is all that matters here.
    weight, bias = fuse_conv_bn_weights(
        precise(layer.weight),
        precise(layer.bias),
        precise(norm.running_mean),
        precise(norm.running_var),
        norm.eps,
        precise(norm.weight),
        precise(norm.bias),
    )
    layer.weight, layer.bias = (nn.Parameter(tensor.to(dtype), requires_grad=False) for tensor in (weight, bias))
    setattr(pair.parent, pair.name, nn.Identity().eval())
