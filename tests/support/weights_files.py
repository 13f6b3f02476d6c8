"""Weights files written by hand, both valid and malformed, and the errors raised when reading them."""

import io
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.weights.reading import read_checkpoint

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}
DATA = bytes(range(16))
NO_WEIGHTS = "is not a weights file: it is {}"

NOT_SAFE = "is not a weights file that can be read safely; use a .safetensors file, or a .pth file with a state dict"
RUNS_CODE = (
    "contains {}, which can run code when it is read; if you trust its source, load it with torch.load(path, "
    "weights_only=False), and save its state dict as a separate file"
)


def framed(header: object, data: bytes = DATA, length: int | None = None) -> bytes:
    """Return a safetensors file. A header that is not bytes is encoded as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes: object) -> dict[str, object]:
    """Return the header entry of a tensor with changed fields. None removes a field."""
    return {key: value for key, value in {**A, **changes}.items() if value is not None}


def refusal(registry: Registry, path: Path) -> str:
    """Return the error that both `read` and `load` raise for a file, without its path."""
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    with pytest.raises(WeightsError) as again:
        registry.load(path)
    assert type(error.value) is WeightsError
    assert str(error.value) == str(again.value)
    assert str(error.value).startswith(f"'{path}' ")
    return str(error.value).removeprefix(f"'{path}' ")


def bits(tensor: torch.Tensor) -> bytes:
    # A tensor with one element is contiguous with any stride.
    values = tensor.clone(memory_format=torch.contiguous_format)
    return values.reshape(-1).view(torch.uint8).numpy().tobytes()


def torch_saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


SOUND = framed({"a": A, "b": B})
HEADER = len(SOUND) - len(DATA)


def with_metadata(content: bytes, **changes: str | None) -> bytes:
    """Return a file with changed metadata values. None removes a value."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"] | {f"featuretap.{key}": value for key, value in changes.items()}
    header["__metadata__"] = {key: value for key, value in metadata.items() if value is not None}
    return framed(header, content[8 + length :])


def with_tensors(content: bytes, tensors: dict[str, torch.Tensor], **changes: str | None) -> bytes:
    """Return a file with some of its tensors replaced."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    return with_metadata(safetensors.torch.save({**safetensors.torch.load(content), **tensors}, metadata), **changes)


BIAS, MEAN, VAR = (f"stages.C1.0.norm.{kind}" for kind in ("bias", "running_mean", "running_var"))
STEM = "stages.C1.0.conv.weight"
