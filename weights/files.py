"""Find the weights file of a path."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal, TypeAlias

from featuretap.catalogue.pretrained import CHECKPOINT_SUFFIXES
from featuretap.support.errors import WeightsError
from featuretap.weights.limits import LONGEST_CONFIG
from featuretap.weights.open_file import explain_os_error

SUFFIX = ".safetensors"

TENSORFLOW_INDEX = ".index"

Framework: TypeAlias = Literal["pt", "np"]
"""Type of the tensors, PyTorch or NumPy, as named by safetensors."""

FILE = "model.safetensors"
CONFIG = "config.json"

INDEX_SUFFIX = ".index.json"
"""Suffix of the index of a sharded checkpoint."""

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")
"""Name of a shard of a checkpoint."""

FILES = (FILE, FILE + INDEX_SUFFIX, "pytorch_model.bin", "pytorch_model.bin" + INDEX_SUFFIX)
"""Names of a checkpoint in a folder, in order of preference."""


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the weights file at a path: the path itself, or the first of `FILES` in a folder.

    If the path does not exist but is the name of a TensorFlow checkpoint, its index is returned.

    Args:
        path: a file, a folder, or the name of a TensorFlow checkpoint.

    Returns:
        The path of the file.

    Raises:
        WeightsError: the folder has no weights file, or the path is a pipe or a device.
    """
    path = Path(path)
    if "\0" in str(path):
        raise WeightsError(f"cannot read the weights {str(path)!r}: files cannot have this name")
    with explain_os_error(path):
        if not path.is_dir():
            index = path.with_name(f"{path.name}{TENSORFLOW_INDEX}")
            if path.name and not path.exists() and index.is_file():
                return index
            if path.exists() and not path.is_file():
                # Reading a pipe could block forever, and files are memory-mapped.
                raise WeightsError(
                    f"cannot read the weights {str(path)!r}: it is not a regular file; pass the path of a file"
                )
            return path
        for name in FILES:
            if (path / name).is_file():
                return path / name
        names = sorted(entry.name for entry in path.iterdir())
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    files = [name for name in names if Path(name).suffix in CHECKPOINT_SUFFIXES]
    shards = [name for name in files if SHARD.fullmatch(name)]
    single = [name for name in files if name not in shards]
    if len(indices) == 1 and not single:
        # Other kinds of checkpoints, such as optimizers, have other names.
        return path / indices[0]
    if shards and not indices and not single:
        missing = SHARD.sub(rf"\1\2{INDEX_SUFFIX}", shards[0])
        raise WeightsError(
            f"the folder {str(path)!r} contains shards of a checkpoint, such as {shards[0]}, without their index; get "
            f"{missing} from their source"
        )
    known = sorted(single + indices)
    hint = f"pass one of its files: {', '.join(known)}" if known else "pass a folder that registry.save wrote"
    raise WeightsError(f"the folder {str(path)!r} does not contain {FILE}; {hint}")


def config_beside(file: Path) -> dict[str, Any] | None:
    """Return the `config.json` next to one of `FILES`, or None if there is none.

    Args:
        file: path of a weights file.

    Returns:
        The content.

    Raises:
        WeightsError: the content is not a JSON object.
    """
    path = file.with_name(CONFIG)
    if file.name not in FILES or not path.is_file():
        return None
    try:
        with explain_os_error(path), path.open("rb") as content:
            text = content.read(LONGEST_CONFIG + 1)
        if len(text) > LONGEST_CONFIG:
            raise WeightsError(f"{str(path)!r} has more than {LONGEST_CONFIG:,} bytes; get it again from its source")
        config = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{str(path)!r} is not valid JSON; get it again from its source") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{str(path)!r} is not a JSON object; get it again from its source")
    return config
