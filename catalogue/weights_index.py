"""Published weights by name, `backbone.tag`: the user's, ours and other plugins'. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from featuretap.catalogue.files import CatalogueFile
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.plugin_loading import Plugin
from featuretap.catalogue.policy import normalised
from featuretap.specs import BackboneSpec
from featuretap.support.errors import CatalogueError, UnknownWeightsError

__all__ = ["Published"]


class Published:
    """Entries of weights → who has them.

    Ours are never replaced. Where two plugins have weights of one name, `distribution:tag` says whose are meant.

    Args:
        plugins: ours first.
        user: the user's catalogue.
        users: its entries, by the names of the backbones that they fit.

    Raises:
        CatalogueError: a user's entry would replace a plugin's.
    """

    def __init__(self, plugins: Iterable[Plugin], user: CatalogueFile, users: Iterable[WeightsEntry]) -> None:
        self._claims: dict[str, list[tuple[str, WeightsEntry]]] = {}
        built_in: set[str] = set()
        for plugin in plugins:
            for entry in plugin.weights:
                if entry.name not in built_in:
                    self._claims.setdefault(entry.name, []).append((plugin.distribution, entry))
            if plugin.ours:
                built_in.update(entry.name for entry in plugin.weights)
        mine = {}
        for entry in users:
            if entry.name in self._claims:
                raise CatalogueError(
                    f"{user.path}: weights.{entry.name} would replace those of {self._claims[entry.name][0][0]!r}; "
                    "choose another tag, or give their address another beginning under [mirrors]"
                )
            mine[entry.name] = entry
        settled = {name: claims[0][1] for name, claims in self._claims.items() if len(claims) == 1}
        self.entries: dict[str, WeightsEntry] = {**mine, **settled}

    def of(self, spec: BackboneSpec) -> tuple[WeightsEntry, ...]:
        """Return the weights of a backbone: the default first, and the user's before others'."""
        names = {spec.name, spec.published_as}
        entries = [entry for entry in self.entries.values() if entry.backbone in names]
        return tuple(sorted(entries, key=lambda entry: not entry.default))

    def whose(self, spec: BackboneSpec, asked: str) -> WeightsEntry | None:
        """Return what "distribution:tag" or "distribution:backbone.tag" means, None where it is nobody's.

        Raises:
            UnknownWeightsError: "tag" or "backbone.tag" is of two plugins.
        """
        provider, colon, tag = asked.rpartition(":")
        for name in (tag, f"{spec.name}.{tag}", f"{spec.published_as}.{tag}"):
            claims = self._claims.get(name, [])
            if len(claims) > 1 and not colon:
                raise UnknownWeightsError(self._contest(claims))
            for distribution, entry in claims:
                if distribution == normalised(provider):
                    return entry
        return None

    def conflicts(self) -> Iterator[str]:
        """Yield a line for every name that two plugins have."""
        for claims in self._claims.values():
            if len(claims) > 1:
                yield self._contest(claims)

    def _contest(self, claims: list[tuple[str, WeightsEntry]]) -> str:
        (_, entry), *_ = claims
        choices = " or ".join(repr(f"{provider}:{entry.tag}") for provider, _ in claims)
        return f"{len(claims)} plugins have weights {entry.tag!r} for {entry.backbone!r}; say which: {choices}"
