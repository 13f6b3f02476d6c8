"""Randomly damaged PaddlePaddle files are read as Python's unpickler reads them, or refused with a `WeightsError`.

By default, 300 fixed examples run. FEATURETAP_FUZZ_EXAMPLES=20000 runs that many random ones.
"""

import io
import os
import pickle
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from support.damage import damaged
from support.paddle_models import NAME_TABLE

from featuretap.registry.errors import WeightsError
from featuretap.weights.open_file import OpenFile
from featuretap.weights.paddle_files import GLOBALS, read_paddle

# Keep Hypothesis from writing into the repository.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "featuretap-hypothesis")

ASKED = os.environ.get("FEATURETAP_FUZZ_EXAMPLES")
EXAMPLES = int(ASKED or 300)

OPCODES = [bytes([code]) for code in (*b"(}).NKMJXCBtqrhjsucRb0125eal]", 0x80, *range(0x85, 0x8B), *range(0x8C, 0x98))]
PIECES = [
    *(b"\x8c\x05numpy\x8c\x05dtype\x93", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n)R", b"cos\nmkdir\n"),
    *(b"\x8c\x02f4\x89\x88\x87R", b"K\x01K\x02\x85", b"(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"),
    *(b"h\x00", b"h\x01", b"q\x00", b"\x94", b"\xff\xff\xff\xff", b"\x00" * 4, b"0", b"2", b"1"),
]


class Reference(pickle.Unpickler):
    """Python's unpickler, restricted to the globals that arrays and dictionaries need."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


@st.composite
def sound(draw: st.DrawFn) -> bytes:
    dtypes = st.sampled_from(["f4", "f4", "f4", "f2", "f8", "i8", "i4", "u1", "?"])
    names = st.sampled_from(["conv.conv.weight", "fc.bias", "a", "é", "n" * 1001])
    state: dict[str, object] = {}
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        count = int(np.prod(shape, dtype=int))
        values = np.frombuffer(draw(st.binary(min_size=8 * count, max_size=8 * count)), np.uint8)
        array = values.astype(draw(dtypes))[:count].reshape(shape)
        state[name] = np.asfortranarray(array) if draw(st.booleans()) else array
    if draw(st.booleans()):
        state[NAME_TABLE] = dict.fromkeys(state, "conv2d_0.w_0")
    kind = draw(st.sampled_from([dict, dict, OrderedDict]))
    return pickle.dumps(kind(state), draw(st.sampled_from([2, 3, 4])))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Generate damaged files, and sometimes a few random bytes."""
    if draw(st.integers(0, 29)) == 0:
        return draw(st.binary(max_size=100))
    return draw(damaged(draw(sound()), OPCODES, PIECES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@settings(max_examples=EXAMPLES, derandomize=ASKED is None, deadline=None, database=None)
@given(content=files())
def test_damaged_files_are_read_as_pythons_unpickler_reads_them_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "damaged.pdparams"
    path.write_bytes(content)
    try:
        arrays = read_paddle(OpenFile(path))
    except WeightsError as error:
        event("refused: " + str(error).split(": ", 1)[1][:20])
        return
    event("accepted")
    expected = Reference(io.BytesIO(content)).load()
    expected.pop(NAME_TABLE, None)
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()
