"""Looking at every file of a data set before anything is trained on it. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from featuretap.support.errors import DataError
from featuretap.support.text import first_few
from featuretap.workflows.datasets.data_set import DataSet

__all__ = ["check_readable"]

AT_ONCE = 1024
"""Images that are handed to the threads together, so that a million of them take no memory."""


def check_readable(data: DataSet, report: Callable[[int], None]) -> None:
    """Check every image and target of both parts, in several threads.

    Args:
        data: what to check.
        report: called with the number of images done, after each.

    Raises:
        DataError: some cannot be used; the first ten are named, and all are counted.
    """
    problems: list[str] = []
    done = 0
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for part in (data.train, data.val):
            for start in range(0, len(part), AT_ONCE):
                for problem in pool.map(part.check, range(start, min(start + AT_ONCE, len(part)))):
                    problems += [problem] if problem else []
                    done += 1
                    report(done)
    if problems:
        raise DataError(f"{len(problems)} of {done} images cannot be used: {first_few(problems, 10, '; ')}")
