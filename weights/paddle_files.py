"""PaddlePaddle's `.pdparams` files: pickles of NumPy arrays by name, read without unpickling.

`paddle.save` writes a dictionary of arrays with pickle protocol 2, 3 or 4. Python's unpickler would call the functions
that a file names and allocate the sizes that it states. The machine in this module supports only the few opcodes that
such files contain (see `pickletools` in the standard library). It builds dictionaries, strings and arrays, and does not
call anything. Values are views of the file in protocols 3 and 4. Protocol 2 stores values as text, which is decoded one
array at a time.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featuretap.support.errors import WeightsError
from featuretap.weights.open_file import OpenFile

LONGEST_NAME = 1000
"""Maximum bytes of a string that is decoded. Longer strings can only be values of an array."""

MOST_OPCODES = 100_000
"""A file of MobileNetV3 has 7,000 opcodes. An opcode takes up to about 100 bytes of memory."""

NAME_TABLE = "StructuredToParameterName@@"
"""Key of the table with Paddle's internal names of parameters."""

LARGEST = 2**63 - 1
"""Maximum bytes of an array."""

MARK = object()

GLOBALS = {
    **dict.fromkeys(
        [("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")], "reconstruct"
    ),
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("collections", "OrderedDict"): "dictionary",
}
"""Module and name in a file → name of the replacement."""

KINDS = frozenset({"b1", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8"})
"""NumPy's codes of the supported dtypes."""


class _MalformedError(Exception):
    """Raised for a file that is not a pickle of arrays, with the reason as its message."""


@dataclass(frozen=True)
class _Global:
    """An object that the file names."""

    kind: str


@dataclass
class _Type:
    """A dtype, which is complete when its byte order is set."""

    kind: str
    dtype: np.dtype[Any] | None = None


@dataclass
class _Array:
    """An array, which is complete when its values are set."""

    values: NDArray[Any] | None = None


def read_paddle(file: OpenFile) -> dict[str, NDArray[Any]]:
    """Return the arrays of a `.pdparams` file. The arrays are writable, and writing to them does not change the file.

    Args:
        file: the file.

    Returns:
        Name → array.

    Raises:
        WeightsError: the file cannot be read, or has other content than arrays by name.
    """
    try:
        return _arrays(_Machine(memoryview(file.mapped(mmap.ACCESS_COPY))).run())
    except _MalformedError as problem:
        raise WeightsError(
            f"{str(file.path)!r} is not a file of paddle.save with NumPy arrays: {problem}; save it again with "
            "paddle.save(model.state_dict(), path)"
        ) from None


def _arrays(state: object) -> dict[str, NDArray[Any]]:
    if not isinstance(state, dict):
        raise _MalformedError(f"it contains {_label(state)} instead of a dictionary")
    arrays = {}
    for name, value in state.items():
        if name == NAME_TABLE and isinstance(value, dict):
            continue
        if not isinstance(name, str) or not isinstance(value, _Array) or value.values is None:
            raise _MalformedError(f"the key {name!r:.50} has {_label(value)} instead of an array")
        arrays[name] = value.values
    if not arrays:
        raise _MalformedError("it does not contain an array")
    return arrays


def _label(value: object) -> str:
    if isinstance(value, _Array):
        return "an array" if value.values is not None else "an array without values"
    kind = {dict: "a dictionary", str: "a string", memoryview: "bytes", type(None): "None"}.get(type(value))
    return kind or "something else"


class _Machine:
    """The stack, memo and position of a pickle."""

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self.position = self.frame_end = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        """Return the pickled object."""
        for _ in range(MOST_OPCODES):
            code = self.number(1)
            if code == STOP:
                break
            if code not in OPCODES:
                raise _MalformedError(
                    f"it has the pickle opcode {bytes([code])!r}, which arrays, dictionaries and strings do not need"
                )
            OPCODES[code](self)
        else:
            raise _MalformedError(f"it has more than {MOST_OPCODES:,} pickle opcodes")
        (value,) = self.popped(1)
        if self.stack or self.position != len(self.content):
            raise _MalformedError("it has data after its end")
        return value

    def take(self, count: int) -> memoryview:
        """Return the next `count` bytes."""
        begin, self.position = self.position, self.position + count
        # Opcodes and values cannot cross the end of a frame.
        if self.position > len(self.content) or begin < self.frame_end < self.position:
            raise _MalformedError("it is cut off")
        return self.content[begin : self.position]

    def number(self, size: int) -> int:
        """Return the next `size` bytes as an unsigned integer."""
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        """Return the text up to the next line break."""
        begin = self.position
        length = bytes(self.content[begin : begin + LONGEST_NAME]).find(b"\n")
        if length < 0:
            raise _MalformedError("it is cut off")
        return _decode(bytes(self.take(length + 1))[:-1])

    def push(self, value: Any) -> None:
        """Push a `value` onto the stack."""
        self.stack.append(value)

    def popped(self, count: int) -> list[Any]:
        """Remove and return the last `count` values of the stack."""
        values = self.stack[len(self.stack) - count :] if len(self.stack) >= count else []
        if len(values) != count or any(value is MARK for value in values):
            raise _MalformedError("an opcode has no operands")
        del self.stack[len(self.stack) - count :]
        return values

    def popped_to_mark(self) -> list[Any]:
        """Remove the values after the last mark and the mark, and return the values."""
        last = next((index for index in reversed(range(len(self.stack))) if self.stack[index] is MARK), None)
        if last is None:
            raise _MalformedError("an opcode has no operands")
        values = self.stack[last + 1 :]
        del self.stack[last:]
        return values

    def text(self, size: int) -> None:
        """Push a string with a length of `size` bytes. Strings that are too long for names are not decoded."""
        raw = self.take(self.number(size))
        self.push(_decode(bytes(raw)) if len(raw) <= LONGEST_NAME else _LongText(raw))

    def store(self, index: int) -> None:
        """Store the last value in the memo at `index`."""
        (value,) = self.popped(1)
        if index >= MOST_OPCODES:
            raise _MalformedError(f"its memo has more than {MOST_OPCODES:,} values")
        self.push(value)
        self.memo[index] = value

    def recall(self, index: int) -> None:
        """Push the value at `index` in the memo."""
        if index not in self.memo:
            raise _MalformedError("an opcode has no operands")
        self.push(self.memo[index])

    def set_items(self, pairs: list[Any]) -> None:
        """Store alternating keys and values (`pairs`) in the dictionary on the stack."""
        (target,) = self.popped(1)
        keys = pairs[::2]
        if not isinstance(target, dict) or len(pairs) % 2 or not all(isinstance(key, str) for key in keys):
            raise _MalformedError("it has items outside a dictionary, or with keys that are not strings")
        target.update(zip(keys, pairs[1::2], strict=True))
        self.push(target)

    def find_global(self, names: list[Any]) -> None:
        """Push the replacement for a global; `names` are its module and its name."""
        module, name = names
        kind = GLOBALS.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if kind is None:
            named = f"{module}.{name}"
            raise _MalformedError(f"it refers to {named!r:.80}, which is code that is not run")
        self.push(_Global(kind))

    def call(self) -> None:
        """Push the result of calling a global with arguments."""
        function, arguments = self.popped(2)
        kind = function.kind if isinstance(function, _Global) else ""
        match kind, arguments:
            case "reconstruct", (_Global("ndarray"), (0,), b"b"):
                self.push(_Array())
            # Older versions of NumPy wrote False and True as numbers.
            case "dtype", (str(code), 0, 1) if code in KINDS:
                self.push(_Type(code))
            case "encode", (str() | _LongText() as text, "latin1"):
                self.push(_encode(text))
            case "dictionary", ():
                self.push({})
            case _:
                raise _MalformedError("it has a call that does not create an array")

    def build(self) -> None:
        """Set the state of the dtype or array on the stack."""
        target, state = self.popped(2)
        match target, state:
            case _Type(kind, None), (3, str(order), None, None, None, -1, -1, 0):
                if order != ("|" if kind.endswith("1") else "<"):
                    raise _MalformedError("it has a dtype in another byte order than little endian")
                target.dtype = np.dtype(order + kind)
            case _Array(None), (1, tuple(shape), _Type(_, np.dtype() as dtype), bool(fortran), values):
                target.values = _array(shape, dtype, values, order="F" if fortran else "C")
            case _:
                raise _MalformedError("it has an array or a dtype with an unknown state")
        self.push(target)


@dataclass(frozen=True)
class _LongText:
    """A UTF-8 string that is too long for a name."""

    raw: memoryview


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _MalformedError("it has a string that is not UTF-8") from None


def _encode(text: str | _LongText) -> bytes:
    """Return the bytes that protocol 2 stores as characters, without a wider intermediate copy."""
    try:
        if isinstance(text, str):
            return text.encode("latin-1")
        # Characters above U+00FF begin with larger bytes.
        if np.frombuffer(text.raw, np.uint8).max() > 0xC3:
            raise _MalformedError("it has an array whose values are not bytes")
        return str(text.raw, "utf-8").encode("latin-1")
    except UnicodeError:
        raise _MalformedError("it has an array whose values are not bytes") from None


def _array(shape: tuple[Any, ...], dtype: np.dtype[Any], values: object, order: Any) -> NDArray[Any]:
    """Return an array with this shape and dtype from bytes."""
    if not all(type(length) is int and length >= 0 for length in shape) or len(shape) > 8:
        raise _MalformedError("it has an array whose shape is not a tuple of sizes")
    # NumPy uses 64-bit sizes for empty arrays, too.
    is_too_large = prod(max(length, 1) for length in shape) * dtype.itemsize > LARGEST
    if is_too_large or not isinstance(values, bytes | memoryview) or len(values) != prod(shape) * dtype.itemsize:
        raise _MalformedError(f"it has an array of shape {shape!s:.80} with a wrong number of values")
    # Values in pickles are not aligned.
    return np.require(np.frombuffer(values, dtype), requirements=["A", "W"]).reshape(shape, order=order)


STOP = ord(".")

OPCODES: dict[int, Callable[[_Machine], None]] = {
    0x80: lambda machine: _check_protocol(machine.number(1)),
    # A frame states how many bytes an unpickler can read in one step.
    0x95: lambda machine: _begin_frame(machine, machine.number(8)),
    ord("("): lambda machine: machine.push(MARK),
    ord("}"): lambda machine: machine.push({}),
    ord(")"): lambda machine: machine.push(()),
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("K"): lambda machine: machine.push(machine.number(1)),
    ord("M"): lambda machine: machine.push(machine.number(2)),
    ord("J"): lambda machine: machine.push(int.from_bytes(machine.take(4), "little", signed=True)),
    0x8C: lambda machine: machine.text(1),
    ord("X"): lambda machine: machine.text(4),
    ord("C"): lambda machine: machine.push(machine.take(machine.number(1))),
    ord("B"): lambda machine: machine.push(machine.take(machine.number(4))),
    0x85: lambda machine: machine.push(tuple(machine.popped(1))),
    0x86: lambda machine: machine.push(tuple(machine.popped(2))),
    0x87: lambda machine: machine.push(tuple(machine.popped(3))),
    ord("t"): lambda machine: machine.push(tuple(machine.popped_to_mark())),
    ord("q"): lambda machine: machine.store(machine.number(1)),
    ord("r"): lambda machine: machine.store(machine.number(4)),
    0x94: lambda machine: machine.store(len(machine.memo)),
    ord("h"): lambda machine: machine.recall(machine.number(1)),
    ord("j"): lambda machine: machine.recall(machine.number(4)),
    ord("s"): lambda machine: machine.set_items(machine.popped(2)),
    ord("u"): lambda machine: machine.set_items(machine.popped_to_mark()),
    ord("c"): lambda machine: machine.find_global([machine.line(), machine.line()]),
    0x93: lambda machine: machine.find_global(machine.popped(2)),
    ord("R"): lambda machine: machine.call(),
    ord("b"): lambda machine: machine.build(),
}
"""Opcode of a pickle → its implementation."""


def _check_protocol(protocol: int) -> None:
    if protocol not in (2, 3, 4):
        raise _MalformedError(f"it has pickle protocol {protocol}, but Paddle uses 2 to 4")


def _begin_frame(machine: _Machine, size: int) -> None:
    begin, machine.frame_end = machine.frame_end, machine.position + size
    if machine.position < begin or machine.frame_end > len(machine.content):
        raise _MalformedError("it is cut off")
