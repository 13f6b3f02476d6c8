"""Limits for the content of files, so that a small file never takes much time or memory.

Each limit is far above the needs of real models. Refusing a file takes at most 5 s and three times the size of the
file.
"""

from __future__ import annotations

from collections.abc import Collection

MOST_TENSORS = 100_000
"""Of a file: a description of each takes memory. The largest language models have about 90,000 in all their files."""

MOST_LISTS = 1_000_000
"""Of a header: a tensor has two, names and metadata may have some in their text, and each takes memory."""

LONGEST_NAME = 1_000
"""Characters of a tensor's name, or of a text in a description: names are split, compared and searched for prefixes."""

MOST_DIMENSIONS = 64
"""Of a tensor; PyTorch and NumPy compute with no more."""

LONGEST_FIELD = 100_000
"""Characters of a field of a description, which is parsed and compared; a detector's options take about a thousand."""

LONGEST_CLASSES = 5_000_000
"""Characters of the names of classes; ImageNet's 21,841 with all their synonyms have a million."""

LONGEST_CONFIG = 10_000_000
"""Bytes of a `config.json`, which may hold names of classes, too."""

MOST_SHARDS = 1_000
"""Files of a checkpoint, each of which stays open while it is read."""

LONGEST_PICKLE = 2_500_000
"""Bytes of the pickle in an archive of torch.save's, whose unpickler takes 1 µs and 80 bytes of memory for each."""

LARGEST_PICKLE = 4
"""The pickle may also be one part in so many of the archive: a tensor takes 200 bytes in it, beside its values."""

MOST_MODULES = 30_000
"""That are created while a network is described, which builds it about five times without memory. The deepest networks
of timm have 3,000."""

LARGEST_NUMBER = 100_000
"""Of the options of other libraries' networks, such as a depth or the size of an image."""

MOST_HEADS = 16
"""Of a model, each of which may have as many parameters in vain."""

HARMLESS_PARAMETERS = 25_000_000
"""Of a model that may be built in vain, and then be refused by the name of the first tensor that differs: 100 MB."""


def name_problem(names: Collection[str]) -> str:
    """Return the limit that the `names` of a file's tensors exceed, or an empty string."""
    if len(names) > MOST_TENSORS:
        return f"it has {len(names):,} tensors, and at most {MOST_TENSORS:,} are read"
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        return (
            f"the name of a tensor, {longest[:20] + '…'!r}, has {len(longest):,} characters, and at most "
            f"{LONGEST_NAME:,} are read"
        )
    return ""
