"""The entry points of installed distributions in our group, whatever state the distributions are in.

`importlib.metadata.entry_points` reads those of all distributions at once, so that one malformed line of anybody's
hides everybody's. Here each distribution is read by itself, and only those that mention the group are read further.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions

from featuretap.catalogue.hookspecs import GROUP
from featuretap.catalogue.policy import OURS, normalise_name
from featuretap.support.errors import PluginError
from featuretap.support.version import __version__

AT_LEAST = re.compile(rf"{OURS}\s*>=\s*(\d+(?:\.\d+)*)")
"""The usual requirement. An older release meets it, whatever suffix ours has."""
RELEASE = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True)
class PluginEntryPoint:
    """An entry point, and the distribution that has it."""

    name: str
    value: str
    distribution: str
    version: str
    requires: tuple[str, ...]

    @property
    def built_in(self) -> bool:
        """Whether it ships with featuretap: by what it names, since anybody's metadata may have our name."""
        return self.distribution == OURS and self.value.startswith(f"{OURS}.plugins.")

    def load(self) -> object:
        """Import what the entry point names.

        Raises:
            PluginError: the entry point names nothing, or its distribution is for another featuretap.
            Exception: whatever the import raises.
        """
        if not EntryPoint.pattern.fullmatch(self.value):
            raise PluginError(
                f"its entry point {self.name!r} names no module, {self.value!r}; write "
                f"'{self.name} = \"package.module\"' under [project.entry-points.{GROUP}]"
            )
        wanted = _unmet(self.requires)
        if wanted:
            raise PluginError(
                f"it needs {wanted}, and this is featuretap {__version__}; install versions of the two that go together"
            )
        return EntryPoint(self.name, self.value, GROUP).load()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def find_entry_points() -> list[PluginEntryPoint]:
    """Return every entry point in our group, built-in first, then by distribution and name.

    A distribution that lies on `sys.path` twice, as a checkout and as installed, is the one that comes first there.
    """
    found: dict[str, list[PluginEntryPoint]] = {}
    for distribution in distributions():
        lines = list(dict.fromkeys(_lines(distribution)))
        if lines:
            about = distribution.metadata
            name, version = normalise_name(about["Name"] or "unnamed"), about["Version"] or ""
            requires = tuple(about.get_all("Requires-Dist") or ())
            # Two names of one module are one plugin, under the first of them.
            values = {value: entry for entry, value in reversed(lines)}
            points = [PluginEntryPoint(entry, value, name, version, requires) for value, entry in values.items()]
            first = found.setdefault(name, points)
            # Ours are found behind metadata that only have our name, such as those of an older checkout.
            known = {point.value for point in first}
            first += [point for point in points if point.built_in and point.value not in known]
    every = [point for points in found.values() for point in points]
    return sorted(every, key=lambda point: (not point.built_in, point.distribution, point.name != OURS, point.name))


def _lines(distribution: Distribution) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of the lines in our section; the value of a malformed line is empty."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeDecodeError):
        # Nobody can say whether it was meant for us.
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
    """Return the requirement of featuretap that this featuretap does not meet, or an empty string."""
    ours = (text for text in requires if normalise_name(text).startswith(OURS))
    return next(filter(None, map(_unmet_version, ours)), "")


@cache
def _unmet_version(text: str) -> str:
    least, ours = AT_LEAST.fullmatch(text), RELEASE.match(__version__)
    if least and ours and _numbers(least[1]) < _numbers(ours[0]):
        return ""
    # Importing it takes as long as a dozen plugins.
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(text)
    except InvalidRequirement:
        return ""
    applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    if normalise_name(wanted.name) == OURS and applies and not wanted.specifier.contains(__version__, prereleases=True):
        return f"{OURS}{wanted.specifier}"
    return ""
