"""A terminal in a virtual environment, as a reader of a page uses it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support import TESTS
from support.distributions import Environment
from support.warm_python import WarmPython

OFFLINE = TESTS / "support" / "offline"


class Terminal:
    """Runs commands as in an activated environment, without a network.

    Its `featuretap`, `pytest`, `python -c` and `python -m` are forks of an interpreter that has already imported
    PyTorch.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._commands = environment.python.parent.with_name("commands")
        self._commands.mkdir()
        self.python = WarmPython(environment.python, {**os.environ, **self._variables(environment.site)})
        forked = " ".join(self.python.command())
        real = environment.python
        self._write("featuretap", f'exec {forked} -m featuretap.command_line "$@"')
        self._write("pytest", f'exec {forked} -m pytest "$@"')
        self._write("python", f'case "${{1-}}" in -c | -m) exec {forked} "$@" ;; *) exec {real} "$@" ;; esac')
        self._write("pip", f'exec {sys.executable} -m pip --python {real} "$@"')

    def run(self, script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a bash script, which stops at the first failing command. pip installs from disk only."""
        return subprocess.run(
            ["bash", "-euc", script],
            cwd=folder,
            env={**os.environ, **self._variables(folder), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def interpreter(self, code: str, folder: Path, errors: Path) -> subprocess.Popen[str]:
        """Start `python -c CODE` with pipes for its input and output. Its errors are written to a file."""
        with errors.open("w") as written:
            return subprocess.Popen(
                self.python.command("-c", code),
                cwd=folder,
                env={**os.environ, **self._variables(folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                text=True,
            )

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *error: object) -> None:
        self.python.close()

    def _variables(self, folder: Path) -> Mapping[str, str]:
        path = [self._commands, self.environment.python.parent, Path(sys.executable).parent, os.environ["PATH"]]
        return {
            "PATH": os.pathsep.join(map(str, path)),
            "PYTHONPATH": str(OFFLINE),
            "PYTHONUNBUFFERED": "1",
            "TORCH_HOME": str(folder / "torch"),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def _write(self, name: str, script: str) -> None:
        path = self._commands / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
