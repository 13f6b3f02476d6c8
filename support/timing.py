"""Interleaved timing: every round runs each contender once, so that a drifting machine slows all alike. No torch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

__all__ = ["PAUSE", "Timing", "interleaved", "report"]

PAUSE = 0.05
"""Seconds after which the waiting threads of a runtime have gone to sleep."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """How long one contender took.

    Args:
        seconds: of each round.
        ratios: seconds to those of the first contender in the same round.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the seconds."""
        return _quartiles(self.seconds)

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def ratio_quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the ratios."""
        return _quartiles(self.ratios)


def interleaved(
    contenders: Mapping[Key, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    pause: float = 0.0,
    done: Callable[[], object] = lambda: None,
) -> dict[Key, Timing]:
    """Time contenders in turn; ratios are to the first of them, round by round.

    Args:
        contenders: name → what is timed.
        rounds: that count, 1 or more.
        warm_up: rounds before them.
        pause: seconds of rest before each timed call, followed by a call that is not timed. Threads of the contender
            before, which some runtimes let spin for a while, then no longer take its cores, and what it put out of the
            caches is back. 0 for neither, where calls are long or processes of their own.
        done: called after each call that was timed or is of the warm-up.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in contenders}
    with _swept():
        for turn in range(warm_up + rounds):
            for name, run in contenders.items():
                # Nobody pays for the garbage of the contender before.
                gc.collect()
                if pause and turn >= warm_up:
                    time.sleep(pause)
                    run()
                begin = time.perf_counter()
                run()
                spent = time.perf_counter() - begin
                if turn >= warm_up:
                    seconds[name].append(spent)
                done()
    first = next(iter(seconds.values()), [])
    return {
        name: Timing(tuple(values), tuple(value / base for value, base in zip(values, first, strict=True)))
        for name, values in seconds.items()
    }


def report(
    title: str, contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2, pause: float = 0.0
) -> None:
    """Time and print; the ratio column is contender / first contender, median (quartiles) over the rounds."""
    timings = interleaved(contenders, rounds, warm_up, pause)
    width = max(map(len, timings))
    print(f"\n{title}\n  {'':{width}}       median    ratio  (quartiles)   {rounds} rounds")
    for name, timing in timings.items():
        low, high = timing.ratio_quartiles
        ratio = f"{timing.ratio:6.3f}  ({low:.3f}–{high:.3f})"
        print(f"  {name:{width}}  {timing.median * 1000:9.1f} ms   {ratio}", flush=True)


@contextmanager
def _swept() -> Iterator[None]:
    """Keep what is there now out of the collector's sight, which searches all of torch for a second otherwise."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    # Of few values, the other method puts quartiles beyond the smallest and the largest.
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high
