"""The processor of this machine, as Linux describes it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of processors that multiply in bfloat16: x86's AVX-512 and AMX, and ARM's."""


def processor_name() -> str:
    """Return the name of the processor, such as "AMD EPYC"."""
    return next(_values("model name"), "") or platform.processor() or platform.machine()


def bf16_units() -> tuple[str, ...]:
    """Return the flags of the processor's units that multiply in bfloat16; none where the system lists no flags."""
    # "Features" on ARM.
    flags = {*next(_values("flags"), "").split(), *next(_values("Features"), "").split()}
    return tuple(flag for flag in BF16_UNITS if flag in flags)


def _values(key: str) -> Iterator[str]:
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return (value.strip() for name, _, value in pairs if name.strip() == key)
