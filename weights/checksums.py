"""CRC-32C, the checksum of TensorFlow's checkpoints (Castagnoli's polynomial, RFC 3720, appendix B.4).

Computed with NumPy: the checksums of many pieces of equal size are computed in parallel and then combined.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78
MASK_DELTA = 0xA282EAD8
LAST = 0xFFFFFFFF

PIECE = 4096
"""Bytes per piece."""

Words = NDArray[np.uint32]


def unmasked(checksum: int) -> int:
    """Return a `checksum` without the mask that LevelDB and TensorFlow store it with (`crc32c::Mask`)."""
    rotated = (checksum - MASK_DELTA) & LAST
    return ((rotated >> 17) | (rotated << 15)) & LAST


def crc32c(content: bytes | memoryview) -> int:
    """Return the CRC-32C of `content`."""
    values = np.frombuffer(content, np.uint8)
    first = len(values) % PIECE
    state = LAST
    table = _table().tolist()
    for byte in values[:first].tolist():
        state = table[(state ^ byte) & 255] ^ (state >> 8)
    pieces = values[first:].reshape(-1, PIECE)
    states = np.zeros(len(pieces), np.uint32)
    for column in range(PIECE if len(pieces) else 0):
        states = _step(states, pieces[:, column])
    # CRCs are linear: the state of the first piece, advanced over the second, is added to the state of the second.
    advanced = _advanced().tolist()
    for piece in states.tolist():
        state = (
            advanced[0][state & 255]
            ^ advanced[1][state >> 8 & 255]
            ^ advanced[2][state >> 16 & 255]
            ^ advanced[3][state >> 24]
            ^ piece
        )
    return state ^ LAST


def _step(states: Words, octets: NDArray[np.uint8]) -> Words:
    return _table()[(states ^ octets) & 255] ^ (states >> 8)


@cache
def _table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


@cache
def _advanced() -> Words:
    """Return the state after a piece of zeros, for each byte of a state and each of its 256 values."""
    states = (np.arange(256, dtype=np.uint32)[None] << (8 * np.arange(4, dtype=np.uint32)[:, None])).astype(np.uint32)
    for _ in range(PIECE):
        states = _step(states, np.zeros((), np.uint8))
    return states
