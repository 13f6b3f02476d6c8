"""Interleaved timing: every round runs each contender once, so that a drifting machine slows all alike."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

Contenders = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender by round, and its ratios to the first contender in the same rounds."""

    seconds: list[float]
    ratios: list[float]

    def row(self) -> str:
        """Return median milliseconds, and the median ratio with its quartiles."""
        low, _, high = quantiles(self.ratios, n=4)
        return f"{median(self.seconds) * 1000:9.1f} ms   {median(self.ratios):6.3f}  ({low:.3f}–{high:.3f})"


def interleaved(contenders: Contenders, rounds: int, warm_up: int) -> dict[str, Timing]:
    """Time contenders in turn; ratios are to the first of them, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + rounds):
        for name, run in contenders.items():
            # Nobody pays for the garbage of the contender before.
            gc.collect()
            begin = time.perf_counter()
            run()
            spent = time.perf_counter() - begin
            if turn >= warm_up:
                seconds[name].append(spent)
    first = next(iter(seconds.values()))
    return {
        name: Timing(values, [value / base for value, base in zip(values, first, strict=True)])
        for name, values in seconds.items()
    }


def report(title: str, contenders: Contenders, rounds: int, warm_up: int = 2) -> None:
    """Time and print; the ratio column is contender / first contender, median (quartiles) over the rounds."""
    timings = interleaved(contenders, rounds, warm_up)
    width = max(map(len, timings))
    print(f"\n{title}\n  {'':{width}}       median    ratio  (quartiles)   {rounds} rounds")
    for name, timing in timings.items():
        print(f"  {name:{width}}  {timing.row()}", flush=True)
