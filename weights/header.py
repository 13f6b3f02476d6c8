"""Headers of safetensors files: strict parsing, and deterministic writing.

A file consists of eight bytes with the length of the header (little endian), the header in JSON, and the tensors one
after the other (https://huggingface.co/docs/safetensors). The `safetensors` library accepts some ambiguous files, such
as files with two tensors of the same name. This module refuses them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from featuretap.support.errors import WeightsError
from featuretap.weights.file_kinds import check_kind
from featuretap.weights.limits import MOST_DIMENSIONS, MOST_LISTS, MOST_TENSORS, name_problem
from featuretap.weights.open_file import OpenFile, explain_os_error

LONGEST_HEADER = 100_000_000
"""Bytes, as in the `safetensors` library."""

ALIGNMENT = 64
"""Bytes. The tensors start at a multiple, so that every dtype is aligned in a memory-mapped file."""

BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""dtype as named by safetensors → bytes per element."""

LARGEST = 2**63 - 1

WRONG_KINDS = (
    (b"PK\x03\x04", "a zip archive of torch.save; rename it to .pth to load it without running code"),
    (b"\x80", "a pickle of an old torch.save; rename it to .pth to load it without running code"),
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its dtype as named by safetensors ("F32"), its shape, and the offset of its first byte."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0


@dataclass(frozen=True)
class Header:
    """The header of a file: tensors in order of their names, and metadata."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_header(opened: OpenFile) -> Header:
    """Read and check the header of a safetensors file without reading its tensors.

    Args:
        opened: the file.

    Returns:
        The header.

    Raises:
        WeightsError: the file cannot be read, is of another kind, or is malformed. The message states the problem.
    """
    check_kind(opened)
    path, size = opened.path, opened.size
    with explain_os_error(path), opened.reader() as file:
        text = _header_text(path, file, size)
    first = 8 + len(text)
    try:
        header, end = _check_entries(_parse(text), first)
    except _MalformedError as error:
        raise WeightsError(
            f"{str(path)!r} is not a valid safetensors file: in its header, {error}; get it again from its source"
        ) from error
    if end != size - first:
        raise WeightsError(
            f"{str(path)!r} is not a complete weights file: its tensors need {end:,} bytes, but the file has "
            f"{size - first:,}; download or save it again"
        )
    return header


def with_sorted_header(content: bytes) -> bytes:
    """Return the `content` of a safetensors file with sorted header keys and aligned tensors.

    The `safetensors` library writes metadata in an order that changes between processes.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    # Metadata first, as in the library, then the tensors by name.
    ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **dict(sorted(header.items()))}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _header_text(path: Path, file: BinaryIO, size: int) -> bytes:
    def refused(kind: str) -> WeightsError:
        return WeightsError(f"{str(path)!r} is not a weights file: it is {kind}")

    start = file.read(9)
    for beginning, kind in WRONG_KINDS:
        # The length of a safetensors header can have any bytes. The header follows.
        if start.startswith(beginning) and start[8:9] != b"{":
            raise refused(kind)
    if size < 8:
        raise refused(f"cut off after {size} bytes; download or save it again")
    length = int.from_bytes(start[:8], "little")
    if length > LONGEST_HEADER:
        raise refused(f"not a safetensors file (its header would have {length:,} bytes); check its source")
    if 8 + length > size:
        raise refused(f"cut off inside its header ({size:,} of {8 + length:,} bytes); download it again")
    file.seek(8)
    return file.read(length)


class _MalformedError(Exception):
    """Raised for a malformed header, with the problem as its message."""


def _parse(text: bytes) -> dict[str, Any]:
    def parse_size(digits: str) -> int:
        # This also refuses "-0", which Python parses as 0. Numbers with more digits exceed 2⁶³.
        if not digits.isdigit() or len(digits) > 19:
            raise _MalformedError(f"it has the number {digits[:25]} instead of a size or an offset")
        return int(digits)

    tables = 0

    def parse_table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal tables
        tables += 1
        # The tables of the tensors, the metadata and the header itself.
        if tables > MOST_TENSORS + 2:
            raise _MalformedError(f"more than {MOST_TENSORS:,} tensors are described")
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise _MalformedError(f"{key!r} is repeated")
            table[key] = value
        return table

    def refuse(constant: str) -> Any:
        raise _MalformedError(f"it has {constant}")

    if not text.startswith(b"{"):
        raise _MalformedError("it does not begin with '{'")
    if text.count(b"[") > MOST_LISTS:
        raise _MalformedError(f"it has more than {MOST_LISTS:,} lists")
    try:
        header: dict[str, Any] = json.loads(
            text.decode(),
            parse_int=parse_size,
            parse_float=refuse,
            parse_constant=refuse,
            object_pairs_hook=parse_table,
        )
        if b"\\ud" in text or b"\\uD" in text:
            # JSON can contain half of a surrogate pair, which is not valid text.
            json.dumps(header, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise _MalformedError("it is not UTF-8 text") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise _MalformedError("it is not JSON") from error
    return header


def _check_entries(entries: dict[str, Any], first: int) -> tuple[Header, int]:
    """Return the header, whose tensors must be contiguous, and the number of bytes of the tensors."""
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _MalformedError("its metadata values are not text")
    if not entries:
        raise _MalformedError("it has no tensors")
    if problem := name_problem(entries):
        raise _MalformedError(problem)
    for name, entry in entries.items():
        problem = _entry_problem(entry)
        if not name or problem:
            raise _MalformedError(f"the tensor {name!r} {problem}" if name else "a tensor has an empty name")
    end = 0
    for (begin, stop), name in sorted((entry["data_offsets"], name) for name, entry in entries.items()):
        if begin != end:
            problem = "overlaps the previous tensor" if begin < end else "leaves a gap after the previous tensor"
            raise _MalformedError(f"the tensor {name!r} {problem}")
        end = stop
    tensors = {
        name: Stored(entry["dtype"], tuple(entry["shape"]), first + entry["data_offsets"][0])
        for name, entry in sorted(entries.items())
    }
    return Header(tensors, metadata), end


def _entry_problem(entry: Any) -> str:
    """Return the problem with the entry of a tensor, or an empty string."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "should have only dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        return f"has the unknown dtype {dtype!r:.100}"
    if not _is_list_of_sizes(shape):
        return f"has the shape {shape!r:.100}"
    if len(shape) > MOST_DIMENSIONS:
        return f"has {len(shape):,} dimensions, but at most {MOST_DIMENSIONS} are read"
    if not _is_list_of_sizes(offsets) or len(offsets) != 2:
        return f"has the offsets {offsets!r:.100}"
    begin, stop = offsets
    if stop - begin != BYTES[dtype] * prod(shape):
        return f"of {dtype} {tuple(shape)} does not have {stop - begin:,} bytes"
    # Libraries use 64-bit sizes for empty tensors, too.
    if BYTES[dtype] * prod(max(length, 1) for length in shape) > LARGEST:
        return f"of {dtype} {tuple(shape)} is too large"
    return ""


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number <= LARGEST for number in value)
