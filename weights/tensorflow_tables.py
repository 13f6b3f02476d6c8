"""Tables in LevelDB's format, such as the index of a TensorFlow checkpoint: sorted blocks of keys and values.

The format is documented in `table/format.h` and `doc/table_format.md` of LevelDB. It consists of blocks with
prefix-compressed keys, an index block with their positions, and a footer with the position of the index block.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from featuretap.support.errors import WeightsError
from featuretap.weights.checksums import crc32c, unmasked
from featuretap.weights.open_file import OpenFile, explain_os_error
from featuretap.weights.tensorflow_messages import refuse, varint

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
"""Bytes: the positions of two blocks, padding to 40 bytes, and the magic number."""

TRAILER = 5
"""Bytes after a block: its compression type and its checksum."""

LARGEST_TABLE = 100_000_000
"""Maximum bytes. The index of a network with a thousand tensors has 0.1 MB."""

MOST_BYTES_OF_KEYS = 3
"""Maximum bytes of keys and values, as a multiple of the file size. Prefix compression makes keys longer."""


def read_table(opened: OpenFile) -> dict[bytes, bytes]:
    """Return key → value of a table.

    Args:
        opened: the file.

    Returns:
        Key → value.

    Raises:
        WeightsError: the file cannot be read, is not such a table, has a wrong checksum, or is compressed.
    """
    path = opened.path
    with explain_os_error(path), opened.reader() as file:
        content = file.read(LARGEST_TABLE + 1)
    if len(content) < FOOTER or int.from_bytes(content[-8:], "little") != MAGIC or len(content) > LARGEST_TABLE:
        raise refuse(path, "it is not the index of a checkpoint")
    table: dict[bytes, bytes] = {}
    at = len(content) - FOOTER
    for _ in range(2):
        # The first position is the metadata block, the second the index block.
        offset, at = varint(path, content, at)
        size, at = varint(path, content, at)
    room = MOST_BYTES_OF_KEYS * len(content)
    for _, handle in _entries(path, _block(path, content, offset, size)):
        begin, place = varint(path, handle, 0)
        length, _ = varint(path, handle, place)
        for key, value in _entries(path, _block(path, content, begin, length)):
            room -= len(key) + len(value)
            if room < 0 or key in table:
                raise refuse(path, "its keys are inconsistent")
            table[key] = value
    return table


def _block(path: Path, content: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + TRAILER > len(content) - FOOTER:
        raise refuse(path, "it has a block after its end")
    if crc32c(content[offset : end + 1]) != unmasked(int.from_bytes(content[end + 1 : end + TRAILER], "little")):
        raise refuse(path, "the checksum of a block is wrong")
    if content[end]:
        raise WeightsError(
            f"{str(path)!r} is a compressed index of a checkpoint, which is not supported; save the checkpoint again "
            "with tf.train.Saver, which does not compress the index"
        )
    return content[offset:end]


def _entries(path: Path, block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the key and value of each entry of a block. Restart positions and their number follow the entries."""
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    if len(block) < 4 or end < 0:
        raise refuse(path, "it has a damaged block")
    at, key = 0, b""
    while at < end:
        shared, at = varint(path, block, at)
        added, at = varint(path, block, at)
        length, at = varint(path, block, at)
        if shared > len(key) or at + added + length > end:
            raise refuse(path, "it has a damaged block")
        key = key[:shared] + block[at : at + added]
        at += added
        yield key, block[at : at + length]
        at += length
