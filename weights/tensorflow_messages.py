"""TensorFlow's protobuf messages with weights, described for the `protobuf` package. TensorFlow is not needed.

Names and numbers of fields are the same as in TensorFlow's `.proto` files (`core/framework/{node_def,attr_value,tensor,
tensor_shape}.proto` and `core/protobuf/tensor_bundle.proto`). Fields that are not needed are left out here and skipped
in files. No part of a graph is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuretap.support.errors import MissingExtraError, WeightsError

Fields = tuple[tuple[str, int, str], ...]

MESSAGES: Mapping[str, Fields] = {
    "Dim": (("size", 1, "int64"),),
    "Shape": (("dim", 2, "Dim*"), ("unknown_rank", 3, "bool")),
    "Tensor": (
        ("dtype", 1, "int32"),
        ("shape", 2, "Shape"),
        ("content", 4, "bytes"),
        ("float_val", 5, "float*"),
        ("double_val", 6, "double*"),
        ("int_val", 7, "int32*"),
        ("int64_val", 10, "int64*"),
        ("bool_val", 11, "bool*"),
        ("half_val", 13, "int32*"),
    ),
    "Value": (
        ("s", 2, "bytes"),
        ("f", 4, "float"),
        ("b", 5, "bool"),
        ("shape", 7, "Shape"),
        ("tensor", 8, "Tensor"),
    ),
    # protobuf stores a map as a repeated message of this kind.
    "Attribute": (("key", 1, "string"), ("value", 2, "Value")),
    "Node": (("name", 1, "string"), ("op", 2, "string"), ("attribute", 5, "Attribute*")),
    "BundleHeader": (("num_shards", 1, "int32"), ("endianness", 2, "int32")),
    "Slice": (),
    "BundleEntry": (
        ("dtype", 1, "int32"),
        ("shape", 2, "Shape"),
        ("shard_id", 3, "int32"),
        ("offset", 4, "int64"),
        ("size", 5, "int64"),
        ("crc32c", 6, "fixed32"),
        ("slices", 7, "Slice*"),
    ),
}
"""Message → its fields: name, number and type. An asterisk marks repeated fields."""

DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: "<u2", 17: "<u2", 19: "<f2"}
"""TensorFlow's number of a dtype → NumPy's name. 14 is bfloat16, the upper half of a float32."""

BFLOAT16, HALF = 14, 19

VALUES = {
    **dict.fromkeys((3, 4, 5, 6, 17), "int_val"),
    **dict.fromkeys((BFLOAT16, HALF), "half_val"),
    1: "float_val",
    2: "double_val",
    9: "int64_val",
    10: "bool_val",
}
"""dtype → field with the values of a tensor without `content`."""

LARGE = 2**20
"""Messages with more bytes are checked before they are parsed."""

MOST_FIELDS = 100
"""Maximum number of fields of a large message. Each field can take dozens of bytes in memory."""

LARGE_FIELDS: tuple[tuple[int, ...], ...] = ((5,), (2,), (8,), (4, 5, 6))
"""Numbers of the fields of a node that can be large, by level: attribute, value, tensor, and its values."""

MOST_DIMENSIONS = 8
MOST_ELEMENTS = 2**40


def refuse(path: Path, problem: str) -> WeightsError:
    """Return the error for a malformed file at `path` with this `problem`."""
    return WeightsError(f"{str(path)!r} is not a valid TensorFlow file: {problem}; get it again from its source")


def parse(path: Path, message: str, content: bytes) -> Any:
    """Parse a message of `MESSAGES`.

    Args:
        path: path of the file, for messages.
        message: name of the message.
        content: bytes of the message.

    Returns:
        The message.

    Raises:
        WeightsError: the bytes are not such a message.
        MissingExtraError: the `protobuf` package is not installed.
    """
    kinds, failure = _messages()
    try:
        return kinds[message].FromString(content)
    except failure as error:
        raise refuse(path, f"it has a damaged {message} message") from error


def varint(path: Path, content: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return a variable-length integer and the position after it.

    Args:
        path: path of the file, for messages.
        content: the bytes.
        at: position of the integer.

    Returns:
        The integer and the next position.

    Raises:
        WeightsError: the content ends inside the integer.
    """
    value = 0
    for place, byte in enumerate(content[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise refuse(path, "it has a damaged number")


def check_density(path: Path, content: memoryview, level: int = 0) -> None:
    """Check that parsing a large node does not take much more memory than its size.

    Args:
        path: path of the file, for messages.
        content: bytes of the node or of a part of it.
        level: nesting level of `content` in the node.

    Raises:
        WeightsError: the node has many fields, or large fields other than values of a tensor.
    """
    at = fields = 0
    while at < len(content) and len(content) > LARGE:
        key, at = varint(path, content, at)
        length, begin = varint(path, content, at) if key & 7 in (0, 2) else (0, at)
        at = begin + (length if key & 7 == 2 else {1: 8, 5: 4}.get(key & 7, 0))
        fields += 1
        if fields > MOST_FIELDS or (at - begin > LARGE and key >> 3 not in LARGE_FIELDS[level]):
            raise refuse(path, "it has a large message that is not a tensor")
        if at - begin > LARGE and level + 1 < len(LARGE_FIELDS):
            check_density(path, content[begin:at], level + 1)


def shape_of(path: Path, shape: Any) -> tuple[int, ...]:
    """Return the sizes in a `Shape` message.

    Args:
        path: path of the file, for messages.
        shape: the message.

    Returns:
        The sizes.

    Raises:
        WeightsError: a size is unknown, or there are too many.
    """
    sizes = tuple(dimension.size for dimension in shape.dim)
    elements = prod(size for size in sizes if size)
    if shape.unknown_rank or len(sizes) > MOST_DIMENSIONS or min(sizes, default=0) < 0 or elements > MOST_ELEMENTS:
        raise refuse(path, "a tensor has no valid shape")
    return sizes


def decode(path: Path, dtype: int, shape: tuple[int, ...], content: bytes | memoryview) -> NDArray[Any]:
    """Return the values of a tensor. bfloat16 is converted to float32 without loss.

    Args:
        path: path of the file, for messages.
        dtype: a key of `DTYPES`.
        shape: shape of the tensor.
        content: bytes of the values.

    Returns:
        The array.

    Raises:
        WeightsError: the number of bytes does not match the shape.
    """
    kind = np.dtype(DTYPES[dtype])
    if prod(shape) * kind.itemsize != len(content):
        raise refuse(path, f"a tensor of shape {shape} has {len(content):,} bytes")
    values: NDArray[Any] = np.frombuffer(content, kind).reshape(shape)
    return (values.astype("<u4") << 16).view("<f4") if dtype == BFLOAT16 else values


def array_of(path: Path, tensor: Any, room: int) -> tuple[NDArray[Any] | None, int]:
    """Return the values of a `Tensor` message, or None for text and other types that weights do not have.

    Args:
        path: path of the file, for messages.
        tensor: the message.
        room: maximum number of bytes for values that the file stores in a shorter form.

    Returns:
        The array, and the number of bytes of `room` that it takes.

    Raises:
        WeightsError: the message is inconsistent.
    """
    if tensor.dtype not in DTYPES:
        return None, 0
    shape = shape_of(path, tensor.shape)
    content = tensor.content
    if content:
        return decode(path, tensor.dtype, shape, content), 0
    stored = getattr(tensor, VALUES[tensor.dtype])
    kind = np.dtype(DTYPES[tensor.dtype])
    if len(stored) > prod(shape) or prod(shape) * kind.itemsize > room:
        raise refuse(path, f"a tensor of shape {shape} has {len(stored):,} values")
    try:
        # float16 values are stored as their bits.
        values = np.fromiter(stored, "<u2" if tensor.dtype == HALF else kind, len(stored)).view(kind)
    except OverflowError as error:
        raise refuse(path, "a tensor has a value that is out of range") from error
    # Repeated values at the end are stored once (`core/framework/tensor.proto`). Zeros are not stored.
    filled = np.full(shape, values[-1] if len(values) else 0, kind)
    filled.reshape(-1)[: len(values)] = values
    return decode(path, tensor.dtype, shape, filled.data.cast("B") if filled.size else b""), filled.nbytes


@cache
def _messages() -> tuple[Mapping[str, Any], type[Exception]]:
    """Return name → class of the messages, and the exception for bytes that cannot be parsed."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
    except ImportError as error:
        raise MissingExtraError(
            "reading TensorFlow files needs protobuf; run pip install 'featuretap[tensorflow]'"
        ) from error
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="featuretap/tensorflow.proto", package="featuretap", syntax="proto3")
    for name, fields in MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, number, kind in fields:
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            described.field.add(name=field, number=number, label=label, **_type(kinds, kind))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"featuretap.{name}")) for name in MESSAGES
    }
    return classes, message.DecodeError


def _type(kinds: Any, kind: str) -> dict[str, Any]:
    if kind in MESSAGES:
        return {"type": kinds.TYPE_MESSAGE, "type_name": f".featuretap.{kind}"}
    return {"type": kinds.Type.Value(f"TYPE_{kind.upper()}")}
