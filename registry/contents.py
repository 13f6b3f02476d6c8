"""What plugins and the user's catalogue provide, indexed by name. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from featuretap.registry.catalogue import CatalogueFile
from featuretap.registry.errors import (
    CatalogueError,
    FeaturetapError,
    UnknownBackboneError,
    UnknownHeadError,
    did_you_mean,
)
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.layout import NATIVE
from featuretap.registry.plugin_loading import OURS, Plugin
from featuretap.registry.specs import BackboneSpec, HeadSpec

__all__ = ["Contents"]

Named = TypeVar("Named", BackboneSpec, HeadSpec)


class Contents:
    """What was found, indexed by name."""

    def __init__(self, plugins: tuple[Plugin, ...], user: CatalogueFile) -> None:
        self.plugins = plugins
        self.backbones: dict[str, list[tuple[str, BackboneSpec]]] = {}
        self.aliases: dict[str, list[tuple[str, BackboneSpec]]] = {}
        self.qualified: dict[str, BackboneSpec] = {}
        self.reserved = {name for plugin in plugins if plugin.ours for name in _names(plugin.backbones)}
        for plugin in plugins:
            for spec in plugin.backbones:
                self.qualified[f"{plugin.distribution}:{spec.name}"] = spec
                self._add(plugin.distribution, spec, closed=frozenset() if plugin.ours else self.reserved)
        self._user = str(user.path)
        self._add_user(user)
        self.mirrors = user.mirrors
        self.contested: dict[str, tuple[str, str]] = {}
        self.weights = self._weights(user)

    def find(self, name: str) -> tuple[str, BackboneSpec]:
        """Return who provides a backbone, and its spec."""
        if not isinstance(name, str):
            raise UnknownBackboneError(f"a backbone's name is a string or a BackboneSpec, got {name!r}")
        if name in self.qualified:
            return name.partition(":")[0], self.qualified[name]
        for index in (self.backbones, self.aliases):
            if name in index:
                return _only(name, "backbone", index[name], UnknownBackboneError)
        canonical = {alias: claims[0][1].name for alias, claims in self.aliases.items()}
        hint = did_you_mean(name, [*self.backbones, *canonical, *self.qualified], canonical)
        raise UnknownBackboneError(
            f"no backbone named {name!r}{hint or '; registry.list_backbones() names them'}{self.failures()}"
        )

    def is_users(self, name: str) -> bool:
        """Say whether a backbone's name is from the user's catalogue."""
        return self.find(name)[0] == self._user

    def head(self, name: str) -> HeadSpec:
        """Return the spec of a head."""
        if not isinstance(name, str):
            raise UnknownHeadError(f"a head's name is a string, got {name!r}")
        claims = [(plugin.distribution, head) for plugin in self.plugins for head in plugin.heads if head.name == name]
        if claims:
            return _only(name, "head", claims, UnknownHeadError)[1]
        known = sorted({head.name for plugin in self.plugins for head in plugin.heads})
        hint = did_you_mean(name, known) or f"; known heads: {', '.join(known)}"
        raise UnknownHeadError(f"no head named {name!r}{hint}{self.failures()}")

    def weights_of(self, spec: BackboneSpec) -> tuple[WeightsEntry, ...]:
        """Return the published weights of a backbone: the default first, and the user's before others'."""
        names = {spec.name, spec.published_as}
        entries = [entry for entry in self.weights.values() if entry.backbone in names]
        return tuple(sorted(entries, key=lambda entry: not entry.default))

    def failures(self) -> str:
        """Return a note on plugins that failed, since what is missing may be theirs."""
        failed = [plugin.failure for plugin in self.plugins if plugin.status == "failed"]
        return f" ({'; '.join(failed)})" if failed else ""

    def _add(self, provider: str, spec: BackboneSpec, closed: Collection[str]) -> None:
        for index, names in ((self.backbones, (spec.name,)), (self.aliases, spec.aliases)):
            for name in names:
                if name not in closed:
                    index.setdefault(name, []).append((provider, spec))

    def _weights(self, user: CatalogueFile) -> dict[str, WeightsEntry]:
        entries: dict[str, WeightsEntry] = {}
        for entry in user.weights:
            try:
                spec = self.find(entry.backbone)[1]
            except UnknownBackboneError as error:
                raise CatalogueError(f"{user.path}: weights.{entry.name}: {error}") from error
            backbone, layouts = spec.name, (NATIVE, *spec.layouts)
            if entry.layout not in layouts:
                hint = did_you_mean(entry.layout, layouts) or ";"
                raise CatalogueError(
                    f"{user.path}: weights.{entry.name}.layout is {entry.layout!r}, which {backbone!r} is not known "
                    f"in{hint} it has {', '.join(layouts)}"
                )
            try:
                self.head(entry.head)
            except UnknownHeadError as error:
                raise CatalogueError(f"{user.path}: weights.{entry.name}.head: {error}") from error
            # An alias of a backbone is the backbone.
            entry = replace(entry, name=f"{backbone}.{entry.tag}")
            if entry.default and any(other.default and other.backbone == backbone for other in entries.values()):
                raise CatalogueError(f"{user.path}: {backbone!r} has two default weights; mark one of them")
            entries[entry.name] = entry
        mine = set(entries)
        providers: dict[str, str] = {}
        for plugin in self.plugins:
            for entry in plugin.weights:
                if entry.name in mine:
                    raise CatalogueError(
                        f"{user.path}: weights.{entry.name} would replace those of {plugin.distribution!r}; choose "
                        "another tag, or give their address another beginning under [mirrors]"
                    )
                if providers.setdefault(entry.name, plugin.distribution) == plugin.distribution:
                    entries[entry.name] = entry
                elif providers[entry.name] != OURS:
                    self.contested[entry.name] = (providers[entry.name], plugin.distribution)
                    entries.pop(entry.name, None)
        return entries

    def _add_user(self, user: CatalogueFile) -> None:
        for spec in user.resolved(lambda name: self.find(name)[1]):
            taken = sorted(self.reserved & set(_names([spec])))
            if taken:
                raise CatalogueError(
                    f"{user.path}: backbones.{spec.name} would shadow the built-in {taken[0]!r}; choose another name"
                )
            for name in _names([spec]):
                self.backbones.pop(name, None)
                self.aliases.pop(name, None)
            self._add(str(user.path), spec, closed=())


def _names(specs: Iterable[BackboneSpec]) -> list[str]:
    return [name for spec in specs for name in (spec.name, *spec.aliases)]


def _only(name: str, what: str, claims: Sequence[tuple[str, Named]], error: type[FeaturetapError]) -> tuple[str, Named]:
    built_in = [claim for claim in claims if claim[0] == OURS]
    if built_in or len(claims) == 1:
        return (built_in or claims)[0]
    choices = " or ".join(repr(f"{provider}:{name}") for provider, _ in claims)
    raise error(f"{len(claims)} plugins have a {what} named {name!r}; say which: {choices}")
