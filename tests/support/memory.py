"""Measure or limit the memory that a call uses."""

import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def peak_memory(call: Callable[[], object]) -> int:
    """Return the peak growth of this process's memory during a call, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    call()
    return memory("VmHWM") - before


def memory(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Let this process allocate at most `more` bytes, so that a failing test raises MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
