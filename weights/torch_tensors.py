"""Tensors of weights files as PyTorch tensors: dtypes and checks of their values."""

from __future__ import annotations

import mmap
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featuretap.support.errors import WeightsError
from featuretap.support.text import first_few
from featuretap.weights.header import Stored

if TYPE_CHECKING:
    from featuretap.weights.reading import Checkpoint

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""dtype as named by safetensors → PyTorch's dtype."""


def tensor(content: mmap.mmap | bytes, stored: Stored) -> Tensor:
    """Return a `stored` tensor from the memory-mapped `content` of a file. It must be copied before it is changed."""
    dtype, count = DTYPES[stored.dtype], prod(stored.shape)
    if count == 0:
        return torch.empty(stored.shape, dtype=dtype)
    if stored.begin % dtype.itemsize:
        octets = torch.frombuffer(content, dtype=torch.uint8, count=count * dtype.itemsize, offset=stored.begin)
        return octets.clone().view(dtype).view(stored.shape)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=stored.begin).view(stored.shape)


def check_finite(checkpoint: Checkpoint) -> None:
    """Check that weights do not contain NaN or infinity, as after a training run that diverged.

    Args:
        checkpoint: the weights.

    Raises:
        WeightsError: a tensor contains NaN or infinity. The message names the first few.
    """
    broken = [
        name
        for name, tensor in checkpoint.tensors.items()
        # torch.isfinite does not support 8-bit floats.
        if tensor.is_floating_point()
        and not torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all()
    ]
    if broken:
        raise WeightsError(
            f"{str(checkpoint.path)!r} contains NaN or infinity in {first_few(broken, 3)}; the training diverged, or "
            "the file is damaged"
        )
