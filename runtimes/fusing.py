"""`registry.fuse`: fold batch norms into the preceding layers, which speeds up inference.

A norm is folded if it is known to run directly after the layer: neighbors in a sequential chain, consecutive nodes of a
traced graph, or the two layers of the classification head. Other norms are kept. On the CPU the copy computes in
channels_last, without which folding saves little.
"""

# torch.jit.script evaluates the annotations of hooks and only supports the names in typing.
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
"""Layer → norms that can be folded into it. Subclasses are excluded, since they may compute something else."""

CHAINS = (nn.Sequential.forward, ASPPPooling.forward)
"""Forward methods that run the children in order."""

EXAMPLE = (1, 1, 224, 224)
"""Shape of an image that every network accepts."""

TOLERANCE = 1e-3
"""Maximum difference of a map, as a fraction of its largest value. Rounding differences are ten times smaller."""


class Pair(NamedTuple):
    """A layer and the norm that directly follows it. The norm is the child `name` of `parent`."""

    layer: nn.Module
    norm: nn.Module
    parent: nn.Module
    name: str


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy for inference with batch norms folded into the preceding layers; see `Registry.fuse`.

    Modules keep their paths; an `nn.Identity` replaces each folded norm. Norms are kept if they are not known to
    directly follow a layer, if either module has hooks or is used more than once, or if they have no running
    statistics. Their number is logged as a warning.

    Args:
        model: a model built by featuretap.

    Returns:
        The fused copy.

    Raises:
        OptionError: featuretap did not build the model, the model is already fused, or no batch norm can be folded.
    """
    model = unwrap_parts(unwrap(model, "registry.fuse takes"))
    label = format_options(model.description.name, model.description.options)
    if is_fused(model):
        raise OptionError(f"{label} is already fused; use it unchanged")
    norms = _count_norms(model)
    if not norms:
        raise OptionError(f"cannot fuse {label}: it has no batch norms; use it unchanged")
    fused = use_channels_last(fold_norms(model))
    # Copies of torch.fx modules lose custom attributes.
    for name in ("description", "taps"):
        if hasattr(model, name):
            setattr(fused, name, getattr(model, name))
    left = _count_norms(fused)
    if left == norms:
        raise OptionError(
            f"cannot fuse {label}: none of its {norms} batch norms is known to directly follow a convolution without "
            "hooks; use registry.compile(model)"
        )
    if left:
        logger.warning(
            "%s: kept %d of %d batch norms that are not known to directly follow a convolution",
            label,
            left,
            norms,
        )
    _check_outputs(model, fused, label)
    if hasattr(fused, "taps") or isinstance(fused, SegmentationModel):
        fused.register_forward_hook(_match_layout)
    # The first child, so that train() fails before it changes the mode of any other module.
    fused._modules = {FUSED: InferenceOnly().eval(), **fused._modules}
    return fused


def fold_norms(model: nn.Module) -> nn.Module:
    """Return a copy of a model for inference with all foldable norms folded."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    uses = Counter(id(child) for parent in copied.modules() for child in parent._modules.values())
    for pair in list(_pairs(copied)):
        if _can_be_folded(pair, uses):
            _fold(pair)
    return copied


def use_channels_last(model: nn.Module) -> nn.Module:
    """Convert the weights of CPU convolutions to channels_last in place, and return the model.

    Convolutions on the CPU follow the memory format of their weights, whatever the format of the input.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.device.type == "cpu":
            module.to(memory_format=torch.channels_last)
    return model


def _match_layout(self, images: Tuple[Tensor], maps: Dict[str, Tensor]) -> Dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """Return maps in the memory layout of the images, so that `.view` and saving work as with the original model."""
    # `images` is empty if the model was called with a keyword argument.
    is_contiguous = len(images) == 0 or images[0].is_contiguous()
    if not is_contiguous and images[0].is_contiguous(memory_format=torch.channels_last):
        return maps
    copies: Dict[str, Tensor] = {}
    for name, feature in maps.items():
        copies[name] = feature.contiguous()
    return copies


@torch.no_grad()
def _check_outputs(model: Built, fused: nn.Module, label: str) -> None:
    """Check the fused backbone's maps. A backbone may hold its layers in a chain that it does not run in order."""
    # On the CPU: GPUs round the inputs of convolutions to ten bits (TF32), which affects folded weights differently.
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
                f"cannot fuse {label}: its {address} would change, since the backbone does not run its layers in "
                "order; use registry.compile(model)"
            )


def _count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm | FrozenBatchNorm2d) for module in model.modules())


def _pairs(model: nn.Module) -> Iterator[Pair]:
    """Yield modules that run directly one after the other, where only the second reads the first's output."""
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

    # The function only requires the output channels to come first, as they do in linear layers too.
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
