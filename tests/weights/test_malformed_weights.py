"""Files that are not weights files, and malformed safetensors headers, are each refused in one line."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from support.weights_files import DATA, HEADER, NO_WEIGHTS, SOUND, A, B, entry, framed, refusal, torch_saved

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.weights.reading import read_checkpoint

DEEP = 100_000
NOT_SOUND = "is not a valid safetensors file: in its header, {}; get it again from its source"
NOT_WHOLE = "is not a complete weights file: its tensors need {} bytes, but the file has {}; download or save it again"
PICKLE = "a pickle of an old torch.save; rename it to .pth to load it without running code"
ZIP = "a zip archive of torch.save; rename it to .pth to load it without running code"
WEB_PAGE = "a web page, such as the error page of a failed download; download it again"


def test_the_file_that_malformed_ones_are_derived_from_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(SOUND)
    assert read_checkpoint(path).shapes == {"a": (2,), "b": ()}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param(b"", "empty; download or save it again", id="empty"),
        pytest.param(b"\x08", "cut off after 1 bytes; download or save it again", id="1 byte"),
        pytest.param(bytes(7), "cut off after 7 bytes; download or save it again", id="7 bytes"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14214848\n",
            "a git-lfs pointer instead of the file; run 'git lfs pull' in its repository",
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
            "not a safetensors file (its header would have 3,556,471,764,796,121,723 bytes); check its source",
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
        (8, NO_WEIGHTS.format("cut off inside its header (8 of 130 bytes); download it again")),
        (9, NO_WEIGHTS.format("cut off inside its header (9 of 130 bytes); download it again")),
        (70, NO_WEIGHTS.format("cut off inside its header (70 of 130 bytes); download it again")),
        (129, NO_WEIGHTS.format("cut off inside its header (129 of 130 bytes); download it again")),
        (130, NOT_WHOLE.format(16, 0)),
        (131, NOT_WHOLE.format(16, 1)),
        (138, NOT_WHOLE.format(16, 8)),
        (145, NOT_WHOLE.format(16, 15)),
    ],
)
def test_the_error_of_a_truncated_file_states_the_bytes_that_are_there(
    registry: Registry, tmp_path: Path, end: int, message: str
) -> None:
    assert (HEADER, len(SOUND)) == (130, 146)
    path = tmp_path / "file.safetensors"
    path.write_bytes(SOUND[:end])
    assert refusal(registry, path) == message


def test_no_prefix_of_a_file_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    for end in range(len(SOUND)):
        path.write_bytes(SOUND[:end])
        with pytest.raises(WeightsError):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("length", "kind"),
    [
        (2**64 - 1, "not a safetensors file (its header would have 18,446,744,073,709,551,615 bytes); check its"),
        (2**63, "not a safetensors file (its header would have 9,223,372,036,854,775,808 bytes); check its"),
        (2**63 - 1, "not a safetensors file (its header would have 9,223,372,036,854,775,807 bytes); check its"),
        (100_000_001, "not a safetensors file (its header would have 100,000,001 bytes); check its"),
        (100_000_000, "cut off inside its header (146 of 100,000,008 bytes); download"),
        (139, "cut off inside its header (146 of 147 bytes); download"),
    ],
)
def test_a_header_that_is_too_long_is_not_read(registry: Registry, tmp_path: Path, length: int, kind: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + SOUND[8:])
    end = " source" if kind.endswith("its") else " it again"
    assert refusal(registry, path) == NO_WEIGHTS.format(kind + end)


def literal(**changes: str) -> bytes:
    """Return a header with one tensor whose fields are inserted verbatim."""
    fields = {"dtype": '"F32"', "shape": "[2]", "data_offsets": "[0, 8]"} | changes
    return ('{"a": {' + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}}").encode()


FIELDS = "the tensor 'a' should have only dtype, shape and data_offsets"
METADATA = "its metadata values are not text"
NUMBER = "it has the number {} instead of a size or an offset"


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        # JSON text
        (b"", "it does not begin with '{'"),
        (b" " + json.dumps({"a": A}).encode(), "it does not begin with '{'"),
        (b"\n" + json.dumps({"a": A}).encode(), "it does not begin with '{'"),
        (b"\xef\xbb\xbf" + json.dumps({"a": A}).encode(), "it does not begin with '{'"),
        (b"[1, 2]", "it does not begin with '{'"),
        (b"null", "it does not begin with '{'"),
        (b'"a"', "it does not begin with '{'"),
        (b"[" * DEEP, "it does not begin with '{'"),
        (b'{"a":' * DEEP, "it is not JSON"),
        (b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"{'a': 1}", "it is not JSON"),
        (json.dumps({"a": A}).encode() + b"{}", "it is not JSON"),
        (json.dumps({"a": A}).encode() + b"\0", "it is not JSON"),
        (json.dumps({"a": A}).encode()[:-1] + b",}", "it is not JSON"),
        (b'{"a\nb": 1}', "it is not JSON"),
        (b'{"\xff": 1}', "it is not UTF-8 text"),
        ('{"ü": 1}'.encode("latin-1"), "it is not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16-le"), "it is not JSON"),
        (b'{"\xed\xa0\x80": 1}', "it is not UTF-8 text"),
        (json.dumps({"\ud800": A}).encode(), "it is not UTF-8 text"),
        (json.dumps({"a": A, "__metadata__": {"key": "\udfff"}}).encode(), "it is not UTF-8 text"),
        (json.dumps({"a": A, "__metadata__": {"\udfff": "value"}}).encode(), "it is not UTF-8 text"),
        # Duplicate and missing entries
        (b'{"a": 1, "a": 1}', "'a' is repeated"),
        (b'{"a": 1, "\\u0061": 1}', "'a' is repeated"),
        (b'{"__metadata__": {}, "__metadata__": {}}', "'__metadata__' is repeated"),
        (b'{"__metadata__": {"key": "1", "key": "2"}}', "'key' is repeated"),
        (literal(dtype='"F32", "dtype": "F64"'), "'dtype' is repeated"),
        (literal(data_offsets='[0, 8], "data_offsets": [0, 8]'), "'data_offsets' is repeated"),
        ({}, "it has no tensors"),
        ({"__metadata__": {"format": "pt"}}, "it has no tensors"),
        ({"": A}, "a tensor has an empty name"),
        # Metadata
        ({"a": A, "__metadata__": None}, METADATA),
        ({"a": A, "__metadata__": []}, METADATA),
        ({"a": A, "__metadata__": "text"}, METADATA),
        ({"a": A, "__metadata__": {"key": 1}}, METADATA),
        ({"a": A, "__metadata__": {"key": None}}, METADATA),
        ({"a": A, "__metadata__": {"key": {"key": "value"}}}, METADATA),
        ({"__metadata__": A}, METADATA),
        # Fields of a tensor entry
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
        # Numbers
        (literal(shape="[-2]"), NUMBER.format("-2")),
        (literal(shape="[-0]"), NUMBER.format("-0")),
        (literal(data_offsets="[-0, 8]"), NUMBER.format("-0")),
        (literal(data_offsets="[-8, 0]"), NUMBER.format("-8")),
        # 2⁶³ has 19 digits; numbers with 20 digits are not converted.
        (literal(data_offsets=f"[0, {2**63}]"), f"the tensor 'a' has the offsets [0, {2**63}]"),
        (literal(shape=f"[{10**30}]"), NUMBER.format("1" + "0" * 24)),
        (literal(shape="[" + "9" * 10_000 + "]"), NUMBER.format("9" * 25)),
        (literal(data_offsets=f"[0, {2**64 + 8}]"), NUMBER.format("18446744073709551624")),
        (literal(shape=f"[{2**63}]"), "the tensor 'a' has the shape [9223372036854775808]"),
        (literal(shape="[2.0]"), "it has 2.0"),
        (literal(shape="[2e0]"), "it has 2e0"),
        (literal(data_offsets="[0, 1E400]"), "it has 1E400"),
        (literal(shape="[NaN]"), "it has NaN"),
        (literal(shape="[-Infinity]"), "it has -Infinity"),
        (literal(shape="[02]"), "it is not JSON"),
        (literal(shape="[٢]"), "it is not JSON"),
        # Shapes and byte counts
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
        # Offsets
        ({"a": A, "b": {**B, "data_offsets": [0, 8]}}, "the tensor 'b' overlaps the previous tensor"),
        ({"a": A, "b": {**B, "data_offsets": [4, 12]}}, "the tensor 'b' overlaps the previous tensor"),
        ({"a": A, "b": {**B, "data_offsets": [12, 20]}}, "the tensor 'b' leaves a gap after the previous tensor"),
        ({"a": {**A, "data_offsets": [8, 16]}}, "the tensor 'a' leaves a gap after the previous tensor"),
        ({"a": {**A, "data_offsets": [2**62, 2**62 + 8]}}, "the tensor 'a' leaves a gap after the previous tensor"),
    ],
    ids=lambda value: (value if isinstance(value, str) else repr(value))[:50].encode("unicode_escape").decode(),
)
def test_malformed_headers_are_refused_with_the_reason(
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
def test_a_missing_file_is_reported(registry: Registry, tmp_path: Path, suffix: str) -> None:
    path = (tmp_path / "absent").with_suffix(suffix)
    for reads in (read_checkpoint, registry.load):
        with pytest.raises(WeightsError) as error:
            reads(path)
        assert str(error.value) == f"cannot read the weights '{path}': No such file or directory"


@pytest.mark.parametrize("name", ["a\0b.safetensors", "a" * 300 + ".safetensors", "a" * 300 + ".pth"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"^cannot read the weights "):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ((), "pass a folder that registry.save wrote"),
        (("config.json", "notes.txt"), "pass a folder that registry.save wrote"),
        (("net.pth", "config.json", "best.safetensors"), "pass one of its files: best.safetensors, net.pth"),
    ],
)
def test_the_error_of_a_folder_without_weights_lists_its_files(
    registry: Registry, tmp_path: Path, files: tuple[str, ...], hint: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(SOUND)
    for reads in (read_checkpoint, registry.load):
        with pytest.raises(WeightsError) as error:
            reads(tmp_path)
        assert str(error.value) == f"the folder '{tmp_path}' does not contain model.safetensors; {hint}"


@pytest.mark.parametrize("name", ["pipe.pth", "pipe.safetensors", "pipe"])
def test_a_pipe_is_refused_before_anything_waits_for_it(registry: Registry, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(WeightsError) as error:
        registry.load(tmp_path / name)
    assert (
        str(error.value)
        == f"cannot read the weights '{tmp_path / name}': it is not a regular file; pass the path of a file"
    )
