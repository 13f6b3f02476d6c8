"""What can be built by name, and who provides it. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from threading import RLock
from typing import Any

from platformdirs import user_config_path

from featuretap.catalogue.contents import Contents
from featuretap.catalogue.files import CatalogueFile, read_catalogue
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.plugin_loading import Plugin, discover, load_module
from featuretap.catalogue.policy import policy_from
from featuretap.specs import BackboneSpec, HeadSpec, RuntimeSpec
from featuretap.support.errors import PluginError

__all__ = ["Lookup"]

EMPTY = CatalogueFile(Path(), {}, ())


class Lookup:
    """What plugins provide, and what the user's catalogue adds, by name.

    Nothing is read until the first question, which is where a user's catalogue that cannot be used becomes a
    `CatalogueError`. Built-in names are never shadowed; the user's come next; a name that two
    plugins claim is an error that names both, and `distribution:name` always works.

    Args:
        plugins: modules to ask beside the installed plugins, as in tests.
        discover: whether installed plugins and the user's `featuretap.toml` are read.
        builtins: whether featuretap's own plugin is loaded.
    """

    def __init__(self, plugins: Iterable[Any] = (), *, discover: bool = True, builtins: bool = True) -> None:
        self._modules = tuple(plugins)
        self._discover = discover
        self._builtins = builtins
        self._lock = RLock()
        self._reading = False
        self._loaded: Contents | None = None

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """Every plugin that was found, the failed and the disabled ones included."""
        return self._contents.plugins

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for everything that was found and cannot be used as it is: failed plugins, contested names."""
        return tuple(self._contents.problems())

    @property
    def published(self) -> tuple[WeightsEntry, ...]:
        """Every entry of published weights."""
        return tuple(self._contents.weights.entries.values())

    def is_users(self, name: str) -> bool:
        """Say whether a backbone's `name` is from the user's catalogue, which other machines do not have."""
        return self._contents.is_users(name)

    def head(self, name: str) -> HeadSpec:
        """Return a head's spec by its `name`, "fpn" or "distribution:name".

        Raises:
            UnknownHeadError: no head has this name.
        """
        return self._contents.head(name)

    def runtime(self, name: str) -> RuntimeSpec:
        """Return a runtime's spec by its `name`, "onnxruntime" or "distribution:name".

        Raises:
            UnknownRuntimeError: no runtime has this name.
        """
        return self._contents.runtime(name)

    def known_as(self, digest: str) -> WeightsEntry | None:
        """Return the published weights whose file has this SHA-256 (`digest`, 64 hexadecimal digits), or None."""
        return next((entry for entry in self.published if entry.sha256 and digest.startswith(entry.sha256)), None)

    @property
    def mirrors(self) -> Mapping[str, str]:
        """Beginning of an address → what the user's catalogue puts in its place when something is downloaded."""
        return self._contents.mirrors

    def list_backbones(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of backbones that match a shell pattern; aliases are not listed.

        Args:
            pattern: "mobilenet_v2*"; names of open namespaces, such as "timm/resnet18", are listed for patterns with a
                slash only: "timm/*".
        """
        return self._contents.matching(pattern)

    def list_heads(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of heads that match a shell `pattern`, such as "*rcnn"."""
        return _matching(self._contents.heads.names, pattern)

    def list_plugins(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of the distributions whose plugins were found, failed and disabled ones included.

        Args:
            pattern: a shell pattern, such as "featuretap-*".
        """
        return _matching({plugin.distribution: [] for plugin in self.plugins}, pattern)

    def list_weights(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of published weights, "backbone.tag", that match a shell `pattern`."""
        return _matching(self._contents.weights.entries, pattern)

    def list_runtimes(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of the runtimes that match a shell `pattern`, whether or not they are installed."""
        return _matching(self._contents.runtimes.names, pattern)

    def needs_torch(self, name: str) -> bool:
        """Say whether describing the backbone `name` may need torch: open namespaces, and a user's variants of them."""
        return self._contents.needs_torch(name)

    def provider(self, name: str) -> str:
        """Return the distribution that the backbone `name` comes from, or the path of the user's catalogue.

        Raises:
            UnknownBackboneError: no backbone has this name.
        """
        return self._contents.find(name)[0]

    def weights_of(self, name: str | BackboneSpec) -> tuple[WeightsEntry, ...]:
        """Return the published weights of a backbone, those of `pretrained=True` first.

        Args:
            name: a name or alias, or a `BackboneSpec`.

        Raises:
            UnknownBackboneError: no backbone has this name.
        """
        return self._contents.weights.of(self.catalogued(name))

    def catalogued(self, name: str | BackboneSpec) -> BackboneSpec:
        """Return a backbone's spec as its provider states it, options not yet applied.

        Args:
            name: a name or alias, or a `BackboneSpec`, which is returned as it is.

        Raises:
            UnknownBackboneError: no backbone has this name.
        """
        return name if isinstance(name, BackboneSpec) else self._contents.find(name)[1]

    @property
    def _contents(self) -> Contents:
        with self._lock:
            if self._loaded is None:
                if self._reading:
                    raise PluginError(
                        "a plugin asks the registry that is just loading it; import the specs it builds on"
                    )
                self._reading = True
                try:
                    self._loaded = self._read()
                finally:
                    self._reading = False
            return self._loaded

    def _read(self) -> Contents:
        user = read_catalogue(path, code=False) if self._discover and (path := _user_catalogue()) else EMPTY
        policy = policy_from(user.disable, user.only)
        plugins = [
            *discover(policy, builtins=self._builtins, others=self._discover),
            *(load_module(module, policy) for module in self._modules),
        ]
        return Contents(tuple(plugins), user)


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return sorted(name for name in names if fnmatchcase(name, pattern))


def _user_catalogue() -> Path | None:
    named = os.environ.get("FEATURETAP_CONFIG")
    if named:
        return Path(named)
    usual = user_config_path("featuretap", appauthor=False) / "featuretap.toml"
    return usual if usual.exists() else None
