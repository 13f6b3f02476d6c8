"""The processor of this machine, as described by Linux."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""Processor flags for bfloat16 multiplication: AVX-512 and AMX on x86, and ARM's."""

VECTOR_UNITS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": BF16_UNITS,
    "AMX": ("amx_tile",),
    "NEON": ("asimd", "neon"),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "SVE": ("sve",),
}
"""Vector unit → its flags in /proc/cpuinfo."""


def processor_name() -> str:
    """Return the name of the processor, such as "AMD EPYC"."""
    return next(_values("model name"), "") or platform.processor() or platform.machine()


def bf16_units() -> tuple[str, ...]:
    """Return the processor's flags for bfloat16 multiplication, or nothing if the system does not list flags."""
    flags = _flags() or set()
    return tuple(flag for flag in BF16_UNITS if flag in flags)


def vector_units() -> tuple[str, ...] | None:
    """Return the names of the processor's vector units, such as "AVX2"; None if the system does not list them."""
    flags = _flags()
    if flags is None:
        return None
    return tuple(name for name, stands_for in VECTOR_UNITS.items() if flags.intersection(stands_for))


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _flags() -> set[str] | None:
    # ARM processors list them as "Features".
    listed = next(_values("flags"), None) or next(_values("Features"), None)
    return None if listed is None else set(listed.split())


def _values(key: str) -> Iterator[str]:
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return (value.strip() for name, _, value in pairs if name.strip() == key)
