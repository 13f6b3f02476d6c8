"""The modules that a table becomes: layers, chains of layers, and the backbone that returns its taps.

Everything is a plain chain, and only those on the way to a tap record maps, so that models script, trace, export,
compile, pickle and shard, and a truncated backbone keeps the keys of the whole one.
"""

# torch.jit.script reads annotations as objects, not as strings, and knows typing's names only.
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
    """Create a layer with uninitialised parameters: they are initialised once, later, or read from a file.

    A subclass skips PyTorch's own initialisation while the layer is created, and then gets the plain class back.
    Nothing is patched, so that this is thread-safe.
    """
    layer = _UNINITIALISED[kind](*args, **kwargs)
    object.__setattr__(layer, "__class__", kind)
    return layer


class _Uninitialised:
    def reset_parameters(self) -> None:
        pass


_UNINITIALISED: Dict[type, Any] = {
    kind: type(f"Uninitialised{kind.__name__}", (_Uninitialised, kind), {})
    for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
}


class ConvolutionLayer(nn.Sequential):
    """A convolution `conv`, its `norm`, and an `activation` unless it is linear: (N, C, H, W) → (N, C', H', W')."""

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
    """Pad (N, C, H, W) with zeros by TensorFlow's rule "SAME", for a convolution that adds none itself.

    Args:
        reach: distance in pixels from the first to the last weight, both included; at least the stride.
        stride: of the convolution.
    """

    def __init__(self, reach: int, stride: int) -> None:
        super().__init__()
        self.reach = reach
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H', W'), the pixels that are missing added, the odd one at the bottom and the right."""
        return pad_same(x, self.reach, self.stride)


@torch.fx.wrap
def pad_same(x: Tensor, reach: int, stride: int) -> Tensor:
    """Return `x` (N, C, H, W) with the padding of a `SamePadding` of this reach and stride.

    FX records the call as one node: every node of a graph is a tensor, which feature extractors rely on.
    """
    height = -x.shape[2] % stride + reach - stride
    width = -x.shape[3] % stride + reach - stride
    return pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])


class SqueezeExciteLayer(nn.Module):
    """Multiply every channel by a gate computed from the mean of all channels: (N, C, H, W) → (N, C, H, W)."""

    def __init__(self, layer: SqueezeExcite, norm: Norm) -> None:
        super().__init__()
        self.reduce = skip_init(nn.Conv2d, layer.channels, layer.squeeze, 1)
        self.activation = nn.ReLU(inplace=True)
        self.expand = skip_init(nn.Conv2d, layer.squeeze, layer.channels, 1)
        self.gate = nn.Hardsigmoid() if layer.gate_slope == 1 / 6 else HardSigmoid(layer.gate_slope)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated input."""
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.activation(self.reduce(pooled))))


class HardSigmoid(nn.Module):
    """`clip(slope * x + 0.5, 0, 1)` of (N, C, H, W); PyTorch's own has the slope 1/6 only."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate."""
        return (x * self.slope + 0.5).clamp(0.0, 1.0)


class ResidualChain(nn.Sequential):
    """A chain (N, C, H, W) → (N, C, H, W) whose input is added to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        y = x
        for module in self:
            y = module(y)
        return x + y


class TappedChain(nn.Sequential):
    """A chain (N, C, H, W) → (N, C', H', W') that also returns maps of its children, by their paths in the backbone.

    `keep` has an entry for each child: the path to record its output under, or "".
    """

    keep: Final[Tuple[str, ...]]
    shortcut: Final[bool]

    def __init__(self, children: "OrderedDict[str, nn.Module]", keep: Tuple[str, ...], shortcut: bool = False) -> None:
        super().__init__(children)
        self.keep = keep
        self.shortcut = shortcut
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Return the output and the recorded maps."""
        maps: Dict[str, Tensor] = {}
        y = x
        for module, path in zip(self, self.keep):  # noqa: B905 - torch.jit.script knows no strict
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
    """A table of rows as a module: images (N, in_channels, H, W) → dict from tap address to map (N, C, H', W').

    Keys and their order are those of `taps`. Two addresses may name one tensor, so that nothing may write into a map.

    Attributes:
        taps: address → channels and stride.
        frozen: levels whose parameters and norm statistics stay as they are, whatever `train()` is called with.
        frozen_norm: whether all norms stay so.
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
        """Return the taps."""
        _, maps = self.stages(images)
        taps: Dict[str, Tensor] = {}
        for address, path in zip(self.addresses, self.paths):  # noqa: B905 - torch.jit.script knows no strict
            taps[address] = maps[path]
        return taps

    @torch.no_grad()
    def initialise(self) -> None:
        """Initialise every convolution from N(0, √(2 / fan-out)) (He et al., arXiv 1502.01852, section 2.2), once.

        The fan-out counts the outputs that one input reaches, which for a depthwise convolution are those of its own
        channel, as in the reference code of the MobileNets' successors. Biases are 0, norms the identity.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                height, width = module.kernel_size
                fan_out = height * width * module.out_channels // module.groups
                module.weight.normal_(0, (2 / fan_out) ** 0.5)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                # Takes a fraction of the time of reset_parameters, which adds a millisecond to a build.
                module.reset_running_stats()
                if module.affine:
                    module.weight.fill_(1)
                    module.bias.zero_()

    def freeze(self, freezing: Freezing) -> None:
        """Freeze all levels through one, and all norms if requested."""
        self.frozen = LEVELS[: LEVELS.index(freezing.through) + 1] if freezing.through else ()
        self.frozen_norm = freezing.norms
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether training computes the activations of each level again instead of keeping them.

        Gradients and batch-norm statistics stay the same. TorchScript ignores it.
        """
        self.stages.grad_checkpointing = enable

    def train(self, mode: bool = True) -> "Backbone":
        """Set training mode, but for what is frozen."""
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
