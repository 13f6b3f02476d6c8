"""TensorFlow files written byte by byte: frozen graphs, and checkpoints with an index in LevelDB's format.

The writers share no code with the readers under test. Names follow TF-slim and the Object Detection API.
"""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[Any]

DTYPES = {"f4": 1, "f8": 2, "i4": 3, "u1": 4, "i2": 5, "i1": 6, "i8": 9, "b1": 10, "u2": 17, "f2": 19}

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


# Protobuf messages.


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    octets = bytearray()
    while value > 127:
        octets.append(value & 127 | 128)
        value >>= 7
    return bytes([*octets, value])


def field(number: int, value: int | bytes | str | float) -> bytes:
    """Return a field of a message: a variable-length integer, a single-precision number, or a string or message."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def shape_message(shape: Iterable[int]) -> bytes:
    return b"".join(field(2, field(1, size)) for size in shape)


def tensor_message(array: Array) -> bytes:
    kind = field(1, DTYPES[array.dtype.str[1:]])
    return kind + field(2, shape_message(array.shape)) + field(4, np.ascontiguousarray(array).tobytes())


def node(name: str, operation: str, **attributes: bytes) -> bytes:
    """Return a node of a graph. Attributes are messages with their values."""
    listed = (field(5, field(1, key) + field(2, value)) for key, value in attributes.items())
    return field(1, field(1, name) + field(2, operation) + b"".join(listed))


def constant(name: str, array: Any) -> bytes:
    return node(name, "Const", value=field(8, tensor_message(np.asarray(array))))


def graph(variables: Mapping[str, Array], *nodes: bytes) -> bytes:
    """Return a frozen graph with a constant for each variable, and more nodes."""
    return b"".join([*(constant(name, array) for name, array in variables.items()), *nodes])


# Checkpoints.


def _steps(octet: int) -> int:
    for _ in range(8):
        octet = octet >> 1 ^ (0x82F63B78 if octet & 1 else 0)
    return octet


STEPS = [_steps(octet) for octet in range(256)]


def masked_crc32c(content: bytes) -> int:
    state = 0xFFFFFFFF
    for octet in content:
        state = STEPS[(state ^ octet) & 255] ^ state >> 8
    state ^= 0xFFFFFFFF
    return ((state >> 15 | state << 17) + 0xA282EAD8) & 0xFFFFFFFF


def block(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a block of a table. Each key omits the prefix that it shares with the previous key."""
    content, before = b"", b""
    for key, value in entries:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before))
        )
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + struct.pack("<II", 0, 1)


def table(entries: Mapping[bytes, bytes], per_block: int = 7, compression: int = 0) -> bytes:
    """Return a table in LevelDB's format with a given number of entries in a block."""
    content, handles = b"", []

    def append(inner: bytes) -> bytes:
        nonlocal content
        place = varint(len(content)) + varint(len(inner))
        kind = bytes([compression])
        content += inner + kind + struct.pack("<I", masked_crc32c(inner + kind))
        return place

    ordered = sorted(entries.items())
    for first in range(0, len(ordered), per_block):
        part = ordered[first : first + per_block]
        handles.append((part[-1][0], append(block(part))))
    footer = append(block([])) + append(block(handles))
    return content + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write_checkpoint(path: Path, variables: Mapping[str, Array], shards: int = 1, **more: Any) -> Path:
    """Write the files of a checkpoint, and return the path of its index.

    Args:
        path: the path without the suffix, such as "model.ckpt".
        variables: name → array.
        shards: number of files that the elements are divided into.
        **more: arguments of `table`.
    """
    entries = {b"": field(1, shards) + field(3, field(1, 1))}
    contents = [b""] * shards
    for number, (name, array) in enumerate(variables.items()):
        shard, data = number % shards, np.ascontiguousarray(array).tobytes()
        entries[name.encode()] = (
            field(1, DTYPES[array.dtype.str[1:]])
            + field(2, shape_message(array.shape))
            + field(3, shard)
            + field(4, len(contents[shard]))
            + field(5, len(data))
            + varint(6 << 3 | 5)
            + struct.pack("<I", masked_crc32c(data))
        )
        contents[shard] += data
    for shard, content in enumerate(contents):
        path.with_name(f"{path.name}.data-{shard:05}-of-{shards:05}").write_bytes(content)
    index = path.with_name(f"{path.name}.index")
    index.write_bytes(table(entries, **more))
    return index


# TensorFlow's names and kernels.


def kernel(weight: Array, *, depthwise: bool) -> Array:
    """Return a kernel (out, in, height, width) in TensorFlow's order."""
    return weight.transpose(2, 3, 0, 1) if depthwise else weight.transpose(2, 3, 1, 0)


def layer(scope: str, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> dict[str, Array]:
    """Return the variables of a convolution, and of its norm if it has one."""
    depthwise = conv.groups > 1
    named = {"depthwise_weights" if depthwise else "weights": kernel(conv.weight.detach().numpy(), depthwise=depthwise)}
    if conv.bias is not None:
        named["biases"] = conv.bias.detach().numpy()
    if norm is not None:
        state = norm.state_dict()
        named |= {f"BatchNorm/{theirs}": state[ours].numpy() for ours, theirs in NORM.items()}
    return {f"{scope}/{name}": array for name, array in named.items()}
