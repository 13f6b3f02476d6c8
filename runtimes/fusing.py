"""`registry.fuse`: batch norms folded into the layers before them, which saves passes over a map in evaluation.

A norm is folded where it is known to run right behind the layer: neighbours in a plain chain, nodes of a traced graph,
and the two of the classification head. Everything else stays. On the CPU the copy computes in channels_last, without
which folding alone saves little.
"""

# torch.jit.script reads the annotations of a hook as objects, and knows typing's names only.
# ruff: noqa: UP006, UP035
import copy
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Dict, NamedTuple, Tuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.segmentation.deeplabv3 import ASPPPooling
from torchvision.ops import FrozenBatchNorm2d

from featuretap.heads.modules.classification import ClassificationHead
from featuretap.heads.modules.models import SegmentationModel
from featuretap.models.built import FUSED, Built, InferenceOnly, is_fused, unwrap, unwrap_parts
from featuretap.specs.description import format_options
from featuretap.support.errors import OptionError

logger = logging.getLogger("featuretap")

NORMS = {
    nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d),
    nn.Linear: (nn.BatchNorm1d,),
}
"""Layer → norms that can be folded into it. Subclasses of either may compute something else."""

CHAINS = (nn.Sequential.forward, ASPPPooling.forward)
"""Forward passes that run the children in turn."""

EXAMPLE = (1, 1, 224, 224)
"""Shape of an image that every network takes."""

TOLERANCE = 1e-3
"""Maximum difference from a map of the model, as a fraction of its largest value; rounding stays a tenth of it."""


class Pair(NamedTuple):
    """A layer, and the norm right behind it: the child `name` of `parent`."""

    layer: nn.Module
    norm: nn.Module
    parent: nn.Module
    name: str


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy for inference whose batch norms are folded into the convolutions before them; see `Registry.fuse`.

    Modules keep their paths, with an `nn.Identity` in place of a norm. The number of norms that stay is logged as a
    warning: those not known to run right behind a convolution, with hooks or several uses of one of the two, or without
    running statistics.

    Raises:
        OptionError: the model was not built by featuretap, is fused already, or has no batch norm that can be folded.
    """
    model = unwrap_parts(unwrap(model, "registry.fuse takes"))
    label = format_options(model.description.name, model.description.options)
    if is_fused(model):
        raise OptionError(f"{label} is fused already; use it as it is")
    norms = _count_norms(model)
    if not norms:
        raise OptionError(f"cannot fuse {label}: it has no batch norms; use it as it is")
    fused = use_channels_last(fold_norms(model))
    # A copy of torch.fx's modules loses what was set on them.
    for name in ("description", "taps"):
        if hasattr(model, name):
            setattr(fused, name, getattr(model, name))
    left = _count_norms(fused)
    if left == norms:
        raise OptionError(
            f"cannot fuse {label}: none of its {norms} batch norms is known to run right behind a convolution, without "
            "hooks on either; registry.compile(model) folds them by itself"
        )
    if left:
        logger.warning(
            "%s: %d of %d batch norms stay, since they are not known to run right behind a convolution",
            label,
            left,
            norms,
        )
    _check_outputs(model, fused, label)
    if hasattr(fused, "taps") or isinstance(fused, SegmentationModel):
        fused.register_forward_hook(_match_layout)
    # First, so that nothing else has changed its mode when it refuses.
    fused._modules = {FUSED: InferenceOnly().eval(), **fused._modules}
    return fused


def fold_norms(model: nn.Module) -> nn.Module:
    """Return a copy of a model for inference, with all norms folded that can be."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    uses = Counter(id(child) for parent in copied.modules() for child in parent._modules.values())
    for pair in list(_pairs(copied)):
        if _can_be_folded(pair, uses):
            _fold(pair)
    return copied


def use_channels_last(model: nn.Module) -> nn.Module:
    """Change the layout of the convolutions' weights, which convolutions on the CPU follow, whatever the images' is."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.device.type == "cpu":
            module.to(memory_format=torch.channels_last)
    return model


def _match_layout(self, images: Tuple[Tensor], maps: Dict[str, Tensor]) -> Dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """Return maps that lie in memory as the images do, so that `.view` and files take them as they take the model's."""
    # There are no `images` here where they were given by name.
    is_contiguous = len(images) == 0 or images[0].is_contiguous()
    if not is_contiguous and images[0].is_contiguous(memory_format=torch.channels_last):
        return maps
    copies: Dict[str, Tensor] = {}
    for name, feature in maps.items():
        copies[name] = feature.contiguous()
    return copies


@torch.no_grad()
def _check_outputs(model: Built, fused: nn.Module, label: str) -> None:
    """Refuse a backbone that does not run its chains as chains, which nothing but its outputs shows."""
    # On the CPU, since GPUs round the inputs of float32 convolutions to ten bits (TF32), folded weights differently.
    backbone, fused_backbone = (copy.deepcopy(getattr(part, "backbone", part)).cpu().eval() for part in (model, fused))
    weight = next(backbone.parameters())
    images = torch.randn(EXAMPLE, generator=torch.Generator().manual_seed(0))
    assert model.description.backbone is not None
    channels = model.description.backbone.in_channels
    images = images.expand(-1, channels, -1, -1).to(weight.dtype)
    allowed = max(TOLERANCE, 64 * torch.finfo(weight.dtype).eps)
    found = fused_backbone(images)
    for address, feature in backbone(images).items():
        if float((found[address] - feature).abs().max()) > allowed * float(feature.abs().max()):
            raise OptionError(
                f"cannot fuse {label}: its {address} is another one then, since the backbone does not run its layers "
                "one behind the other as it holds them; registry.compile(model) takes it as it is"
            )


def _count_norms(model: nn.Module) -> int:
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
