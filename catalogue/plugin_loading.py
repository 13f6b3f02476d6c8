"""Asking plugins what they provide, one at a time, so that none can take another down. No torch.

A failure is data: it stays with the plugin's name and distribution, and is raised when somebody asks for what may be
missing because of it, or at once where `FEATURETAP_STRICT=1`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import pluggy

from featuretap.catalogue import hookspecs
from featuretap.catalogue.entry_points import find_entry_points
from featuretap.catalogue.hookspecs import GROUP, WeightsEntry
from featuretap.catalogue.policy import Policy, normalise_name
from featuretap.specs import BackboneSpec, HeadSpec, RuntimeSpec
from featuretap.support.errors import FeaturetapError, PluginError, did_you_mean
from featuretap.support.text import error_line

__all__ = ["Plugin", "load_installed", "load_module"]

PROVIDES = {
    "backbones": BackboneSpec,
    "heads": HeadSpec,
    "weights": WeightsEntry,
    "runtimes": RuntimeSpec,
}
ASKED = ("find_backbone", "match_backbones")
HOOKS = tuple(f"{GROUP}_{what}" for what in (*PROVIDES, *ASKED))


@dataclass(frozen=True)
class Plugin:
    """What is known of a plugin: where it comes from, what it provides, or why it does not.

    Args:
        name: of its entry point, or of the module that was given.
        distribution: whose entry point it is, as the packaging standards compare names.
        version: the distribution's.
        value: what the entry point names, "package.module".
        built_in: whether it ships with featuretap.
        status: "disabled" by the policy, "failed", or "loaded".
        error: why it failed.
        seconds: how long importing and asking it took.
        backbones, heads, weights, runtimes: what it provides.
        find_backbone: name → `BackboneSpec` or None, of a plugin with an open namespace.
        match_backbones: shell pattern → names, of a plugin with an open namespace.
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
        """What it is, for messages."""
        return f"plugin {self.name!r} of distribution {self.distribution!r}"

    def ask(self, hook: Literal["find_backbone", "match_backbones"], **arguments: Any) -> Any:
        """Return what a plugin with an open namespace answers; None where it has none.

        Raises:
            UnknownBackboneError: its namespace has no such name, or another of our errors that it raises.
            PluginError: it failed in another way.
        """
        answer = getattr(self, hook)
        if answer is None:
            return None
        try:
            return answer(**arguments)
        except (KeyboardInterrupt, FeaturetapError):
            raise
        except BaseException as error:
            asked = ", ".join(map(repr, arguments.values()))
            raise PluginError(f"{self.label} failed when it was asked for {asked}: {error_line(error)}") from error


def load_installed(policy: Policy, *, builtins: bool, others: bool) -> Iterator[Plugin]:
    """Load the installed plugins that the policy allows, built-in first.

    Raises:
        PluginError: a plugin failed and the policy is strict.
    """
    manager = _manager()
    for point in find_entry_points():
        if not (builtins if point.built_in else others):
            continue
        about = {"version": point.version, "value": point.value, "built_in": point.built_in}
        if point.built_in or policy.allows(point.distribution):
            yield _load(manager, point.name, point.distribution, point.load, policy, about)
        else:
            yield Plugin(point.name, point.distribution, status="disabled", **about)  # type: ignore[arg-type]


def load_module(module: Any, policy: Policy) -> Plugin:
    """Ask a plugin that is an object at hand, such as a module in a test."""
    name = getattr(module, "__name__", type(module).__name__)
    return _load(_manager(), name, normalise_name(name), lambda: module, policy, {})


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def _load(
    manager: pluggy.PluginManager,
    name: str,
    distribution: str,
    module: Callable[[], object],
    policy: Policy,
    about: dict[str, Any],
) -> Plugin:
    """Ask one plugin, through a manager that has no other at the time."""
    start = perf_counter()
    try:
        # What a plugin prints is no part of what featuretap prints, which programs read.
        with redirect_stdout(sys.stderr):
            plugin = module()
            try:
                manager.register(plugin, name)
                answers = _answers(manager, name, plugin)
            finally:
                # Also where it failed half-way, with some of its hooks in place.
                manager.unregister(name=name)
        return Plugin(name, distribution, seconds=perf_counter() - start, **about, **answers)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # What leaves a module may be any exception, SystemExit and pytest's among them.
        seconds = perf_counter() - start
        failed = Plugin(name, distribution, status="failed", error=error, seconds=seconds, **about)
        if policy.strict:
            raise PluginError(failed.failure) from error
        return failed


def _answers(manager: pluggy.PluginManager, name: str, module: Any) -> dict[str, Any]:
    _check_hooks(module, {caller.name for caller in manager.get_hookcallers(module) or ()})
    answers: dict[str, Any] = {}
    for what, kind in PROVIDES.items():
        caller = getattr(manager.hook, f"{GROUP}_{what}")
        provided = caller()
        if len(provided) < len(caller.get_hookimpls()):
            raise PluginError(f"its hook {caller.name} returns None; return {kind.__name__} objects in a list")
        answers[what] = tuple(item for answer in provided for item in _items(caller.name, answer, kind))
        _check_unique(what, answers[what])
    _check_declared(answers["backbones"])
    if any(getattr(manager.hook, f"{GROUP}_{what}").get_hookimpls() for what in ASKED):
        # What is asked later is asked through a manager of the plugin's own.
        own = _manager()
        own.register(module, name)
        for what in ASKED:
            caller = getattr(own.hook, f"{GROUP}_{what}")
            answers[what] = caller if caller.get_hookimpls() else None
    return answers


def _check_hooks(module: Any, implemented: set[str]) -> None:
    for hook in sorted(implemented):
        if hook not in HOOKS:
            hint = did_you_mean(hook, HOOKS) or f"; hooks are {', '.join(HOOKS)}"
            raise PluginError(f"it implements {hook!r}, which is no hook{hint}")
    for hook in HOOKS:
        if hook not in implemented and callable(getattr(module, hook, None)):
            raise PluginError(f"its function {hook} is not marked; write @hookimpl above it")
    if not implemented:
        raise PluginError(f"it implements no hook; hooks are {', '.join(HOOKS)}")


def _items(hook: str, answer: Any, kind: type) -> Iterator[Any]:
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        answer = [answer]
    for item in answer:
        if not isinstance(item, kind):
            raise PluginError(f"its hook {hook} should return {kind.__name__} objects in a list, got {item!r}")
        yield item


def _check_declared(backbones: Iterable[BackboneSpec]) -> None:
    for spec in backbones:
        for name in (spec.name, *spec.aliases):
            if "/" in name:
                raise PluginError(
                    f"its backbone {name!r} has a slash, which names in open namespaces have; answer "
                    f"{GROUP}_find_backbone, or choose another name"
                )


def _check_unique(what: str, provided: Iterable[Any]) -> None:
    names = Counter(name for item in provided for name in (item.name, *getattr(item, "aliases", ())))
    repeated = sorted(name for name, times in names.items() if times > 1)
    if repeated:
        raise PluginError(f"its {what} have the name {repeated[0]!r} more than once; a name means one thing")
