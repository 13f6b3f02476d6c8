"""Reading a file of weights: its tensors by name, and what it says of itself. No code in a file is ever run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from featuretap.registry.errors import WeightsError
from featuretap.registry.weights.files import config_beside, sha256_of, weights_file
from featuretap.registry.weights.header import read_header, unreadable
from featuretap.registry.weights.metadata import Record, read_record

__all__ = ["Checkpoint", "check_finite", "read"]

PICKLES = (".pth", ".pt", ".bin")
WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and moving averages, and torch.compile, put before every name."""

COUNT = "n_averaged"


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read.

    Args:
        path: of the file, inside the folder where one was given.
        tensors: name in the file, without the prefixes of wrappers → tensor on the CPU, to be copied.
        record: what featuretap wrote about the model, or None.
        config: the `config.json` of a folder in timm's layout, or None.
        digest: waits for the SHA-256 of the file.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    record: Record | None
    config: Mapping[str, Any] | None
    digest: Callable[[], str]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name in the file → shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read(path: Path, *, hashed: bool = False) -> Checkpoint:
    """Read a file, or a folder with a `model.safetensors`.

    Args:
        path: a `.safetensors` file, a folder, or a state dict as torch.save writes it, which is read with
            `weights_only=True`.
        hashed: whether the digest is wanted for certain, so that it is computed beside the reading. It is also where a
            file says nothing of itself, and may be known by its digest.

    Raises:
        WeightsError: it cannot be read, or is no sound file of weights.
    """
    file = weights_file(path)
    if file.suffix in PICKLES:
        digest = _beside(file)
        return Checkpoint(file, _unwrapped(_pickled(file)), None, None, digest)
    record = read_record(file, read_header(file).metadata)
    digest = _beside(file) if hashed or record is None else lambda: sha256_of(file)
    try:
        tensors = safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise WeightsError(f"{str(file)!r} is no sound safetensors file: {error}") from error
    except OSError as error:
        raise unreadable(file, error) from error
    return Checkpoint(file, tensors if record else _unwrapped(tensors), record, config_beside(file), digest)


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
            f"{str(checkpoint.path)!r} holds NaN or infinity in {some(broken)}; "
            "its training diverged, or the file was damaged"
        )


def some(names: list[str]) -> str:
    """Return the first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _beside(file: Path) -> Callable[[], str]:
    pool = ThreadPoolExecutor(1, "featuretap-digest")
    future = pool.submit(sha256_of, file)
    pool.shutdown(wait=False)
    return future.result


def _pickled(path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:
        # Damaged bytes make the unpickler raise almost anything.
        raise WeightsError(
            f"{str(path)!r} is no file of weights that can be read safely; give a .safetensors file, or a .pth file "
            "that holds a state dict"
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


def _unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Take away what wrappers of a model add to the names of its tensors."""
    named = dict(tensors)
    while True:
        # torch's AveragedModel counts beside the model.
        rest = [name for name in named if name != COUNT]
        wrapper = next((w for w in WRAPPERS if rest and all(name.startswith(w) for name in rest)), None)
        if wrapper is None:
            break
        named = {name.removeprefix(wrapper): named[name] for name in rest}
    if all(name.startswith(("backbone.", "head.")) for name in named):
        # The state dict of our own models with a head; files have no prefix there.
        named = {name.removeprefix("backbone."): tensor for name, tensor in named.items()}
    return named
