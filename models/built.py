"""The type of built models, access to models inside wrappers, and the marker of fused models."""

from __future__ import annotations

import copy
from typing import Self, cast

from torch import nn

from featuretap.specs import Tap
from featuretap.specs.description import Description
from featuretap.support.errors import OptionError, TrainingError

FUSED = "for_inference"
"""Name of the submodule that marks a model as fused."""

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Built(nn.Module):
    """Attributes of the modules that `registry.build` and `registry.load` return. Most are instances of other classes.

    Attributes:
        description: name, options, head, classes, preprocessing and origin of the weights.
        taps: address → channels and stride, of bare backbones and pyramids.
        backbone: backbone of a model with a head.
        head: head of a model with one head.
        heads: heads of a model with several heads, by name.
    """

    description: Description
    taps: dict[str, Tap]
    backbone: Built
    head: nn.Module
    heads: nn.ModuleDict


def inside_wrappers(model: nn.Module) -> nn.Module:
    """Return the described model inside DataParallel, `torch.compile` and moving averages, or `model` itself."""
    inner: nn.Module | None = model
    while isinstance(inner, nn.Module) and not isinstance(vars(inner).get("description"), Description):
        inner = next((inner._modules[name] for name in ("module", "_orig_mod") if name in inner._modules), None)
    return model if inner is None else inner


def unwrap(model: nn.Module, action: str) -> Built:
    """Return the model inside DataParallel, `torch.compile` and moving averages.

    Args:
        model: any module.
        action: what the model is needed for, for the message: "registry.save writes".

    Returns:
        The model.

    Raises:
        OptionError: there is no model inside that featuretap built.
    """
    inner = inside_wrappers(model)
    if isinstance(vars(inner).get("description"), Description):
        return cast("Built", inner)
    described = isinstance(getattr(model, "description", None), Description)
    lacks = "has no weights" if described else "has no description"
    raise OptionError(f"{type(model).__name__} {lacks}; {action} models that registry.build or registry.load returned")


def unwrap_parts(model: Built) -> Built:
    """Remove `torch.compile` and DataParallel from the parts of a `model`, such as its backbone.

    The result shares parameters and buffers with `model`. It is `model` itself if no part is wrapped.
    """
    return cast("Built", _without_wrappers(model))


def unwrap_part(part: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile` and DataParallel around `part`."""
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


def description_of(model: nn.Module, action: str = "this function reads") -> Description:
    """Return the description of a model that featuretap built or compiled.

    Args:
        model: any module.
        action: what the description is needed for, for the message: "registry.transforms reads".

    Returns:
        The description.

    Raises:
        OptionError: the model does not have a description.
    """
    description = getattr(model, "description", None)
    if not isinstance(description, Description):
        raise OptionError(
            f"{type(model).__name__} has no description; {action} models that registry.build or registry.load returned"
        )
    return description


class InferenceOnly(nn.Module):
    """A submodule without layers that prevents a fused model from being trained."""

    def train(self, mode: bool = True) -> Self:
        """Raise an error in training mode.

        Args:
            mode: True for training mode.

        Returns:
            The module.

        Raises:
            TrainingError: `mode` is True.
        """
        if mode:
            raise TrainingError(
                "a fused model cannot be trained, since its batch norms are folded into its convolutions; train the "
                "original model and fuse it afterwards"
            )
        return super().train(mode)


def is_fused(model: nn.Module) -> bool:
    """Return whether `registry.fuse` returned this `model`."""
    return isinstance(model._modules.get(FUSED), InferenceOnly)
