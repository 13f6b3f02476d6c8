"""`runtime="auto"`: the fastest of the installed runtimes for a model, on this machine and now."""

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
"""Time for measuring all runtimes; with slow ones, `FEWEST_ROUNDS` take longer."""

FEWEST_ROUNDS, MOST_ROUNDS = 3, 20

Made = TypeVar("Made")


def choose_fastest(
    label: str,
    runtimes: Iterable[RuntimeSpec],
    make: Callable[[RuntimeSpec], Made],
    call: Callable[[Made], Callable[[], object]],
) -> tuple[Made, dict[str, Timing]]:
    """Make a model for each runtime, and return the one whose calls are fastest, and the times of all, fastest first.

    Args:
        label: of the model, for messages.
        runtimes: to try. One that fails is left out, which is logged with the reason.
        make: returns the model for a runtime.
        call: returns a function that calls what was made on images.

    Raises:
        ExportError: all of them fail.
    """
    made: dict[str, Made] = {}
    calls: dict[str, Callable[[], object]] = {}
    reasons: list[str] = []
    for runtime in runtimes:
        try:
            one = make(runtime)
            usual_call = call(one)
            usual_call()
        # A runtime may fail in any way.
        except Exception as error:
            reasons.append(error_line(error))
            # That a runtime is not installed, or not for this kind of model, is no failure.
            expected = isinstance(error, MissingExtraError | OptionError | HeadError)
            level = logging.INFO if expected else logging.WARNING
            logger.log(level, "%s: the runtime %r is left out: %s", label, runtime.name, reasons[-1])
        else:
            made[runtime.name], calls[runtime.name] = one, usual_call
    if not made:
        listed = "; ".join(dict.fromkeys(reasons)) or "none that compiles quickly is for such files; name one"
        raise ExportError(f"runtime='auto' finds no runtime for {label}: {listed}")
    timings = _time(calls)
    fastest = next(iter(timings))
    logger.info("%s: the runtime %r is the fastest here: %s", label, fastest, format_timings(timings))
    return made[fastest], timings


def format_timings(timings: Mapping[str, Timing]) -> str:
    """Return the median milliseconds of runtimes as text.

    Args:
        timings: runtime → its times.
    """
    return ", ".join(f"{name} {timing.median * 1000:.2f} ms" for name, timing in timings.items())


def _time(calls: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
    """Return the times of calls for about `SECONDS` in all, fastest first."""
    once = time_interleaved(calls, rounds=1, warm_up=1)
    # Each timed call follows a pause and another call.
    seconds = sum(PAUSE + 2 * timing.median for timing in once.values())
    rounds = min(max(int(SECONDS / seconds), FEWEST_ROUNDS), MOST_ROUNDS)
    timings = time_interleaved(calls, rounds, warm_up=0, pause=PAUSE)
    return dict(sorted(timings.items(), key=lambda item: item[1].median))
