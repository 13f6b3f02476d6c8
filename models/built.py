"""The type of built models, the description inside wrappers, and the mark of fused models."""

from __future__ import annotations

import copy
from typing import Self, cast

from torch import nn

from featuretap.specs import Tap
from featuretap.specs.description import Description
from featuretap.support.errors import OptionError, TrainingError

FUSED = "for_inference"
"""Name of the submodule that marks a fused model."""

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Built(nn.Module):
    """What the modules that `registry.build` and `registry.load` return have; most of them are of other classes.

    Attributes:
        description: name, options, head, classes, preprocessing and origin of the weights.
        taps: address → channels and stride, of a bare backbone and of a pyramid.
        backbone: of a model with a head.
        head: of a model with one head.
        heads: of a model with several heads, by name.
    """

    description: Description
    taps: dict[str, Tap]
    backbone: Built
    head: nn.Module
    heads: nn.ModuleDict


def inside_wrappers(model: nn.Module) -> nn.Module:
    """Return the described model inside DataParallel, torch.compile and moving averages, or `model` without one."""
    inner: nn.Module | None = model
    while isinstance(inner, nn.Module) and not isinstance(vars(inner).get("description"), Description):
        inner = next((inner._modules[name] for name in ("module", "_orig_mod") if name in inner._modules), None)
    return model if inner is None else inner


def unwrap(model: nn.Module, action: str) -> Built:
    """Return the model inside DataParallel, torch.compile and moving averages.

    Args:
        model: any module.
        action: what needs the model, for the message: "registry.save writes".

    Raises:
        OptionError: no model that featuretap built is inside.
    """
    inner = inside_wrappers(model)
    if isinstance(vars(inner).get("description"), Description):
        return cast("Built", inner)
    described = isinstance(getattr(model, "description", None), Description)
    lacks = "holds no weights" if described else "carries no description"
    raise OptionError(f"{type(model).__name__} {lacks}; {action} models that registry.build or registry.load returned")


def unwrap_parts(model: Built) -> Built:
    """Return the model without torch.compile and DataParallel around its parts, such as its backbone.

    It shares parameters and buffers with `model`, and is `model` itself where no part is wrapped.
    """
    return cast("Built", _without_wrappers(model))


def unwrap_part(part: nn.Module) -> nn.Module:
    """Return the module inside torch.compile and DataParallel."""
    # The class of compiled modules takes a second to import.
    inner = part.module if isinstance(part, PARALLEL) else part._modules.get("_orig_mod")
    return part if inner is None else unwrap_part(inner)


def _without_wrappers(module: nn.Module) -> nn.Module:
    part = unwrap_part(module)
    parts = {name: None if child is None else _without_wrappers(child) for name, child in part._modules.items()}
    if all(parts[name] is child for name, child in part._modules.items()):
        return part
    copied = copy.copy(part)
    copied._modules = parts
    return copied


def description_of(model: nn.Module, action: str = "this reads") -> Description:
    """Return the description of a model that featuretap built or compiled.

    Args:
        model: any module.
        action: what needs the description, for the message: "registry.transforms reads".

    Raises:
        OptionError: the model has none.
    """
    description = getattr(model, "description", None)
    if not isinstance(description, Description):
        raise OptionError(
            f"{type(model).__name__} carries no description; {action} models that registry.build or registry.load "
            "returned"
        )
    return description


class InferenceOnly(nn.Module):
    """The submodule by which a fused model refuses to be trained; it computes nothing."""

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


def is_fused(model: nn.Module) -> bool:
    """Return whether `registry.fuse` returned a model."""
    return isinstance(model._modules.get(FUSED), InferenceOnly)
