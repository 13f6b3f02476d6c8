"""Examination of plugins in separate processes, so that a plugin that crashes or hangs is identified."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import Signals
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from featuretap.catalogue.entry_points import PluginEntryPoint
from featuretap.catalogue.plugin_loading import LEADING_FRAMES

PATIENCE = 60.0
"""Maximum seconds for one step of an examination: the import, or one check."""
MAX_PROCESSES = 4
"""Maximum number of processes that run in parallel."""
POLL = 0.02
STACK = 10
"""Maximum number of traceback lines that are shown."""

IMPORTS_TORCH = (
    "{!r} imports torch on import or in a hook, which slows down every start; refer to heavy code by an import string, "
    "'package.module:function'"
)

PROGRAM = """\
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["path"]
from featuretap.registry.diagnosis_process import run
run(request)
"""


@dataclass
class Examination:
    """Results of the examination of a plugin.

    Args:
        status: "loaded" or "failed".
        seconds: time to import the plugin and to call its hooks; None if this did not finish.
        provides: kind, such as "backbones" → how many the plugin provides.
        open_namespace: whether the plugin provides a namespace.
        problems: one line per problem.
        traceback: lines that show where the plugin failed, or where its process ended.
        complete: whether the process finished.
    """

    status: str = "failed"
    seconds: float | None = None
    provides: dict[str, int] = field(default_factory=dict)
    open_namespace: bool = False
    problems: list[str] = field(default_factory=list)
    traceback: list[str] = field(default_factory=list)
    complete: bool = True


def concerns(problem: str, distribution: str) -> bool:
    """Return whether a `problem`, a line of `registry.problems`, is about plugins of this `distribution`."""
    return f"'{distribution}'" in problem or f"'{distribution}:" in problem


def examine_all(points: Sequence[PluginEntryPoint | None]) -> Generator[Examination, None, None]:
    """Examine plugins, each in its own process.

    Args:
        points: entry points of the plugins. Their code does not run in this process. None stands for all plugins
            together, which are loaded in one process to find conflicts such as ambiguous names.

    Yields:
        The results of each plugin, in the order of `points`.
    """
    waiting = list(enumerate(points))
    running: dict[int, _Process] = {}
    ended: dict[int, Examination] = {}
    with TemporaryDirectory(prefix="featuretap-doctor-") as folder:
        try:
            for number in range(len(points)):
                while number not in ended:
                    while waiting and len(running) < min(MAX_PROCESSES, os.cpu_count() or 1):
                        place, point = waiting.pop(0)
                        running[place] = _Process(Path(folder, str(place)), point)
                    for place in [place for place, process in running.items() if process.has_ended()]:
                        ended[place] = running.pop(place).examination()
                    sleep(POLL)
                yield ended.pop(number)
        finally:
            for process in running.values():
                process.kill()


class _Process:
    """A process that examines one plugin, or all plugins together. It appends its results to a file as JSON lines."""

    def __init__(self, folder: Path, point: PluginEntryPoint | None) -> None:
        folder.mkdir()
        self._found, self._output = folder / "found", folder / "output"
        self._found.touch()
        facts = asdict(point) if point else None
        request = json.dumps({"path": sys.path, "found": str(self._found), "point": facts})
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", PROGRAM, request],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # With FEATURETAP_STRICT, the first failure would end the process.
                env={name: value for name, value in os.environ.items() if name != "FEATURETAP_STRICT"},
                # `kill` ends the process group, with the child processes of the plugin.
                start_new_session=True,
            )
        self._size, self._since = 0, monotonic()
        self._timed_out = False

    def has_ended(self) -> bool:
        """Return whether the process has ended. Kill it if a step takes too long."""
        if self._process.poll() is not None:
            return True
        size = self._found.stat().st_size
        if size != self._size:
            self._size, self._since = size, monotonic()
        elif monotonic() - self._since > PATIENCE:
            self._timed_out = True
            # faulthandler prints the traceback.
            self._process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
            self.kill()
        return self._timed_out

    def kill(self) -> None:
        """Kill the process and its child processes."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def examination(self) -> Examination:
        """Return the results up to the end of the process."""
        result, step = Examination(complete=False), "starting"
        for line in self._found.read_text().splitlines():
            found = json.loads(line)
            step = found.get("step", step)
            result.problems += found.get("problems", ())
            for name in ("status", "seconds", "provides", "open_namespace", "traceback", "complete"):
                setattr(result, name, found.get(name, getattr(result, name)))
        if not result.complete:
            result.problems.append(f"{step} {self._ending()}")
            result.traceback = self._stack()
        return result

    def _ending(self) -> str:
        if self._timed_out:
            return f"takes more than {PATIENCE:g} seconds"
        status = self._process.returncode
        return f"terminates Python with {f'status {status}' if status >= 0 else Signals(-status).name}"

    def _stack(self) -> list[str]:
        """Return where the process ended, innermost frame first, if faulthandler or Python printed a traceback."""
        lines = self._output.read_text(errors="replace").splitlines()
        frames = [line.strip() for line in lines if line.startswith('  File "')]
        leading = ("<", *LEADING_FRAMES)
        return [frame for frame in frames if not frame.removeprefix('File "').startswith(leading)][:STACK]
