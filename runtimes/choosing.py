"""`runtime="auto"`: measure the installed runtimes and choose the fastest for a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from featuretap.specs import RuntimeSpec
from featuretap.support.errors import ExportError, HeadError, MissingExtraError, OptionError
from featuretap.support.text import error_line
from featuretap.support.timing import PAUSE, Timing, time_interleaved

logger = logging.getLogger("featuretap")

SECONDS = 1.0
"""Time for measuring all runtimes. `FEWEST_ROUNDS` rounds of slow runtimes may take longer."""

FEWEST_ROUNDS, MOST_ROUNDS = 3, 20

Made = TypeVar("Made")


def choose_fastest(
    label: str,
    runtimes: Iterable[RuntimeSpec],
    make: Callable[[RuntimeSpec], Made],
    call: Callable[[Made], Callable[[], object]],
) -> tuple[Made, dict[str, Timing]]:
    """Make a model for each runtime and return the fastest.

    Args:
        label: the model, for messages.
        runtimes: runtimes to try. A runtime that fails is skipped and logged.
        make: makes the model for a runtime.
        call: returns a function that calls the model on images.

    Returns:
        The fastest model, and the timings of all runtimes, fastest first.

    Raises:
        ExportError: all runtimes fail.
    """
    made: dict[str, Made] = {}
    calls: dict[str, Callable[[], object]] = {}
    reasons: list[str] = []
    for runtime in runtimes:
        try:
            one = make(runtime)
            usual_call = call(one)
            usual_call()
        # Runtimes are third-party code and may raise anything.
        except Exception as error:
            reasons.append(error_line(error))
            # A runtime that is not installed or does not support this model is expected.
            expected = isinstance(error, MissingExtraError | OptionError | HeadError)
            level = logging.INFO if expected else logging.WARNING
            logger.log(level, "%s: skipped the runtime %r: %s", label, runtime.name, reasons[-1])
        else:
            made[runtime.name], calls[runtime.name] = one, usual_call
    if not made:
        listed = "; ".join(dict.fromkeys(reasons)) or "no runtime that compiles quickly opens such files; name one"
        raise ExportError(f"runtime='auto' found no runtime for {label}: {listed}")
    timings = _time(calls)
    fastest = next(iter(timings))
    logger.info("%s: fastest runtime is %r: %s", label, fastest, format_timings(timings))
    return made[fastest], timings


def format_timings(timings: Mapping[str, Timing]) -> str:
    """Format timings as text: name and median milliseconds of each runtime."""
    return ", ".join(f"{name} {timing.median * 1000:.2f} ms" for name, timing in timings.items())


def _time(calls: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
    """Time calls for about `SECONDS` in total, and return the timings, fastest first."""
    once = time_interleaved(calls, rounds=1, warm_up=1)
    # Each timed call follows a pause and an untimed call.
    seconds = sum(PAUSE + 2 * timing.median for timing in once.values())
    rounds = min(max(int(SECONDS / seconds), FEWEST_ROUNDS), MOST_ROUNDS)
    timings = time_interleaved(calls, rounds, warm_up=0, pause=PAUSE)
    return dict(sorted(timings.items(), key=lambda item: item[1].median))
