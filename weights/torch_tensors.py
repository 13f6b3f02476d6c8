"""Files of weights as PyTorch's tensors: the types of numbers, state dicts that torch.save wrote, and their values."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featuretap.support.errors import WeightsError
from featuretap.support.text import first_few
from featuretap.weights.header import Stored, explain_os_error

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
"""Types of numbers as safetensors calls them."""


def tensor(content: mmap.mmap, stored: Stored) -> Tensor:
    """Return a tensor of a file whose content is mapped into memory, to be copied."""
    dtype, count = DTYPES[stored.dtype], prod(stored.shape)
    if count == 0:
        return torch.empty(stored.shape, dtype=dtype)
    if stored.begin % dtype.itemsize:
        octets = torch.frombuffer(content, dtype=torch.uint8, count=count * dtype.itemsize, offset=stored.begin)
        return octets.clone().view(dtype).view(stored.shape)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=stored.begin).view(stored.shape)


def read_pickle(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a state dict that torch.save wrote.

    Raises:
        WeightsError: it cannot be read safely, or holds anything else.
    """
    with explain_os_error(path):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:
            # Damaged bytes make the unpickler raise almost anything.
            raise WeightsError(
                f"{str(path)!r} is no file of weights that can be read safely; give a .safetensors file, or a .pth "
                "file that holds a state dict"
            ) from error
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(
            f"{str(path)!r} holds {type(state).__name__}, no state dict; save model.state_dict(), not the model"
        )
    for name, value in state.items():
        problem = _problem(name, value)
        if problem:
            raise WeightsError(
                f"{str(path)!r} holds no state dict: {name!r} {problem}; "
                "save model.state_dict(), not the model or a checkpoint around it"
            )
    return {name: value.detach() for name, value in state.items()}


def _problem(name: object, value: object) -> str:
    if not isinstance(name, str):
        return "is no name of a tensor"
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}, not a tensor"
    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        return f"is a tensor of {value.dtype} in the layout {value.layout}, which no layer holds"
    if value.device.type != "cpu":
        return f"is a tensor without values (device {value.device.type!r})"
    return ""


def check_finite(checkpoint: Checkpoint) -> None:
    """Refuse weights that are not numbers, as a training that diverged leaves them.

    Raises:
        WeightsError: a tensor holds NaN or infinity; the message names the first few.
    """
    broken = [
        name
        for name, tensor in checkpoint.tensors.items()
        # Numbers of one byte have no test of their own.
        if tensor.is_floating_point()
        and not torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all()
    ]
    if broken:
        raise WeightsError(
            f"{str(checkpoint.path)!r} holds NaN or infinity in {first_few(broken, 3)}; "
            "its training diverged, or the file was damaged"
        )
