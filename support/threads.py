"""Work that threads do ahead of the one that needs its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result, None, None]:
    """Yield the result of a function for each item, in order, while threads compute the next few.

    No more than two results a thread are computed or kept, so that they fit into the memory however many items there
    are. An error of the function is raised when its result is due. Whoever may stop early closes the iterator, which
    waits for what has begun.

    Args:
        function: releases Python's lock for most of its time.
        items: its arguments.
        threads: number of threads.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads, "featuretap-ahead") as pool:
        waiting = deque(pool.submit(function, item) for item in islice(remaining, 2 * threads))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)
