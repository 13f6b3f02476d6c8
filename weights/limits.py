"""Limits for the content of files, so that a small file never takes much time or memory.

Each limit is far above the needs of real models. Refusing a file takes at most 5 s and three times the size of the
file.
"""

from __future__ import annotations

from collections.abc import Collection

MOST_TENSORS = 100_000
"""Tensors in a file, whose descriptions take memory. The largest language models have about 90,000 tensors."""

MOST_LISTS = 1_000_000
"""Lists in a header, which take memory: two per tensor, and any brackets in names and metadata."""

LONGEST_NAME = 1_000
"""Characters of a tensor's name, or of a text in a description, which are split, compared and searched."""

MOST_DIMENSIONS = 64
"""Dimensions of a tensor, as in PyTorch and NumPy."""

LONGEST_FIELD = 100_000
"""Characters of a field of a description. The options of a detector take about a thousand."""

LONGEST_CLASSES = 5_000_000
"""Characters of the names of classes. ImageNet's 21,841 names with all synonyms have a million."""

LONGEST_CONFIG = 10_000_000
"""Bytes of a `config.json`, which can contain names of classes."""

MOST_SHARDS = 1_000
"""Files of a sharded checkpoint, which are all open at the same time."""

LONGEST_PICKLE = 2_500_000
"""Bytes of the pickle in an archive of torch.save. Unpickling takes 1 µs and 80 bytes of memory per byte."""

LARGEST_PICKLE = 4
"""A pickle can also be as large as the archive divided by this number. It has 200 bytes per tensor."""

MOST_MODULES = 30_000
"""Modules that are created to describe a network, which builds it about five times on the meta device. The deepest
networks of timm have 3,000 modules."""

LARGEST_NUMBER = 100_000
"""Value of an option of another library's network, such as a depth or an image size."""

MOST_HEADS = 16
"""Heads of a model, each of which can have `HARMLESS_PARAMETERS`."""

HARMLESS_PARAMETERS = 25_000_000
"""Parameters (100 MB) of a model that is built even if the file has fewer values. Fitting then reports the mismatch."""


def name_problem(names: Collection[str]) -> str:
    """Return the limit that the `names` of a file's tensors exceed, or an empty string."""
    if len(names) > MOST_TENSORS:
        return f"it has {len(names):,} tensors, but at most {MOST_TENSORS:,} are read"
    longest = max(names, key=len, default="")
    if len(longest) > LONGEST_NAME:
        return (
            f"the name of a tensor, {longest[:20] + '…'!r}, has {len(longest):,} characters, but at most "
            f"{LONGEST_NAME:,} are read"
        )
    return ""
