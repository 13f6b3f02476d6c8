"""TensorFlow files that are damaged, hostile or of an unsupported model are each refused in one line."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.tensorflow_files import (
    block,
    constant,
    field,
    graph,
    masked_crc32c,
    node,
    shape_message,
    table,
    tensor_message,
    write_checkpoint,
)
from support.tensorflow_models import tiny_variables

from featuretap.registry import Registry
from featuretap.registry.errors import FeaturetapError, WeightsError
from featuretap.weights import tensorflow_messages
from featuretap.weights.checksums import crc32c

NAME = "MobilenetV1/Conv2d_0/weights"
KERNEL = np.zeros((3, 3, 3, 32), "f4")
HUGE = shape_message([2**20, 2**20])

AGAIN = "; get it again from its source"


OTHERS = tiny_variables()


def stored(*fields: bytes) -> bytes:
    return node(NAME, "Const", value=field(8, b"".join(fields)))


GRAPHS: dict[str, tuple[bytes, str]] = {
    "text": (b"node { name: 'x' }", "it is not a graph, or is incomplete"),
    "a part": (graph({NAME: KERNEL})[:-1], "it is not a graph, or is incomplete"),
    "an endless number": (b"\xff" * 20, "it is not a graph, or is incomplete"),
    "a number beyond 64 bits": (b"\x08" + b"\xff" * 9 + b"\x02", "it is not a graph, or is incomplete"),
    "a field beyond all": (b"\x88\x80\x80\x80\x10\x00", "it is not a graph, or is incomplete"),
    "a node that is none": (field(1, b"\x0a\xff"), "it has a damaged Node message"),
    "two nodes of one name": (constant("a", KERNEL) * 2, "two nodes are named 'a'"),
    "too few bytes": (
        stored(field(1, 1), field(2, shape_message([3, 3])), field(4, b"1234")),
        "a tensor of shape (3, 3) has 4 bytes",
    ),
    "too many values": (
        stored(field(1, 1), field(2, shape_message([1])), field(5, 1.0), field(5, 2.0)),
        "a tensor of shape (1,) has 2 values",
    ),
    "one value for a terabyte": (
        stored(field(1, 1), field(2, HUGE), field(5, 1.0)),
        "a tensor of shape (1048576, 1048576) has 1 values",
    ),
    "a negative size": (stored(field(1, 1), field(2, shape_message([-1, 3]))), "a tensor has no valid shape"),
    "an unknown rank": (stored(field(1, 1), field(2, field(3, 1))), "a tensor has no valid shape"),
    "a size beyond all memory": (
        stored(field(1, 1), field(2, shape_message([0, 2**40, 2**40]))),
        "a tensor has no valid shape",
    ),
    "a value beyond its type": (
        stored(field(1, 4), field(2, shape_message([1])), field(7, 300)),
        "a tensor has a value that is out of range",
    ),
    "a kernel of two dimensions": (
        constant(NAME, np.zeros((3, 3), "f4")),
        f"{NAME} is (3, 3), not the kernel of a convolution",
    ),
    "a million empty attributes": (
        field(1, field(1, "a") + b"\x2a\x00" * 600_000),
        "it has a large message that is not a tensor",
    ),
    "a large name": (field(1, field(1, "a" * 2**21)), "it has a large message that is not a tensor"),
    "predictors without boxes": (
        graph({"BoxPredictor_0/ClassPredictor/biases": np.zeros(6, "f4")}),
        "BoxPredictor_0 does not predict four values per box",
    ),
    "predictors without classes": (
        graph(
            {
                "BoxPredictor_0/BoxEncodingPredictor/biases": np.zeros(12, "f4"),
                "BoxPredictor_0/ClassPredictor/biases": np.zeros((), "f4"),
            }
        ),
        "BoxPredictor_0/ClassPredictor/biases is (), which does not fit 3 boxes per position",
    ),
    "predictors without kernels": (
        graph(
            {
                **OTHERS,
                "BoxPredictor_0/BoxEncodingPredictor/biases": np.zeros(12, "f4"),
                "BoxPredictor_0/ClassPredictor/biases": np.zeros(6, "f4"),
            }
        ),
        "its first predictor has no classes",
    ),
    "predictors for other boxes": (
        graph(
            {
                "BoxPredictor_0/BoxEncodingPredictor/biases": np.zeros(12, "f4"),
                "BoxPredictor_0/ClassPredictor/biases": np.zeros(7, "f4"),
            }
        ),
        "BoxPredictor_0/ClassPredictor/biases is (7,), which does not fit 3 boxes per position",
    ),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_malformed_graphs_are_refused_in_one_line(registry: Registry, tmp_path: Path, kind: str) -> None:
    content, problem = GRAPHS[kind]
    path = tmp_path / "frozen.pb"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as refusal:
        registry.load(path)
    assert str(refusal.value) == f"{str(path)!r} is not a valid TensorFlow file: {problem}{AGAIN}"


def test_graphs_of_more_nodes_than_any_model_has_are_refused(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featuretap.weights.tensorflow_graphs.MOST_NODES", 2)
    (tmp_path / "frozen.pb").write_bytes(b"".join(node(name, "NoOp") for name in "abc"))
    with pytest.raises(WeightsError, match="it has too many nodes; get it again"):
        registry.load(tmp_path / "frozen.pb")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            constant("resnet/weights", KERNEL),
            "does not contain a MobileNet of TF-slim or of TensorFlow's Object Detection API; use a file with names "
            "such as MobilenetV2/Conv/weights",
        ),
        (
            constant(NAME, KERNEL),
            "contains a MobilenetV1 that matches no backbone of any width; use a file of TF-slim's "
            "MobilenetV1, MobilenetV2, MobilenetV3",
        ),
        (
            graph({NAME: KERNEL}, *(node(f"n{e}", "FusedBatchNorm", epsilon=field(4, e)) for e in (0.5, 0.25))),
            "has batch norms with 2 epsilons, which is not supported; use a graph with one",
        ),
    ],
)
def test_other_models_are_refused(registry: Registry, tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "frozen.pb"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as refusal:
        registry.load(path)
    assert str(refusal.value) == f"{str(path)!r} {problem}"


@pytest.mark.parametrize("name", ["frozen.pb", "model.ckpt.index"])
def test_files_that_do_not_exist_are_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError) as refusal:
        registry.load(tmp_path / name)
    assert str(refusal.value) == f"cannot read the weights '{tmp_path / name}': No such file or directory"


def header(**changes: int) -> bytes:
    values = {"num_shards": 1, "endianness": 0, **changes}
    return field(1, values["num_shards"]) + field(2, values["endianness"])


def entry(**changes: int) -> bytes:
    values = {"dtype": 1, "shard": 0, "offset": 0, "size": 8, **changes}
    numbers = {1: "dtype", 3: "shard", 4: "offset", 5: "size"}
    return b"".join(field(n, values[key]) for n, key in numbers.items()) + field(2, shape_message([2]))


INDICES: dict[str, tuple[bytes, str]] = {
    "another file": (b"#" * 99, "it is not the index of a checkpoint"),
    "a block beyond the end": (
        table({})[:-48] + b"\xff\x01" * 4 + bytes(32) + table({})[-8:],
        "it has a block after its end",
    ),
    "a damaged number": (table({})[:-48] + b"\xff" * 40 + table({})[-8:], "it has a damaged number"),
    "no header": (table({b"a": entry()}), "it has 0 shards, or they are big-endian"),
    "too many files": (
        table({b"": header(num_shards=10**6)}),
        "it has 1000000 shards, or they are big-endian",
    ),
    "big-endian elements": (
        table({b"": header(endianness=1)}),
        "it has 1 shards, or they are big-endian",
    ),
    "a header that is none": (table({b"": b"\x08"}), "it has a damaged BundleHeader message"),
    "elements in no file": (
        table({b"": header(), NAME.encode(): entry(shard=1)}),
        f"{NAME} is in a shard that does not exist",
    ),
    "elements beyond the end": (
        table({b"": header(), NAME.encode(): entry(offset=4)}),
        "a tensor of shape (2,) has 4 bytes",
    ),
    "elements before the beginning": (
        table({b"": header(), NAME.encode(): entry(offset=-4)}),
        "a tensor of shape (2,) has 0 bytes",
    ),
    "a wrong checksum": (table({b"": header(), NAME.encode(): entry()}), f"the checksum of {NAME} is wrong"),
    "a long entry": (
        table({b"": header(), NAME.encode(): entry() + bytes(20_000 - len(entry()))}),
        f"{NAME} has an entry of 20,000 bytes",
    ),
}


@pytest.mark.parametrize("kind", INDICES)
def test_malformed_checkpoints_are_refused_in_one_line(registry: Registry, tmp_path: Path, kind: str) -> None:
    content, problem = INDICES[kind]
    path = tmp_path / "model.ckpt.index"
    path.write_bytes(content)
    path.with_name("model.ckpt.data-00000-of-00001").write_bytes(bytes(8))
    with pytest.raises(WeightsError) as refusal:
        registry.load(path)
    assert str(refusal.value) == f"{str(path)!r} is not a valid TensorFlow file: {problem}{AGAIN}"


def test_a_damaged_block_does_not_have_its_checksum(registry: Registry, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model.ckpt", {NAME: KERNEL})
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="the checksum of a block is wrong"):
        registry.load(path)


@pytest.mark.parametrize(
    ("inner", "problem"),
    [
        (b"\x05\x01\x00a" + struct.pack("<II", 0, 1), "it has a damaged block"),
        (b"\x00\x09\x00a" + struct.pack("<II", 0, 1), "it has a damaged block"),
        (b"", "it has a damaged block"),
        (struct.pack("<I", 99), "it has a damaged block"),
        (b"\x00\x01\x00a" * 2 + struct.pack("<II", 0, 1), "its keys are inconsistent"),
    ],
)
def test_blocks_that_contradict_themselves_are_refused(
    registry: Registry, tmp_path: Path, inner: bytes, problem: str
) -> None:
    def framed(block: bytes) -> bytes:
        return block + b"\0" + struct.pack("<I", masked_crc32c(block + b"\0"))

    content, places = framed(inner), bytes([0, len(inner)])
    index = block([(b"", places)])
    # The position of the metadata block is not read.
    footer = bytes([0, 0, len(content), len(index)]).ljust(40, b"\0") + table({})[-8:]
    path = tmp_path / "model.ckpt.index"
    path.write_bytes(content + framed(index) + footer)
    with pytest.raises(WeightsError, match=problem):
        registry.load(path)


def test_compressed_indices_are_refused(registry: Registry, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model.ckpt", {NAME: KERNEL}, compression=1)
    with pytest.raises(WeightsError) as refusal:
        registry.load(path)
    assert str(refusal.value) == (
        f"{str(path)!r} is a compressed index of a checkpoint, which is not supported; save the checkpoint again with "
        "tf.train.Saver, which does not compress the index"
    )


def test_partitioned_variables_are_refused(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt.index"
    path.write_bytes(table({b"": header(), NAME.encode(): entry() + field(7, b"")}))
    with pytest.raises(WeightsError) as refusal:
        registry.load(path)
    assert str(refusal.value) == (
        f"{str(path)!r} stores {NAME} in slices, which are not supported; save the checkpoint again without "
        "partitioned variables"
    )


def test_a_missing_file_of_elements_is_named(registry: Registry, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model.ckpt", {NAME: KERNEL})
    missing = tmp_path / "model.ckpt.data-00000-of-00001"
    missing.unlink()
    with pytest.raises(WeightsError) as refusal:
        registry.load(path)
    assert str(refusal.value) == f"cannot read the weights {str(missing)!r}: No such file or directory"


def test_without_protobuf_the_error_names_the_extra(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frozen.pb").write_bytes(constant(NAME, KERNEL))
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    tensorflow_messages._messages.cache_clear()
    with pytest.raises(FeaturetapError) as refusal:
        registry.load(tmp_path / "frozen.pb")
    assert str(refusal.value) == ("reading TensorFlow files needs protobuf; run pip install 'featuretap[tensorflow]'")


def test_checksums_are_those_of_the_standard() -> None:
    """Check against RFC 3720, appendix B.4, and on content in several pieces."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0
    chance = np.random.default_rng(0).bytes(20_001)
    state = 0xFFFFFFFF
    for octet in chance:
        state ^= octet
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c(chance) == state ^ 0xFFFFFFFF


MEASURE = """
import sys
from pathlib import Path
from featuretap.weights.open_file import OpenFile
from featuretap.weights.tensorflow_checkpoints import read_tensorflow_checkpoint
from featuretap.weights.tensorflow_graphs import read_graph
from featuretap.weights.tensorflow_variables import as_pytorch

def read(path):
    file = OpenFile(path)
    arrays = read_graph(file).constants if path.suffix == ".pb" else read_tensorflow_checkpoint(file, bool)
    return as_pytorch(path, arrays, 1e-3)

def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))

read(Path(sys.argv[1]))
before = most()
read(Path(sys.argv[2]))
print((most() - before) * 1024)
assert "torch" not in sys.modules
"""


def as_graph(path: Path, values: np.ndarray) -> Path:
    path = path.with_suffix(".pb")
    path.write_bytes(graph({NAME: values}))
    return path


@pytest.mark.parametrize("write", [as_graph, lambda path, values: write_checkpoint(path, {NAME: values})])
def test_reading_takes_at_most_three_times_the_file_and_no_torch(
    tmp_path: Path, write: Callable[[Path, np.ndarray], Path]
) -> None:
    size = 12_000_000
    large = write(tmp_path / "large", np.ones((1, 1, 1000, size // 4000), "f4"))
    small = write(tmp_path / "small", KERNEL)
    printed = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large], capture_output=True, text=True, check=True
    ).stdout
    assert size <= int(printed) <= 3 * size


def test_tensors_of_every_type_are_read(tmp_path: Path) -> None:
    from featuretap.weights.open_file import OpenFile
    from featuretap.weights.tensorflow_graphs import read_graph

    generator = np.random.default_rng(0)
    arrays = {kind: (99 * generator.random((2, 3))).astype(kind) for kind in ("f2", "f4", "f8", "i1", "i4", "i8", "u1")}
    path = tmp_path / "types.pb"
    text = node("text", "Const", value=field(8, field(1, 7) + field(8, "words")))
    bits = field(1, 14) + field(2, shape_message([2])) + field(4, struct.pack("<HH", 0x3FC0, 0xC000))
    half = field(1, 19) + field(2, shape_message([3])) + field(13, 0x3E00)
    one = field(1, 9) + field(2, b"") + field(10, -5)
    more = {"bfloat16": bits, "half": half, "one": one, "all": tensor_message(np.array([True, False]))}
    path.write_bytes(graph(arrays, text, *(node(name, "Const", value=field(8, inner)) for name, inner in more.items())))
    found = read_graph(OpenFile(path)).constants
    assert set(found) == {*arrays, *more}
    for kind, array in arrays.items():
        assert found[kind].dtype == array.dtype
        assert np.array_equal(found[kind], array)
    assert found["bfloat16"].tolist() == [1.5, -2.0]
    assert found["half"].tolist() == [1.5, 1.5, 1.5]
    assert found["one"].tolist() == -5
    assert found["all"].tolist() == [True, False]
