"""Independent implementations of the same networks, with the same random weights."""

from collections.abc import Callable, Iterable

import timm
import torch
import torchvision
from torch import Tensor, nn

# Address → the submodule of the other library that computes the same output, written by hand from the printed modules.
TORCHVISION = {
    "mobilenet_v2": {
        "C1": "features.1",
        "C2": "features.3",
        "C2.expansion": "features.4.conv.0",
        "C3": "features.6",
        "C3.depthwise": "features.6.conv.1",
        "C4.first": "features.7",
        "C4": "features.13",
        "C4.expansion": "features.14.conv.0",
        "C5.bottleneck": "features.17",
        "C5": "features.18",
    },
    "mobilenet_v3_large": {
        "C1.first": "features.0",
        "C1": "features.1",
        "C2": "features.3",
        "C3.first": "features.4",
        "C3": "features.6",
        "C3.depthwise": "features.6.block.1",
        "C4.first": "features.7",
        "C4": "features.12",
        "C4.expansion": "features.13.block.0",
        "C5.first": "features.13",
        "C5.bottleneck": "features.15",
        "C5": "features.16",
    },
    "mobilenet_v3_small": {
        "C1": "features.0",
        "C2": "features.1",
        "C2.depthwise": "features.1.block.0",
        "C3": "features.3",
        "C3.depthwise": "features.3.block.1",
        "C4.first": "features.4",
        "C4": "features.8",
        "C4.expansion": "features.9.block.0",
        "C5.bottleneck": "features.11",
        "C5": "features.12",
    },
}

TIMM = {
    "mobilenetv1_100": {
        "C1.first": "bn1",
        "C1": "blocks.0",
        "C2": "blocks.1",
        "C3": "blocks.2",
        "C3.depthwise": "blocks.2.1.bn1",
        "C4.first": "blocks.3.0",
        "C4": "blocks.3",
        "C5": "blocks.4",
    },
    "mobilenetv2_100": {
        "C1": "blocks.0",
        "C2": "blocks.1",
        "C3": "blocks.2",
        "C3.depthwise": "blocks.2.2.bn2",
        "C4.first": "blocks.3.0",
        "C4": "blocks.4",
        "C4.expansion": "blocks.5.0.bn1",
        "C5.bottleneck": "blocks.6",
        "C5": "bn2",
    },
    "mobilenetv3_large_100": {
        "C1": "blocks.0",
        "C2": "blocks.1",
        "C3": "blocks.2",
        "C3.depthwise": "blocks.2.2.bn2",
        "C4.first": "blocks.3.0",
        "C4": "blocks.4",
        "C4.expansion": "blocks.5.0.bn1",
        "C5.bottleneck": "blocks.5",
        "C5": "blocks.6",
    },
    "mobilenetv3_small_100": {
        "C1": "bn1",
        "C2": "blocks.0",
        "C3": "blocks.1",
        "C3.depthwise": "blocks.1.1.bn2",
        "C4": "blocks.3",
        "C4.expansion": "blocks.4.0.bn1",
        "C5.bottleneck": "blocks.4",
        "C5": "blocks.5",
    },
}
TIMM["mobilenetv2_140"] = TIMM["mobilenetv2_050"] = TIMM["mobilenetv2_100"]
TIMM["mobilenetv3_large_075"] = TIMM["mobilenetv3_large_100"]
TIMM["mobilenetv3_small_075"] = TIMM["mobilenetv3_small_100"]
TIMM["mobilenetv1_125"] = TIMM["mobilenetv1_100"]


def torchvision_model(name: str, **options: object) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, **options)


def timm_model(name: str, **options: object) -> nn.Module:
    return timm.create_model(name, pretrained=False, **options)


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Give each channel of each norm different statistics. The initial zeros and ones would hide a wrong epsilon."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.endswith("running_var"):
            # Small variances, which are most sensitive to a wrong epsilon.
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.01)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2 + (name.endswith("weight")))
    return model.double().eval()


@torch.no_grad()
def with_statistics(
    model: nn.Module, run: Callable[[nn.Module], object] | None = None, *, nearly_dead: bool = True
) -> nn.Module:
    """Give norms random weights and the statistics of random images, with a variance of 1e-6 in a few channels.

    Channels with a tiny variance are most sensitive to a wrong epsilon. The other statistics come from a forward pass,
    because a network whose norms do not normalize magnifies rounding errors a millionfold.

    Args:
        model: the model to change.
        run: a training pass, for models that take more than a batch of images.
        nearly_dead: whether some channels get a variance of 1e-6.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)
    model.train()
    if run:
        run(model)
    else:
        model(torch.randn(8, next(model.parameters()).shape[1], 64, 64))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if nearly_dead:
            norm.running_var[::7] = 1e-6
            norm.weight[::7] *= 3e-3
    return model.eval()


@torch.no_grad()
def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy all tensors in order, which is the same in all three libraries. Shapes must agree."""
    ours, theirs = list(target.state_dict(keep_vars=True).values()), list(source.state_dict().values())
    assert len(ours) == len(theirs)
    for tensor, value in zip(ours, theirs, strict=True):
        assert tensor.numel() == value.numel()
        assert tensor.shape == value.shape[: tensor.ndim]
        tensor.copy_(value.reshape(tensor.shape))


@torch.no_grad()
def outputs_at(model: nn.Module, modules: Iterable[str], images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the outputs of submodules in one forward pass, and the model's output."""
    seen: dict[str, Tensor] = {}

    def record(name: str) -> None:
        model.get_submodule(name).register_forward_hook(lambda *call: seen.__setitem__(name, call[2].clone()))

    for name in set(modules):
        record(name)
    out = model(images)
    return seen, out
