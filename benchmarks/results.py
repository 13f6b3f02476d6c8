"""Results as sections of a Markdown document, printed as soon as they are measured."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from featuretap.support.timing import Timing, time_interleaved
from featuretap.workflows.measuring.comparing import measure_limit

__all__ = ["Contenders", "limit", "milliseconds", "section", "table", "timed"]

Contenders = Mapping[str, Callable[[], object]]


@cache
def limit() -> float:
    """Return the multiply-adds per second of matrix multiplication, measured once for all sections."""
    return measure_limit()


def timed(contenders: Contenders, rounds: int, warm_up: int = 2, pause: float = 0.0) -> dict[str, Timing]:
    """Time interleaved calls in `rounds` rounds, after `warm_up` untimed rounds, with `pause` seconds between calls."""
    return time_interleaved(contenders, rounds, warm_up, pause)


def milliseconds(timings: Mapping[str, Timing], more: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Return a table with median milliseconds, the ratio to the first entry with quartiles, and further columns.

    Args:
        timings: label → timing.
        more: title of a further column → label → cell.

    Returns:
        The Markdown table.
    """
    columns = ["", "median ms", "ratio", "quartiles of the ratio", *(more or {})]
    rows = []
    for name, timing in timings.items():
        low, high = timing.ratio_quartiles
        cells = [column.get(name, "") for column in (more or {}).values()]
        rows.append([name, f"{timing.median * 1000:.2f}", f"{timing.ratio:.3f}", f"{low:.3f}–{high:.3f}", *cells])
    return table(columns, rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table in which all columns but the first are aligned right."""
    lines = [" | ".join(columns), " | ".join(["---", *["---:"] * (len(columns) - 1)]), *(" | ".join(r) for r in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def section(title: str, text: str, *tables: str) -> str:
    """Return a Markdown section, and print it."""
    formatted = "\n\n".join([f"## {title}", text, *tables])
    print(f"\n{formatted}", flush=True)
    return formatted
