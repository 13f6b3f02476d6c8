"""What the runtimes inside torch need: a C++ compiler, and torch's own threads."""

from __future__ import annotations

import os
import shutil
import sys

import torch

from featuretap.support.errors import ExportError, OptionError

__all__ = ["check_compiler", "check_torchs_threads"]

COMPILER = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
"""What torch takes where CXX names none."""


def check_compiler(runtime: str, device: str) -> None:
    """Say that a compiler is missing before torch does, in a long traceback.

    Raises:
        ExportError: the runtime would compile C++ for the CPU, and there is nothing to do it with.
    """
    wanted = os.environ.get("CXX") or COMPILER
    if device == "cpu" and not shutil.which(wanted):
        raise ExportError(
            f"the runtime {runtime!r} compiles C++, and there is no {wanted} on this machine; install one "
            "(apt install g++), or take the runtime 'onnxruntime'"
        )


def check_torchs_threads(runtime: str, threads: int | None) -> None:
    """Refuse a number of threads that a runtime inside torch would not have.

    Raises:
        OptionError: another number than torch's.
    """
    if threads not in (None, torch.get_num_threads()):
        raise OptionError(
            f"the runtime {runtime!r} computes with torch's {torch.get_num_threads()} threads, not {threads}; call "
            f"torch.set_num_threads({threads}) before"
        )
