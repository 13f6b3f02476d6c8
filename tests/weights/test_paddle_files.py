"""PaddlePaddle's `.pdparams` files are read by name, without unpickling and with bounded memory."""

import os
import pickle
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.paddle_models import NAME_TABLE, pdparams
from support.weights_files import refusal

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.weights.open_file import OpenFile
from featuretap.weights.paddle_files import read_paddle
from featuretap.weights.reading import read_checkpoint

PROTOCOLS = [2, 3, 4]

ARRAYS: dict[str, NDArray[Any]] = {
    "conv.conv.weight": np.arange(60, dtype=np.float32).reshape(4, 5, 3),
    "conv.bn._mean": np.linspace(-1, 1, 7),
    "fc.weight": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
    "flags": np.array([True, False]),
    "scalar": np.array(3, dtype=np.int64),
    "octets": np.arange(256, dtype=np.uint8),
    "large": np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8),
}

MALFORMED = "is not a file of paddle.save with NumPy arrays: {}; save it again with " + (
    "paddle.save(model.state_dict(), path)"
)


def assert_same_arrays(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_arrays_are_read_bit_for_bit(tmp_path: Path, protocol: int, kind: type[dict[str, object]]) -> None:
    path = tmp_path / "file.pdparams"
    path.write_bytes(pickle.dumps(kind(ARRAYS), protocol))
    assert_same_arrays(read_paddle(OpenFile(path)), ARRAYS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_table_of_names_inside_paddle_is_ignored(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "file.pdparams"
    path.write_bytes(pdparams(ARRAYS, protocol))
    assert NAME_TABLE in pickle.loads(path.read_bytes())
    assert_same_arrays(read_paddle(OpenFile(path)), ARRAYS)


@pytest.mark.parametrize("protocol", [2, 3])
def test_files_written_with_numpy_1_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "file.pdparams"
    content = pdparams(ARRAYS, protocol)
    older = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    # Older versions pickled the arguments of dtype as integers instead of booleans.
    oldest = older.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    assert content != older != oldest
    path.write_bytes(older)
    assert_same_arrays(read_paddle(OpenFile(path)), ARRAYS)
    path.write_bytes(oldest)
    assert_same_arrays(read_paddle(OpenFile(path)), ARRAYS)


def test_tensors_are_pytorchs_or_numpy_arrays(tmp_path: Path) -> None:
    path = tmp_path / "file.pdparams"
    path.write_bytes(pdparams(ARRAYS))
    assert_same_arrays(dict(read_checkpoint(path, framework="np").tensors), ARRAYS)
    for name, tensor in read_checkpoint(path).tensors.items():
        assert torch.equal(tensor, torch.from_numpy(ARRAYS[name].copy()))


def test_a_file_stays_as_it_is_when_its_tensors_are_written_to(tmp_path: Path) -> None:
    path = tmp_path / "file.pdparams"
    path.write_bytes(pdparams(ARRAYS))
    before = path.read_bytes()
    for array in read_paddle(OpenFile(path)).values():
        array[...] = 0
    assert path.read_bytes() == before


class Calls:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrap", [lambda call: call, lambda call: {**ARRAYS, "more": call}], ids=["alone", "inside"])
def test_code_in_a_file_is_not_run(
    registry: Registry, tmp_path: Path, protocol: int, wrap: Callable[[object], object]
) -> None:
    path = tmp_path / "file.pdparams"
    content = pickle.dumps(wrap(Calls(tmp_path / "ran")), protocol)
    path.write_bytes(content)
    assert refusal(registry, path) == MALFORMED.format("it refers to 'posix.mkdir', which is code that is not run")
    assert not (tmp_path / "ran").exists()
    # Python's unpickler does run the code.
    pickle.loads(content)
    assert (tmp_path / "ran").exists()


EMPTY_ARRAY = pickle.dumps({"a": np.zeros(2, dtype=np.float32)}, 4)
LITTLE_ENDIAN = b"\x8c\x01<"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (EMPTY_ARRAY[:-1], "it is cut off"),
        (pickle.dumps(ARRAYS, 3)[:40], "it is cut off"),
        (b"\x80\x04\x95" + b"\xff" * 8, "it is cut off"),
        (b"\x80\x02cnumpy", "it is cut off"),
        (b"\x80\x02B\xff\xff\xff\xff.", "it is cut off"),
        (EMPTY_ARRAY + b".", "it has data after its end"),
        (b"\x80\x02}}.", "it has data after its end"),
        (b"\x80\x02.", "an opcode has no operands"),
        (b"\x80\x02h\x00.", "an opcode has no operands"),
        (b"\x80\x02(.", "an opcode has no operands"),
        (b"\x80\x02Kt\x85t.", "an opcode has no operands"),
        (pickle.dumps(ARRAYS, 0), "it has the pickle opcode b'd', which arrays, dictionaries and strings do not need"),
        (pickle.dumps(ARRAYS, 5), "it has pickle protocol 5, but Paddle uses 2 to 4"),
        (pickle.dumps({}, 4), "it does not contain an array"),
        (pickle.dumps({NAME_TABLE: {}}, 4), "it does not contain an array"),
        (pickle.dumps(np.zeros(2), 4), "it contains an array instead of a dictionary"),
        (pickle.dumps("text", 4), "it contains a string instead of a dictionary"),
        (pickle.dumps((1, 2), 4), "it contains something else instead of a dictionary"),
        (pickle.dumps({"a": None}, 4), "the key 'a' has None instead of an array"),
        (pickle.dumps({"a": {"b": np.zeros(2)}}, 4), "the key 'a' has a dictionary instead of an array"),
        (pickle.dumps({"a": b"bytes"}, 4), "the key 'a' has bytes instead of an array"),
        (pickle.dumps({1: np.zeros(2)}, 4), "it has items outside a dictionary, or with keys that are not strings"),
        (b"\x80\x02}K\x01K\x02s.", "it has items outside a dictionary, or with keys that are not strings"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "it has a string that is not UTF-8"),
        (
            pickle.dumps({"a": np.float32(1)}, 4),
            "it refers to 'numpy._core.multiarray.scalar', which is code that is not run",
        ),
        (pickle.dumps({"a": np.array([{}])}, 4), "it has a call that does not create an array"),
        (pickle.dumps({"a": np.zeros(2, complex)}, 4), "it has a call that does not create an array"),
        (pickle.dumps({"a": np.zeros(2, ">f4")}, 4), "it has a dtype in another byte order than little endian"),
        (EMPTY_ARRAY.replace(b"K\x01K\x02\x85", b"K\x02K\x02\x85"), "it has an array or a dtype with an unknown state"),
        (
            EMPTY_ARRAY.replace(b"K\x01K\x02\x85", b"K\x01K\x03\x85"),
            "it has an array of shape (3,) with a wrong number of values",
        ),
        (
            EMPTY_ARRAY.replace(b"K\x01K\x02\x85", b"M\x01\x00N\x85"),
            "it has an array whose shape is not a tuple of sizes",
        ),
        (b"\x80\x02}r\xff\xff\xff\xff.", "its memo has more than 100,000 values"),
        (b"\x80\x02" + b"}" * 100_001, "it has more than 100,000 pickle opcodes"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_other_pickles_and_damaged_files_are_refused(
    registry: Registry, tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "file.pdparams"
    path.write_bytes(content)
    assert refusal(registry, path) == MALFORMED.format(problem)


@pytest.mark.parametrize("name", ["no file", "folder.pdparams"])
def test_a_path_that_cannot_be_read_is_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name.removesuffix('.pdparams')}.pdparams"
    with pytest.raises(Exception, match=f"cannot read the weights '{path}': No such file or directory"):
        registry.load(path)


def dense(size: int) -> bytes:
    """Return random bytes, half of which take two bytes in UTF-8."""
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()


def texts(count: int, text: bytes) -> bytes:
    return b"\x80\x02" + (b"X" + len(text).to_bytes(4, "little") + text) * count


SIZE = 8_000_000

HOSTILE = {
    "dictionaries": b"\x80\x02" + b"}" * SIZE,
    "wide text": b"\x80\x02c_codecs\nencode\n"
    + texts(1, b"a" * SIZE + "😀".encode())[2:]
    + b"X\x06\x00\x00\x00latin1\x86R",
    "short texts": texts(SIZE // 6, b"a"),
    "names of a thousand bytes": texts(SIZE // 1000, b"a" * 1000),
    "a tuple of everything": b"\x80\x02(" + b"N" * 90_000 + b"t" + b"h\x00" * SIZE,
    "repeated arrays": b"\x80\x02(" + b"B" + SIZE.to_bytes(4, "little") + bytes(SIZE) + b"q\x01" + b"h\x01" * 90_000,
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reading_takes_at_most_three_times_the_files_size_of_memory(tmp_path: Path, protocol: int) -> None:
    content = pdparams({f"{n}": np.frombuffer(dense(SIZE // 8), np.float32) for n in range(8)}, protocol)
    assert peak_of_reading(tmp_path / "file.pdparams", content) < 2 * len(content)


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_takes_no_more(tmp_path: Path, content: bytes) -> None:
    assert peak_of_reading(tmp_path / "file.pdparams", content) < 2 * len(content)


def peak_of_reading(path: Path, content: bytes) -> int:
    """Return the peak memory allocated by reading, not counting the mapped file."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        arrays: object = read_paddle(OpenFile(path))
    except WeightsError:
        arrays = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    del arrays
    return peak
