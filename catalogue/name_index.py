"""An index of the names that plugins provide, one for each of backbones, heads and runtimes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from featuretap.catalogue.policy import normalize_name
from featuretap.specs import BackboneSpec, HeadSpec, RuntimeSpec
from featuretap.support.errors import FeaturetapError, did_you_mean

Named = TypeVar("Named", BackboneSpec, HeadSpec, RuntimeSpec)


class NameIndex(Generic[Named]):
    """A mapping from names and aliases to specs and their providers.

    Built-in names are never shadowed. A name takes precedence over an equal alias. A name that two plugins provide is
    ambiguous; `distribution:name` selects one.

    Args:
        kind: kind of the specs, for messages: "backbone".
        unknown: class of the error for a name that is unknown or ambiguous.
    """

    def __init__(self, kind: str, unknown: type[FeaturetapError]) -> None:
        self.kind = kind
        self.unknown = unknown
        self.built_in: set[str] = set()
        self.names: dict[str, list[tuple[str, Named]]] = {}
        self._aliases: dict[str, list[tuple[str, Named]]] = {}
        self._qualified: dict[tuple[str, str], Named] = {}
        self._shadowed: list[tuple[str, str]] = []

    def add_all(self, provider: str, specs: Iterable[Named], *, built_in: bool = False) -> None:
        """Add `specs` of a `provider` under their names and aliases. Specs with `built_in=True` must be added first."""
        for spec in specs:
            names = _names(spec)
            if built_in:
                self.built_in.update(names)
            for name in names:
                self._qualified[provider, name] = spec
                index = self.names if name == spec.name else self._aliases
                if built_in or name not in self.built_in:
                    index.setdefault(name, []).append((provider, spec))
                else:
                    self._shadowed.append((provider, name))

    def override(self, provider: str, spec: Named) -> None:
        """Add a `spec` of a `provider` in place of all specs with its name or aliases."""
        for name in _names(spec):
            self.names.pop(name, None)
            self._aliases.pop(name, None)
        self.add_all(provider, [spec])

    def find(self, name: str) -> tuple[str, Named] | None:
        """Return the provider and the spec of a name.

        Args:
            name: "name" or "distribution:name".

        Returns:
            The provider and the spec, or None for an unknown name.

        Raises:
            LookupError: two plugins provide the name.
        """
        provider, colon, inner = name.partition(":")
        if colon:
            spec = self._qualified.get((provider, inner)) or self._qualified.get((normalize_name(provider), inner))
            return (normalize_name(provider), spec) if spec else None
        for index in (self.names, self._aliases):
            if name in index:
                if len(index[name]) > 1:
                    raise self.unknown(self._conflict(name, index[name]))
                return index[name][0]
        return None

    def nearest(self, name: str) -> str:
        """Return "; did you mean 'x'?" for an unknown `name`, or ""."""
        canonical: dict[str, str] = {alias: entries[0][1].name for alias, entries in self._aliases.items()}
        qualified: list[str] = [":".join(key) for key in self._qualified] if ":" in name else []
        return did_you_mean(name, [*self.names, *canonical, *qualified], canonical)

    def conflicts(self) -> Iterator[str]:
        """Yield one line for every name that is shadowed or ambiguous."""
        for provider, name in self._shadowed:
            yield (
                f"{provider!r} provides the {self.kind} {name!r}, which is built in and cannot be replaced; "
                f"use {f'{provider}:{name}'!r} for the plugin's"
            )
        for index in (self.names, self._aliases):
            for name, entries in index.items():
                if len(entries) > 1:
                    yield self._conflict(name, entries)

    def _conflict(self, name: str, entries: list[tuple[str, Named]]) -> str:
        choices = " or ".join(repr(f"{provider}:{name}") for provider, _ in entries)
        return f"{len(entries)} plugins provide a {self.kind} named {name!r}; choose one: {choices}"


def _names(spec: BackboneSpec | HeadSpec | RuntimeSpec) -> tuple[str, ...]:
    return spec.name, *(spec.aliases if isinstance(spec, BackboneSpec) else ())
