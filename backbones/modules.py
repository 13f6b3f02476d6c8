"""PyTorch modules built from tables: layers, chains of layers, and the backbone that returns its taps.

Modules are plain chains, and only the chains on the path to a tap record maps. Models can therefore be scripted,
traced, exported, compiled, pickled and sharded, and a truncated backbone has the same keys as the complete one.
"""

# TorchScript does not support annotations as strings, and only supports generic types from typing.
# ruff: noqa: UP006, UP035
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, Dict, Final, Tuple, TypeVar

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting
from torch.nn.functional import pad

from featuretap.backbones.checkpointing import checkpointed
from featuretap.backbones.inputs import ImageModel
from featuretap.specs import BackboneSpec, Block, Tap
from featuretap.specs.addresses import LEVELS
from featuretap.specs.layers import Convolution, SqueezeExcite
from featuretap.specs.options import Freezing
from featuretap.support.import_strings import load

Norm = Callable[[int], nn.Module]
Module = TypeVar("Module", bound=nn.Module)

ACTIVATIONS: Dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hard_swish": lambda: nn.Hardswish(inplace=True),
}


def skip_init(kind: type[Module], *args: Any, **kwargs: Any) -> Module:
    """Create a layer with uninitialized parameters, to be initialized later or read from a file.

    The layer is created as a subclass whose `reset_parameters` does nothing, and then becomes an instance of `kind`.
    This is thread-safe because it patches nothing.

    Args:
        kind: class of the layer.
        *args: arguments of the layer.
        **kwargs: keyword arguments of the layer.

    Returns:
        The layer.
    """
    layer = _UNINITIALIZED[kind](*args, **kwargs)
    object.__setattr__(layer, "__class__", kind)
    return layer


class _Uninitialized:
    def reset_parameters(self) -> None:
        pass


_UNINITIALIZED: Dict[type, Any] = {
    kind: type(f"Uninitialized{kind.__name__}", (_Uninitialized, kind), {})
    for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
}


class ConvolutionLayer(nn.Sequential):
    """A convolution `conv`, its `norm`, and an optional `activation`: (N, C, H, W) → (N, C', H', W')."""

    def __init__(self, layer: Convolution, norm: Norm) -> None:
        shape = layer.in_channels, layer.out_channels, layer.kernel
        parts = OrderedDict[str, nn.Module]()
        before, after = layer.pads or (0, 0)
        if layer.pads is None or before != after:
            parts["pad"] = SamePadding(layer.reach, layer.stride)
            before = 0
        parts["conv"] = skip_init(nn.Conv2d, *shape, layer.stride, before, layer.dilation, layer.groups, bias=False)
        parts["norm"] = norm(layer.out_channels)
        if layer.activation is not None:
            parts["activation"] = ACTIVATIONS[layer.activation]()
        super().__init__(parts)


class SamePadding(nn.Module):
    """Zero padding of (N, C, H, W) by TensorFlow's rule "SAME", for a convolution without padding.

    Args:
        reach: distance from the first to the last weight in pixels, both included; at least the stride.
        stride: stride of the convolution.
    """

    def __init__(self, reach: int, stride: int) -> None:
        super().__init__()
        self.reach = reach
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with the padding that its size requires, (N, C, H', W').

        An odd pixel is added at the bottom and right.
        """
        return pad_same(x, self.reach, self.stride)


@torch.fx.wrap
def pad_same(x: Tensor, reach: int, stride: int) -> Tensor:
    """Return `x` (N, C, H, W) with the padding of a `SamePadding` with this `reach` and `stride`.

    FX records the call as one node. Without this, a graph would have nodes that are not tensors, which feature
    extractors do not expect.
    """
    height = -x.shape[2] % stride + reach - stride
    width = -x.shape[3] % stride + reach - stride
    return pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])


class SqueezeExciteLayer(nn.Module):
    """A gate on every channel, computed from the means of all channels: (N, C, H, W) → (N, C, H, W)."""

    def __init__(self, layer: SqueezeExcite, norm: Norm) -> None:
        super().__init__()
        self.reduce = skip_init(nn.Conv2d, layer.channels, layer.squeeze, 1)
        self.activation = nn.ReLU(inplace=True)
        self.expand = skip_init(nn.Conv2d, layer.squeeze, layer.channels, 1)
        self.gate = nn.Hardsigmoid() if layer.gate_slope == 1 / 6 else HardSigmoid(layer.gate_slope)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` multiplied by the gate."""
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.activation(self.reduce(pooled))))


class HardSigmoid(nn.Module):
    """`clip(slope * x + 0.5, 0, 1)` on (N, C, H, W); PyTorch's `nn.Hardsigmoid` only has the slope 1/6."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate for `x`."""
        return (x * self.slope + 0.5).clamp(0.0, 1.0)


class ResidualChain(nn.Sequential):
    """A chain (N, C, H, W) → (N, C, H, W) that adds its input to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of `x` and the output of the chain."""
        y = x
        for module in self:
            y = module(y)
        return x + y


class TappedChain(nn.Sequential):
    """A chain (N, C, H, W) → (N, C', H', W') that also returns maps of its children, by their paths in the backbone.

    Args:
        children: the modules of the chain.
        keep: for each child, the path to record its output under, or "".
        shortcut: whether to add the input to the output.
    """

    keep: Final[Tuple[str, ...]]
    shortcut: Final[bool]

    def __init__(self, children: "OrderedDict[str, nn.Module]", keep: Tuple[str, ...], shortcut: bool = False) -> None:
        super().__init__(children)
        self.keep = keep
        self.shortcut = shortcut
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Return the output for `x`, and the recorded maps."""
        maps: Dict[str, Tensor] = {}
        y = x
        for module, path in zip(self, self.keep):  # noqa: B905 - TorchScript does not support strict
            if hasattr(module, "keep"):
                if self.grad_checkpointing and not is_scripting():
                    y, inside = checkpointed(module, y)
                else:
                    y, inside = module(y)
                maps.update(inside)
            elif self.grad_checkpointing and not is_scripting():
                y = checkpointed(module, y)
            else:
                y = module(y)
            if path != "":
                maps[path] = y
        if self.shortcut:
            y = x + y
        return y, maps


class Backbone(ImageModel):
    """The module built from a table: images (N, in_channels, H, W) → dict from tap address to map (N, C, H', W').

    The dict has the keys of `taps`, in the same order. Two addresses may refer to one tensor, so do not modify maps in
    place.

    Args:
        spec: spec of the backbone, a table.

    Attributes:
        taps: mapping from address to `Tap`.
        frozen: levels whose parameters and norm statistics stay frozen, also after `train()`.
        frozen_norm: whether all norms stay frozen.
    """

    addresses: Final[Tuple[str, ...]]
    paths: Final[Tuple[str, ...]]

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.taps: Dict[str, Tap] = dict(spec.taps)
        self.addresses = tuple(spec.paths)
        self.paths = tuple(spec.paths.values())
        self.frozen: Tuple[str, ...] = ()
        self.frozen_norm = False
        norm = spec.norm or _batch_norm(spec.norm_eps, spec.norm_momentum)
        kept = set(self.paths)
        stages = OrderedDict[str, nn.Module](
            (level, _stage(list(blocks), kept, norm)) for level, blocks in groupby(spec.blocks, lambda b: b.level)
        )
        self.stages = TappedChain(stages, keep=("",) * len(stages))

    def forward(self, images: Tensor) -> Dict[str, Tensor]:
        """Return the taps for `images`."""
        _, maps = self.stages(images)
        taps: Dict[str, Tensor] = {}
        for address, path in zip(self.addresses, self.paths):  # noqa: B905 - TorchScript does not support strict
            taps[address] = maps[path]
        return taps

    @torch.no_grad()
    def initialize(self) -> None:
        """Initialize every convolution from N(0, √(2 / fan-out)) (He et al., arXiv 1502.01852, section 2.2).

        The fan-out is the number of outputs that one input contributes to. In a depthwise convolution, these are the
        outputs of its channel, as in the reference code of MobileNet's successors. Biases are 0, and norms the
        identity.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                height, width = module.kernel_size
                fan_out = height * width * module.out_channels // module.groups
                module.weight.normal_(0, (2 / fan_out) ** 0.5)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                # Faster than reset_parameters, which would add a millisecond to a build.
                module.reset_running_stats()
                if module.affine:
                    module.weight.fill_(1)
                    module.bias.zero_()

    def freeze(self, freezing: Freezing) -> None:
        """Freeze the part of the backbone that `freezing` describes."""
        self.frozen = LEVELS[: LEVELS.index(freezing.through) + 1] if freezing.through else ()
        self.frozen_norm = freezing.norms
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing: recompute the activations of each level instead of storing them.

        Gradients and batch-norm statistics do not change. TorchScript ignores the setting.

        Args:
            enable: whether to recompute activations during training.
        """
        self.stages.grad_checkpointing = enable

    def train(self, mode: bool = True) -> "Backbone":
        """Set training or evaluation `mode`, except for frozen parts."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> Iterable[nn.Module]:
        for level, stage in self.stages.named_children():
            if level in self.frozen:
                yield stage
        if self.frozen_norm:
            for path, module in self.named_modules():
                if path.endswith(".norm"):
                    yield module


def _batch_norm(eps: float, momentum: float) -> Norm:
    def norm(channels: int) -> nn.Module:
        return skip_init(nn.BatchNorm2d, channels, eps, momentum)

    return norm


def _stage(blocks: "list[Block]", kept: "set[str]", norm: Norm) -> nn.Module:
    paths = tuple(block.path if block.path in kept else "" for block in blocks)
    children = OrderedDict((block.path.rpartition(".")[2], _block(block, kept, norm)) for block in blocks)
    tapped = any(paths) or any(isinstance(child, TappedChain) for child in children.values())
    return TappedChain(children, paths) if tapped else nn.Sequential(children)


def _block(block: Block, kept: "set[str]", norm: Norm) -> nn.Module:
    children = OrderedDict((layer.name, load(layer.module)(layer, norm)) for layer in block.layers)
    if not block.nested:
        (layer,) = children.values()
        return layer
    paths = tuple(path if path in kept else "" for path, _ in block.layer_paths())
    if any(paths):
        return TappedChain(children, paths, block.shortcut)
    return ResidualChain(children) if block.shortcut else nn.Sequential(children)
