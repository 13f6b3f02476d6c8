"""An index of published weights by name, `backbone.tag`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from featuretap.catalogue.files import CatalogueFile
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.plugin_loading import Plugin
from featuretap.catalogue.policy import normalize_name
from featuretap.specs import BackboneSpec
from featuretap.support.errors import CatalogueError, UnknownWeightsError


class WeightsIndex:
    """The published weights of plugins and of the user's catalogue.

    Built-in entries are never replaced. If two plugins provide weights with the same name, `distribution:tag` selects
    one.

    Args:
        plugins: the plugins, built-in plugins first.
        user: the user's catalogue.
        user_entries: entries of the user's catalogue, with the names of backbones instead of aliases.

    Raises:
        CatalogueError: an entry of the user's catalogue would replace one of a plugin.
    """

    def __init__(self, plugins: Iterable[Plugin], user: CatalogueFile, user_entries: Iterable[WeightsEntry]) -> None:
        self._provided: dict[str, list[tuple[str, WeightsEntry]]] = {}
        built_in: set[str] = set()
        for plugin in plugins:
            for entry in plugin.weights:
                if entry.name not in built_in:
                    self._provided.setdefault(entry.name, []).append((plugin.distribution, entry))
            if plugin.built_in:
                built_in.update(entry.name for entry in plugin.weights)
        self.entries: dict[str, WeightsEntry] = {}
        for entry in user_entries:
            if entry.name in self._provided:
                raise CatalogueError(
                    f"{user.path}: weights.{entry.name} would replace the entry of "
                    f"{self._provided[entry.name][0][0]!r}; choose another tag, or set a mirror for its URL under "
                    "[mirrors]"
                )
            self.entries[entry.name] = entry
        self.entries |= {name: entries[0][1] for name, entries in self._provided.items() if len(entries) == 1}

    def of(self, spec: BackboneSpec) -> tuple[WeightsEntry, ...]:
        """Return the weights of the backbone `spec`: the default first, then the user's, then those of plugins."""
        names = {spec.name, spec.published_as}
        entries = [entry for entry in self.entries.values() if entry.backbone in names]
        return tuple(sorted(entries, key=lambda entry: not entry.default))

    def find(self, spec: BackboneSpec, name: str) -> WeightsEntry | None:
        """Return the published weights of a qualified name.

        Args:
            spec: spec of the backbone.
            name: "distribution:tag" or "distribution:backbone.tag".

        Returns:
            The entry, or None.

        Raises:
            UnknownWeightsError: `name` has no distribution, and two plugins provide it.
        """
        provider, colon, tag = name.rpartition(":")
        for candidate in (tag, f"{spec.name}.{tag}", f"{spec.published_as}.{tag}"):
            entries = self._provided.get(candidate, [])
            if len(entries) > 1 and not colon:
                raise UnknownWeightsError(self._conflict(entries))
            for distribution, entry in entries:
                if distribution == normalize_name(provider):
                    return entry
        return None

    def conflicts(self) -> Iterator[str]:
        """Yield one line for every name that two plugins provide."""
        for entries in self._provided.values():
            if len(entries) > 1:
                yield self._conflict(entries)

    def _conflict(self, entries: list[tuple[str, WeightsEntry]]) -> str:
        (_, entry), *_ = entries
        choices = " or ".join(repr(f"{provider}:{entry.tag}") for provider, _ in entries)
        return f"{len(entries)} plugins provide weights {entry.tag!r} for {entry.backbone!r}; choose one: {choices}"
