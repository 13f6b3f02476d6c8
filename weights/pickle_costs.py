"""Estimate the cost of unpickling without unpickling.

A pickle refers to earlier objects by number. Nested tuples that refer to the same tuple twice take a few bytes per
level, but the time to hash them, as keys of a dictionary, doubles with each level.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pickletools import genops, markobject
from typing import Any, BinaryIO

MOST_TIMES = 50
"""Maximum number of values taken from the stack per byte. Pickles of PyTorch have about one."""

LEAST = 1_000
"""Shorter pickles are treated as if they had this many bytes."""

READS = frozenset({"GET", "BINGET", "LONG_BINGET"})
STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})

MARK = -1


def pickle_problem(pickles: BinaryIO, count: int, longest: int) -> str:
    """Return why unpickling would cost too much, or an empty string.

    Args:
        pickles: one or more pickles, one after the other.
        count: number of pickles to check.
        longest: maximum number of bytes of the pickles.

    Returns:
        The problem, or an empty string.
    """
    # Number of values in each object on the stack, including values in nested tuples.
    stack: list[int] = []
    memo: dict[Any, int] = {}
    taken = 0
    try:
        for opcode, argument, position in chain.from_iterable(genops(pickles) for _ in range(count)):
            if position is not None and position > longest:
                return f"has over {longest:,} bytes of names and values besides its tensors; save the state dict only"
            if opcode.name in READS:
                stack.append(memo[argument])
            elif opcode.name in STORES:
                memo[argument] = stack[-1]
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif opcode.name == "MARK":
                stack.append(MARK)
            else:
                size = _pop(stack, opcode.stack_before)
                taken += size
                if taken > MOST_TIMES * (LEAST + (position or 0)):
                    return "nests repeated values too often; get it again from its source"
                stack += [1 + size if opcode.name.startswith("TUPLE") else 1] * len(opcode.stack_after)
    except (ValueError, LookupError, AttributeError, OverflowError):
        # The unpickler reports malformed pickles.
        return ""
    return ""


def _pop(stack: list[int], before: Sequence[object]) -> int:
    """Remove the operands of an opcode from the stack, and return the number of values in them."""
    size, count = 0, len(before)
    if markobject in before:
        count = before.index(markobject)
        while (value := stack.pop()) != MARK:
            size += value
    for _ in range(count):
        size += stack.pop()
    return size
