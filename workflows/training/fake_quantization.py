"""Fake quantization (arXiv 1712.05877): during training, values are rounded as in the int8 file.

Forward hooks on the unmodified modules round weights and activations with PyTorch's operators. Tensor names, losses,
moving averages and checkpoints are therefore the same as for the float model. `torch.ao.quantization` is deprecated,
and `torchao` rounds convolutions only in a traced graph, which would change all of these.
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
"""Layers that run in integers, with an activation and a weight as inputs."""

FLOAT_ACTIVATIONS = (nn.Hardswish, nn.Hardsigmoid, HardSigmoid)
"""Activations that runtimes do not fuse into the layer before them. Their input is therefore rounded, too."""

LAYERS = (ConvolutionLayer, Conv2dNormActivation, ResidualChain, SqueezeExciteLayer)
"""Modules whose output several layers or an addition may read."""

NORMS = nn.modules.batchnorm._BatchNorm

LARGEST = 127
"""Maximum magnitude of an 8-bit weight."""

LARGEST_SUMMED = 64
"""Maximum magnitude of a weight whose products are summed over channels. The written file limits the sum of two such
weights to 128, which leaves each of them 7 to 8 bits; training with 7 bits covers every case."""

LARGEST_ACTIVATION = 255

MOMENTUM = 0.05
"""Momentum of the moving averages of activation ranges: about 20 batches."""

SMALLEST_SCALE = torch.finfo(torch.float32).eps
"""Minimum scale of weights, so that an all-zero channel is not divided by 0."""

ROUNDED = "_rounded_by_featuretap"
"""Attribute of a tensor that was rounded when a module returned it, so that the next module does not round it again."""


class ActivationRange(nn.Module):
    """The range of one activation, which rounds its values to 256 levels (unsigned 8-bit integers).

    The range is a moving average of the minimum and maximum of batches, and always contains 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.minimum = nn.Buffer(torch.tensor(math.inf))
        self.maximum = nn.Buffer(torch.tensor(-math.inf))
        self.scale = nn.Buffer(torch.ones(1))
        self.zero_point = nn.Buffer(torch.zeros(1, dtype=torch.int32))
        self.known = nn.Buffer(torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """Return `x` rounded; before the first observation, return it unchanged.

        Args:
            x: float (N, C, H, W) or (N, C).
            observed: int64 (1,); 1 updates the range from `x`, 0 keeps it.

        Returns:
            The rounded values, with the shape and data type of `x`.
        """
        self.known.bitwise_or_(observed)
        ranges = self.minimum, self.maximum, self.scale, self.zero_point
        # The operator accepts float32 only, and autocast does not convert its input.
        rounded = torch.fused_moving_avg_obs_fake_quant(
            x.float(), observed, self.known, *ranges, MOMENTUM, 0, LARGEST_ACTIVATION, -1
        )
        return rounded.to(x.dtype)


class FakeQuantization(nn.Module):
    """Activation ranges of a model, and the hooks that round its activations and weights.

    The state dict holds the ranges. A model and its moving average share one instance.

    Args:
        model: the model to train.

    Attributes:
        follows: whether activations of a model in training mode update the ranges.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.follows = True
        self.ranges = nn.ModuleList(ActivationRange() for _ in _activations(model))
        self._observed = nn.Buffer(torch.zeros(1, dtype=torch.int64), persistent=False)

    def attach(self, model: nn.Module) -> None:
        """Register hooks that round a model's weights and activations.

        The hooks also freeze batch-norm statistics, since the written file contains them as constants.

        Args:
            model: the model passed to the constructor, or a copy of it.
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
    """Yield the modules to round, in a fixed order, each with True for its first input or False for its output."""
    for module in model.modules():
        if isinstance(module, (*MULTIPLYING, *FLOAT_ACTIVATIONS)):
            yield module, True
        elif isinstance(module, LAYERS) or (isinstance(module, TappedChain) and module.shortcut):
            yield module, False


def round_weight(weight: Tensor, largest: int) -> Tensor:
    """Return a weight (C', …) rounded per output channel to integers in ±`largest` times a scale."""
    largest_values = weight.detach().flatten(1).abs().amax(1)
    scale = (largest_values / largest).clamp(min=SMALLEST_SCALE)
    zero_points = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, -largest, largest)


def _replace_weight(module: nn.Module, _inputs: Any) -> None:
    weight: Any = module.weight
    depthwise = isinstance(module, nn.Conv2d) and module.groups > 1 and weight.shape[1] == 1
    # The attribute shadows the parameter of the same name, which optimizers and checkpoints still find.
    vars(module)["weight"] = round_weight(weight, LARGEST if depthwise else LARGEST_SUMMED)


def _restore_weight(module: nn.Module, _inputs: Any, _output: Any) -> None:
    vars(module).pop("weight", None)
