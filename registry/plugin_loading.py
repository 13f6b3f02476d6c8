"""Finding plugins and asking them, one at a time, so that none can take another down. No torch.

A failure is data: it stays with the plugin's name and distribution, and is raised when somebody asks for what may be
missing because of it, or at once where `FEATURETAP_STRICT=1`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy

from featuretap.registry import hookspecs
from featuretap.registry.errors import PluginError
from featuretap.registry.hookspecs import GROUP, WeightsEntry
from featuretap.registry.specs import BackboneSpec, HeadSpec, RuntimeSpec

__all__ = ["OURS", "Plugin", "Policy", "discover", "load_module", "policy_from"]

OURS = "featuretap"
"""Our own distribution, which no policy can switch off."""

PROVIDES = {
    "backbones": BackboneSpec,
    "heads": HeadSpec,
    "weights": WeightsEntry,
    "runtimes": RuntimeSpec,
}


@dataclass(frozen=True)
class Plugin:
    """What is known of a plugin: where it comes from, what it provides, or why it does not."""

    name: str
    distribution: str
    version: str = ""
    status: Literal["loaded", "failed", "disabled"] = "loaded"
    error: BaseException | None = None
    backbones: tuple[BackboneSpec, ...] = ()
    heads: tuple[HeadSpec, ...] = ()
    weights: tuple[WeightsEntry, ...] = ()
    runtimes: tuple[RuntimeSpec, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it is the one that ships with featuretap."""
        return self.distribution == OURS

    @property
    def failure(self) -> str:
        """The failure in one line."""
        return f"plugin {self.name!r} of distribution {self.distribution!r} failed: {_in_one_line(self.error)}"


@dataclass(frozen=True)
class Policy:
    """Which distributions' plugins may be imported: all but `disable`, or only those of `only`."""

    disable: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    strict: bool = False

    def allows(self, distribution: str) -> bool:
        """Whether the plugins of a distribution may be imported."""
        name = normalised(distribution)
        if name == OURS:
            return True
        return name not in self.disable and (self.only is None or name in self.only)


def normalised(distribution: str) -> str:
    """Return a distribution's name as the packaging standards compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def policy_from(disable: Iterable[str], only: Iterable[str] | None) -> Policy:
    """Return the policy of a user's catalogue, narrowed by the environment.

    `FEATURETAP_PLUGINS` lists the distributions that alone load, separated by commas (empty: none).
    `FEATURETAP_STRICT=1` raises the first failure.
    """
    listed = os.environ.get("FEATURETAP_PLUGINS")
    if listed is not None:
        only = [name for name in (part.strip() for part in listed.split(",")) if name]
    return Policy(
        frozenset(map(normalised, disable)),
        None if only is None else frozenset(map(normalised, only)),
        strict=os.environ.get("FEATURETAP_STRICT", "") == "1",
    )


def discover(policy: Policy, *, builtins: bool, others: bool) -> Iterator[Plugin]:
    """Load the installed plugins that the policy allows, ours first.

    Raises:
        PluginError: a plugin failed and the policy is strict.
    """
    found = sorted(entry_points(group=GROUP), key=lambda point: (_distribution(point) != OURS, _distribution(point)))
    for point in found:
        if not (builtins if _distribution(point) == OURS else others):
            continue
        version = point.dist.version if point.dist else ""
        if policy.allows(_distribution(point)):
            yield _load(point.name, _distribution(point), version, point, policy)
        else:
            yield Plugin(point.name, _distribution(point), version, status="disabled")


def load_module(module: Any, policy: Policy) -> Plugin:
    """Ask a plugin that is an object at hand, such as a module in a test."""
    name = getattr(module, "__name__", type(module).__name__)
    return _load(name, name, "", module, policy)


def _load(name: str, distribution: str, version: str, source: Any, policy: Policy) -> Plugin:
    try:
        module = source.load() if isinstance(source, EntryPoint) else source
        return Plugin(name, distribution, version, **_answers(name, module))
    except (Exception, SystemExit) as error:
        plugin = Plugin(name, distribution, version, status="failed", error=error)
        if policy.strict:
            raise PluginError(plugin.failure) from error
        return plugin


def _answers(name: str, module: Any) -> dict[str, Any]:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(module, name)
    manager.check_pending()
    answers: dict[str, Any] = {}
    for what, kind in PROVIDES.items():
        provided = [item for answer in getattr(manager.hook, f"{GROUP}_{what}")() for item in answer]
        for item in provided:
            if not isinstance(item, kind):
                raise PluginError(f"its hook {GROUP}_{what} should return {kind.__name__} objects, got {item!r}")
        answers[what] = tuple(provided)
    return answers


def _distribution(point: EntryPoint) -> str:
    return normalised(point.dist.name or "unnamed") if point.dist else ""


def _in_one_line(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
