"""Randomly damaged TensorFlow files are read as protobuf reads them, or refused with a `WeightsError`.

By default, 300 fixed examples run. FEATURETAP_FUZZ_EXAMPLES=20000 runs that many random ones.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from support.tensorflow_files import (
    DTYPES,
    Array,
    block,
    constant,
    field,
    graph,
    masked_crc32c,
    node,
    shape_message,
    varint,
    write_checkpoint,
)
from support.tensorflow_models import tiny_variables

from featuretap.registry.errors import WeightsError
from featuretap.weights.open_file import OpenFile
from featuretap.weights.tensorflow_checkpoints import read_tensorflow_checkpoint
from featuretap.weights.tensorflow_graphs import read_graph
from featuretap.weights.tensorflow_models import read_tensorflow_model

# Keep Hypothesis from writing into the repository.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "featuretap-hypothesis")

ASKED = os.environ.get("FEATURETAP_FUZZ_EXAMPLES")
EXAMPLES = int(ASKED or 300)

PIECES = [
    *(field(1, "a"), field(2, "Const"), field(3, "b"), field(5, b""), field(5, field(1, "value")), field(4, b"")),
    *(field(1, 1), field(1, 19), field(1, 10**9), field(2, shape_message([2**40] * 3)), field(2, field(3, 1))),
    *(field(5, 1.5), field(7, -1), field(10, 2**63), field(11, 1), field(13, 2**20), b"\x0b", b"\x0c", b"\xff" * 10),
    *(varint(2**31), varint(2**63), b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\x00", b"\x08", b"\x2a\x00" * 50),
]


def examples(share: float) -> settings:
    return settings(max_examples=max(1, int(EXAMPLES * share)), derandomize=ASKED is None, deadline=None, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


# Reference: protobuf's parser, with the graph messages declared by hand.


def graph_class() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="reference.proto", package="reference", syntax="proto3")
    repeated = {"dim", "float_val", "double_val", "int_val", "int64_val", "bool_val", "half_val", "attr", "node"}
    messages = {
        "Dim": {"size": (1, kinds.TYPE_INT64)},
        "Shape": {"dim": (2, "Dim"), "unknown_rank": (3, kinds.TYPE_BOOL)},
        "Tensor": {
            "dtype": (1, kinds.TYPE_INT32),
            "shape": (2, "Shape"),
            "content": (4, kinds.TYPE_BYTES),
            "float_val": (5, kinds.TYPE_FLOAT),
            "double_val": (6, kinds.TYPE_DOUBLE),
            "int_val": (7, kinds.TYPE_INT32),
            "int64_val": (10, kinds.TYPE_INT64),
            "bool_val": (11, kinds.TYPE_BOOL),
            "half_val": (13, kinds.TYPE_INT32),
        },
        "Value": {"tensor": (8, "Tensor")},
        "Entry": {"key": (1, kinds.TYPE_STRING), "value": (2, "Value")},
        "Node": {"name": (1, kinds.TYPE_STRING), "op": (2, kinds.TYPE_STRING), "attr": (5, "Entry")},
        "Graph": {"node": (1, "Node")},
    }
    for name, fields in messages.items():
        described = file.message_type.add(name=name)
        for inner, (number, kind) in fields.items():
            label = kinds.LABEL_REPEATED if inner in repeated else kinds.LABEL_OPTIONAL
            if isinstance(kind, str):
                described.field.add(
                    name=inner, number=number, label=label, type=kinds.TYPE_MESSAGE, type_name=f".reference.{kind}"
                )
            else:
                described.field.add(name=inner, number=number, label=label, type=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("reference.Graph"))


GRAPH = graph_class()
NUMPY = {number: kind for kind, number in DTYPES.items()}
FIELDS = {1: "float_val", 2: "double_val", 9: "int64_val", 10: "bool_val", 19: "half_val"}


def reference_array(tensor: Any) -> Array | None:
    """Return the values of a tensor, or None if these tests cannot write its dtype."""
    if tensor.dtype not in NUMPY:
        return None
    kind, shape = np.dtype(NUMPY[tensor.dtype]), [dim.size for dim in tensor.shape.dim]
    if tensor.content:
        return np.frombuffer(tensor.content, kind).reshape(shape)
    values = list(getattr(tensor, FIELDS.get(tensor.dtype, "int_val"))) or [0]
    stored = np.array(values, "u2").view(kind) if tensor.dtype == 19 else np.array(values).astype(kind)
    filled = np.full(int(np.prod(shape, dtype=object)), stored[-1])
    filled[: len(stored)] = stored[: len(filled)]
    return filled.reshape(shape)


# Damage


@st.composite
def damaged(draw: st.DrawFn, content: bytes, begin: int = 0) -> bytes:
    """Generate bytes with some flipped, inserted, replaced or deleted, or with the end truncated."""
    changed = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        at = draw(st.integers(min(begin, len(changed)), len(changed)))
        kind = draw(st.sampled_from(["flip", "flip", "piece", "replace", "delete", "truncate"]))
        piece = draw(st.sampled_from(PIECES))
        if kind == "flip" and at < len(changed):
            changed[at] ^= draw(st.integers(1, 255))
        elif kind == "piece":
            changed[at:at] = piece
        elif kind == "replace":
            changed[at : at + len(piece)] = piece
        elif kind == "delete":
            del changed[at : at + draw(st.integers(1, 9))]
        elif kind == "truncate":
            del changed[at:]
    return bytes(changed)


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """Generate a tensor message that stores its values in any of the possible encodings."""
    number = draw(st.sampled_from(sorted({*NUMPY, 7, 8, 99})))
    kind, shape = np.dtype(NUMPY.get(number, "u1")), draw(st.lists(st.integers(0, 4), max_size=3))
    count = int(np.prod(shape, dtype=int))
    start = field(1, number) + field(2, shape_message(shape))
    if draw(st.booleans()):
        octets = draw(st.binary(min_size=count * kind.itemsize, max_size=count * kind.itemsize))
        return start + field(4, bytes(octet & 1 for octet in octets) if kind == "?" else octets)
    values = draw(st.lists(st.integers(0, 100), max_size=count))
    if number == 1:
        return start + b"".join(field(5, float(value)) for value in values)
    inner = {9: 10, 10: 11, 19: 13, 14: 13}.get(number, 7)
    packed = draw(st.booleans())
    listed = [varint(value) for value in values]
    return start + (field(inner, b"".join(listed)) if packed else b"".join(varint(inner << 3) + v for v in listed))


@st.composite
def graphs(draw: st.DrawFn) -> bytes:
    """Generate graphs with damaged bytes, or with damage inside a tensor or node whose length field is valid."""
    nodes = []
    for name in draw(st.lists(st.sampled_from(["a", "b/weights", "é", "c" * 200]), max_size=3, unique=True)):
        tensor = draw(tensors())
        tensor = draw(damaged(tensor)) if draw(st.integers(0, 2)) == 0 else tensor
        inner = field(1, name) + field(2, "Const") + field(5, field(1, "value") + field(2, field(8, tensor)))
        nodes.append(field(1, draw(damaged(inner)) if draw(st.integers(0, 7)) == 0 else inner))
    content = b"".join([*nodes, node("end", "NoOp")])
    return draw(damaged(content)) if draw(st.integers(0, 2)) == 0 else content


@examples(0.5)
@given(content=graphs())
def test_graphs_are_read_as_protobuf_reads_them_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "damaged.pb"
    path.write_bytes(content)
    try:
        found = read_graph(OpenFile(path))
    except WeightsError as error:
        event(f"refused: {str(error).partition(': ')[2][:30]}")
        return
    event("accepted")
    expected = GRAPH.FromString(content)
    assert {name: node.operation for name, node in found.nodes.items()} == {n.name: n.op for n in expected.node}
    for one in expected.node:
        values = {entry.key: entry.value for entry in one.attr}
        array = reference_array(values["value"].tensor) if one.op == "Const" and "value" in values else None
        if array is not None:
            assert found.constants[one.name].dtype == array.dtype
            assert found.constants[one.name].tobytes() == array.tobytes()


def test_the_reference_reads_what_the_reader_does() -> None:
    """Without this test, a reference that refuses every file would go unnoticed."""
    with pytest.raises(message.DecodeError):
        GRAPH.FromString(b"\x0a\x02")
    read = GRAPH.FromString(constant("a", np.arange(3, dtype="f4")))
    assert reference_array(read.node[0].attr[0].value.tensor).tolist() == [0, 1, 2]  # type: ignore[union-attr]


CHECKPOINT = {
    f"MobilenetV1/Conv2d_{number}_{kind}": np.arange(number + 1, dtype=dtype)
    for number in range(9)
    for kind, dtype in (("depthwise/BatchNorm/gamma", "f4"), ("pointwise/weights", "f2"))
}


@st.composite
def checkpoints(draw: st.DrawFn, index: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Generate an index and a data file, one of them damaged; the checksum of the first block may be recomputed."""
    where = draw(st.sampled_from(["index", "footer", "block", "block", "data"]))
    if where == "data":
        return index, draw(damaged(data))
    if where == "block":
        # In these files the first block ends where the second one begins.
        size = len(block(sorted(first_entries(index))))
        inner = draw(damaged(index[:size]))[:size].ljust(size, b"\0") + b"\0"
        return inner + masked_crc32c(inner).to_bytes(4, "little") + index[size + 5 :], data
    return draw(damaged(index, len(index) - 48 if where == "footer" else 0)), data


def first_entries(index: bytes) -> list[tuple[bytes, bytes]]:
    """Return the entries of the first block, which begins the file."""
    from featuretap.weights.tensorflow_tables import _entries

    end = next(end for end in range(1, len(index)) if _ends_block(index, end))
    return list(_entries(Path("index"), index[:end]))


def _ends_block(index: bytes, end: int) -> bool:
    return masked_crc32c(index[: end + 1]).to_bytes(4, "little") == index[end + 1 : end + 5]


@examples(0.3)
@given(data=st.data())
def test_checkpoints_are_read_as_they_were_written_or_refused(folder: Path, data: st.DataObject) -> None:
    path = write_checkpoint(folder / "damaged.ckpt", CHECKPOINT)
    elements = folder / "damaged.ckpt.data-00000-of-00001"
    index, content = data.draw(checkpoints(path.read_bytes(), elements.read_bytes()))
    path.write_bytes(index)
    elements.write_bytes(content)
    try:
        found = read_tensorflow_checkpoint(OpenFile(path), bool)
    except WeightsError as error:
        event(f"refused: {str(error).partition(': ')[2][:30]}")
        return
    event("accepted")
    for name, array in found.items():
        # Each tensor must consist of written bytes, even if a damaged entry has a valid checksum.
        assert array.tobytes() in content
        if name in CHECKPOINT and array.dtype == CHECKPOINT[name].dtype:
            assert array.tobytes() in (CHECKPOINT[name].tobytes(), b"")


VARIABLES = {
    **tiny_variables(),
    "BoxPredictor_0/BoxEncodingPredictor/biases": np.ones(12, "f4"),
    "BoxPredictor_0/ClassPredictor/weights": np.ones((1, 1, 56, 6), "f4"),
    "BoxPredictor_0/ClassPredictor/biases": np.ones(6, "f4"),
}


@examples(0.2)
@given(data=st.data())
def test_variables_of_other_shapes_are_identified_or_refused(folder: Path, data: st.DataObject) -> None:
    changed = dict(VARIABLES)
    for _ in range(data.draw(st.sampled_from([0, 1, 1, 2]))):
        name = data.draw(st.sampled_from(sorted(changed)))
        if data.draw(st.booleans()):
            del changed[name]
        else:
            shape = data.draw(st.lists(st.integers(0, 12), max_size=5))
            changed[name] = np.ones(shape, data.draw(st.sampled_from(["f4", "i8", "?"])))
    path = folder / "changed.pb"
    path.write_bytes(graph(changed))
    try:
        tensors, record = read_tensorflow_model(OpenFile(path))
    except WeightsError as error:
        event(f"refused: {str(error).partition(' ')[2][:20]}")
        return
    event("accepted")
    assert record.description.name == "mobilenet_v1"
    assert set(tensors) >= set(changed)
