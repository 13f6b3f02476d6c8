"""The process that examines one plugin for `examination`. It reports every step before it starts the step."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from featuretap.catalogue.entry_points import PluginEntryPoint
from featuretap.catalogue.plugin_loading import PROVIDES, traceback_of
from featuretap.registry.examination import IMPORTS_TORCH, concerns
from featuretap.registry.registry import Registry
from featuretap.support.errors import FeaturetapError
from featuretap.support.text import error_line, first_few

Report = Callable[..., None]

STREAMS = ("standard input", "standard output", "standard error")
LOADING = "importing the plugin and calling its hooks"


def run(request: Mapping[str, Any]) -> None:
    """Examine one plugin, or all plugins together, and end the process.

    Args:
        request: `found`, the path of the file for the results, and `point`, the entry point of the plugin, or None for
            all plugins.
    """

    def report(**found: Any) -> None:
        # The plugin may close all open files.
        with open(request["found"], "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    if request["point"] is None:
        report(step="loading all plugins")
        _report_problems(report)
    else:
        _examine(report, request["point"])
    report(complete=True)
    # Exit handlers of the plugin do not run.
    os._exit(0)


def _report_problems(report: Report) -> None:
    try:
        report(problems=Registry().problems)
    except FeaturetapError as error:
        # The user's catalogue is invalid.
        report(problems=[str(error)])


def _examine(report: Report, facts: Mapping[str, Any]) -> None:
    point = _ObservedPoint(**{**facts, "requires": tuple(facts["requires"])}, report=report)
    report(step=LOADING)
    registry = Registry([] if point.built_in else [point], discover=False)
    (plugin,) = (p for p in registry.plugins if (p.distribution, p.name) == (point.distribution, point.name))
    if plugin.error is not None:
        problem, lines = error_line(plugin.error), traceback_of(plugin.error)
        report(status="failed", seconds=plugin.seconds, problems=[problem], traceback=lines)
        return
    provides = {kind: len(getattr(plugin, kind)) for kind in PROVIDES}
    report(
        status="loaded",
        seconds=plugin.seconds,
        provides=provides,
        open_namespace=plugin.find_backbone is not None,
    )
    if "torch" in sys.modules:
        report(problems=[IMPORTS_TORCH.format(plugin.value)])
    if plugin.backbones or plugin.heads:
        report(step="importing PyTorch after the plugin")
        from featuretap.registry.diagnosis import find_problems

        for problem in find_problems(plugin, registry, lambda name: report(step=f"checking {name!r}")):
            report(problems=[problem])
    report(problems=[problem for problem in registry.problems if concerns(problem, plugin.distribution)])


@dataclass(frozen=True)
class _ObservedPoint(PluginEntryPoint):
    """An entry point that reports how its import changes the process, and undoes the changes."""

    report: Report

    def load(self) -> object:
        """Import the object that the entry point names."""
        before = _State()
        try:
            return super().load()
        finally:
            problems = list(before.changes())
            before.restore()
            self.report(problems=problems)


class _State:
    """State that all code in a process shares."""

    def __init__(self) -> None:
        self.path = sys.path
        self.entries = list(sys.path)
        self.folder = os.getcwd()
        self.variables = dict(os.environ)
        self.handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self.files = [_identity(descriptor) for descriptor in range(3)]

    def changes(self) -> Iterator[str]:
        """Yield one line per kind of change. Additions do not count as changes."""
        removed = [entry for entry in self.entries if entry not in sys.path]
        if removed:
            yield f"importing the plugin removes {first_few([repr(entry) for entry in removed], 3)} from sys.path"
        folder = _folder()
        if folder != self.folder:
            yield f"importing the plugin changes the working directory to {folder!r}"
        closed = [name for number, name in enumerate(STREAMS) if _identity(number) != self.files[number]]
        if closed:
            yield f"importing the plugin closes or replaces {', '.join(closed)}"
        replaced = [
            signal.Signals(number).name
            for number, handler in self.handlers.items()
            if signal.getsignal(number) != handler
        ]
        if replaced:
            yield f"importing the plugin replaces the handlers of {', '.join(replaced)}"
        variables = sorted(name for name, value in self.variables.items() if os.environ.get(name) != value)
        if variables:
            yield f"importing the plugin changes the environment variables {first_few(variables, 6)}"

    def restore(self) -> None:
        """Undo the changes that would affect later checks."""
        sys.path = self.path
        sys.path[:] = self.entries
        os.environ.update(self.variables)
        with suppress(OSError):
            os.chdir(self.folder)
        for number, handler in self.handlers.items():
            if signal.getsignal(number) != handler and handler is not None:
                signal.signal(number, handler)
        for name in ("stdout", "stderr"):
            if getattr(sys, name).closed:
                setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "(deleted)"


def _identity(descriptor: int) -> tuple[int, int] | None:
    """Return the device and inode of a file descriptor, or None if it is closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino
