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
    # Python 3.13 has paths in a module of their own.
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    *(f"{module}.Pure{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    *(f"builtins.{kind}" for kind in ("dict", "float", "frozenset", "int", "list", "range")),
    *(f"numpy.{core}.multiarray.{function}" for core in ("core", "_core") for function in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
    # The settings of Hydra, which Lightning stores.
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode", "typing.Any"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
)
"""What training scripts store beside the tensors; none of it is imported, created or called."""

ARCHIVE = b"PK\x03\x04"
"""First bytes of an archive, by which PyTorch knows its format."""

PROGRAM = "/code/"
"""Folder of a TorchScript program in its archive, whose files are compressed."""

PICKLE = "/data.pkl"
"""End of the name of the pickle in an archive, which describes the tensors."""

FOLDER = 0x10
"""Attribute of a folder in an archive. PyTorch reads uninitialised memory where a tensor has it."""

OLD_PICKLES = 5
"""At the beginning of a file in the format of old versions: two numbers, the system, the content, and its storages."""

BYTES_BY_NUMBER = b"\nbytearray\n"
"""How a pickle names a class whose one argument is a number of bytes, of zeros that are allocated."""

ADVICE = (
    "if you trust its source, load it with torch.load(path, weights_only=False), and save the state dict in it as a "
    "file of its own"
)

MOST_SHARED = 3
"""How often a file may use its values: layers may share tensors."""

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
"""Name in a file → what is created in its place."""


def read_torch_file(file: OpenFile) -> Mapping[str, Tensor]:
    """Return the tensors of a file of torch.save: a state dict, or the state dict in a training checkpoint.

    Args:
        file: the file.

    Returns:
        name → tensor.

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
            # Damaged bytes make the unpickler raise almost anything.
            raise _refusal(path, error) from error
    state, key = select_state_dict(path, content)
    under = f" under {key!r}" if key else ""
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(
            f"{str(path)!r} holds {_kind(state)}{under}, no state dict; save model.state_dict(), not the model"
        )
    for name, value in state.items():
        problem = _problem(name, value)
        if problem:
            raise WeightsError(
                f"{str(path)!r} holds no state dict{under}: {name!r} {problem}; save a dictionary of tensors, alone or "
                f"under one of {', '.join(CONTAINERS)}"
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
    # What is allowed is a setting of the process.
    with _replacing, torch.serialization.safe_globals(replaced):
        return _load_allowed(file)


def _load_allowed(file: OpenFile) -> Any:
    with file.reader() as content:
        return torch.load(content, map_location="cpu", weights_only=True)


def _refused_name(error: Exception) -> str:
    """Return the class or function that the restricted unpickler refused, or "" for other errors."""
    found = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
    name = found[1] if found else ""
    # PyTorch leaves the module out here.
    return f"builtins.{name}" if name and "." not in name else name


def _refusal(path: Path, error: Exception) -> WeightsError:
    if name := _refused_name(error):
        return WeightsError(f"{str(path)!r} holds {name}, and reading that can run code; {ADVICE}")
    return WeightsError(
        f"{str(path)!r} is no file of weights that can be read safely; give a .safetensors file, or a .pth "
        "file that holds a state dict"
    )


def _check_archive(opened: OpenFile) -> list[zipfile.ZipInfo]:
    """Refuse archives with folders, or that unpack to more than their size. PyTorch writes uncompressed files only.

    Returns:
        the pickles in the archive; none for files in PyTorch's legacy format.
    """
    path, size = opened.path, opened.size
    with opened.reader() as file:
        if file.read(len(ARCHIVE)) != ARCHIVE:
            # The format of old versions, a pickle.
            return []
    try:
        with opened.reader() as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        # PyTorch's own reader may accept what this one does not, and it has to be checked first.
        raise _refusal(path, error) from error
    folder = next((entry.filename for entry in entries if entry.is_dir() or entry.external_attr & FOLDER), "")
    if folder:
        raise WeightsError(
            f"{str(path)!r} is an archive with {folder!r} as a folder, which PyTorch never writes; get it again from "
            "where it comes from"
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
            f"{str(path)!r} has {pickled:,} bytes of names and values beside its tensors, and at most "
            f"{longest:,} are read; save the state dict alone"
        )
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise WeightsError(
            f"{str(path)!r} is an archive of {size:,} bytes that unpacks to {unpacked:,}; get it again from where it "
            "comes from"
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
            f"{str(opened.path)!r} holds builtins.bytearray, and reading that can take any amount of memory; {ADVICE}"
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
            f"{str(file.path)!r} has {size:,} bytes, and describes tensors of {named:,}; get it again from where it "
            "comes from"
        )


def _kind(value: object) -> str:
    return "an object" if isinstance(value, _Skipped) else type(value).__name__


def _problem(name: object, value: object) -> str:
    if not isinstance(name, str):
        return "is no name of a tensor"
    if not isinstance(value, Tensor):
        return f"is {_kind(value)}, not a tensor"
    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        return f"is a tensor of {value.dtype} in the layout {value.layout}, which no layer holds"
    if value.device.type != "cpu":
        return f"is a tensor without values (device {value.device.type!r})"
    return ""
