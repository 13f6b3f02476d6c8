"""Read weights files: tensors by name, and the record. Code in files is never run.

Tensors are PyTorch tensors or NumPy arrays. Only PyTorch tensors, and files of torch.save, need PyTorch.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from shlex import quote
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.pretrained import PADDLE_SUFFIX, TENSORFLOW_SUFFIXES, TORCH_SUFFIXES
from featuretap.support.errors import Hint, WeightsError
from featuretap.weights.file_kinds import check_kind
from featuretap.weights.files import INDEX_SUFFIX, SUFFIX, Framework, weights_file
from featuretap.weights.header import Header, Stored, read_header
from featuretap.weights.limits import name_problem
from featuretap.weights.metadata import Record, read_record
from featuretap.weights.open_file import OpenFile
from featuretap.weights.paddle_files import read_paddle
from featuretap.weights.shards import check_shard, read_index
from featuretap.weights.tensorflow_models import read_tensorflow_model
from featuretap.weights.timm_config import TimmConfig, read_timm_config
from featuretap.weights.unwrapping import strip_prefixes

Tensor: TypeAlias = Any
"""A `torch.Tensor` or a NumPy array. Code uses their common operations: `shape`, `reshape`, indices, `sum(axis=…)`."""

NUMPY_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
}
"""dtype as named by safetensors → by NumPy. NumPy does not have BF16, the upper half of a float32."""

Reader: TypeAlias = Callable[[OpenFile, Framework], Mapping[str, Tensor]]
"""Returns name → tensor of a file, or raises a `WeightsError`."""


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read.

    Args:
        file: the file, which may be inside the requested folder.
        tensors: name in the file, without prefixes of wrappers → CPU tensor, which must be copied, or read-only array.
        record: the record that featuretap wrote, or the record of an identified TensorFlow file, or None.
        config: the content of a `config.json` in timm's layout.
        digest: function that waits for the SHA-256 of the file.
        entry: the published weights that were requested, or that have this digest.
        framework: "pt" for PyTorch tensors, "np" for NumPy arrays.
    """

    file: OpenFile
    tensors: Mapping[str, Tensor]
    record: Record | None
    config: TimmConfig
    digest: Callable[[], str]
    entry: WeightsEntry | None = None
    framework: Framework = "pt"

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.file.path

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name in the file → shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoint(path: Path, *, hashed: bool = False, framework: Framework = "pt") -> Checkpoint:
    """Read a weights file, or the weights file in a folder.

    Args:
        path: a `.safetensors` file, a file of torch.save (read with `weights_only=True`), a file of paddle.save, a
            frozen graph or the index of a checkpoint of TensorFlow, the index of a sharded checkpoint, or a folder with
            one of `FILES`.
        hashed: start computing the digest in a thread, because it will be needed. This is the default for files without
            metadata, which may be identified by their digests.
        framework: "pt" for PyTorch tensors; "np" for NumPy arrays, which does not need PyTorch. Arrays are read-only
            views of the mapped file in the file's dtypes, including float16. bfloat16 is converted to float32 without
            loss.

    Returns:
        The checkpoint.

    Raises:
        WeightsError: the file cannot be read, is not a valid weights file, or has dtypes that NumPy does not support.
    """
    return read_open_file(OpenFile(weights_file(path)), hashed=hashed, framework=framework)


def read_open_file(file: OpenFile, *, hashed: bool = False, framework: Framework = "pt") -> Checkpoint:
    """Read an open file. See `read_checkpoint`.

    Args:
        file: the file.
        hashed: as for `read_checkpoint`.
        framework: as for `read_checkpoint`.

    Returns:
        The checkpoint.

    Raises:
        WeightsError: the file is not a valid weights file, or has dtypes that NumPy does not support.
    """
    path = file.path
    if path.suffix in TENSORFLOW_SUFFIXES:
        return _read_tensorflow_file(file, framework)
    read = READERS.get(path.suffix)
    if read:
        digest = file.hash_in_thread()
        found = read(file, framework)
        if problem := name_problem(found):
            raise WeightsError(f"{str(path)!r} is not a valid weights file: {problem}; get it again from its source")
        named = strip_prefixes(found)
        return Checkpoint(file, named, None, read_timm_config(path), digest, framework=framework)
    header = read_header(file)
    record = read_record(path, header.metadata)
    digest = file.hash_in_thread() if hashed or record is None else file.sha256
    tensors = _map_tensors(file, header, framework)
    config = TimmConfig() if record else read_timm_config(path)
    tensors = tensors if record else strip_prefixes(tensors)
    return Checkpoint(file, tensors, record, config, digest, framework=framework)


def convert_first(problem: str, file: Path) -> WeightsError:
    """Return an error with this `problem` for a `file` that only PyTorch can read. Its hint is the conversion."""
    stem = Path(file.name.removesuffix(INDEX_SUFFIX)).stem.removesuffix(".pth")
    stem = f"{stem}-converted" if file.suffix == SUFFIX else stem
    target = file.with_name(f"{stem}{SUFFIX}")
    command = f"featuretap convert {quote(str(file))} {quote(str(target))}"
    return WeightsError(f"{str(file)!r} {problem}", hint=Hint("convert it where PyTorch is installed:", command))


def _read_tensorflow_file(file: OpenFile, framework: Framework) -> Checkpoint:
    check_kind(file)
    digest = file.hash_in_thread()
    tensors: Mapping[str, Tensor]
    tensors, record = read_tensorflow_model(file)
    if framework == "pt":
        from torch import from_numpy

        tensors = {name: from_numpy(array) for name, array in tensors.items()}
    return Checkpoint(file, tensors, record, TimmConfig(), digest, framework=framework)


def _read_torch_file(file: OpenFile, framework: Framework) -> Mapping[str, Tensor]:
    check_kind(file)
    if framework == "np":
        path = file.path
        suffix = path.name.removeprefix(path.stem.removesuffix(".pth"))
        raise convert_first(f"is a {suffix} file, which can only be read with PyTorch", path)
    from featuretap.weights.torch_files import read_torch_file

    return read_torch_file(file)


def _read_shards(file: OpenFile, framework: Framework) -> Mapping[str, Tensor]:
    """Return the tensors of all files that an index names."""
    check_kind(file)
    tensors: dict[str, Tensor] = {}
    index, shards = file.path, read_index(file, (SUFFIX, *TORCH_SUFFIXES))
    pickle = next((shard for shard in shards if shard.suffix in TORCH_SUFFIXES), None)
    if pickle and framework == "np":
        raise convert_first(f"names {pickle.suffix} files, which can only be read with PyTorch", index)
    for path, names in shards.items():
        shard = file.open_beside(path)
        if path.suffix == SUFFIX:
            found = _map_tensors(shard, read_header(shard), framework)
        else:
            found = _read_torch_file(shard, framework)
        check_shard(index, path, set(found), names)
        tensors |= found
    return tensors


def _read_paddle_file(file: OpenFile, framework: Framework) -> Mapping[str, Tensor]:
    check_kind(file)
    arrays = read_paddle(file)
    if framework == "np":
        return arrays
    from torch import from_numpy

    return {name: from_numpy(array) for name, array in arrays.items()}


READERS: Mapping[str, Reader] = {
    **dict.fromkeys(TORCH_SUFFIXES, _read_torch_file),
    ".json": _read_shards,
    PADDLE_SUFFIX: _read_paddle_file,
}
"""Suffix → reader of files without records. Files with other suffixes are read as safetensors files."""


def _map_tensors(file: OpenFile, header: Header, framework: Framework) -> Mapping[str, Tensor]:
    """Return the tensors of a file with a checked header, in memory that the file is mapped into."""
    # PyTorch has no read-only tensors. Its mapping is private, so that writing to a tensor does not change the file.
    content = file.mapped(mmap.ACCESS_COPY if framework == "pt" else mmap.ACCESS_READ)
    if framework == "pt":
        from featuretap.weights.torch_tensors import tensor

        return {name: tensor(content, stored) for name, stored in header.tensors.items()}
    unsupported = next((stored.dtype for stored in header.tensors.values() if stored.dtype not in NUMPY_DTYPES), "")
    if unsupported:
        raise WeightsError(
            f"{str(file.path)!r} has tensors of type {unsupported}, which NumPy does not support; convert them with "
            "PyTorch: registry.save(registry.load(path).float(), path)"
        )
    return {name: _array(content, stored) for name, stored in header.tensors.items()}


def _array(content: mmap.mmap | bytes, stored: Stored) -> NDArray[Any]:
    values: NDArray[Any] = np.frombuffer(content, NUMPY_DTYPES[stored.dtype], prod(stored.shape), stored.begin)
    if stored.dtype == "BF16":
        values = (values.astype("<u4") << 16).view("<f4")
    # Tensors in files of other programs may not be aligned.
    return np.require(values, requirements="A").reshape(stored.shape)
