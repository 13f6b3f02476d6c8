"""Files that are no sound weights: each is refused in one sentence, and nothing in it is run."""

import io
import json
import os
import pickle
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.registry.weights.reading import Checkpoint, read

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}
DATA = bytes(range(16))
DEEP = 100_000

NO_WEIGHTS = "is no file of weights: it is {}"
NOT_SOUND = "is no sound safetensors file: in its header, {}; get it again from where it comes from"
NOT_WHOLE = "is no whole file of weights: its tensors have {} bytes, and {} are there; download or save it again"
NOT_SAFE = (
    "is no file of weights that can be read safely; give a .safetensors file, or a .pth file that holds a state dict"
)
PICKLE = "a pickle, as old versions of torch.save wrote; rename it to .pth to have it read without running code"
ZIP = "a zip archive, as torch.save writes; rename it to .pth to have it read without running code"
WEB_PAGE = "a web page, perhaps the error page of a failed download; download it again"


def framed(header: object, data: bytes = DATA, length: int | None = None) -> bytes:
    """A safetensors file; headers that are no bytes are written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def refusal(registry: Registry, path: Path) -> str:
    """What `read` and `load` say of a file, without its path."""
    with pytest.raises(WeightsError) as error:
        read(path)
    with pytest.raises(WeightsError) as again:
        registry.load(path)
    assert type(error.value) is WeightsError
    assert str(error.value) == str(again.value)
    assert str(error.value).startswith(f"'{path}' ")
    return str(error.value).removeprefix(f"'{path}' ")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def torch_saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


SOUND = framed({"a": A, "b": B})
HEADER = len(SOUND) - len(DATA)


def test_the_file_that_the_malformed_ones_are_made_of_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(SOUND)
    assert read(path).shapes == {"a": (2,), "b": ()}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param(b"", "empty; download or save it again", id="empty"),
        pytest.param(b"\x08", "cut off after 1 bytes; download or save it again", id="1 byte"),
        pytest.param(bytes(7), "cut off after 7 bytes; download or save it again", id="7 bytes"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14214848\n",
            "a git-lfs pointer in place of the file; run 'git lfs pull' where it comes from",
            id="git-lfs",
        ),
        pytest.param(b"<html><body>404</body></html>", WEB_PAGE, id="html"),
        pytest.param(b"<html>", WEB_PAGE, id="html of 6 bytes"),
        pytest.param(b"\r\n\t <HTML lang='en'>not found</HTML>", WEB_PAGE, id="white space and html"),
        pytest.param(b"<!DOCTYPE html><html></html>", WEB_PAGE, id="doctype"),
        pytest.param(b"\n<!doctype html>\n<html></html>", WEB_PAGE, id="white space and doctype"),
        pytest.param(b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', WEB_PAGE, id="xml"),
        pytest.param(torch_saved({"a": torch.zeros(2)}), ZIP, id="torch.save"),
        pytest.param(b"PK\x03\x04", ZIP, id="zip of 4 bytes"),
        pytest.param(torch_saved({"a": torch.zeros(2)}, legacy=True), PICKLE, id="legacy torch.save"),
        pytest.param(pickle.dumps({"a": 1}, protocol=2), PICKLE, id="pickle 2"),
        pytest.param(pickle.dumps({"a": 1}, protocol=4), PICKLE, id="pickle 4"),
        pytest.param(
            b"\x89HDF\r\n\x1a\n" + bytes(88), "an HDF5 file; export its tensors with safetensors first", id="hdf5"
        ),
        pytest.param(
            b'{"a": [1, 2, 3]}',
            "no safetensors file (its header would have 3,556,471,764,796,121,723 bytes); check where it comes from",
            id="json",
        ),
    ],
)
def test_other_kinds_of_files_are_named(registry: Registry, tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    assert refusal(registry, path) == NO_WEIGHTS.format(kind)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (4, NO_WEIGHTS.format("cut off after 4 bytes; download or save it again")),
        (8, NO_WEIGHTS.format("cut off inside its header (130 bytes, of which 8 are there); download it again")),
        (9, NO_WEIGHTS.format("cut off inside its header (130 bytes, of which 9 are there); download it again")),
        (70, NO_WEIGHTS.format("cut off inside its header (130 bytes, of which 70 are there); download it again")),
        (129, NO_WEIGHTS.format("cut off inside its header (130 bytes, of which 129 are there); download it again")),
        (130, NOT_WHOLE.format(16, 0)),
        (131, NOT_WHOLE.format(16, 1)),
        (138, NOT_WHOLE.format(16, 8)),
        (145, NOT_WHOLE.format(16, 15)),
    ],
)
def test_a_file_that_is_cut_off_says_how_much_is_there(
    registry: Registry, tmp_path: Path, end: int, message: str
) -> None:
    assert (HEADER, len(SOUND)) == (130, 146)
    path = tmp_path / "file.safetensors"
    path.write_bytes(SOUND[:end])
    assert refusal(registry, path) == message


def test_no_beginning_of_a_file_is_taken_for_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    for end in range(len(SOUND)):
        path.write_bytes(SOUND[:end])
        with pytest.raises(WeightsError):
            read(path)


@pytest.mark.parametrize(
    ("length", "kind"),
    [
        (2**64 - 1, "no safetensors file (its header would have 18,446,744,073,709,551,615 bytes); check where"),
        (2**63, "no safetensors file (its header would have 9,223,372,036,854,775,808 bytes); check where"),
        (2**63 - 1, "no safetensors file (its header would have 9,223,372,036,854,775,807 bytes); check where"),
        (100_000_001, "no safetensors file (its header would have 100,000,001 bytes); check where"),
        (100_000_000, "cut off inside its header (100,000,008 bytes, of which 146 are there); download"),
        (139, "cut off inside its header (147 bytes, of which 146 are there); download"),
    ],
)
def test_a_header_that_is_too_long_is_not_read(registry: Registry, tmp_path: Path, length: int, kind: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + SOUND[8:])
    end = " it comes from" if kind.endswith("where") else " it again"
    assert refusal(registry, path) == NO_WEIGHTS.format(kind + end)


def entry(**changes: object) -> dict[str, object]:
    """The entry of a tensor with some fields changed; those that are None are left out."""
    return {key: value for key, value in {**A, **changes}.items() if value is not None}


def literal(**changes: str) -> bytes:
    """A header with one tensor, its fields written as they are given."""
    fields = {"dtype": '"F32"', "shape": "[2]", "data_offsets": "[0, 8]"} | changes
    return ('{"a": {' + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}}").encode()


FIELDS = "the tensor 'a' should have dtype, shape and data_offsets, and nothing else"
METADATA = "its metadata is not text by key"
NUMBER = "it has the number {}, where sizes and offsets are"


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        # The text.
        (b"", "it does not begin with '{'"),
        (b" " + json.dumps({"a": A}).encode(), "it does not begin with '{'"),
        (b"\n" + json.dumps({"a": A}).encode(), "it does not begin with '{'"),
        (b"\xef\xbb\xbf" + json.dumps({"a": A}).encode(), "it does not begin with '{'"),
        (b"[1, 2]", "it does not begin with '{'"),
        (b"null", "it does not begin with '{'"),
        (b'"a"', "it does not begin with '{'"),
        (b"[" * DEEP, "it does not begin with '{'"),
        (b'{"a":' * DEEP, "it is no JSON"),
        (b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "it is no JSON"),
        (b"{", "it is no JSON"),
        (b"{'a': 1}", "it is no JSON"),
        (json.dumps({"a": A}).encode() + b"{}", "it is no JSON"),
        (json.dumps({"a": A}).encode() + b"\0", "it is no JSON"),
        (json.dumps({"a": A}).encode()[:-1] + b",}", "it is no JSON"),
        (b'{"a\nb": 1}', "it is no JSON"),
        (b'{"\xff": 1}', "it is no UTF-8 text"),
        ('{"ü": 1}'.encode("latin-1"), "it is no UTF-8 text"),
        ('{"a": 1}'.encode("utf-16-le"), "it is no JSON"),
        (b'{"\xed\xa0\x80": 1}', "it is no UTF-8 text"),
        (json.dumps({"\ud800": A}).encode(), "it is no UTF-8 text"),
        (json.dumps({"a": A, "__metadata__": {"key": "\udfff"}}).encode(), "it is no UTF-8 text"),
        (json.dumps({"a": A, "__metadata__": {"\udfff": "value"}}).encode(), "it is no UTF-8 text"),
        # What it says twice, and what it does not say.
        (b'{"a": 1, "a": 1}', "it has 'a' twice"),
        (b'{"a": 1, "\\u0061": 1}', "it has 'a' twice"),
        (b'{"__metadata__": {}, "__metadata__": {}}', "it has '__metadata__' twice"),
        (b'{"__metadata__": {"key": "1", "key": "2"}}', "it has 'key' twice"),
        (literal(dtype='"F32", "dtype": "F64"'), "it has 'dtype' twice"),
        (literal(data_offsets='[0, 8], "data_offsets": [0, 8]'), "it has 'data_offsets' twice"),
        ({}, "it names no tensors"),
        ({"__metadata__": {"format": "pt"}}, "it names no tensors"),
        ({"": A}, "a tensor has an empty name"),
        # Metadata.
        ({"a": A, "__metadata__": None}, METADATA),
        ({"a": A, "__metadata__": []}, METADATA),
        ({"a": A, "__metadata__": "text"}, METADATA),
        ({"a": A, "__metadata__": {"key": 1}}, METADATA),
        ({"a": A, "__metadata__": {"key": None}}, METADATA),
        ({"a": A, "__metadata__": {"key": {"key": "value"}}}, METADATA),
        ({"__metadata__": A}, METADATA),
        # The fields of an entry.
        ({"a": entry(device="cpu")}, FIELDS),
        ({"a": entry(dtype=None)}, FIELDS),
        ({"a": entry(shape=None)}, FIELDS),
        ({"a": entry(data_offsets=None)}, FIELDS),
        ({"a": {}}, FIELDS),
        ({"a": None}, FIELDS),
        ({"a": []}, FIELDS),
        ({"a": ["dtype", "shape", "data_offsets"]}, FIELDS),
        ({"a": entry(dtype="F31")}, "the tensor 'a' has the unknown dtype 'F31'"),
        ({"a": entry(dtype="f32")}, "the tensor 'a' has the unknown dtype 'f32'"),
        ({"a": entry(dtype="")}, "the tensor 'a' has the unknown dtype ''"),
        ({"a": entry(dtype=["F32"])}, "the tensor 'a' has the unknown dtype ['F32']"),
        (literal(dtype="null"), "the tensor 'a' has the unknown dtype None"),
        (literal(dtype="{}"), "the tensor 'a' has the unknown dtype {}"),
        (literal(dtype="32"), "the tensor 'a' has the unknown dtype 32"),
        (literal(shape="null"), "the tensor 'a' has the shape None"),
        (literal(shape="2"), "the tensor 'a' has the shape 2"),
        (literal(shape='"2"'), "the tensor 'a' has the shape '2'"),
        (literal(shape="[[2]]"), "the tensor 'a' has the shape [[2]]"),
        (literal(shape="[true, 2]"), "the tensor 'a' has the shape [True, 2]"),
        (literal(shape="[null]"), "the tensor 'a' has the shape [None]"),
        (literal(data_offsets="[false, 8]"), "the tensor 'a' has the offsets [False, 8]"),
        (literal(data_offsets="[]"), "the tensor 'a' has the offsets []"),
        (literal(data_offsets="[8]"), "the tensor 'a' has the offsets [8]"),
        (literal(data_offsets="[0, 8, 8]"), "the tensor 'a' has the offsets [0, 8, 8]"),
        (literal(data_offsets='{"0": 8}'), "the tensor 'a' has the offsets {'0': 8}"),
        # Numbers.
        (literal(shape="[-2]"), NUMBER.format("-2")),
        (literal(shape="[-0]"), NUMBER.format("-0")),
        (literal(data_offsets="[-0, 8]"), NUMBER.format("-0")),
        (literal(data_offsets="[-8, 0]"), NUMBER.format("-8")),
        (literal(shape=f"[{10**30}]"), NUMBER.format("1" + "0" * 24)),
        (literal(shape="[" + "9" * 10_000 + "]"), NUMBER.format("9" * 25)),
        (literal(data_offsets=f"[0, {2**64 + 8}]"), NUMBER.format("18446744073709551624")),
        (literal(shape=f"[{2**63}]"), "the tensor 'a' has the shape [9223372036854775808]"),
        (literal(shape="[2.0]"), "it has 2.0"),
        (literal(shape="[2e0]"), "it has 2e0"),
        (literal(data_offsets="[0, 1E400]"), "it has 1E400"),
        (literal(shape="[NaN]"), "it has NaN"),
        (literal(shape="[-Infinity]"), "it has -Infinity"),
        (literal(shape="[02]"), "it is no JSON"),
        (literal(shape="[٢]"), "it is no JSON"),
        # Shapes and bytes.
        (literal(shape="[3]"), "the tensor 'a' of F32 (3,) does not have 8 bytes"),
        (literal(shape="[]"), "the tensor 'a' of F32 () does not have 8 bytes"),
        (literal(shape="[0]"), "the tensor 'a' of F32 (0,) does not have 8 bytes"),
        (literal(dtype='"F64"'), "the tensor 'a' of F64 (2,) does not have 8 bytes"),
        (literal(data_offsets="[8, 0]"), "the tensor 'a' of F32 (2,) does not have -8 bytes"),
        (literal(shape=f"[{2**61 + 2}]"), f"the tensor 'a' of F32 ({2**61 + 2},) does not have 8 bytes"),
        (literal(shape=f"[{2**62 + 2}]"), f"the tensor 'a' of F32 ({2**62 + 2},) does not have 8 bytes"),
        (
            literal(shape=f"[{2**31}, {2**31}]", data_offsets="[0, 0]"),
            "the tensor 'a' of F32 (2147483648, 2147483648) does not have 0 bytes",
        ),
        (
            literal(shape=f"[{2**40}, {2**40}, {2**40}]", data_offsets="[0, 0]"),
            "the tensor 'a' of F32 (1099511627776, 1099511627776, 1099511627776) does not have 0 bytes",
        ),
        # Where tensors lie.
        ({"a": A, "b": {**B, "data_offsets": [0, 8]}}, "the tensor 'b' overlaps the one before it"),
        ({"a": A, "b": {**B, "data_offsets": [4, 12]}}, "the tensor 'b' overlaps the one before it"),
        ({"a": A, "b": {**B, "data_offsets": [12, 20]}}, "the tensor 'b' leaves a gap before it"),
        ({"a": {**A, "data_offsets": [8, 16]}}, "the tensor 'a' leaves a gap before it"),
        ({"a": {**A, "data_offsets": [2**62, 2**62 + 8]}}, "the tensor 'a' leaves a gap before it"),
    ],
    ids=lambda value: (value if isinstance(value, str) else repr(value))[:50].encode("unicode_escape").decode(),
)
def test_a_malformed_header_is_refused_for_what_is_wrong_with_it(
    registry: Registry, tmp_path: Path, header: object, problem: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(framed(header))
    assert refusal(registry, path) == NOT_SOUND.format(problem)


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": A}, DATA, (8, 16)),
        ({"a": A, "b": B}, DATA + b"\0", (16, 17)),
        ({"a": A, "b": B}, DATA[:12], (16, 12)),
        ({"a": A}, b"", (8, 0)),
        ({"a": entry(shape=[2**61 - 1], data_offsets=[0, 2**63 - 4])}, b"", ("9,223,372,036,854,775,804", 0)),
        ({"a": entry(shape=[0], data_offsets=[0, 0])}, b"\0", (0, 1)),
    ],
)
def test_more_or_fewer_bytes_than_the_tensors_have_are_refused(
    registry: Registry, tmp_path: Path, header: object, data: bytes, said: tuple[object, object]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(framed(header, data))
    assert refusal(registry, path) == NOT_WHOLE.format(*said)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_missing_file_is_said_to_be_missing(registry: Registry, tmp_path: Path, suffix: str) -> None:
    path = (tmp_path / "absent").with_suffix(suffix)
    for reads in (read, registry.load):
        with pytest.raises(WeightsError) as error:
            reads(path)
        assert str(error.value) == f"cannot read the weights '{path}': No such file or directory"


@pytest.mark.parametrize("name", ["a\0b.safetensors", "a" * 300 + ".safetensors", "a" * 300 + ".pth"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"^cannot read the weights "):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ((), "give a folder that registry.save wrote"),
        (("config.json", "notes.txt"), "give a folder that registry.save wrote"),
        (("net.pth", "config.json", "best.safetensors"), "give one of its files: best.safetensors, net.pth"),
    ],
)
def test_a_folder_without_weights_says_what_there_is(
    registry: Registry, tmp_path: Path, files: tuple[str, ...], hint: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(SOUND)
    for reads in (read, registry.load):
        with pytest.raises(WeightsError) as error:
            reads(tmp_path)
        assert str(error.value) == f"the folder '{tmp_path}' holds no model.safetensors; {hint}"


# Sound files, however odd.

EVERY_TYPE = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
)


def assert_as_upstream(path: Path) -> Checkpoint:
    found, expected = read(path), safetensors.torch.load_file(path)
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found.tensors[name]) == bits(tensor)
    return found


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (3, 0), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", EVERY_TYPE, ids=str)
def test_every_type_and_shape_is_read_as_upstream_reads_it(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "file.safetensors"
    tensor = (torch.randn(shape) > 0 if dtype == torch.bool else (torch.randn(shape) * 9).abs()).to(dtype)
    safetensors.torch.save_file({"a": tensor, "other": torch.zeros(1)}, path)
    found = assert_as_upstream(path)
    assert found.tensors["a"].dtype == dtype
    assert bits(found.tensors["a"]) == bits(tensor)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": A, "b": B}, DATA),
        ({"b": B, "a": A}, DATA),
        (json.dumps({"a": A, "b": B}).encode() + b" " * 100, DATA),
        (json.dumps({"a": A, "b": B}, indent=4).encode() + b"\n\t\r ", DATA),
        ({"a": A, "b": B, "__metadata__": {}}, DATA),
        ({"a": A, "b": B, "__metadata__": {"": "", "größe": "π", "n": "\0"}}, DATA),
        ({"größe.重み": A, "😀": B}, DATA),
        (json.dumps({"größe.重み": A, "😀": B}, ensure_ascii=False).encode(), DATA),
        ({"\0": A, '"\\\n': B}, DATA),
        ({" ": A, "a" * 10_000: B}, DATA),
        ({"a": entry(shape=[1] * 40 + [2])}, DATA[:8]),
        ({"a": entry(shape=[0, 2**62], data_offsets=[0, 0])}, b""),
        ({"a": entry(shape=[0], data_offsets=[0, 0]), "b": entry(shape=[0], data_offsets=[0, 0])}, b""),
        ({"a": A, "b": B, "c": entry(shape=[0, 3], data_offsets=[8, 8])}, DATA),
        ({"a": entry(dtype="U8", shape=[1], data_offsets=[0, 1]), "b": {**B, "data_offsets": [1, 9]}}, DATA[:9]),
        ({"a": entry(dtype="BOOL", shape=[8])}, DATA[8:]),
        ({"a": A, "b": B, "format": {**B, "data_offsets": [16, 24]}}, DATA + DATA[:8]),
    ],
)
def test_odd_but_sound_files_are_read_as_upstream_reads_them(tmp_path: Path, header: object, data: bytes) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(framed(header, data))
    assert_as_upstream(path)


def test_headers_of_every_length_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    text = json.dumps({"a": A, "b": B}).encode()
    refused = []
    for spaces in range(700):
        path.write_bytes(framed(text + b" " * spaces))
        try:
            assert_as_upstream(path)
        except WeightsError as error:
            refused.append((len(text) + spaces, str(error).removeprefix(f"'{path}' ")))
    assert refused == []


# Numbers that are none.


@pytest.fixture(scope="module")
def saved(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file of ours."""
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    return registry.save(model, tmp_path_factory.mktemp("saved") / "file.safetensors").read_bytes()


@pytest.fixture(scope="module")
def saved_small(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A classifier of ours by layout."""
    model = registry.build("mobilenet_v3_small", num_classes=4)
    folder = tmp_path_factory.mktemp("small")
    return {
        layout: registry.save(model, folder / f"{layout}.safetensors", layout).read_bytes()
        for layout in ("featuretap", "timm")
    }


def with_metadata(content: bytes, **changes: str | None) -> bytes:
    """A file of ours with other values in its metadata, or without where they are None."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"] | {f"featuretap.{key}": value for key, value in changes.items()}
    header["__metadata__"] = {key: value for key, value in metadata.items() if value is not None}
    return framed(header, content[8 + length :])


def with_tensors(content: bytes, tensors: dict[str, torch.Tensor], **changes: str | None) -> bytes:
    """A file of ours with other tensors in place of its own."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    return with_metadata(safetensors.torch.save({**safetensors.torch.load(content), **tensors}, metadata), **changes)


BIAS, MEAN, VAR = (f"stages.C1.0.norm.{kind}" for kind in ("bias", "running_mean", "running_var"))
STEM = "stages.C1.0.conv.weight"
DIVERGED = "its training diverged, or the file was damaged"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_nan_and_infinity_are_refused_on_request(
    registry: Registry, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",)).to(dtype)
    model.state_dict()[VAR][3] = value
    path = registry.save(model, tmp_path / "file.safetensors")
    assert registry.load(path).state_dict()[VAR][3].allclose(torch.tensor(value, dtype=dtype), equal_nan=True)
    with pytest.raises(WeightsError) as error:
        registry.load(path, finite=True)
    assert str(error.value) == f"'{path}' holds NaN or infinity in {VAR}; {DIVERGED}"


def test_the_first_three_tensors_that_are_not_finite_are_named(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    for name in (STEM, BIAS, MEAN, VAR):
        model.state_dict()[name].view(-1)[-1] = float("nan")
    path = registry.save(model, tmp_path / "file.safetensors")
    registry.load(path)
    with pytest.raises(WeightsError) as error:
        registry.load(path, finite=True)
    assert str(error.value) == f"'{path}' holds NaN or infinity in {STEM}, {BIAS}, {MEAN} and 1 more; {DIVERGED}"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_nan_in_somebody_elses_file_is_refused_on_request(registry: Registry, tmp_path: Path, suffix: str) -> None:
    state = registry.build("mobilenet_v2_050", features_only=True).state_dict()
    state[STEM][0, 0, 0, 0] = float("nan")
    path = (tmp_path / "file").with_suffix(suffix)
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(state, path)
    registry.load(path)
    with pytest.raises(WeightsError) as error:
        registry.load(path, finite=True)
    assert str(error.value) == f"'{path}' holds NaN or infinity in {STEM}; {DIVERGED}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_largest_numbers_of_a_type_are_finite(registry: Registry, tmp_path: Path, dtype: torch.dtype) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",)).to(dtype)
    model.state_dict()[BIAS].fill_(torch.finfo(dtype).max)
    path = registry.save(model, tmp_path / "file.safetensors")
    assert torch.equal(registry.load(path, finite=True).state_dict()[BIAS], model.state_dict()[BIAS])


# Metadata.

LACKS = "is no sound file of weights: its metadata lacks featuretap.{}"
SHOULD_BE = "is no sound file of weights: its metadata has featuretap.{}={!r}, which should be {}"
NOT_BUILT = "describes a model that cannot be built here: {}"
PREPARED = {"crop": 224, "interpolation": "bilinear", "mean": [0.4] * 3, "resize": 256, "std": [0.2] * 3}
IS = {
    "options": "options by name",
    "taps": "a list of tap addresses",
    "norm_eps": "a small number by part",
    "preprocessing": "a table",
    "by_name": "true or false",
    "num_classes": "a number of classes",
}


def prepared(**changes: object) -> str:
    return json.dumps({**PREPARED, **changes})


def load_refusal(registry: Registry, path: Path) -> str:
    with pytest.raises(WeightsError) as error:
        registry.load(path)
    return str(error.value).replace(str(path), "FILE").removeprefix("'FILE' ")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"version": None},
        {"version": "99.0"},
        {"invented_later": "anything"},
        {"weights": "somebody.elses"},
        {"options": '{"width": 0.5, "freeze": "C1"}'},
        {"name": "featuretap:mobilenet_v2_050"},
    ],
    ids=str,
)
def test_metadata_that_is_allowed_to_differ_does(
    registry: Registry, saved: bytes, tmp_path: Path, changes: dict[str, str | None]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(saved, **changes))
    assert tuple(registry.load(path).taps) == ("C1",)


@pytest.mark.parametrize(
    "key", ["name", "layout", "options", "taps", "norm_eps", "preprocessing", "by_name", "classes"]
)
def test_metadata_without_a_key_names_the_key(registry: Registry, saved: bytes, tmp_path: Path, key: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(saved, **{key: None}))
    assert refusal(registry, path) == LACKS.format(key)


@pytest.mark.parametrize("key", IS)
@pytest.mark.parametrize(
    "value",
    [
        *("", "{", "[1", "NaN", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1} 2', "null", "1.5", "[1]", '"text"', "C1"),
        *("[" * DEEP, '{"a":' * DEEP, "9" * 10_000),
    ],
    ids=lambda value: value[:20],
)
def test_metadata_that_is_no_json_of_the_right_kind_is_quoted(
    registry: Registry, saved: bytes, tmp_path: Path, key: str, value: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(saved, **{key: value}))
    assert refusal(registry, path) == SHOULD_BE.format(key, value[:60], IS[key])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            (
                {"schema": schema},
                f"was written by featuretap 0.0.9 in schema {schema!r}, and VERSION reads '1'; update featuretap",
            )
            for schema in (None, "2", "01", "", "1 ")
        ],
        ({"name": ""}, SHOULD_BE.format("name", "", "a name")),
        ({"layout": ""}, SHOULD_BE.format("layout", "", "the name of a layout")),
        ({"head": ""}, SHOULD_BE.format("head", "", "the name of a head")),
        ({"weights": ""}, SHOULD_BE.format("weights", "", "the name of published weights")),
        ({"taps": "[]"}, SHOULD_BE.format("taps", "[]", IS["taps"])),
        ({"taps": '["C1", 2]'}, SHOULD_BE.format("taps", '["C1", 2]', IS["taps"])),
        ({"norm_eps": '{"backbone": 1e4}'}, SHOULD_BE.format("norm_eps", '{"backbone": 1e4}', IS["norm_eps"])),
        ({"norm_eps": '{"backbone": -1.0}'}, SHOULD_BE.format("norm_eps", '{"backbone": -1.0}', IS["norm_eps"])),
        ({"norm_eps": '{"backbone": 1e999}'}, SHOULD_BE.format("norm_eps", '{"backbone": 1e999}', IS["norm_eps"])),
        ({"norm_eps": '{"backbone": true}'}, SHOULD_BE.format("norm_eps", '{"backbone": true}', IS["norm_eps"])),
        (
            {"norm_eps": '{"backbone": 1' + "0" * 400 + "}"},
            SHOULD_BE.format("norm_eps", '{"backbone": 1' + "0" * 46, IS["norm_eps"]),
        ),
        *[
            (
                {"head": "classification", "num_classes": value},
                SHOULD_BE.format("num_classes", value, IS["num_classes"]),
            )
            for value in ("-1", "1000000000000", "true", "1e3", "2147483648")
        ],
        *[
            (changes, "is no sound file of weights: it names a head without classes, or the reverse")
            for changes in ({"head": "classification"}, {"num_classes": "4"})
        ],
        (
            {"preprocessing": prepared(crop=0)},
            "is no sound file of weights: preprocessing cannot have crop=0; it is a number of pixels",
        ),
        (
            {"preprocessing": prepared(resize=224.5)},
            "is no sound file of weights: preprocessing cannot have resize=224.5; it is a number of pixels",
        ),
        (
            {"preprocessing": prepared(crop=True)},
            "is no sound file of weights: preprocessing cannot have crop=True; it is a number of pixels",
        ),
        (
            {"preprocessing": prepared(mean=[])},
            "is no sound file of weights: preprocessing cannot have mean=(); it is a number for each channel",
        ),
        (
            {"preprocessing": prepared(std=[0.2, 0, 0.2])},
            "is no sound file of weights: preprocessing cannot have std=(0.2, 0, 0.2); it is a number for each channel",
        ),
        (
            {"preprocessing": prepared(std=[0.2])},
            "is no sound file of weights: preprocessing has 3 means and 1 deviations; give both alike",
        ),
        (
            {"preprocessing": prepared(interpolation="nearest")},
            "is no sound file of weights: preprocessing cannot have interpolation='nearest'; it is bilinear or bicubic",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_metadata_with_a_value_that_cannot_be_is_refused(
    registry: Registry, saved: bytes, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    import featuretap

    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(saved, **{"version": "0.0.9", **changes}))
    assert refusal(registry, path) == message.replace("VERSION", featuretap.__version__)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [10**400] * 3},
        {"std": [10**400] * 3},
        {"mean": 1},
        {"mean": None},
        {"mean": "abc"},
        {"std": [[1], [1], [1]]},
        {"interpolation": []},
        {"unheard_of": 1},
        {"self": 1},
    ],
    ids=lambda value: str(value)[:30],
)
def test_preprocessing_that_nothing_can_be_made_of_is_refused(
    registry: Registry, saved: bytes, tmp_path: Path, changes: dict[str, object]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(saved, preprocessing=prepared(**changes)))
    assert refusal(registry, path).startswith("is no sound file of weights: ")


WIDTH = "'mobilenet_v2_050' cannot take width={}; it is a positive number up to 100, such as 0.75"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "yolo_v99"},
            NOT_BUILT.format("no backbone named 'yolo_v99'; registry.list_backbones() names them"),
        ),
        ({"name": "mobilenet_v2_05"}, NOT_BUILT.format("no backbone named 'mobilenet_v2_05'; did you mean ")),
        ({"name": "other:mobilenet_v2"}, NOT_BUILT.format("no backbone named 'other:mobilenet_v2'; did you mean ")),
        ({"options": '{"banana": 1}'}, NOT_BUILT.format("'mobilenet_v2_050' takes no option 'banana'. Options: ")),
        (
            {"options": '{"pretrained": true}'},
            "is no sound file of weights: its metadata has featuretap.options='{\"pretrained\": true}', which "
            "should be options by name",
        ),
        ({"options": '{"width": 1e308}'}, NOT_BUILT.format(WIDTH.format("1e+308"))),
        ({"options": '{"width": 1e999}'}, NOT_BUILT.format(WIDTH.format("inf"))),
        ({"options": '{"width": -1}'}, NOT_BUILT.format(WIDTH.format("-1"))),
        ({"options": '{"width": "1"}'}, NOT_BUILT.format(WIDTH.format("'1'"))),
        ({"options": '{"width": [1]}'}, NOT_BUILT.format(WIDTH.format("[1]"))),
        (
            {"options": '{"freeze": {}}'},
            NOT_BUILT.format(
                "'mobilenet_v2_050' cannot take freeze={}; it is None or the last level to freeze: C1, C2, C3, C4, C5"
            ),
        ),
        (
            {"options": '{"in_channels": 1000000}'},
            NOT_BUILT.format(
                "'mobilenet_v2_050' cannot take in_channels=1000000; it is a positive whole number up to 65536"
            ),
        ),
        (
            {"options": '{"norm": "os.system"}'},
            "was saved with norm=os.system, which is code, and no file brings code; give it again: "
            "registry.load(path, norm=lambda channels: os.system(...))",
        ),
        ({"taps": '["C9"]'}, NOT_BUILT.format("'mobilenet_v2_050' has no tap 'C9'. Its taps: C1, ")),
        ({"taps": '[""]'}, NOT_BUILT.format("'mobilenet_v2_050' has no tap ''. Its taps: C1, ")),
        (
            {"taps": '["C1", "C1"]'},
            NOT_BUILT.format("C1 is asked of 'mobilenet_v2_050' more than once; name each tap once"),
        ),
        (
            {"head": "mask", "num_classes": "4"},
            NOT_BUILT.format("no head named 'mask'; did you mean 'mask_rcnn'?"),
        ),
        (
            {"layout": "keras"},
            "weights do not fit 'mobilenet_v2_050': the layout 'keras' is not one that 'mobilenet_v2_050' is known in; "
            "it has featuretap, torchvision, timm",
        ),
        (
            {"layout": "timm"},
            f"weights do not fit 'mobilenet_v2_050': FILE holds {STEM}, {BIAS}, stages.C1.0.norm.num_batches_tracked "
            "and 15 more, which the model lacks",
        ),
        (
            {"name": "mobilenet_v2"},
            f"weights do not fit 'mobilenet_v2': {STEM} is (16, 3, 3, 3) in the file, (32, 3, 3, 3) in the model",
        ),
        ({"taps": '["C2"]'}, "weights do not fit 'mobilenet_v2_050': FILE lacks stages.C2.0.expand.conv.weight"),
        (
            {"options": '{"width": 2}'},
            f"weights do not fit 'mobilenet_v2_050' with width=2: {STEM} is (16, 3, 3, 3) in the file, (64, 3, 3, 3) "
            "in the model",
        ),
        (
            {"by_name": "false"},
            "was saved from a BackboneSpec 'mobilenet_v2_050' that no name stands for; give it: "
            "registry.load(path, name=spec)",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_file_that_describes_what_cannot_be_built_says_why(
    registry: Registry, saved: bytes, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(saved, **changes))
    # The ends of some messages name everything that there is.
    assert load_refusal(registry, path).startswith(message)


@pytest.mark.parametrize("option", ["name", "self", "features_only", "head", "num_classes", "taps"])
def test_options_in_a_file_that_are_arguments_of_build_are_refused(
    registry: Registry, saved: bytes, tmp_path: Path, option: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(saved, options=json.dumps({option: 1})))
    with pytest.raises(WeightsError):
        registry.load(path)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Four gigabytes more than there are in use."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("classes", [10**9, 2**31 - 1])
def test_more_classes_than_memory_are_refused(
    registry: Registry, saved_small: dict[str, bytes], tmp_path: Path, classes: int
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(saved_small["featuretap"], num_classes=str(classes)))
    with pytest.raises(WeightsError):
        registry.load(path)


@pytest.mark.parametrize("shape", [(), (0,), (16, 0, 3, 3), (0, 0, 0, 0), (16, 3, 3), (8, 3, 3, 3)], ids=str)
def test_a_stem_of_another_shape_is_refused(
    registry: Registry, saved: bytes, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(saved, {STEM: torch.zeros(shape)}))
    with pytest.raises(WeightsError, match=r"^weights do not fit 'mobilenet_v2_050': "):
        registry.load(path)
    with pytest.raises(WeightsError, match=r"^weights do not fit 'mobilenet_v2_050': "):
        registry.build("mobilenet_v2_050", features_only=True, taps=("C1",), pretrained=path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32, torch.bool], ids=str)
def test_a_stem_of_other_channels_and_odd_numbers_is_refused_or_read(
    registry: Registry, saved: bytes, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(saved, {STEM: torch.zeros(16, 3, 3, 3).to(dtype)}))
    for channels in (1, 4):
        try:
            loaded = registry.load(path, in_channels=channels)
        except WeightsError:
            continue
        assert loaded.state_dict()[STEM].is_floating_point()
        assert loaded.state_dict()[STEM].shape == (16, channels, 3, 3)


ODD_TENSORS = pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("featuretap", "head.logits.weight"),
        ("featuretap", "head.logits.bias"),
        ("featuretap", "head.hidden.weight"),
        ("featuretap", "stages.C5.0.project.norm.weight"),
        ("timm", "conv_head.weight"),
        ("timm", "classifier.weight"),
        ("timm", "blocks.4.0.bn3.weight"),
    ],
)
ODD_SHAPES = pytest.mark.parametrize("shape", [(), (1,)], ids=str)


@ODD_SHAPES
@ODD_TENSORS
def test_a_tensor_of_another_shape_is_not_loaded(
    registry: Registry, saved_small: dict[str, bytes], tmp_path: Path, layout: str, name: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(saved_small[layout], {name: torch.zeros(shape)}))
    with pytest.raises(WeightsError):
        registry.load(path)


@ODD_SHAPES
@ODD_TENSORS
def test_a_tensor_of_another_shape_is_not_halved(
    registry: Registry, saved_small: dict[str, bytes], tmp_path: Path, layout: str, name: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(saved_small[layout], {name: torch.zeros(shape)}))
    with pytest.raises(WeightsError):
        registry.load(path, reduced_tail=True)


@ODD_SHAPES
@ODD_TENSORS
def test_a_tensor_of_another_shape_is_not_converted(
    registry: Registry, saved_small: dict[str, bytes], tmp_path: Path, layout: str, name: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(saved_small[layout], {name: torch.zeros(shape)}))
    with pytest.raises(WeightsError):
        registry.convert(path, tmp_path / "converted.safetensors", "timm" if layout == "featuretap" else "featuretap")
    assert not (tmp_path / "converted.safetensors").exists()


# Pickles.


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize(
    "write",
    [
        torch_saved,
        lambda content: torch_saved(content, legacy=True),
        lambda content: torch_saved({"a": torch.zeros(1), "b": content}),
        *[lambda content, protocol=protocol: pickle.dumps(content, protocol) for protocol in range(6)],
    ],
    ids=["zip", "legacy", "in a state dict", *(f"protocol {protocol}" for protocol in range(6))],
)
def test_code_in_a_file_is_not_run(
    registry: Registry, tmp_path: Path, write: Callable[[object], bytes], suffix: str
) -> None:
    path = (tmp_path / "file").with_suffix(suffix)
    path.write_bytes(write(Malicious(tmp_path / "ran")))
    said = refusal(registry, path)
    assert not (tmp_path / "ran").exists()
    assert said == NOT_SAFE if suffix != ".safetensors" else said.startswith(NO_WEIGHTS.format(""))
    # The code would have run.
    pickle.loads(pickle.dumps(Malicious(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


NOT_A_STATE_DICT = "holds no state dict: {}; save model.state_dict(), not the model or a checkpoint around it"
NO_STATE_DICT = "holds {}, no state dict; save model.state_dict(), not the model"


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: torch.zeros(1)}, NOT_A_STATE_DICT.format("0 is no name of a tensor")),
        ({"a": torch.zeros(1), None: torch.zeros(1)}, NOT_A_STATE_DICT.format("None is no name of a tensor")),
        (
            {"model": {"a": torch.zeros(1)}, "epoch": 3},
            NOT_A_STATE_DICT.format("'model' is dict, not a tensor"),
        ),
        ({"a": torch.zeros(1), "epoch": 3}, NOT_A_STATE_DICT.format("'epoch' is int, not a tensor")),
        ({"a": [torch.zeros(1)]}, NOT_A_STATE_DICT.format("'a' is list, not a tensor")),
        (
            {"a": torch.eye(2).to_sparse()},
            NOT_A_STATE_DICT.format(
                "'a' is a tensor of torch.float32 in the layout torch.sparse_coo, which no layer holds"
            ),
        ),
        (
            {"a": torch.zeros(2, dtype=torch.complex64)},
            NOT_A_STATE_DICT.format(
                "'a' is a tensor of torch.complex64 in the layout torch.strided, which no layer holds"
            ),
        ),
        (
            {"a": torch.zeros(2, device="meta")},
            NOT_A_STATE_DICT.format("'a' is a tensor without values (device 'meta')"),
        ),
        ({}, NO_STATE_DICT.format("dict")),
        ([torch.zeros(1)], NO_STATE_DICT.format("list")),
        (torch.zeros(1), NO_STATE_DICT.format("Tensor")),
        (None, NO_STATE_DICT.format("NoneType")),
        (nn.Linear(2, 2), NOT_SAFE),
    ],
    ids=lambda value: str(value)[:40],
)
def test_pickles_of_anything_but_a_state_dict_are_refused(
    registry: Registry, tmp_path: Path, content: object, message: str, legacy: bool
) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(torch_saved(content, legacy=legacy))
    assert refusal(registry, path) == message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\x80",
        b"<html>",
        b"PK\x03\x04",
        SOUND,
        pickle.dumps({"a": 1})[:-1],
        b"\x89HDF\r\n\x1a\n",
        b"." * 99,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_files_that_are_no_pickles_are_refused(registry: Registry, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    assert refusal(registry, path) == NOT_SAFE


# Warnings of torch as errors would count as refusals.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_flipped_byte_in_a_pickle_is_refused_or_harmless(tmp_path: Path, legacy: bool) -> None:
    chance = random.Random(0)
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3), "c": torch.tensor(1, dtype=torch.float16)}
    content = torch_saved(state, legacy=legacy)
    path = tmp_path / "file.pth"
    read_whole = 0
    for _ in range(200):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= chance.randrange(1, 256)
        path.write_bytes(flipped)
        try:
            tensors = read(path).tensors
        except WeightsError:
            continue
        read_whole += 1
        for tensor in tensors.values():
            tensor.clone()
    assert 0 < read_whole < 200


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_is_cut_off_is_refused(tmp_path: Path, legacy: bool) -> None:
    content = torch_saved({"a": torch.arange(6.0)}, legacy=legacy)
    path = tmp_path / "file.pth"
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(WeightsError):
            read(path)
