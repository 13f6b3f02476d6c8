"""Reading a file of weights: its tensors by name, and what it says of itself. No code in a file is ever run."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.support.errors import WeightsError
from featuretap.support.text import first_few
from featuretap.weights.files import PICKLES, sha256_of, weights_file
from featuretap.weights.header import Header, Stored, explain_os_error, read_header
from featuretap.weights.metadata import Record, read_record
from featuretap.weights.timm_config import TimmConfig, read_timm_config

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Types of numbers as safetensors calls them."""

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
        tensors: name in the file, without the prefixes of wrappers → tensor on the CPU, to be copied.
        record: what featuretap wrote about the model, or None.
        config: what the `config.json` of a folder in timm's layout says.
        digest: waits for the SHA-256 of the file.
        entry: the published weights that it was requested as, or that it is by its digest.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    record: Record | None
    config: TimmConfig
    digest: Callable[[], str]
    entry: WeightsEntry | None = None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name in the file → shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_checkpoint(path: Path, *, hashed: bool = False) -> Checkpoint:
    """Read a file, or a folder with a `model.safetensors`.

    Args:
        path: a `.safetensors` file, a folder, or a state dict as torch.save writes it, which is read with
            `weights_only=True`.
        hashed: whether the digest is certainly needed, so that a thread computes it meanwhile. It also is where a file
            has no metadata, and may be identified by its digest.

    Raises:
        WeightsError: it cannot be read, or is no sound file of weights.
    """
    file = weights_file(path)
    if file.suffix in PICKLES:
        digest = _hash_in_thread(file)
        return Checkpoint(file, _unwrap_names(_read_pickle(file)), None, TimmConfig(), digest)
    header = read_header(file)
    record = read_record(file, header.metadata)
    digest = _hash_in_thread(file) if hashed or record is None else lambda: sha256_of(file)
    tensors = _map_tensors(file, header)
    config = TimmConfig() if record else read_timm_config(file)
    return Checkpoint(file, tensors if record else _unwrap_names(tensors), record, config, digest)


def check_finite(checkpoint: Checkpoint) -> None:
    """Refuse weights that are not numbers, as a training that diverged leaves them.

    Raises:
        WeightsError: a tensor holds NaN or infinity; the message names the first few.
    """
    broken = [
        name
        for name, tensor in checkpoint.tensors.items()
        # Numbers of one byte have no test of their own.
        if tensor.is_floating_point()
        and not torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all()
    ]
    if broken:
        raise WeightsError(
            f"{str(checkpoint.path)!r} holds NaN or infinity in {first_few(broken, 3)}; "
            "its training diverged, or the file was damaged"
        )


def _map_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """Return the tensors of a file whose header was checked, in memory that the file is mapped into, to be copied."""
    with explain_os_error(path), path.open("rb") as file:
        # Privately: whatever happens to the tensors, the file stays as it is.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _tensor(content, stored) for name, stored in header.tensors.items()}


def _tensor(content: mmap.mmap, stored: Stored) -> Tensor:
    dtype, count = DTYPES[stored.dtype], prod(stored.shape)
    if count == 0:
        return torch.empty(stored.shape, dtype=dtype)
    if stored.begin % dtype.itemsize:
        octets = torch.frombuffer(content, dtype=torch.uint8, count=count * dtype.itemsize, offset=stored.begin)
        return octets.clone().view(dtype).view(stored.shape)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=stored.begin).view(stored.shape)


def _hash_in_thread(file: Path) -> Callable[[], str]:
    pool = ThreadPoolExecutor(1, "featuretap-digest")
    future = pool.submit(sha256_of, file)
    pool.shutdown(wait=False)
    return future.result


def _read_pickle(path: Path) -> Mapping[str, Tensor]:
    with explain_os_error(path):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:
            # Damaged bytes make the unpickler raise almost anything.
            raise WeightsError(
                f"{str(path)!r} is no file of weights that can be read safely; give a .safetensors file, or a .pth "
                "file that holds a state dict"
            ) from error
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(
            f"{str(path)!r} holds {type(state).__name__}, no state dict; save model.state_dict(), not the model"
        )
    for name, value in state.items():
        problem = _problem(name, value)
        if problem:
            raise WeightsError(
                f"{str(path)!r} holds no state dict: {name!r} {problem}; "
                "save model.state_dict(), not the model or a checkpoint around it"
            )
    return state


def _problem(name: object, value: object) -> str:
    if not isinstance(name, str):
        return "is no name of a tensor"
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}, not a tensor"
    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        return f"is a tensor of {value.dtype} in the layout {value.layout}, which no layer holds"
    if value.device.type != "cpu":
        return f"is a tensor without values (device {value.device.type!r})"
    return ""


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
