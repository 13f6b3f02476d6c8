"""The type of built models, and how to find a model and its description inside wrappers."""

from __future__ import annotations

from typing import cast

from torch import nn

from featuretap.specs import Tap
from featuretap.specs.description import Description
from featuretap.support.errors import OptionError

__all__ = ["Built", "description_of", "unwrap"]


class Built(nn.Module):
    """The modules that `registry.build` and `registry.load` return; a name for type checkers, of which nothing is made.

    Attributes:
        description: name, options, head, classes, preprocessing and origin of the weights.
        taps: address → channels and stride, of a bare backbone and of a pyramid.
        backbone: of a model with a head.
        head: of a model with a head.
    """

    description: Description
    taps: dict[str, Tap]
    backbone: Built
    head: nn.Module


def unwrap(model: nn.Module, action: str) -> Built:
    """Return the model inside DataParallel, torch.compile and moving averages.

    Args:
        model: any module.
        action: what needs the model, for the message: "registry.save writes".

    Raises:
        OptionError: no model that featuretap built is inside.
    """
    inner: object = model
    while isinstance(inner, nn.Module):
        if isinstance(vars(inner).get("description"), Description):
            return cast("Built", inner)
        inner = next((inner._modules[name] for name in ("module", "_orig_mod") if name in inner._modules), None)
    described = isinstance(getattr(model, "description", None), Description)
    lacks = "holds no weights" if described else "carries no description"
    raise OptionError(f"{type(model).__name__} {lacks}; {action} models that registry.build or registry.load returned")


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
