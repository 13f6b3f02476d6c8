"""PaddleClas's MobileNetV3 models as independent modules, and state dicts in the format of `paddle.save`.

Written from the description of `ppcls/arch/backbone/legendary_models/mobilenet_v3.py`, with its module names. The
module was compared with the same network in Paddle 3.3.1: logits in float64 agree to 1e-7, which is the rounding error
of Paddle's float32 constants.
"""

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

# Kernel, expanded channels, output channels, squeeze-excite, activation, stride.
ROWS = {
    "large": (
        *((3, 16, 16, False, nn.ReLU, 1), (3, 64, 24, False, nn.ReLU, 2), (3, 72, 24, False, nn.ReLU, 1)),
        *((5, 72, 40, True, nn.ReLU, 2), (5, 120, 40, True, nn.ReLU, 1), (5, 120, 40, True, nn.ReLU, 1)),
        *((3, 240, 80, False, nn.Hardswish, 2), (3, 200, 80, False, nn.Hardswish, 1)),
        *((3, 184, 80, False, nn.Hardswish, 1), (3, 184, 80, False, nn.Hardswish, 1)),
        *((3, 480, 112, True, nn.Hardswish, 1), (3, 672, 112, True, nn.Hardswish, 1)),
        *((5, 672, 160, True, nn.Hardswish, 2), (5, 960, 160, True, nn.Hardswish, 1)),
        (5, 960, 160, True, nn.Hardswish, 1),
    ),
    "small": (
        *((3, 16, 16, True, nn.ReLU, 2), (3, 72, 24, False, nn.ReLU, 2), (3, 88, 24, False, nn.ReLU, 1)),
        *((5, 96, 40, True, nn.Hardswish, 2), (5, 240, 40, True, nn.Hardswish, 1), (5, 240, 40, True, nn.Hardswish, 1)),
        *((5, 120, 48, True, nn.Hardswish, 1), (5, 144, 48, True, nn.Hardswish, 1)),
        *(
            (5, 288, 96, True, nn.Hardswish, 2),
            (5, 576, 96, True, nn.Hardswish, 1),
            (5, 576, 96, True, nn.Hardswish, 1),
        ),
    ),
}
LAST = {"large": 960, "small": 576}
NAME_TABLE = "StructuredToParameterName@@"


def scaled(channels: int, scale: float) -> int:
    """Return a number of channels times `scale`, rounded to a multiple of 8 and not reduced by more than 10 %."""
    wanted = channels * scale
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class ConvBNLayer(nn.Module):
    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: Any = nn.Identity
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class SEModule(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 4, 1)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv2(self.conv1(x.mean((2, 3), keepdim=True)).relu())
        return x * (gate * 0.2 + 0.5).clamp(0, 1)


class ResidualUnit(nn.Module):
    def __init__(self, channels: int, mid: int, out: int, row: tuple[Any, ...]) -> None:
        super().__init__()
        kernel, _, _, gated, act, stride = row
        self.expand_conv = ConvBNLayer(channels, mid, 1, act=act)
        self.bottleneck_conv = ConvBNLayer(mid, mid, kernel, stride, mid, act)
        self.mid_se = SEModule(mid) if gated else nn.Identity()
        self.linear_conv = ConvBNLayer(mid, out, 1)
        self.is_residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear_conv(self.mid_se(self.bottleneck_conv(self.expand_conv(x))))
        return x + y if self.is_residual else y


class MobileNetV3(nn.Module):
    """PaddleClas's network. In evaluation, its classifier multiplies the hidden layer by 0.8."""

    def __init__(self, size: str, scale: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels = scaled(16, scale)
        self.conv = ConvBNLayer(3, channels, 3, 2, act=nn.Hardswish)
        units = []
        for row in ROWS[size]:
            out = scaled(row[2], scale)
            units.append(ResidualUnit(channels, scaled(row[1], scale), out, row))
            channels = out
        self.blocks = nn.Sequential(*units)
        last = scaled(LAST[size], scale)
        self.last_second_conv = ConvBNLayer(channels, last, 1, act=nn.Hardswish)
        self.last_conv = nn.Conv2d(last, 1280, 1, bias=False)
        self.fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last_second_conv(self.blocks(self.conv(x))).mean((2, 3), keepdim=True)
        return self.fc(0.8 * functional.hardswish(self.last_conv(x)).flatten(1))


def paddle_state(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return a module's state with Paddle's names for statistics, and the linear weight as (in, out)."""
    names = {"running_mean": "_mean", "running_var": "_variance"}
    state = {}
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if kind != "num_batches_tracked":
            state[f"{module}.{names.get(kind, kind)}"] = (
                tensor.numpy().T.copy() if name == "fc.weight" else tensor.numpy()
            )
    return state


def load_paddle_state(model: nn.Module, state: Mapping[str, NDArray[Any]]) -> None:
    """Load a state with Paddle's names into a module. All names must match."""
    names = {"_mean": "running_mean", "_variance": "running_var"}
    ours = {}
    for name, array in state.items():
        module, _, kind = name.rpartition(".")
        ours[f"{module}.{names.get(kind, kind)}"] = torch.from_numpy(array.T.copy() if name == "fc.weight" else array)
    result = model.load_state_dict(ours, strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in result.missing_keys)


def pdparams(state: Mapping[str, object], protocol: int = 4) -> bytes:
    """Return a file in the format of `paddle.save`, with its table of Paddle's internal names."""
    table = {name: f"parameter_{index}.w_0" for index, name in enumerate(state)}
    return pickle.dumps({**state, NAME_TABLE: table}, protocol)
