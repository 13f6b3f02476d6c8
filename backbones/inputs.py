"""One-line errors about images that a model does not take.

The images are checked only after PyTorch has raised an error. A check in advance would take time in every call, and
would be traced into exported graphs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from featuretap.specs.description import Description
from featuretap.specs.head import ModelSpec, backbone_of
from featuretap.support.errors import FeaturetapError, Hint, OptionError


class ImageModel(nn.Module):
    """A module that is called with images, and explains what is wrong with them if the call fails.

    Only a model with a `description` does so. The backbone inside a model with a head has none.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward` and the hooks.

        Args:
            *args: arguments of `forward`; the first one is the images.
            **kwargs: keyword arguments of `forward`.

        Returns:
            The result of `forward`.

        Raises:
            OptionError: the call failed, and the images have a type, shape or dtype that the model does not take.
        """
        # A graph break within `try` would leave a compiled module uncompiled.
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        try:
            return super().__call__(*args, **kwargs)
        except FeaturetapError:
            raise
        except Exception as error:
            images = args[:1] or tuple(kwargs[name] for name in ("images",) if name in kwargs)
            mistake = find_mistake(self, *images)
            if mistake is None:
                raise
            raise mistake from error


# As torch.compile treats nn.Module.__call__: hooks run uncompiled, and `forward` is compiled.
with suppress(ImportError):
    from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy

    set_code_exec_strategy(ImageModel.__call__.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.DEFAULT))


def find_mistake(model: nn.Module, *images: Any) -> OptionError | None:
    """Return an error that explains what is wrong with the images passed to a model.

    Args:
        model: the model. Without a `description`, no mistake is found.
        *images: the images passed to it; empty if unknown, and then no mistake is found.

    Returns:
        The error, or None.
    """
    description = vars(model).get("description")
    if not isinstance(description, Description) or description.spec is None:
        return None
    # torch.fx traces with proxies, whose values are unknown.
    if not images or isinstance(images[0], torch.fx.Proxy):
        return None
    spec = description.spec
    channels = backbone_of(spec).in_channels
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
    specs = [spec, *(head.spec for head in description.heads.values())]
    as_list = any(isinstance(spec, ModelSpec) and spec.head.images == "raw" for spec in specs)
    usable = _usable_images(images[0], channels, dtype, as_list=as_list)
    if usable == "images":
        return None
    takes = f"a list of {_name(dtype)} images (" if as_list else f"{_name(dtype)} images (N, "
    problem = f"{description.name!r} takes {takes}{channels}, H, W); got {_describe(images[0])}"
    unknown = "a list of such tensors" if as_list else "a tensor of that shape"
    return OptionError(problem, hint=Hint(f"give {usable or unknown}"))


def _usable_images(images: Any, channels: int, dtype: torch.dtype, *, as_list: bool) -> str:
    """Return an expression that the model would take: "images" if it takes them unchanged, "" if none is known."""
    if isinstance(images, list | tuple):
        items = [_usable_item(image, channels, dtype) for image in images]
        if not items or not all(items):
            return ""
        unusable = [item for item in items if item != "image"]
        usable = f"[{unusable[0]} for image in images]" if unusable else "images"
        return usable if as_list else f"torch.stack({usable})"
    if getattr(images, "ndim", 0) == 4:
        if not as_list and channels not in (images.shape[1], images.shape[3]):
            return f"{channels} channels"
        usable = _usable(images, "images", channels, dtype)
        return f"registry.transforms(model)(images), or {usable}" if usable == "images.float() / 255" else usable
    usable = _usable_item(images, channels, dtype)
    if as_list or not usable:
        return usable and f"[{usable}]"
    return f"({usable})[None]" if "/" in usable else f"{usable}[None]"


def _usable_item(image: Any, channels: int, dtype: torch.dtype) -> str:
    return _usable(image, "image", channels, dtype) if getattr(image, "ndim", 3) in (2, 3) else ""


def _usable(image: Any, name: str, channels: int, dtype: torch.dtype) -> str:
    """Return an expression for one image or a batch called `name`: `name` itself if the model takes it unchanged."""
    import numpy as np
    from PIL import Image

    cast = "" if dtype == torch.float32 else f".to({dtype})"
    if isinstance(image, Tensor):
        if image.ndim < 3:
            return ""
        if channels == image.shape[-1] != image.shape[-3]:
            name += ".movedim(-1, -3)"
        if image.dtype == dtype or _is_cast(image):
            return name
        return f"{name}{cast or '.float()'}{' / 255' if image.dtype == torch.uint8 else ''}"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,), (4,)):
            return f"torch.from_numpy({name})"
        name = f"PIL.Image.fromarray({name})"
    elif isinstance(image, str | os.PathLike):
        name = f"PIL.Image.open({name})"
    elif not isinstance(image, Image.Image):
        return ""
    return f"registry.transforms(model)({name}){cast}"


def _is_cast(image: Tensor) -> bool:
    """Return whether autocast converts the values of an image."""
    kind = image.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    # Autocast does not convert float64.
    return is_on and image.is_floating_point() and image.dtype != torch.float64


def _describe(images: Any) -> str:
    """Return type, dtype and shape of images, for messages."""
    if isinstance(images, list | tuple):
        kinds = (type(image).__name__ if isinstance(image, list | tuple) else _describe(image) for image in images)
        return f"a {type(images).__name__} of {', '.join(dict.fromkeys(kinds)) or 'nothing'}"
    kind = f"{type(images).__module__.partition('.')[0]}.{type(images).__name__}".removeprefix("builtins.")
    if isinstance(getattr(images, "shape", None), tuple):
        values = f"{_name(getattr(images, 'dtype', ''))} {tuple(images.shape)}"
        return values if isinstance(images, Tensor) else f"{kind} of {values}"
    return kind


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
