"""Discovery of plugins: the entry points of installed distributions in the group `featuretap`.

`importlib.metadata.entry_points` reads all distributions at once, so one malformed line in any of them would hide all
plugins. This module reads each distribution separately, and parses only those that mention the group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions

from featuretap.catalogue.hookspecs import GROUP
from featuretap.catalogue.policy import OURS, normalize_name
from featuretap.support.errors import PluginError
from featuretap.support.version import __version__

AT_LEAST = re.compile(rf"{OURS}\s*>=\s*(\d+(?:\.\d+)*)")
"""The most common form of requirement. A lower release than ours meets it, whatever pre-release suffix ours has."""
RELEASE = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True)
class PluginEntryPoint:
    """An entry point with its distribution.

    Args:
        name: name of the entry point.
        value: import string, such as "package.module".
        distribution: normalized name of the distribution.
        version: version of the distribution.
        requires: requirements of the distribution.
    """

    name: str
    value: str
    distribution: str
    version: str
    requires: tuple[str, ...]

    @property
    def built_in(self) -> bool:
        """Whether the plugin ships with featuretap.

        The value is checked in addition to the distribution, because any package's metadata may claim featuretap's
        name.
        """
        return self.distribution == OURS and self.value.startswith(f"{OURS}.plugins.")

    def load(self) -> object:
        """Import the object that the entry point refers to.

        Returns:
            The object, usually a module.

        Raises:
            PluginError: the entry point is invalid, or its distribution requires another version of featuretap.
            Exception: any exception that the import raises.
        """
        if not EntryPoint.pattern.fullmatch(self.value):
            raise PluginError(
                f"its entry point {self.name!r} has the invalid value {self.value!r}; write "
                f"'{self.name} = \"package.module\"' under [project.entry-points.{GROUP}]"
            )
        unmet = _unmet(self.requires)
        if unmet:
            raise PluginError(
                f"it requires {unmet}, but featuretap {__version__} is installed; install compatible versions"
            )
        return EntryPoint(self.name, self.value, GROUP).load()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def find_entry_points() -> list[PluginEntryPoint]:
    """Return all entry points in the group: built-in ones first, then by distribution and name.

    If a distribution is on `sys.path` more than once, such as a checkout and an installed copy, the first one is used.
    """
    found: dict[str, list[PluginEntryPoint]] = {}
    for distribution in distributions():
        lines = list(dict.fromkeys(_lines(distribution)))
        if lines:
            about = distribution.metadata
            name, version = normalize_name(about["Name"] or "unnamed"), about["Version"] or ""
            requires = tuple(about.get_all("Requires-Dist") or ())
            # Two entry points with one value are one plugin, with the first name.
            values = {value: entry for entry, value in reversed(lines)}
            points = [PluginEntryPoint(entry, value, name, version, requires) for value, entry in values.items()]
            first = found.setdefault(name, points)
            # Built-in plugins must be found even if an earlier entry on `sys.path` has outdated metadata of featuretap.
            known = {point.value for point in first}
            first += [point for point in points if point.built_in and point.value not in known]
    every = [point for points in found.values() for point in points]
    return sorted(every, key=lambda point: (not point.built_in, point.distribution, point.name != OURS, point.name))


def _lines(distribution: Distribution) -> Iterator[tuple[str, str]]:
    """Yield (name, value) for every line in the group's section. A malformed line has an empty value."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeDecodeError):
        # Unreadable metadata may belong to any package, so it is not reported.
        return
    if f"[{GROUP}]" not in text:
        return
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line
        elif section == f"[{GROUP}]" and line and line[0] not in "#;":
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()


def _unmet(requires: tuple[str, ...]) -> str:
    """Return the requirement on featuretap that this version does not meet, or ""."""
    ours = (text for text in requires if normalize_name(text).startswith(OURS))
    return next(filter(None, map(_unmet_version, ours)), "")


@cache
def _unmet_version(text: str) -> str:
    least, ours = AT_LEAST.fullmatch(text), RELEASE.match(__version__)
    if least and ours and _numbers(least[1]) < _numbers(ours[0]):
        return ""
    # Importing `packaging` takes as long as importing a dozen plugins.
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(text)
    except InvalidRequirement:
        return ""
    applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    if normalize_name(wanted.name) == OURS and applies and not wanted.specifier.contains(__version__, prereleases=True):
        return f"{OURS}{wanted.specifier}"
    return ""
