"""A simulated device for machines without a GPU. Mixing its tensors with CPU tensors fails as on a GPU.

The device is named "meta", which every build of PyTorch supports. Its tensors have values, which are computed on the
CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

HAS_GPU = torch.cuda.is_available()
ANOTHER = torch.device("meta")

COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
"""Operations that take indices on the CPU, as on a GPU."""


class Held(Tensor):
    """A tensor on the simulated device. `inner` has its values on the CPU."""

    inner: Tensor
    is_meta = False  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Held":
        layout: dict[str, Any] = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        tensor = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=ANOTHER, **layout)
        tensor.inner = inner.detach()
        return tensor

    def __repr__(self, **options: Any) -> str:
        return f"Held({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {}, rounds=False)


class _Operations(TorchDispatchMode):
    """Runs operations of the simulated device on the CPU."""

    def __init__(self, rounds: bool) -> None:
        super().__init__()
        self.rounds = rounds

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {}, self.rounds)


class _Lists(TorchFunctionMode):
    """Keeps the values of tensors created from lists, which PyTorch ignores for the meta device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == ANOTHER:
            return function(*args, **{**kwargs, "device": "cpu"}).to(ANOTHER)
        if function is Tensor.__getitem__:
            tensor, index = args
            index = index if isinstance(index, tuple) else (index,)
            args = tensor, tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
        return function(*args, **kwargs)


def _compute(operation: Any, args: Any, kwargs: Any, rounds: bool) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    held = [tensor for tensor in tensors if isinstance(tensor, Held)]
    name = operation.__name__.partition(".")[0]
    # Tensors without dimensions may be mixed in, as on a GPU.
    is_mixed = held and any(tensor.dim() for tensor in tensors if not isinstance(tensor, Held))
    if is_mixed and operation not in COPIES and name not in INDEXING:
        raise RuntimeError(f"{operation} found tensors on two devices")
    returns_held = bool(held)
    if kwargs.get("device") is not None:
        returns_held = torch.device(kwargs["device"]) == ANOTHER
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map_only(Held, lambda tensor: tensor.inner, (args, kwargs))
    if held and rounds and name == "convolution":
        inner_args = (*map(_round_to_tf32, inner_args[:2]), *inner_args[2:])
    known = {id(tensor.inner): tensor for tensor in held}

    def outside(tensor: Tensor) -> Tensor:
        if id(tensor) in known:
            return known[id(tensor)]
        return Held(tensor) if returns_held else tensor

    return tree_map_only(Tensor, outside, operation(*inner_args, **inner_kwargs))


def _round_to_tf32(tensor: Tensor) -> Tensor:
    """Return float32 values rounded to the ten mantissa bits that GPUs use for the inputs of convolutions."""
    if tensor.dtype != torch.float32:
        return tensor
    return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def another_device(*, rounds: bool = False) -> Iterator[torch.device]:
    """Simulate a device named "meta" whose tensors have values, and yield it.

    Inside the block, inference mode is replaced by `torch.no_grad`, because PyTorch skips the dispatch of tensor
    subclasses in inference mode.

    Args:
        rounds: whether convolutions round their inputs to TF32, as GPUs do.
    """
    replaces = torch.__future__.get_overwrite_module_params_on_conversion()
    # A parameter cannot be converted in place to another tensor class.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            patch("torch._C._InferenceMode", lambda enabled: torch.set_grad_enabled(not enabled)),
            _Operations(rounds),
            _Lists(),
        ):
            yield ANOTHER
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(replaces)


def on_cpu(tensor: Tensor) -> Tensor:
    """Return a tensor's values on the CPU. Tensors of the simulated device are accepted after its block too."""
    return tensor.inner if isinstance(tensor, Held) else tensor.detach().cpu()


def module_device(module: nn.Module) -> torch.device:
    """Return the device of a module, which all its parameters and buffers must share."""
    (device,) = {tensor.device for tensor in module.state_dict().values()}
    return device
