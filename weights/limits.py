"""Limits of what is read from files, so that a small file costs little time and memory, whatever it states.

Each is far beyond any real model. What a limit refuses costs at most 5 s and three times the file's size.
"""

from __future__ import annotations

from collections.abc import Collection

MOST_TENSORS = 100_000
"""Of a file: a description of each takes memory. The largest language models have about 90,000 in all their files."""

LONGEST_NAME = 1_000
"""Characters of a tensor's name, or of a text in a description: names are split, compared and searched for prefixes."""

MOST_DIMENSIONS = 32
"""Of a tensor; NumPy before version 2 has no more."""

LONGEST_FIELD = 100_000
"""Characters of a field of a description, which is parsed and compared; a detector's options take about a thousand."""

LONGEST_CLASSES = 5_000_000
"""Characters of the names of classes; ImageNet's 21,841 with all their synonyms have a million."""

LONGEST_CONFIG = 10_000_000
"""Bytes of a `config.json`, which may hold names of classes, too."""

MOST_SHARDS = 1_000
"""Files of a checkpoint, each of which stays open while it is read."""

LONGEST_PICKLE = 10_000_000
"""Bytes of the pickle in an archive of torch.save's, whose unpickler takes about a second for each million."""

HARMLESS_PARAMETERS = 25_000_000
"""Of a model that may be built in vain, and then be refused by the name of the first tensor that differs: 100 MB."""


def name_problem(names: Collection[str]) -> str:
    """Return which limit the names of a file's tensors exceed, or an empty string."""
    if len(names) > MOST_TENSORS:
        return f"it has {len(names):,} tensors, and at most {MOST_TENSORS:,} are read"
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        return (
            f"the name of a tensor, {longest[:20] + '…'!r}, has {len(longest):,} characters, and at most "
            f"{LONGEST_NAME:,} are read"
        )
    return ""
