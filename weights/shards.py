"""Indices of sharded checkpoints in the format of transformers and timm, which list the tensors in each file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featuretap.support.errors import WeightsError
from featuretap.weights.files import INDEX_SUFFIX
from featuretap.weights.limits import MOST_SHARDS
from featuretap.weights.open_file import OpenFile, explain_os_error

LONGEST_INDEX = 10_000_000
"""Maximum bytes. The index of a model with 1,000 layers has 100,000."""

ADVICE = "get the folder again from its source"


def read_index(opened: OpenFile, suffixes: Sequence[str]) -> dict[Path, set[str]]:
    """Return file → names of its tensors, for every file in an index. All files must exist.

    Args:
        opened: the index.
        suffixes: allowed suffixes of the files.

    Returns:
        File → names.

    Raises:
        WeightsError: the file is not an index, or a listed file is missing.
    """
    index, tensors = opened.path, list_shards(opened, suffixes)
    for path in tensors:
        if not path.is_file():
            raise WeightsError(f"{str(index)!r} lists the file {path.name!r}, which is not in its folder; {ADVICE}")
    return tensors


def list_shards(opened: OpenFile, suffixes: Sequence[str]) -> dict[Path, set[str]]:
    """Return file → names of its tensors, for every file in an index. The files may be missing.

    Args:
        opened: the index, such as `model.safetensors.index.json`.
        suffixes: allowed suffixes of the files.

    Returns:
        File → names.

    Raises:
        WeightsError: the file is not an index.
    """
    index = opened.path
    problem = f"{str(index)!r} is not an index of weights files:"
    if not index.name.endswith(INDEX_SUFFIX):
        raise WeightsError(f"{problem} its name does not end in {INDEX_SUFFIX}; pass a weights file")
    with explain_os_error(index), opened.reader() as file:
        text = file.read(LONGEST_INDEX + 1)
    if len(text) > LONGEST_INDEX:
        raise WeightsError(f"{problem} it is longer than {LONGEST_INDEX:,} bytes; {ADVICE}")
    try:
        content = json.loads(text, object_pairs_hook=_table)
    except RepeatedNameError as error:
        raise WeightsError(f"{problem} {error} is repeated; {ADVICE}") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{problem} it is not JSON; {ADVICE}") from error
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{problem} it has no 'weight_map' with tensor names; {ADVICE}")
    tensors: dict[str, set[str]] = {}
    for name, shard in shards.items():
        if not isinstance(shard, str) or not _is_plain_name(shard) or not shard.endswith(tuple(suffixes)):
            raise WeightsError(f"{problem} {name!r} is in {shard!r}, which is not the name of a weights file; {ADVICE}")
        tensors.setdefault(shard, set()).add(name)
    if len(tensors) > MOST_SHARDS:
        raise WeightsError(f"{problem} it lists {len(tensors):,} files, but at most {MOST_SHARDS:,} are read; {ADVICE}")
    return {index.with_name(shard): names for shard, names in tensors.items()}


def check_shard(index: Path, shard: Path, found: set[str], expected: set[str]) -> None:
    """Check that a file contains exactly the tensors that its index lists.

    Args:
        index: path of the index, for messages.
        shard: path of the file, for messages.
        found: names of the tensors in the file.
        expected: names of the tensors in the index.

    Raises:
        WeightsError: a tensor is missing or is not listed.
    """
    for names, relation in ((expected - found, "does not have"), (found - expected, "has")):
        if names:
            lists = "does not list" if relation == "has" else "lists"
            raise WeightsError(f"{str(shard)!r} {relation} {min(names)!r}, which {index.name} {lists} for it; {ADVICE}")


class RepeatedNameError(ValueError):
    """Raised for a JSON object with a repeated name."""


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise RepeatedNameError(repr(next(name for name in table if names[name] > 1)))
    return table


def _is_plain_name(name: str) -> bool:
    # A backslash separates folders on Windows.
    return not set(name) & {"/", "\\", "\0"} and name.isprintable()
