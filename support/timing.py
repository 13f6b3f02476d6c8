"""Interleaved timing: every round runs each contender once, so that a drifting machine slows all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

PAUSE = 0.05
"""Seconds after which the waiting threads of a runtime have gone to sleep."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender in each round, and their ratios to the first contender's in the same round."""

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds."""
        return _quartiles(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def ratio_quartiles(self) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        return _quartiles(self.ratios)


def time_interleaved(
    contenders: Mapping[Key, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    pause: float = 0.0,
    done: Callable[[], object] = lambda: None,
    clock: Callable[[], float] | None = None,
) -> dict[Key, Timing]:
    """Time contenders in turn; ratios are to the first of them, round by round.

    Args:
        contenders: name → what is timed.
        rounds: timed rounds, 1 or more.
        warm_up: rounds before them.
        pause: seconds of rest before each timed call, followed by a call that is not timed. The spinning threads of
            the previous contender's runtime then no longer take cores, and the caches are warm again. 0 for neither,
            where calls are long or processes of their own.
        done: called after each call that is timed or part of the warm-up.
        clock: returns seconds, such as those of the processor; None for `time.perf_counter`.
    """
    clock = clock or time.perf_counter
    seconds: dict[Key, list[float]] = {name: [] for name in contenders}
    # Otherwise each collection would search all of torch, for a second.
    gc.collect()
    gc.freeze()
    try:
        for turn in range(warm_up + rounds):
            for name, run in contenders.items():
                # The garbage of the previous contender is not collected at the cost of this one.
                gc.collect()
                if pause and turn >= warm_up:
                    time.sleep(pause)
                    run()
                start = clock()
                run()
                elapsed = clock() - start
                if turn >= warm_up:
                    seconds[name].append(elapsed)
                done()
    finally:
        gc.unfreeze()
    first = next(iter(seconds.values()), [])
    return {
        name: Timing(tuple(values), tuple(value / base for value, base in zip(values, first, strict=True)))
        for name, values in seconds.items()
    }


def _quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    # The default method would put quartiles of a few values beyond the smallest and the largest.
    low, _, high = statistics.quantiles(values if len(values) > 1 else values * 2, method="inclusive")
    return low, high
