"""Plugins examined in processes of their own: whatever one does to its process, it is named for it."""

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
"""Seconds that one step of an examination may take: the import, or one check."""
AT_ONCE = 4
"""Processes that run beside one another."""
POLL = 0.02
STACK = 10
"""Lines that are shown of where a process ended."""

IMPORTS_TORCH = (
    "{!r} imports torch when it is imported or answers its hooks, so that every start waits for it; name heavy code by "
    "an import string, 'package.module:function'"
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
    """What the examination of a plugin found.

    Args:
        status: "loaded" or "failed".
        seconds: how long importing and asking it took; None if that did not end.
        provides: kind, such as "backbones" → how many.
        open_namespace: whether it has one.
        problems: a line for each.
        traceback: lines on where it failed, or where its process ended.
        complete: whether its process ran to the end.
    """

    status: str = "failed"
    seconds: float | None = None
    provides: dict[str, int] = field(default_factory=dict)
    open_namespace: bool = False
    problems: list[str] = field(default_factory=list)
    traceback: list[str] = field(default_factory=list)
    complete: bool = True


def concerns(problem: str, distribution: str) -> bool:
    """Return whether a line of `registry.problems` is about the plugins of a distribution."""
    return f"'{distribution}'" in problem or f"'{distribution}:" in problem


def examine_all(points: Sequence[PluginEntryPoint | None]) -> Generator[Examination, None, None]:
    """Examine plugins, each in a process of its own, and yield what was found in their order.

    Args:
        points: the entry points of the plugins. None of their code runs in this process. None stands for all plugins
            together, which are loaded in one process for what cannot be used of them, such as ambiguous names.
    """
    waiting = list(enumerate(points))
    running: dict[int, _Process] = {}
    ended: dict[int, Examination] = {}
    with TemporaryDirectory(prefix="featuretap-doctor-") as folder:
        try:
            for number in range(len(points)):
                while number not in ended:
                    while waiting and len(running) < min(AT_ONCE, os.cpu_count() or 1):
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
    """A process that examines a plugin, or all together, and appends what it finds to a file as JSON lines."""

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
                # A failure is to be reported, not raised.
                env={name: value for name, value in os.environ.items() if name != "FEATURETAP_STRICT"},
                # With the processes that the plugin starts, it can be ended as a group.
                start_new_session=True,
            )
        self._size, self._since = 0, monotonic()
        self._timed_out = False

    def has_ended(self) -> bool:
        """Return whether it has ended. Ends it if a step has taken too long."""
        if self._process.poll() is not None:
            return True
        size = self._found.stat().st_size
        if size != self._size:
            self._size, self._since = size, monotonic()
        elif monotonic() - self._since > PATIENCE:
            self._timed_out = True
            # faulthandler prints where it is.
            self._process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
            self.kill()
        return self._timed_out

    def kill(self) -> None:
        """End it and the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def examination(self) -> Examination:
        """Return what was found until it ended."""
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
        return f"ends Python with {f'status {status}' if status >= 0 else Signals(-status).name}"

    def _stack(self) -> list[str]:
        """Return where it ended, innermost first, if faulthandler or Python printed that."""
        lines = self._output.read_text(errors="replace").splitlines()
        frames = [line.strip() for line in lines if line.startswith('  File "')]
        leading = ("<", *LEADING_FRAMES)
        return [frame for frame in frames if not frame.removeprefix('File "').startswith(leading)][:STACK]
