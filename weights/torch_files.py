"""Files of torch.save: state dicts, also inside training checkpoints. Code in files is never run."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from mmap import ACCESS_READ
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from featuretap.support.errors import WeightsError
from featuretap.weights.limits import LARGEST_PICKLE, LONGEST_PICKLE
from featuretap.weights.open_file import OpenFile, explain_os_error
from featuretap.weights.pickle_costs import pickle_problem
from featuretap.weights.unwrapping import CONTAINERS, select_state_dict

SKIPPED = (
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta"),
    # The module of paths in Python 3.13.
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    *(f"{module}.Pure{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    *(f"builtins.{kind}" for kind in ("dict", "float", "frozenset", "int", "list", "range")),
    *(f"numpy.{core}.multiarray.{function}" for core in ("core", "_core") for function in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
    # Settings of Hydra, which Lightning stores.
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode", "typing.Any"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
)
"""Objects that training scripts store with tensors. They are not imported, created or called."""

ARCHIVE = b"PK\x03\x04"
"""First bytes of an archive."""

PROGRAM = "/code/"
"""Folder of a TorchScript program in an archive."""

PICKLE = "/data.pkl"
"""Suffix of the name of the pickle in an archive."""

FOLDER = 0x10
"""Attribute of a folder in an archive. PyTorch reads uninitialized memory if a tensor's entry has it."""

OLD_PICKLES = 5
"""Pickles at the start of a file in the legacy format: two numbers, the system, the content and its storages."""

BYTES_BY_NUMBER = b"\nbytearray\n"
"""Reference to a class in a pickle. Its argument can be a number of bytes, which are allocated."""

ADVICE = (
    "if you trust its source, load it with torch.load(path, weights_only=False), and save its state dict as a separate "
    "file"
)

MOST_SHARED = 3
"""Maximum number of times that the values of a file are used. Layers may share tensors."""

_replacing = Lock()


class _Skipped:
    """A value that is skipped."""

    def __new__(cls, *arguments: object) -> _Skipped:
        return object.__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _PlainDict:
    """A replacement for dictionary classes that the restricted unpickler cannot fill."""

    def __new__(cls, *arguments: object) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


class _PlainList:
    """A replacement for list classes that the restricted unpickler cannot fill."""

    def __new__(cls, *arguments: object) -> list[Any]:  # type: ignore[misc]
        return []


REPLACEMENTS: Mapping[str, type] = {
    **dict.fromkeys(SKIPPED, _Skipped),
    "collections.defaultdict": _PlainDict,
    "collections.deque": _PlainList,
}
"""Name in a file → replacement."""


def read_torch_file(file: OpenFile) -> Mapping[str, Tensor]:
    """Return the tensors of a file of torch.save: a state dict, or the state dict in a training checkpoint.

    Args:
        file: the file.

    Returns:
        Name → tensor.

    Raises:
        WeightsError: the file cannot be read safely, or does not contain a state dict.
    """
    path = file.path
    with explain_os_error(path):
        pickles = _check_archive(file)
        try:
            _check_pickles(file, pickles)
            content = _load(file)
        except (OSError, WeightsError):
            raise
        except Exception as error:
            # The unpickler can raise almost any exception for damaged files.
            raise _refusal(path, error) from error
    state, key = select_state_dict(path, content)
    under = f" under {key!r}" if key else ""
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(
            f"{str(path)!r} contains {_kind(state)}{under} instead of a state dict; save model.state_dict() instead of "
            "the model"
        )
    for name, value in state.items():
        problem = _problem(name, value)
        if problem:
            raise WeightsError(
                f"{str(path)!r} does not contain a state dict{under}: {name!r} {problem}; save a dictionary of "
                f"tensors, directly or under one of {', '.join(CONTAINERS)}"
            )
    _check_sizes(file, state)
    return {name: value.detach() for name, value in state.items()}


def _load(file: OpenFile) -> Any:
    """Load a file, with `REPLACEMENTS` for classes that the restricted unpickler refuses."""
    try:
        return _load_allowed(file)
    except UnpicklingError as error:
        if _refused_name(error) not in REPLACEMENTS:
            raise
    replaced: list[Any] = [(kind, name) for name, kind in REPLACEMENTS.items()]
    # The allowed classes are a setting of the process.
    with _replacing, torch.serialization.safe_globals(replaced):
        return _load_allowed(file)


def _load_allowed(file: OpenFile) -> Any:
    with file.reader() as content:
        return torch.load(content, map_location="cpu", weights_only=True)


def _refused_name(error: Exception) -> str:
    """Return the class or function that the restricted unpickler refused, or "" for other errors."""
    found = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
    name = found[1] if found else ""
    # PyTorch's message does not name the module.
    return f"builtins.{name}" if name and "." not in name else name


def _refusal(path: Path, error: Exception) -> WeightsError:
    if name := _refused_name(error):
        return WeightsError(f"{str(path)!r} contains {name}, which can run code when it is read; {ADVICE}")
    return WeightsError(
        f"{str(path)!r} is not a weights file that can be read safely; use a .safetensors file, or a .pth file with a "
        "state dict"
    )


def _check_archive(opened: OpenFile) -> list[zipfile.ZipInfo]:
    """Refuse archives with folders, or that unpack to more than their size, and return the pickles in the archive.

    PyTorch writes uncompressed files only. Files in PyTorch's legacy format have no archive.
    """
    path, size = opened.path, opened.size
    with opened.reader() as file:
        if file.read(len(ARCHIVE)) != ARCHIVE:
            # The legacy format, a pickle.
            return []
    try:
        with opened.reader() as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        # PyTorch's reader may accept archives that cannot be checked here.
        raise _refusal(path, error) from error
    folder = next((entry.filename for entry in entries if entry.is_dir() or entry.external_attr & FOLDER), "")
    if folder:
        raise WeightsError(
            f"{str(path)!r} is an archive with {folder!r} as a folder, which PyTorch never writes; get it again from "
            "its source"
        )
    if any(PROGRAM in entry.filename for entry in entries):
        raise WeightsError(
            f"{str(path)!r} is a TorchScript program; save its weights: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pth')"
        )
    pickles = [entry for entry in entries if entry.filename.lower().endswith(PICKLE)]
    pickled = sum(entry.file_size for entry in pickles)
    longest = _longest_pickle(opened)
    if pickled > longest:
        raise WeightsError(
            f"{str(path)!r} has {pickled:,} bytes of names and values besides its tensors, but at most "
            f"{longest:,} are read; save the state dict only"
        )
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise WeightsError(
            f"{str(path)!r} is an archive of {size:,} bytes that unpacks to {unpacked:,}; get it again from its source"
        )
    return pickles


def _check_pickles(opened: OpenFile, pickles: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse pickles that take much more time or memory than their size within the limits of PyTorch's unpickler."""
    longest = _longest_pickle(opened)
    if pickles:
        with opened.reader() as file, zipfile.ZipFile(file) as archive:
            contents = [archive.read(entry) for entry in pickles]
        creates_bytes = any(BYTES_BY_NUMBER in content for content in contents)
        problems = [pickle_problem(BytesIO(content), 1, longest) for content in contents]
    else:
        creates_bytes = opened.mapped(ACCESS_READ).find(BYTES_BY_NUMBER) >= 0
        with opened.reader() as file:
            problems = [pickle_problem(file, OLD_PICKLES, longest)]
    if creates_bytes:
        raise WeightsError(
            f"{str(opened.path)!r} contains builtins.bytearray, which can take any amount of memory to read; {ADVICE}"
        )
    for problem in filter(None, problems):
        raise WeightsError(f"{str(opened.path)!r} {problem}")


def _longest_pickle(opened: OpenFile) -> int:
    """Return the maximum size of the pickle in a file."""
    return max(LONGEST_PICKLE, opened.size // LARGEST_PICKLE)


def _check_sizes(file: OpenFile, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with many more values than the file, which result from damaged strides."""
    size, named = file.size, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if named > MOST_SHARED * size:
        raise WeightsError(
            f"{str(file.path)!r} has {size:,} bytes, but describes tensors of {named:,}; get it again from its source"
        )


def _kind(value: object) -> str:
    return "an object" if isinstance(value, _Skipped) else type(value).__name__


def _problem(name: object, value: object) -> str:
    if not isinstance(name, str):
        return "is not a tensor name"
    if not isinstance(value, Tensor):
        return f"is {_kind(value)}, not a tensor"
    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        return f"is a tensor of {value.dtype} in the layout {value.layout}, which layers do not support"
    if value.device.type != "cpu":
        return f"is a tensor without values (device {value.device.type!r})"
    return ""
