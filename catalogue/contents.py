"""What plugins and the user's catalogue provide, found by name. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from featuretap.catalogue.files import CatalogueFile
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.name_index import Claims, Named
from featuretap.catalogue.plugin_loading import Plugin
from featuretap.catalogue.policy import normalised
from featuretap.catalogue.weights_index import Published
from featuretap.specs import BackboneSpec, HeadSpec, RuntimeSpec
from featuretap.specs.layout import NATIVE
from featuretap.support.errors import (
    CatalogueError,
    FeaturetapError,
    Hint,
    PluginError,
    UnknownBackboneError,
    UnknownHeadError,
    UnknownRuntimeError,
    did_you_mean,
)

__all__ = ["Contents"]


class Contents:
    """What was found: backbones, heads and weights by name, and what could not be used, in words."""

    def __init__(self, plugins: tuple[Plugin, ...], user: CatalogueFile) -> None:
        self.plugins = plugins
        self.mirrors = user.mirrors
        self.backbones: Claims[BackboneSpec] = Claims("backbone", UnknownBackboneError)
        self.heads: Claims[HeadSpec] = Claims("head", UnknownHeadError)
        self.runtimes: Claims[RuntimeSpec] = Claims("runtime", UnknownRuntimeError)
        for plugin in plugins:
            for runtime in plugin.runtimes:
                self.runtimes.add(plugin.distribution, runtime, ours=plugin.ours)
            for spec in plugin.backbones:
                self.backbones.add(plugin.distribution, spec, ours=plugin.ours)
            for head in plugin.heads:
                self.heads.add(plugin.distribution, head, ours=plugin.ours)
        self._user = str(user.path)
        self._file = user
        self._opened: dict[str, tuple[str, BackboneSpec]] = {}
        self._later: dict[str, str] = {}
        self._described: dict[str, BackboneSpec] = {}
        self._unusable: dict[str, CatalogueError] = {}
        self._silent: dict[str, str] = {}
        self._add_user(user)
        self.weights = Published(plugins, user, self._users_weights(user))

    def find(self, name: str) -> tuple[str, BackboneSpec]:
        """Return who provides a backbone, and its spec.

        Raises:
            UnknownBackboneError: nobody does, or it is not clear who is meant.
            PluginError: it is of a plugin that failed.
            CatalogueError: it is the user's, and rests on what such a plugin would provide.
        """
        if not isinstance(name, str):
            raise UnknownBackboneError(f"a backbone's name is a string or a BackboneSpec, got {name!r}")
        if name in self._unusable:
            raise self._unusable[name]
        variant = self._later.get(name)
        if variant is None:
            return self._provided(name)
        if variant not in self._described:
            # What a variant replaces is found behind its own names.
            self._described[variant] = self._file.resolve(
                variant, lambda base: (self._provided if self._later.get(base) == variant else self.find)(base)[1]
            )
        return self._user, self._described[variant]

    def head(self, name: str) -> HeadSpec:
        """Return the spec of a head.

        Raises:
            UnknownHeadError: no head has the name, or it is not clear whose is meant.
            PluginError: it is of a plugin that failed.
        """
        return self._named("head", self.heads, UnknownHeadError, name)

    def runtime(self, name: str) -> RuntimeSpec:
        """Return the spec of a runtime.

        Raises:
            UnknownRuntimeError: no runtime has the name, or it is not clear whose is meant.
            PluginError: it is of a plugin that failed.
        """
        return self._named("runtime", self.runtimes, UnknownRuntimeError, name)

    def _named(self, what: str, claims: Claims[Named], unknown: type[FeaturetapError], name: str) -> Named:
        if not isinstance(name, str):
            raise unknown(f"a {what}'s name is a string, got {name!r}")
        found = claims.find(name)
        if found is None:
            self._check_provider(name)
            hint = claims.nearest(name) or f"; known {what}s: {', '.join(sorted(claims.names))}"
            raise unknown(f"no {what} named {name!r}{hint}{self.failures()}") from self._cause()
        return found[1]

    def matching(self, pattern: str) -> list[str]:
        """Return the sorted names of backbones that match a shell `pattern`; open namespaces where it has a slash."""
        known = {*self.backbones.names, *self._later.values()}
        for plugin in self.plugins if "/" in pattern else ():
            try:
                answer = plugin.ask("match_backbones", pattern=pattern) or ()
                if isinstance(answer, str) or not all(isinstance(name, str) for name in answer):
                    raise PluginError(f"{plugin.words} should answer {pattern!r} with names in a list, got {answer!r}")
                known.update(answer)
            except PluginError as error:
                # The namespaces of others are listed all the same.
                self._silent[plugin.words] = str(error)
        return sorted(name for name in known if fnmatchcase(name, pattern))

    def needs_torch(self, name: str) -> bool:
        """Say whether a backbone is of an open namespace, or a variant of such a one: describing it may need torch."""
        return name in self._later or "/" in name

    def is_users(self, name: str) -> bool:
        """Say whether a backbone's name is from the user's catalogue."""
        return self.find(name)[0] == self._user

    def failures(self) -> str:
        """Return a note on plugins that failed, since what is missing may be theirs."""
        failed = [plugin.failure for plugin in self.plugins if plugin.status == "failed"]
        return f" ({'; '.join(failed)})" if failed else ""

    def problems(self) -> Iterator[str]:
        """Yield a line for everything that was found and cannot be used as it is."""
        yield from (plugin.failure for plugin in self.plugins if plugin.status == "failed")
        yield from self.backbones.conflicts()
        yield from self.heads.conflicts()
        yield from self.runtimes.conflicts()
        yield from self.weights.conflicts()
        yield from map(str, self._unusable.values())
        yield from self._silent.values()
        known = {plugin.distribution for plugin in self.plugins}
        for key, named in (("disable", self._file.disable), ("only", self._file.only or ())):
            for distribution in sorted(named):
                if normalised(distribution) not in known:
                    yield f"{self._user}: plugins.{key} names {distribution!r}, which has no plugin that is installed"

    def _provided(self, name: str) -> tuple[str, BackboneSpec]:
        found = self.backbones.find(name) or self._in_open_namespace(name)
        if found is None:
            self._check_provider(name)
            near = self.backbones.nearest(name) or did_you_mean(name, self._later, self._later)
            hint = None if near else Hint("see", "registry.list_backbones()")
            problem = f"no backbone named {name!r}{near}{self.failures()}"
            raise UnknownBackboneError(problem, hint=hint) from self._cause()
        return found

    def _in_open_namespace(self, name: str) -> tuple[str, BackboneSpec] | None:
        if "/" not in name:
            return None
        provider, colon, inner = name.rpartition(":")
        failure: PluginError | None = None
        if name not in self._opened:
            for plugin in self.plugins:
                if colon and plugin.distribution != normalised(provider):
                    continue
                try:
                    spec = plugin.ask("find_backbone", name=inner)
                    if spec is not None and not isinstance(spec, BackboneSpec):
                        raise PluginError(f"{plugin.words} should return a BackboneSpec for {inner!r}, got {spec!r}")
                except PluginError as error:
                    # The name may be another's.
                    failure = failure or error
                    continue
                if spec is not None:
                    self._opened[name] = plugin.distribution, spec
                    break
        if name not in self._opened and failure:
            raise failure
        return self._opened.get(name)

    def _check_provider(self, name: str) -> None:
        """Say so where a name is asked of a distribution that gives nothing."""
        provider, colon, _ = name.partition(":")
        for plugin in self.plugins if colon else ():
            if plugin.distribution == normalised(provider) and plugin.status == "failed":
                raise PluginError(f"{name!r} is not there, since {plugin.failure}") from plugin.error
            if plugin.distribution == normalised(provider) and plugin.status == "disabled":
                raise UnknownBackboneError(
                    f"{name!r} is not there, since {plugin.words} is switched off; FEATURETAP_PLUGINS and [plugins] in "
                    "featuretap.toml say which load"
                )

    def _cause(self) -> BaseException | None:
        return next((plugin.error for plugin in self.plugins if plugin.status == "failed"), None)

    def _incomplete(self) -> bool:
        """Say whether something may be missing because its plugin is."""
        return any(plugin.status != "loaded" for plugin in self.plugins)

    def _add_user(self, user: CatalogueFile) -> None:
        # What rests on an open namespace may need torch to be described, and is not before it is asked for.
        later = [name for name in user.backbones if "/" in user.foundation(name)]
        for name in later:
            names = (name, *user.backbones[name].get("aliases", ()))
            self._check_shadows_nothing(user, names)
            self._later.update(dict.fromkeys(names, name))
        for name, spec in user.resolved(lambda name: self.find(name)[1], later).items():
            if isinstance(spec, CatalogueError):
                # A typing error is to be mended at once; what rests on a plugin that is missing has to wait for it.
                if not (self._incomplete() and isinstance(spec.__cause__, UnknownBackboneError | PluginError)):
                    raise spec
                self._unusable[name] = spec
                continue
            self._check_shadows_nothing(user, (spec.name, *spec.aliases))
            self.backbones.settle(self._user, spec)

    def _check_shadows_nothing(self, user: CatalogueFile, names: Sequence[str]) -> None:
        taken = sorted(self.backbones.built_in & set(names))
        if taken:
            raise CatalogueError(
                f"{user.path}: backbones.{names[0]} would shadow the built-in {taken[0]!r}; choose another name"
            )

    def _users_weights(self, user: CatalogueFile) -> Iterator[WeightsEntry]:
        """Yield the user's weights, named for the backbone itself where an alias was written."""
        defaults = set()
        for entry in user.weights:
            try:
                spec = self.find(entry.backbone)[1]
                self.head(entry.head)
            except FeaturetapError as error:
                key = f"weights.{entry.name}" + (".head" if isinstance(error, UnknownHeadError) else "")
                unusable = user.error(key, f"cannot be used: {error}")
                if not self._incomplete():
                    raise unusable from error
                self._unusable[entry.name] = unusable
                continue
            layouts = (NATIVE, *spec.layouts)
            if entry.layout not in layouts:
                hint = did_you_mean(entry.layout, layouts) or ";"
                raise user.error(
                    f"weights.{entry.name}.layout",
                    f"is {entry.layout!r}, which {spec.name!r} is not known in{hint} it has {', '.join(layouts)}",
                )
            if entry.default and spec.name in defaults:
                raise CatalogueError(f"{user.path}: {spec.name!r} has two default weights; mark one of them")
            defaults |= {spec.name} if entry.default else set()
            yield replace(entry, name=f"{spec.name}.{entry.tag}")
