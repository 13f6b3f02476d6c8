"""Recognize files that are not weights files by their first bytes, regardless of their names."""

from __future__ import annotations

from featuretap.support.errors import WeightsError
from featuretap.weights.open_file import OpenFile, explain_os_error

BEGINNING = 512
"""Number of bytes that are read to recognize the kind of a file."""

KINDS = (
    (b"version https://git-lfs", "a git-lfs pointer instead of the file; run 'git lfs pull' in its repository"),
    (b"\x93NUMPY", "a single array of numpy.save; save the tensors by name with safetensors.numpy.save_file"),
    (b"\x89HDF", "an HDF5 file; export its tensors with safetensors first"),
)
"""First bytes → kind of the file and advice."""

ARCHIVE = b"PK\x03\x04"

NAME_IN_ARCHIVE = slice(26, 28), 30
"""Position of the length of the first file's name in an archive, and position of the name."""

ARRAYS = (
    "an archive of NumPy arrays (numpy.savez); save it as safetensors: "
    "safetensors.numpy.save_file(dict(numpy.load(path)), 'weights.safetensors')"
)

EXPORTED_SUFFIXES = (".onnx", ".xml")
EXPORTED = "an exported model, which registry.session opens; use the weights file that it was exported from"

WEB_PAGE = "a web page, such as the error page of a failed download; download it again"


def check_kind(opened: OpenFile) -> None:
    """Check that a file can be a weights file.

    Args:
        opened: the file.

    Raises:
        WeightsError: the file is empty, a git-lfs pointer, a web page or of another unsupported kind. The message names
            the kind.
    """
    kind = EXPORTED if opened.path.suffix in EXPORTED_SUFFIXES else find_other_kind(opened)
    if kind:
        raise WeightsError(f"{str(opened.path)!r} is not a weights file: it is {kind}")


def find_other_kind(opened: OpenFile) -> str:
    """Return the kind of a file that is neither weights nor a model, and what to do. Return "" for all other files."""
    with explain_os_error(opened.path), opened.reader() as file:
        start = file.read(BEGINNING)
    if not start:
        return "empty; download or save it again"
    if start[8:9] == b"{":
        # The length of a safetensors header can have any bytes. The header follows.
        return ""
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return WEB_PAGE
    if start.startswith(ARCHIVE):
        length, name = NAME_IN_ARCHIVE
        if start[name : name + int.from_bytes(start[length], "little")].endswith(b".npy"):
            return ARRAYS
    return next((kind for beginning, kind in KINDS if start.startswith(beginning)), "")
