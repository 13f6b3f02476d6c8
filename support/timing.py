"""Interleaved timing: every round runs each contender once, so that changes of machine speed affect all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

PAUSE = 0.05
"""Seconds after which a runtime's spinning threads are asleep."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Times of one contender.

    Args:
        seconds: seconds of each round.
        ratios: ratio to the first contender in each round.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile in seconds."""
        return _quartiles(self.seconds)

    @property
    def ratio(self) -> float:
        """Median ratio."""
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
    """Time contenders in alternation. Ratios are relative to the first contender in the same round.

    Args:
        contenders: name → function to time.
        rounds: number of timed rounds, at least 1.
        warm_up: number of untimed rounds before them.
        pause: seconds to sleep before each timed call, followed by an untimed call. During the pause, the previous
            runtime's spinning threads release their cores; the untimed call warms the caches. Use 0 to skip both for
            long calls or separate processes.
        done: called after each timed or warm-up call.
        clock: returns seconds, such as processor time; None for `time.perf_counter`.

    Returns:
        Name → timing.
    """
    clock = clock or time.perf_counter
    seconds: dict[Key, list[float]] = {name: [] for name in contenders}
    # Otherwise each collection would traverse all of torch, which takes a second.
    gc.collect()
    gc.freeze()
    try:
        for turn in range(warm_up + rounds):
            for name, run in contenders.items():
                # Collect the previous contender's garbage outside the timed call.
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
    # With few values, the default method returns quartiles outside their range.
    low, _, high = statistics.quantiles(values if len(values) > 1 else values * 2, method="inclusive")
    return low, high
