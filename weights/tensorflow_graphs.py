"""Frozen TensorFlow graphs (`.pb` files): their arrays by name, and the nodes that identify their model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from featuretap.weights.open_file import OpenFile, explain_os_error
from featuretap.weights.tensorflow_messages import array_of, check_density, parse, refuse

NODE = 1
"""Number of the field of a `GraphDef` with its nodes (`core/framework/graph.proto`)."""

KEY_BITS = 32
"""Maximum bits of the key of a field, which contains its number and wire type."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types of fields."""

MOST_NODES = 100_000
"""Maximum number of nodes. Detectors of the Object Detection API have a few thousand."""

LEAST_ROOM = 1_000_000
"""Bytes that constants with one repeated value can take in any file, even in a small one."""


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Args:
        operation: such as "Conv2D".
        padding: "SAME" or "VALID", for convolutions.
        epsilon: epsilon of a batch norm.
        shape: shape of an input, with -1 for unknown sizes.
        half_pixel_centers: whether a resize operation uses half-pixel centers.
    """

    operation: str
    padding: str = ""
    epsilon: float | None = None
    shape: tuple[int, ...] = ()
    half_pixel_centers: bool = False


@dataclass(frozen=True)
class FrozenGraph:
    """A frozen graph.

    Args:
        constants: name → array, for numeric constants.
        nodes: name → node, including constants.
    """

    constants: dict[str, NDArray[Any]]
    nodes: Mapping[str, Node]


def read_graph(opened: OpenFile) -> FrozenGraph:
    """Read a `GraphDef` whose variables are frozen to constants. No part of the graph is run.

    Args:
        opened: the file.

    Returns:
        The graph.

    Raises:
        WeightsError: the file cannot be read or is not such a graph.
        MissingExtraError: the `protobuf` package is not installed.
    """
    constants: dict[str, NDArray[Any]] = {}
    nodes: dict[str, Node] = {}
    path, size = opened.path, opened.size
    with explain_os_error(path), opened.reader() as file:
        room = max(size, LEAST_ROOM)
        for content in _nodes(path, file, size):
            check_density(path, memoryview(content))
            node = parse(path, "Node", content)
            # Otherwise, a large constant would be in memory three times.
            del content
            if node.name in nodes or len(nodes) == MOST_NODES:
                problem = f"two nodes are named {node.name!r}" if node.name in nodes else "it has too many nodes"
                raise refuse(path, problem)
            attributes = {attribute.key: attribute.value for attribute in node.attribute}
            nodes[node.name] = _facts(node.op, attributes)
            if node.op == "Const" and "value" in attributes:
                array, unstored = array_of(path, attributes["value"].tensor, room)
                room -= unstored
                if array is not None:
                    constants[node.name] = array
    if not nodes:
        raise refuse(path, "it has no nodes")
    return FrozenGraph(constants, nodes)


def _facts(operation: str, attributes: Mapping[str, Any]) -> Node:
    padding = attributes["padding"].s.decode("ascii", "replace") if "padding" in attributes else ""
    epsilon = attributes["epsilon"].f if "epsilon" in attributes else None
    shape = attributes["shape"].shape.dim if operation == "Placeholder" and "shape" in attributes else ()
    half_pixel = "half_pixel_centers" in attributes and attributes["half_pixel_centers"].b
    return Node(operation, padding, epsilon, tuple(dimension.size for dimension in shape), half_pixel)


def _nodes(path: Path, file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the bytes of each node.

    The nodes are parsed one at a time, so that the full graph is never in memory twice.
    """
    while file.tell() < size:
        key = _varint(path, file)
        number, wire = key >> 3, key & 7
        length = _varint(path, file) if wire in (LENGTH, VARINT) else 0
        end = file.tell() + {LENGTH: length, VARINT: 0, FIXED64: 8, FIXED32: 4}.get(wire, size)
        if number == 0 or key >> KEY_BITS or end > size:
            raise refuse(path, "it is not a graph, or is incomplete")
        if (number, wire) == (NODE, LENGTH):
            yield file.read(length)
        file.seek(end)


def _varint(path: Path, file: BinaryIO) -> int:
    """Return the variable-length integer at the position of the file."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        value |= (byte[0] & 127) << shift if byte else 0
        if byte and byte[0] < 128 and value >> 64 == 0:
            return value
    raise refuse(path, "it is not a graph, or is incomplete")
