"""Fake quantisation (arXiv 1712.05877): a model in training computes with values rounded as in its INT8 file.

Hooks of the ordinary modules round weights and activations by PyTorch's operators, so that the names of tensors,
losses, moving averages and checkpoints stay those of the float model. `torch.ao.quantization` is deprecated, and
`torchao` rounds convolutions only in a traced graph, which none of these would survive.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from featuretap.backbones.modules import (
    ConvolutionLayer,
    HardSigmoid,
    ResidualChain,
    SqueezeExciteLayer,
    TappedChain,
)

MULTIPLYING = (nn.Conv2d, nn.Linear)
"""Layers that integers compute, from an activation and a weight."""

FLOAT_ACTIVATIONS = (nn.Hardswish, nn.Hardsigmoid, HardSigmoid)
"""Activations that are no part of the layer before them, whose output is therefore rounded too."""

LAYERS = (ConvolutionLayer, Conv2dNormActivation, ResidualChain, SqueezeExciteLayer)
"""Modules whose outputs several layers or a sum may read."""

NORMS = nn.modules.batchnorm._BatchNorm

LARGEST = 127
"""Magnitude of an 8-bit weight."""

LARGEST_SUMMED = 64
"""Magnitude of a weight whose products are summed over channels. Files limit pairs of them to 128, which leaves each 7
to 8 bits: training for 7 holds for all."""

LARGEST_ACTIVATION = 255

MOMENTUM = 0.05
"""Of the moving averages of ranges: some twenty batches."""

SMALLEST_SCALE = torch.finfo(torch.float32).eps
"""Of weights, so that a channel of zeros stays one."""

ROUNDED = "_rounded_by_featuretap"
"""Attribute of a tensor that was rounded when a module returned it, so that what reads it does not do it again."""


class ActivationRange(nn.Module):
    """The range of one activation, whose values are rounded to the 256 of unsigned 8-bit integers in it.

    It is a moving average of the smallest and the largest values of batches, and contains 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.minimum = nn.Buffer(torch.tensor(math.inf))
        self.maximum = nn.Buffer(torch.tensor(-math.inf))
        self.scale = nn.Buffer(torch.ones(1))
        self.zero_point = nn.Buffer(torch.zeros(1, dtype=torch.int32))
        self.known = nn.Buffer(torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Return `x` rounded, or as it is before the first observation.

        Args:
            x: float (N, C, H, W) or (N, C).
            observed: int64 (1,); 1 where the range follows the values of `x`, else 0.
        """
        self.known.bitwise_or_(observed)
        ranges = self.minimum, self.maximum, self.scale, self.zero_point
        # The operator takes float32 only, and autocast does not convert for it.
        rounded = torch.fused_moving_avg_obs_fake_quant(
            x.float(), observed, self.known, *ranges, MOMENTUM, 0, LARGEST_ACTIVATION, -1
        )
        return rounded.to(x.dtype)


class FakeQuantization(nn.Module):
    """The ranges of a model's activations, and the hooks that round its activations and weights.

    Its state is that of the ranges. A model and its moving average share one.

    Args:
        model: to be trained.

    Attributes:
        follows: whether ranges follow the activations of a model in training.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.follows = True
        self.ranges = nn.ModuleList(ActivationRange() for _ in _activations(model))
        self._observed = nn.Buffer(torch.zeros(1, dtype=torch.int64), persistent=False)

    def attach(self, model: nn.Module) -> None:
        """Round a model's weights and activations from now on.

        The statistics of its batch norms stay as they are, as in the file.

        Args:
            model: the one that this was made for, or a copy.
        """
        model.register_forward_pre_hook(self._begin)
        for (module, is_input), own in zip(_activations(model), self.ranges, strict=True):
            assert isinstance(own, ActivationRange)
            if is_input:
                module.register_forward_pre_hook(partial(self._round_input, own))
            else:
                module.register_forward_hook(partial(self._round_output, own))
        for module in model.modules():
            if isinstance(module, MULTIPLYING):
                module.register_forward_pre_hook(_replace_weight)
                module.register_forward_hook(_restore_weight, always_call=True)

    def _begin(self, model: nn.Module, _inputs: Any) -> None:
        self._observed.fill_(int(model.training and self.follows))
        if model.training:
            for module in model.modules():
                if isinstance(module, NORMS):
                    module.eval()

    def _round_input(self, own: ActivationRange, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = inputs
        return (x if hasattr(x, ROUNDED) else own(x, self._observed), *others)

    def _round_output(self, own: ActivationRange, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        x, *others = output if isinstance(output, tuple) else (output,)
        rounded = own(x, self._observed)
        setattr(rounded, ROUNDED, True)
        return (rounded, *others) if others else rounded


def _activations(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Yield the modules whose first input (True) or output (False) is rounded, in a fixed order."""
    for module in model.modules():
        if isinstance(module, (*MULTIPLYING, *FLOAT_ACTIVATIONS)):
            yield module, True
        elif isinstance(module, LAYERS) or (isinstance(module, TappedChain) and module.shortcut):
            yield module, False


def round_weight(weight: Tensor, largest: int) -> Tensor:
    """Return a weight (C', …) rounded to multiples of a scale for each output channel, of `largest` at most."""
    largest_values = weight.detach().flatten(1).abs().amax(1)
    scale = (largest_values / largest).clamp(min=SMALLEST_SCALE)
    zero_points = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, -largest, largest)


def _replace_weight(module: nn.Module, _inputs: Any) -> None:
    weight: Any = module.weight
    depthwise = isinstance(module, nn.Conv2d) and module.groups > 1 and weight.shape[1] == 1
    # An attribute hides the parameter of the same name, which stays where optimisers and checkpoints find it.
    vars(module)["weight"] = round_weight(weight, LARGEST if depthwise else LARGEST_SUMMED)


def _restore_weight(module: nn.Module, _inputs: Any, _output: Any) -> None:
    vars(module).pop("weight", None)
