"""Randomly damaged weights files are read as the upstream libraries read them, or refused with a `WeightsError`.

By default, 500 fixed examples run. FEATURETAP_FUZZ_EXAMPLES=20000 runs that many random ones.
"""

import io
import json
import math
import os
import random
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from featuretap.registry.errors import WeightsError
from featuretap.weights.reading import read_checkpoint

# Keep Hypothesis from writing into the repository.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "featuretap-hypothesis")

ASKED = os.environ.get("FEATURETAP_FUZZ_EXAMPLES")
EXAMPLES = int(ASKED or 500)

SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
NUMBERS = (
    *("0", "1", "2", "3", "4", "7", "8", "16", "-1", "-0", "1.0", "1e2", "00", "true", "null", "NaN", "[]", '"1"'),
    *(str(2**power + more) for power in (31, 32, 61, 62, 63, 64) for more in (-1, 0, 1)),
    *(str(10**30), str(10**400), "9" * 5000, "1e308", "1e999"),
)
STRINGS = (
    *('"dtype"', '"shape"', '"data_offsets"', '"__metadata__"', '"format"', '"extra"', '""', '"a"', '"\\ud800"'),
    *('"\\u0061"', '"größe"', '"\\n"', '"\n"', "'a'", "1", "null", "{}", *(f'"{dtype}"' for dtype in SIZES)),
)
DESCRIBED = {
    "featuretap.schema": "1",
    "featuretap.version": "0.1.0",
    "featuretap.name": "mobilenet_v2",
    "featuretap.layout": "featuretap",
    "featuretap.options": "{}",
    "featuretap.taps": '["C1"]',
    "featuretap.norm_eps": '{"backbone": 1e-05}',
    "featuretap.preprocessing": '{"crop": 224, "mean": [0.5], "resize": 256, "std": [0.2]}',
    "featuretap.by_name": "true",
    "featuretap.classes": "",
    "featuretap.head": "classification",
    "featuretap.num_classes": "10",
}

Header = dict[str, Any]
File = tuple[Header, bytes]


def examples(share: float) -> settings:
    return settings(max_examples=max(1, int(EXAMPLES * share)), derandomize=ASKED is None, deadline=None, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def framed(header: str | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else header.encode(errors="surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# Valid files

names = st.sampled_from(["a", "b.weight", "stages.C1.0.conv.weight"]) | st.text(min_size=1, max_size=8)
plain_json = st.recursive(
    st.sampled_from([None, True, 0, -1, 224, 10**18, 10**400, 1e308, 1e-320, 0.5, float("nan"), "", "C1", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*"ab", "crop", "std"]), inner),
    max_leaves=4,
)


@st.composite
def described(draw: st.DrawFn) -> dict[str, str]:
    """Generate featuretap metadata with one value changed or missing."""
    key = draw(st.sampled_from(sorted(DESCRIBED)))
    text = DESCRIBED[key]
    found = list(re.finditer(r"\d[\d.e-]*", text))
    if found and draw(st.booleans()):
        place = draw(st.sampled_from(found))
        changed: str | None = text[: place.start()] + draw(st.sampled_from(NUMBERS)) + text[place.end() :]
    elif key == "featuretap.preprocessing":
        table = json.loads(text)
        changed = json.dumps({**table, draw(st.sampled_from([*table, "more"])): draw(plain_json)})
    else:
        changed = draw(st.none() | st.just(text) | plain_json.map(json.dumps) | st.text(max_size=5))
    return {known: value for known, value in (DESCRIBED | {key: changed}).items() if value is not None}


@st.composite
def sound(draw: st.DrawFn, *, of_ours: bool = True) -> File:
    """Generate a header with matching data; its featuretap metadata may be meaningless."""
    own = draw(st.lists(names.filter("__metadata__".__ne__), min_size=1, max_size=4, unique=True))
    header, end = {}, 0
    for name in draw(st.permutations(own)):
        dtype, shape = draw(st.sampled_from(sorted(SIZES))), draw(st.lists(st.integers(0, 4), max_size=3))
        begin = end
        end += SIZES[dtype] * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    metadata = st.none() | st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=3)
    said = draw(metadata | described() if of_ours else metadata)
    ordered = {name: header[name] for name in draw(st.permutations(own))}
    data = random.Random(draw(st.integers(0, 99))).randbytes(end)
    return ({} if said is None else {"__metadata__": said}) | ordered, data


@st.composite
def serialised(draw: st.DrawFn, header: Header) -> str:
    """Serialize a header to JSON with varying separators, escapes and padding."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]))
    text = json.dumps(header, ensure_ascii=draw(st.booleans()), separators=separators)
    return text + draw(st.sampled_from(" \n\t\r")) * draw(st.integers(0, 300))


@st.composite
def sound_files(draw: st.DrawFn) -> bytes:
    header, data = draw(sound(of_ours=False))
    return framed(draw(serialised(header)), data)


# Damage


@st.composite
def byte_damaged(draw: st.DrawFn, content: bytes, begin: int = 0, end: int | None = None) -> bytes:
    """Generate bytes with some flipped, inserted or deleted, or with the end truncated."""
    damaged = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        at = draw(st.integers(begin, max(begin, min(len(damaged), len(content) if end is None else end) - 1)))
        kind = draw(st.sampled_from([*["flip"] * 6, "digit", "insert", "delete", "truncate"]))
        if kind == "flip" and at < len(damaged):
            damaged[at] ^= draw(st.integers(1, 255))
        elif kind == "digit" and at < len(damaged):
            damaged[at] = draw(st.sampled_from(b'0123456789"{}[]:,aF '))
        elif kind == "insert":
            damaged[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del damaged[at : at + draw(st.integers(1, 9))]
        elif kind == "truncate":
            del damaged[at:]
    return bytes(damaged)


@st.composite
def anywhere(draw: st.DrawFn, file: File) -> bytes:
    """Damage the length field, the header or the tensor data."""
    text = draw(serialised(file[0]))
    content = framed(text, file[1])
    start = len(content) - len(file[1])
    begin, end = draw(st.sampled_from([(0, 8), (8, start), *[(start, len(content))] * 4]))
    return draw(byte_damaged(content, begin, end))


@st.composite
def in_the_text(draw: st.DrawFn, file: File) -> bytes:
    """Damage the bytes of the header and adjust the length field."""
    return framed(draw(byte_damaged(draw(serialised(file[0])).encode(errors="surrogatepass"))), file[1])


@st.composite
def unharmed(draw: st.DrawFn, file: File) -> bytes:
    """Leave the file intact; only its metadata may be invalid."""
    return framed(draw(serialised(file[0])), file[1])


@st.composite
def of_another_length(draw: st.DrawFn, file: File) -> bytes:
    content = framed(draw(serialised(file[0])), file[1])
    length = int.from_bytes(content[:8], "little")
    known = st.sampled_from([0, 1, 2, 7, 128, 99_999_999, 100_000_000, 100_000_001, 2**32, 2**63, 2**64 - 1])
    chosen = draw(st.integers(max(0, length - 20), length + 20) | known | st.integers(0, 2**64 - 1))
    return chosen.to_bytes(8, "little") + content[8:]


@st.composite
def spliced(draw: st.DrawFn, file: File) -> bytes:
    """Replace numbers and strings in the header, or duplicate parts of it, and adjust the length field."""
    text = draw(serialised(file[0]))
    for _ in range(draw(st.integers(1, 2))):
        pattern, choices = draw(
            st.sampled_from([(r"\d+", NUMBERS), (r'"[^"\\]*"', STRINGS), (r"[\[\]{},:]", "[]{},: ")])
        )
        found = list(re.finditer(pattern, text))
        if draw(st.integers(0, 4)) == 0:
            pieces = list(re.finditer(r'"[^"\\]*"\s*:\s*(\{[^{}]*\}|\[[^][]*\]|"[^"]*")', text))
            if pieces:
                piece = draw(st.sampled_from(pieces))
                text = text[: piece.end()] + "," + piece.group() + text[piece.end() :]
        elif found:
            place = draw(st.sampled_from(found))
            text = text[: place.start()] + draw(st.sampled_from(choices)) + text[place.end() :]
    return framed(text, file[1])


@st.composite
def rearranged(draw: st.DrawFn, file: File) -> bytes:
    """Keep the header well formed but swap offsets, change dtypes and shapes, or rename tensors."""
    header, data = file
    header = json.loads(json.dumps(header))
    tensors = [name for name in header if name != "__metadata__"]
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        one, other = (header[draw(st.sampled_from(tensors))] for _ in range(2))
        kind = draw(
            st.sampled_from(["offsets", "dtype", "same size", "shape", "reshape", "move", "rename", "data", "data"])
        )
        if kind == "offsets":
            one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
        elif kind == "dtype":
            one["dtype"] = draw(st.sampled_from([*sorted(SIZES), "F4", "C64", "f32"]))
        elif kind == "same size":
            one["dtype"] = draw(
                st.sampled_from([other for other, size in SIZES.items() if size == SIZES.get(one["dtype"], 4)])
            )
        elif kind == "shape":
            one["shape"] = draw(st.lists(st.integers(0, 4) | st.sampled_from([2**32, 2**62, 2**63]), max_size=3))
        elif kind == "reshape":
            one["shape"] = draw(st.sampled_from([one["shape"][::-1], [1, *one["shape"], 1], [math.prod(one["shape"])]]))
        elif kind == "move":
            by = draw(st.integers(-8, 8))
            one["data_offsets"] = [abs(offset + by) for offset in one["data_offsets"]]
        elif kind == "rename":
            old = draw(st.sampled_from(tensors))
            header[draw(names)] = header.pop(old)
            tensors = [name for name in header if name != "__metadata__"]
            if not tensors:
                break
        else:
            data = bytes(byte ^ draw(st.integers(0, 255)) for byte in data[:3]) + data[3:]
    return framed(draw(serialised(header)), data)


BEGINNINGS = [b"PK\x03\x04", b"\x80\x02", b"<html>", b"\x89HDF", b"version https://git-lfs", b" " * 8]
random_bytes = (
    st.binary(max_size=300)
    | st.binary(max_size=300).map(lambda text: framed(b"{" + text, b""))
    | st.tuples(st.sampled_from(BEGINNINGS), st.binary()).map(b"".join)
)

Damage = Callable[[File], st.SearchStrategy[bytes]]
KINDS: tuple[Damage, ...] = (
    *(unharmed, unharmed, anywhere, anywhere, in_the_text, of_another_length),
    *(spliced, spliced, rearranged, rearranged, rearranged),
)
# About one file in twelve consists of random bytes.
damaged_files = st.sampled_from([None, *KINDS]).flatmap(lambda kind: sound().flatmap(kind) if kind else random_bytes)


def check_equal_to_upstream(path: Path) -> None:
    found, expected = read_checkpoint(path).tensors, safetensors.torch.load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)


REFUSALS = (
    "is not a weights file that can be read safely",
    "is not a weights file: it is",
    "is not a valid safetensors file: in its header",
    "is not a valid safetensors file",
    "is not a complete weights file",
    "is not a valid weights file",
    "was written by featuretap",
    "contains ",
)


def refusal(error: WeightsError, path: Path) -> str:
    """Return the beginning of an error message, which identifies the check that refused the file."""
    said = str(error).removeprefix(f"'{path}' ")
    return "refused: " + next((beginning for beginning in REFUSALS if said.startswith(beginning)), said)


@examples(0.2)
@given(content=sound_files())
def test_sound_files_are_read_as_upstream_reads_them(folder: Path, content: bytes) -> None:
    path = folder / "sound.safetensors"
    path.write_bytes(content)
    check_equal_to_upstream(path)


@examples(0.6)
@given(content=damaged_files)
def test_damaged_files_are_read_as_upstream_reads_them_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "damaged.safetensors"
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except WeightsError as error:
        event(refusal(error, path))
        return
    event("accepted")
    check_equal_to_upstream(path)


# Pickles


@st.composite
def pickled(draw: st.DrawFn) -> bytes:
    """Generate a state dict in either of torch.save's formats."""
    dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
    state = {
        name: torch.arange(torch.Size(shape).numel()).reshape(shape).to(draw(dtypes))
        for name, shape in draw(
            st.dictionaries(names, st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=3)
        ).items()
    }
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=draw(st.booleans()))
    return buffer.getvalue()


@st.composite
def damaged_pickles(draw: st.DrawFn) -> bytes:
    """Generate torch.save files with damage in the file, or in an archive member whose checksum is recomputed."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    content = draw(pickled())
    if not content.startswith(b"PK") or draw(st.booleans()):
        return draw(byte_damaged(content))
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        inside = before.namelist()
        chosen = draw(st.sampled_from([*[name for name in inside if name.endswith("data.pkl")] * 2, *inside]))
        for name in inside:
            kept = before.read(name)
            after.writestr(name, draw(byte_damaged(kept)) if name == chosen else kept)
    return buffer.getvalue()


# A PyTorch warning raised as an error would count as a refusal.
@pytest.mark.filterwarnings("ignore")
@examples(0.2)
@given(content=damaged_pickles())
def test_damaged_pickles_are_read_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "damaged.pth"
    path.write_bytes(content)
    try:
        tensors = read_checkpoint(path).tensors
    except WeightsError as error:
        event(refusal(error, path))
        return
    event("accepted")
    for name, tensor in tensors.items():
        assert isinstance(name, str)
        # Damaged strides can expand a few bytes to terabytes.
        if tensor.numel() < 10**6:
            tensor.clone()
