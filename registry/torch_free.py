"""Whether a plugin says what it provides without torch, found out in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from featuretap.support.errors import SpecError

PATIENCE = 60
"""Seconds after which a plugin is taken to hang."""


def check_torch_free(value: str) -> None:
    """Check that importing a plugin and answering its hooks imports no torch, in a process of its own.

    Args:
        value: of its entry point: "package.module".

    Raises:
        SpecError: it does.
    """
    code = (
        "import sys\n"
        # What can be imported here can be imported there, such as a package that pytest put on the path.
        f"sys.path[:] = {sys.path!r}\n"
        "from importlib.metadata import EntryPoint\n"
        "from featuretap.registry import Registry\n"
        f"Registry([EntryPoint('plugin', {value!r}, 'featuretap').load()], discover=False).plugins\n"
        "print('torch' in sys.modules)"
    )
    try:
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise SpecError(f"{value!r} takes more than {PATIENCE} seconds to be imported and asked") from error
    if ran.returncode or not ran.stdout.endswith(("True\n", "False\n")):
        reason = (ran.stderr.splitlines() or [f"it ends Python with status {ran.returncode}"])[-1]
        raise SpecError(f"{value!r} cannot be imported by itself ({reason})")
    if ran.stdout.endswith("True\n"):
        raise SpecError(
            f"{value!r} imports torch when it is imported or answers its hooks, so that every start waits for it; "
            "name heavy code by an import string, 'package.module:function'"
        )
