"""Groups of tests that `make test` leaves out: folders of tests/ with a marker of the same name in pyproject.toml.

This is a pytest plugin. `--quick` does not import the files of a group, so their dependencies do not have to be
installed.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from support import TESTS


def groups(config: pytest.Config) -> dict[str, str]:
    """Return the groups in pyproject.toml: name → description."""
    markers = (line.partition(": ") for line in config.getini("markers"))
    return {name: description for name, _, description in markers if (TESTS / name).is_dir()}


def group_of(path: Path, config: pytest.Config) -> str | None:
    """Return the group of a file or folder, or None."""
    folder = path.relative_to(TESTS).parts[:1] if path.is_relative_to(TESTS) else ()
    return next((name for name in groups(config) if (name,) == folder), None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the groups, and say which at the end")
    parser.addoption("--no-skips", action="store_true", help="a test or file that skips itself fails")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("quick") and group_of(collection_path, config) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if group := group_of(item.path, config):
            item.add_marker(group)
    # Workers receive files in this order. The slow files of the groups come first, so that no worker finishes long
    # after the others.
    items.sort(key=lambda item: group_of(item.path, config) is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    return report if hasattr(report, "wasxfail") else without_skip(report, item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    return without_skip((yield), collector.config)


def without_skip(report: Any, config: pytest.Config) -> Any:
    """Return the report of a test or file. With --no-skips, a skipped one counts as failed."""
    if report.skipped and config.getoption("no_skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips does not allow: {report.longrepr[-1]}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("quick"):
        terminalreporter.section("groups that were not run")
        for name, description in groups(config).items():
            terminalreporter.write_line(f"{name}: {description}")
        terminalreporter.write_line("make test-all runs everything; make test-GROUP runs one of them")
