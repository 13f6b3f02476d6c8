"""Who claims which name: an index each for backbones, heads and runtimes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from featuretap.catalogue.policy import normalised
from featuretap.specs import BackboneSpec, HeadSpec, RuntimeSpec
from featuretap.support.errors import FeaturetapError, did_you_mean

__all__ = ["Claims", "Named"]

Named = TypeVar("Named", BackboneSpec, HeadSpec, RuntimeSpec)


class Claims(Generic[Named]):
    """Names and aliases → who claims them, with which spec.

    Built-in names are closed: nobody else's claim to one counts. A name comes before the same alias. A name that two
    plugins claim is nobody's until it is said whose; `distribution:name` says so.

    Args:
        what: what the names are of, in words: "backbone".
        unknown: the error for a name that cannot be found.
    """

    def __init__(self, what: str, unknown: type[FeaturetapError]) -> None:
        self._what = what
        self._unknown = unknown
        self.built_in: set[str] = set()
        self.names: dict[str, list[tuple[str, Named]]] = {}
        self._aliases: dict[str, list[tuple[str, Named]]] = {}
        self._qualified: dict[tuple[str, str], Named] = {}
        self._closed: list[tuple[str, str]] = []

    def add(self, provider: str, spec: Named, *, ours: bool = False) -> None:
        """Count the claims of a spec to its name and its aliases. Ours have to come first."""
        names = _names(spec)
        if ours:
            self.built_in.update(names)
        for name in names:
            self._qualified[provider, name] = spec
            index = self.names if name == spec.name else self._aliases
            if ours or name not in self.built_in:
                index.setdefault(name, []).append((provider, spec))
            else:
                self._closed.append((provider, name))

    def settle(self, provider: str, spec: Named) -> None:
        """Let a spec have its name and its aliases, whoever claimed them before."""
        for name in _names(spec):
            self.names.pop(name, None)
            self._aliases.pop(name, None)
        self.add(provider, spec)

    def find(self, name: str) -> tuple[str, Named] | None:
        """Return who has a name, and its spec; None where nobody has.

        Raises:
            LookupError: two plugins claim it.
        """
        provider, colon, inner = name.partition(":")
        if colon:
            spec = self._qualified.get((provider, inner)) or self._qualified.get((normalised(provider), inner))
            return (normalised(provider), spec) if spec else None
        for index in (self.names, self._aliases):
            if name in index:
                if len(index[name]) > 1:
                    raise self._unknown(self._contest(name, index[name]))
                return index[name][0]
        return None

    def nearest(self, name: str) -> str:
        """Return "; did you mean 'x'?" for a name that nobody has, or an empty string."""
        canonical: dict[str, str] = {alias: claims[0][1].name for alias, claims in self._aliases.items()}
        qualified: list[str] = [":".join(claim) for claim in self._qualified] if ":" in name else []
        return did_you_mean(name, [*self.names, *canonical, *qualified], canonical)

    def conflicts(self) -> Iterator[str]:
        """Yield a line for every claim that came to nothing."""
        for provider, name in self._closed:
            yield (
                f"{provider!r} claims the {self._what} {name!r}, which is built in and stays; "
                f"its own is {f'{provider}:{name}'!r}"
            )
        for index in (self.names, self._aliases):
            for name, claims in index.items():
                if len(claims) > 1:
                    yield self._contest(name, claims)

    def _contest(self, name: str, claims: list[tuple[str, Named]]) -> str:
        choices = " or ".join(repr(f"{provider}:{name}") for provider, _ in claims)
        return f"{len(claims)} plugins have a {self._what} named {name!r}; say which: {choices}"


def _names(spec: BackboneSpec | HeadSpec | RuntimeSpec) -> tuple[str, ...]:
    return spec.name, *(spec.aliases if isinstance(spec, BackboneSpec) else ())
