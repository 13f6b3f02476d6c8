"""State dicts inside training checkpoints, and tensor names without the prefixes of wrappers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger("featuretap")

T = TypeVar("T")

CONTAINERS = (
    *("state_dict_ema", "model_ema", "state_dict", "model"),
    *("model_state_dict", "net", "weights", "module"),
)
"""Keys of a state dict in a training checkpoint. The first match is used, as in `timm.models.load_checkpoint`.

"module" is the key in checkpoints of DeepSpeed and of old moving averages.
"""

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
"""Prefixes of wrappers: DataParallel and moving averages, `torch.compile`, and modules of training libraries."""

COMPILED = "_orig_mod."
"""Added by `torch.compile` at any position: `backbone._orig_mod.stages.C1…`."""

COUNT = "n_averaged"
"""The counter in state dicts of PyTorch's `AveragedModel`."""

DEEPEST = 8
"""Maximum number of nested containers and prefixes. Damaged files can have any number."""

TORCHVISION_PREFIXES = ("backbone.features.", "backbone.body.")
"""Prefixes of the backbones of torchvision's detectors, whose other parts are named as in featuretap."""


def select_state_dict(path: Path, content: Any) -> tuple[Any, str]:
    """Return the state dict in the content of a file and its key, such as "model". The key of the content itself is "".

    Args:
        path: path of the file, for the log.
        content: the object in the file.

    Returns:
        The state dict and its key.
    """
    keys: list[str] = []
    while isinstance(content, Mapping) and len(keys) < DEEPEST:
        found = [key for key in CONTAINERS if isinstance(content.get(key), Mapping) and content[key]]
        if not found:
            break
        keys.append(found[0])
        if len(found) > 1:
            logger.warning("%s has weights under %s; loading %r", path, ", ".join(map(repr, found)), ".".join(keys))
        content = content[found[0]]
    return content, ".".join(keys)


def strip_prefixes(tensors: Mapping[str, T]) -> dict[str, T]:
    """Remove the prefixes of wrappers from the names of `tensors`, if all names have the prefix."""
    named = _without_compiled_parts(tensors)
    for _ in range(DEEPEST):
        names = [name for name in named if name != COUNT]
        prefix = next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None)
        if prefix is None:
            break
        named = {name.removeprefix(prefix): named[name] for name in names}
    if all(name.startswith(("backbone.", "head.")) for name in named) and not any(
        name.startswith(TORCHVISION_PREFIXES) for name in named
    ):
        # The state dict of a featuretap model with a head. Files do not have the prefix `backbone.`.
        named = {name.removeprefix("backbone."): tensor for name, tensor in _without_parallel_parts(named).items()}
    return named


def _without_compiled_parts(tensors: Mapping[str, T]) -> dict[str, T]:
    """Remove the prefixes of compiled parts."""
    named = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
    return named if len(named) == len(tensors) else dict(tensors)


def _without_parallel_parts(tensors: Mapping[str, T]) -> dict[str, T]:
    """Remove the prefixes of a backbone or head in DataParallel."""
    named = dict(tensors)
    for part in ("backbone.", "head."):
        inside = f"{part}module."
        if all(name.startswith(inside) for name in named if name.startswith(part)):
            named = {name.replace(inside, part, 1): tensor for name, tensor in named.items()}
    return named
