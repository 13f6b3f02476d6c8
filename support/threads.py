"""Compute results ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result, None, None]:
    """Yield the results of a function, in order, while threads compute the next ones.

    At most two results per thread are kept in memory. If the function raises, the error is raised when its result is
    due. A caller that stops early must close the generator, which waits for running calls.

    Args:
        function: a function that releases the GIL most of the time.
        items: arguments of the function.
        threads: number of threads.

    Yields:
        Result: the result for each item.
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
