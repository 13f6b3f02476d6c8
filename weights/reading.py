"""Reading a file of weights: its tensors by name, and what it says of itself. No code in a file is ever run.

Tensors are PyTorch's or NumPy arrays; only the former, and files that torch.save wrote, need PyTorch.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from shlex import quote
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.pretrained import TORCH_SUFFIXES
from featuretap.support.errors import Hint, WeightsError
from featuretap.weights.files import SUFFIX, Framework, sha256_of, weights_file
from featuretap.weights.header import Header, Stored, explain_os_error, read_header
from featuretap.weights.metadata import Record, read_record
from featuretap.weights.timm_config import TimmConfig, read_timm_config

Tensor: TypeAlias = Any
"""A `torch.Tensor` or a NumPy array, of which what both have is used: `shape`, `reshape`, indices, `sum(axis=…)`."""

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
"""Types of numbers as safetensors calls them → as NumPy does; BF16, which it lacks, is the upper half of a float32."""

Reader: TypeAlias = Callable[[Path, Framework], Mapping[str, Tensor]]
"""Returns the tensors of a file by their names in it, or raises a `WeightsError`."""

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and moving averages, and torch.compile, put before every name."""

TORCHVISION_PREFIXES = ("backbone.features.", "backbone.body.")
"""Prefixes of the backbones of torchvision's detectors, whose other parts have the names of ours."""

COUNT = "n_averaged"


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read.

    Args:
        path: of the file, inside the folder where one was given.
        tensors: name in the file, without the prefixes of wrappers → tensor on the CPU, to be copied, or read-only
            array.
        record: what featuretap wrote about the model, or None.
        config: what the `config.json` of a folder in timm's layout says.
        digest: waits for the SHA-256 of the file.
        entry: the published weights that it was requested as, or that it is by its digest.
        framework: of the tensors.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    record: Record | None
    config: TimmConfig
    digest: Callable[[], str]
    entry: WeightsEntry | None = None
    framework: Framework = "pt"

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name in the file → shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoint(path: Path, *, hashed: bool = False, framework: Framework = "pt") -> Checkpoint:
    """Read a file, or a folder with a `model.safetensors`.

    Args:
        path: a `.safetensors` file, a folder, or a state dict as torch.save writes it, which is read with
            `weights_only=True`.
        hashed: whether the digest is certainly needed, so that a thread computes it meanwhile. It also is where a file
            has no metadata, and may be identified by its digest.
        framework: "pt" for PyTorch's tensors; "np" for NumPy arrays, which needs no PyTorch. Arrays are read-only views
            of the mapped file in the file's types, float16 among them; bfloat16 becomes float32, exactly.

    Raises:
        WeightsError: it cannot be read, is no sound file of weights, or holds what NumPy cannot.
    """
    file = weights_file(path)
    read = READERS.get(file.suffix)
    if read:
        digest = _hash_in_thread(file)
        return Checkpoint(file, _unwrap_names(read(file, framework)), None, TimmConfig(), digest, framework=framework)
    header = read_header(file)
    record = read_record(file, header.metadata)
    digest = _hash_in_thread(file) if hashed or record is None else lambda: sha256_of(file)
    tensors = _map_tensors(file, header, framework)
    config = TimmConfig() if record else read_timm_config(file)
    tensors = tensors if record else _unwrap_names(tensors)
    return Checkpoint(file, tensors, record, config, digest, framework=framework)


def convert_first(problem: str, file: Path) -> WeightsError:
    """Return the error for a file that only PyTorch can read, and its conversion as the hint."""
    stem = f"{file.stem}-converted" if file.suffix == SUFFIX else file.stem.removesuffix(".pth")
    target = file.with_name(f"{stem}{SUFFIX}")
    command = f"featuretap convert {quote(str(file))} {quote(str(target))}"
    return WeightsError(f"{str(file)!r} {problem}", hint=Hint("convert it where PyTorch is installed:", command))


def _read_torch_file(file: Path, framework: Framework) -> Mapping[str, Tensor]:
    if framework == "np":
        with explain_os_error(file):
            file.stat()
        suffix = file.name.removeprefix(file.stem.removesuffix(".pth"))
        raise convert_first(f"is a {suffix} file, which only PyTorch can read", file)
    from featuretap.weights.torch_tensors import read_pickle

    return read_pickle(file)


READERS: Mapping[str, Reader] = dict.fromkeys(TORCH_SUFFIXES, _read_torch_file)
"""Suffix → reader of such files, for files that record nothing of their model; all others are safetensors files."""


def _map_tensors(path: Path, header: Header, framework: Framework) -> Mapping[str, Tensor]:
    """Return the tensors of a file whose header was checked, in memory that the file is mapped into."""
    # PyTorch has no read-only tensors: its map is private, so that the file stays as it is whatever happens to them.
    access = mmap.ACCESS_COPY if framework == "pt" else mmap.ACCESS_READ
    with explain_os_error(path), path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=access)
    if framework == "pt":
        from featuretap.weights.torch_tensors import tensor

        return {name: tensor(content, stored) for name, stored in header.tensors.items()}
    lacking = next((stored.dtype for stored in header.tensors.values() if stored.dtype not in NUMPY_DTYPES), "")
    if lacking:
        raise WeightsError(
            f"{str(path)!r} holds numbers of the type {lacking}, which NumPy lacks; convert them with PyTorch: "
            "registry.save(registry.load(path).float(), path)"
        )
    return {name: _array(content, stored) for name, stored in header.tensors.items()}


def _array(content: mmap.mmap, stored: Stored) -> NDArray[Any]:
    values: NDArray[Any] = np.frombuffer(content, NUMPY_DTYPES[stored.dtype], prod(stored.shape), stored.begin)
    if stored.dtype == "BF16":
        values = (values.astype("<u4") << 16).view("<f4")
    # Files of other writers need not be aligned.
    return np.require(values, requirements="A").reshape(stored.shape)


def _hash_in_thread(file: Path) -> Callable[[], str]:
    pool = ThreadPoolExecutor(1, "featuretap-digest")
    future = pool.submit(sha256_of, file)
    pool.shutdown(wait=False)
    return future.result


def _unwrap_names(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors without the prefixes that wrappers of a model add to their names."""
    named = dict(tensors)
    while True:
        # torch's AveragedModel counts beside the model.
        rest = [name for name in named if name != COUNT]
        wrapper = next((w for w in WRAPPERS if rest and all(name.startswith(w) for name in rest)), None)
        if wrapper is None:
            break
        named = {name.removeprefix(wrapper): named[name] for name in rest}
    if all(name.startswith(("backbone.", "head.")) for name in named) and not any(
        name.startswith(TORCHVISION_PREFIXES) for name in named
    ):
        # The state dict of our own models with a head; files have no prefix there.
        named = {name.removeprefix("backbone."): tensor for name, tensor in named.items()}
    return named
