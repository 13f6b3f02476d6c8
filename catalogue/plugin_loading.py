"""Loading of plugins, one at a time, so that a broken plugin does not affect the others.

A failure is stored with its plugin. It is raised when something is requested that may be missing because of it, or
immediately with `FEATURETAP_STRICT=1`.
"""

from __future__ import annotations

import importlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from inspect import isroutine
from itertools import islice
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, Literal

import pluggy

from featuretap.catalogue import hookspecs
from featuretap.catalogue.entry_points import PluginEntryPoint, find_entry_points
from featuretap.catalogue.hookspecs import GROUP, WeightsEntry
from featuretap.catalogue.plugin_calls import OUTPUT, SlowWatch, call_plugin
from featuretap.catalogue.policy import Policy, normalize_name
from featuretap.specs import BackboneSpec, HeadSpec, RuntimeSpec
from featuretap.support.errors import FeaturetapError, PluginError, did_you_mean
from featuretap.support.text import error_line

PROVIDES = {
    "backbones": BackboneSpec,
    "heads": HeadSpec,
    "weights": WeightsEntry,
    "runtimes": RuntimeSpec,
}
NAMESPACE_HOOKS = ("find_backbone", "match_backbones")
MOST_ITEMS = 10_000
"""Maximum number of objects or names that a hook may return, because an iterator may be infinite."""
LEADING_FRAMES = (
    "<frozen importlib",
    *(str(Path(__file__).parents[1] / package) for package in ("catalogue", "registry")),
    *(package.__path__[0] for package in (importlib, pluggy)),
)
HOOKS = tuple(f"{GROUP}_{what}" for what in (*PROVIDES, *NAMESPACE_HOOKS))


@dataclass(frozen=True)
class Plugin:
    """A plugin: its origin, and its specs or its failure.

    Args:
        name: name of the entry point or module.
        distribution: name of the distribution, normalized as in the packaging standards.
        version: version of the distribution.
        value: value of the entry point, "package.module".
        built_in: whether the plugin ships with featuretap.
        status: "loaded", "failed", or "disabled" by the policy.
        error: the exception that a failed plugin raised.
        seconds: time taken to import the plugin and call its hooks.
        backbones: backbones that the plugin provides.
        heads: heads that the plugin provides.
        weights: published weights that the plugin provides.
        runtimes: runtimes that the plugin provides.
        find_backbone: hook of a namespace: name → `BackboneSpec` or None.
        match_backbones: hook of a namespace: shell pattern → names.
    """

    name: str
    distribution: str
    version: str = ""
    value: str = ""
    built_in: bool = False
    status: Literal["loaded", "failed", "disabled"] = "loaded"
    error: BaseException | None = None
    seconds: float = 0.0
    backbones: tuple[BackboneSpec, ...] = ()
    heads: tuple[HeadSpec, ...] = ()
    weights: tuple[WeightsEntry, ...] = ()
    runtimes: tuple[RuntimeSpec, ...] = ()
    find_backbone: Callable[..., Any] | None = field(default=None, repr=False)
    match_backbones: Callable[..., Any] | None = field(default=None, repr=False)

    @property
    def failure(self) -> str:
        """The failure in one line."""
        return f"{self.label} failed: {error_line(self.error)}"

    @property
    def label(self) -> str:
        """Name and distribution, for messages."""
        return f"plugin {self.name!r} of distribution {self.distribution!r}"

    def call_hook(self, hook: Literal["find_backbone", "match_backbones"], **arguments: Any) -> Any:
        """Call a hook of a namespace.

        Args:
            hook: the hook, without its prefix.
            **arguments: arguments of the hook.

        Returns:
            The result of the hook, or None if the plugin does not implement it.

        Raises:
            UnknownBackboneError: the namespace has no such name. Other errors of featuretap that the hook raises are
                passed on, too.
            PluginError: the hook failed in another way.
        """
        answer = getattr(self, hook)
        if answer is None:
            return None
        asked = ", ".join(map(repr, arguments.values()))
        answered, error = call_plugin(f"asking {self.label} for {asked}", lambda: _listed(answer(**arguments)))
        if isinstance(error, FeaturetapError):
            raise error
        if error is not None:
            raise PluginError(f"{self.label} failed on the request for {asked}: {error_line(error)}") from error
        return answered


def load_installed(policy: Policy, *, builtins: bool, others: bool) -> Iterator[Plugin]:
    """Load the installed plugins that the policy allows, built-in plugins first.

    Args:
        policy: the policy.
        builtins: whether to load built-in plugins.
        others: whether to load other plugins.

    Yields:
        Plugin: each plugin, including failed and disabled ones.

    Raises:
        PluginError: a plugin failed and the policy is strict.
    """
    manager = _create_manager()
    # Redirect the output once for all plugins, because each redirection takes several system calls.
    with OUTPUT, SlowWatch() as watch:
        for point in find_entry_points():
            if not (builtins if point.built_in else others):
                continue
            plugin = plugin_at(point)
            if not point.built_in and not policy.allows(point.distribution):
                yield replace(plugin, status="disabled")
                continue
            watch.start(plugin.label)
            yield _load(plugin, point.load, policy, manager)
            # Creating a manager takes longer than calling the hooks of a plugin, so an empty one is reused.
            if manager.list_name_plugin():
                manager = _create_manager()


def plugin_at(point: PluginEntryPoint) -> Plugin:
    """Return the plugin at an entry point `point`, not loaded yet."""
    return Plugin(point.name, point.distribution, point.version, point.value, point.built_in)


def load_module(module: Any, policy: Policy) -> Plugin:
    """Load a plugin from a `module`, another object with hooks, or an entry point, under a `policy`."""
    if isinstance(module, PluginEntryPoint):
        return _load(plugin_at(module), module.load, policy, _create_manager())
    name = getattr(module, "__name__", type(module).__name__)
    return _load(Plugin(name, normalize_name(name)), lambda: module, policy, _create_manager())


def traceback_of(error: BaseException) -> list[str]:
    """Return the lines of the traceback of a plugin's `error`, without the frames before the plugin's code."""
    summary = traceback.TracebackException.from_exception(error)
    while summary.stack and summary.stack[0].filename.startswith(LEADING_FRAMES):
        del summary.stack[0]
    return "".join(summary.format()).splitlines()


def _load(plugin: Plugin, import_module: Callable[[], object], policy: Policy, manager: pluggy.PluginManager) -> Plugin:
    start = perf_counter()
    provided, error = call_plugin(f"loading {plugin.label}", lambda: _call_hooks(plugin.name, import_module(), manager))
    seconds = perf_counter() - start
    if provided is not None:
        return replace(plugin, **provided, seconds=seconds)
    failed = replace(plugin, status="failed", error=error, seconds=seconds)
    if policy.strict:
        raise PluginError(failed.failure) from error
    return failed


class _Manager(pluggy.PluginManager):
    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        # pluggy inspects every object in the module, which takes longer than importing it.
        if isinstance(plugin, ModuleType) and name in vars(plugin) and not isroutine(vars(plugin)[name]):
            return None
        return super().parse_hookimpl_opts(plugin, name)


def _create_manager() -> pluggy.PluginManager:
    manager = _Manager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def _call_hooks(name: str, module: Any, manager: pluggy.PluginManager) -> dict[str, Any]:
    """Return the specs that a plugin provides.

    The manager must have no other plugins, so that all results come from this one. It is empty again afterwards, unless
    the plugin fails or has a namespace.
    """
    manager.register(module, name)
    _check_hooks(module, {caller.name for caller in manager.get_hookcallers(module) or ()})
    provided: dict[str, Any] = {}
    for key, kind in PROVIDES.items():
        caller = getattr(manager.hook, f"{GROUP}_{key}")
        results = caller()
        if len(results) < len(caller.get_hookimpls()):
            raise PluginError(f"its hook {caller.name} returns None; return a list of {kind.__name__} objects")
        provided[key] = tuple(item for result in results for item in _items(caller.name, result, kind))
        _check_names(key, provided[key])
    for key in NAMESPACE_HOOKS:
        caller = getattr(manager.hook, f"{GROUP}_{key}")
        provided[key] = caller if caller.get_hookimpls() else None
    if not any(provided[key] for key in NAMESPACE_HOOKS):
        manager.unregister(module)
    return provided


def _check_hooks(module: Any, implemented: set[str]) -> None:
    for hook in sorted(implemented):
        if hook not in HOOKS:
            hint = did_you_mean(hook, HOOKS) or f"; available hooks: {', '.join(HOOKS)}"
            raise PluginError(f"it implements {hook!r}, which is not a hook{hint}")
    for hook in HOOKS:
        if hook not in implemented and callable(getattr(module, hook, None)):
            raise PluginError(f"its function {hook} is not marked as a hook; decorate it with @hookimpl")
    if not implemented:
        raise PluginError(f"it implements no hooks; available hooks: {', '.join(HOOKS)}")


def _listed(answer: Any) -> Any:
    """Return a hook's result, with the names of an iterator as a list."""
    if not isinstance(answer, Iterator):
        return answer
    names = list(islice(answer, MOST_ITEMS + 1))
    if len(names) > MOST_ITEMS:
        raise ValueError(f"more than {MOST_ITEMS} names")
    return names


def _items(hook: str, result: Any, kind: type) -> Iterator[Any]:
    if isinstance(result, str) or not isinstance(result, Iterable):
        result = [result]
    for number, item in enumerate(result):
        if not isinstance(item, kind):
            raise PluginError(f"its hook {hook} must return a list of {kind.__name__} objects; got {item!r}")
        if number == MOST_ITEMS:
            raise PluginError(
                f"its hook {hook} returns more than {MOST_ITEMS} objects; return a shorter list, or implement "
                f"{GROUP}_find_backbone (a namespace)"
            )
        yield item


def _check_names(key: str, items: Iterable[Any]) -> None:
    names = Counter(name for item in items for name in (item.name, *getattr(item, "aliases", ())))
    for name, times in sorted(names.items()):
        if times > 1:
            raise PluginError(f"its {key} use the name {name!r} more than once; give each a unique name")
        if key == "backbones" and "/" in name:
            raise PluginError(
                f"its backbone {name!r} has a slash, which is reserved for namespaces; implement "
                f"{GROUP}_find_backbone, or choose another name"
            )
