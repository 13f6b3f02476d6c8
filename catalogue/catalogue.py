"""The catalogue: backbones, heads, runtimes and weights of plugins and of the user's catalogue file, by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from threading import RLock
from typing import Any

from platformdirs import user_config_path

from featuretap.catalogue.files import CatalogueFile, read_catalogue
from featuretap.catalogue.hookspecs import WeightsEntry
from featuretap.catalogue.name_index import Named, NameIndex
from featuretap.catalogue.plugin_loading import Plugin, load_installed, load_module
from featuretap.catalogue.policy import normalize_name, read_policy
from featuretap.catalogue.weights_index import WeightsIndex
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
from featuretap.support.text import first_few

NO_USER_FILE = CatalogueFile(Path(), {}, ())

EXAMPLES = {
    "mobilenetv4": "featuretap-mobilenet-v4",
    "efficientnetlite": "featuretap-efficientnet-lite",
    "tfefficientnetlite": "featuretap-efficientnet-lite",
}
"""Mapping from prefix of a backbone's name, without underscores, to the plugin in `examples/` that provides it."""

SHOWN = 6
"""Maximum number of variants listed in a message."""


class Catalogue:
    """Backbones, heads, runtimes and published weights by name.

    Plugins and the user's catalogue are read on first use. An invalid catalogue file raises a `CatalogueError` then.
    Names from plugins and from the user never shadow built-in names, and the user's names take precedence over those of
    plugins. A name that two plugins provide is ambiguous; `distribution:name` selects one.

    Args:
        plugins: modules to load in addition to the installed plugins, for example in tests.
        discover: whether to read installed plugins and the user's `featuretap.toml`.
        builtins: whether to load the built-in plugins.
    """

    def __init__(self, plugins: Iterable[Any] = (), *, discover: bool = True, builtins: bool = True) -> None:
        self._modules = tuple(plugins)
        self._discover = discover
        self._builtins = builtins
        self._lock = RLock()
        self._state = "unread"

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """All plugins that were found, including failed and disabled ones."""
        self._load()
        return self._plugins

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each problem that was found, such as a failed plugin or an ambiguous name."""
        self._load()
        return tuple(self._problems())

    @property
    def published_weights(self) -> tuple[WeightsEntry, ...]:
        """All entries of published weights."""
        self._load()
        return tuple(self._weights.entries.values())

    @property
    def weights_index(self) -> WeightsIndex:
        """Published weights by backbone and tag."""
        self._load()
        return self._weights

    @property
    def mirrors(self) -> Mapping[str, str]:
        """Mapping from URL prefix to its replacement for downloads, from the user's catalogue."""
        self._load()
        return self._user.mirrors

    def list_backbones(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of backbones that match a shell pattern. Aliases are not listed.

        Args:
            pattern: a pattern such as `"mobilenet_v2*"`. Names in namespaces are only listed for patterns with a slash,
                such as `"timm/*"`.

        Returns:
            The sorted names.

        Examples:
            >>> from featuretap import registry
            >>> registry.list_backbones("mobilenet_v2*")
            ['mobilenet_v2', 'mobilenet_v2_050', 'mobilenet_v2_075', 'mobilenet_v2_140']
        """
        self._load()
        return self._match_backbones(pattern)

    def _match_backbones(self, pattern: str) -> list[str]:
        known = {*self._backbones.names, *self._deferred.values()}
        for plugin in self._plugins if "/" in pattern else ():
            try:
                answer = plugin.call_hook("match_backbones", pattern=pattern) or ()
                if isinstance(answer, str) or not all(isinstance(name, str) for name in answer):
                    raise PluginError(f"{plugin.label} must return a list of names for {pattern!r}; got {answer!r}")
                known.update(answer)
            except PluginError as error:
                # Other namespaces can still be listed.
                self._namespace_errors[plugin.label] = str(error)
        return _match(known, pattern)

    def list_heads(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of heads that match a shell pattern.

        Args:
            pattern: a shell pattern, such as `"*rcnn"`.

        Returns:
            The sorted names.

        Examples:
            >>> from featuretap import registry
            >>> registry.list_heads("*rcnn")
            ['faster_rcnn', 'mask_rcnn']
        """
        self._load()
        return _match(self._heads.names, pattern)

    def list_plugins(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of the distributions that provide plugins, including failed and disabled ones.

        Args:
            pattern: a shell pattern, such as `"featuretap-*"`.

        Returns:
            The sorted names.

        Examples:
            >>> from featuretap import registry
            >>> registry.list_plugins("featuretap")
            ['featuretap']
        """
        return _match({plugin.distribution for plugin in self.plugins}, pattern)

    def list_weights(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of published weights, "backbone.tag", that match a shell pattern.

        Args:
            pattern: a shell pattern, such as `"mobilenet_v2.*"`.

        Returns:
            The sorted names.

        Examples:
            >>> from featuretap import registry
            >>> registry.list_weights("mobilenet_v3_large.ssdlite*")
            ['mobilenet_v3_large.ssdlite320_coco_v1']
        """
        return _match((entry.name for entry in self.published_weights), pattern)

    def list_runtimes(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of runtimes that match a shell pattern, installed or not.

        Args:
            pattern: a shell pattern.

        Returns:
            The sorted names.

        Examples:
            >>> from featuretap import registry
            >>> registry.list_runtimes("o*")
            ['onnxruntime', 'openvino']
        """
        self._load()
        return _match(self._runtimes.names, pattern)

    @property
    def runtimes(self) -> tuple[RuntimeSpec, ...]:
        """All runtimes, sorted by name. Runtimes with an ambiguous name are omitted."""
        self._load()
        entries = (self._runtimes.names[name] for name in self.list_runtimes())
        return tuple(found[0][1] for found in entries if len(found) == 1)

    def backbone(self, name: str | BackboneSpec) -> BackboneSpec:
        """Return the spec of a backbone, without any options applied.

        Args:
            name: a name or alias, or a `BackboneSpec`, which is returned unchanged.

        Returns:
            The spec as its provider defines it.

        Raises:
            UnknownBackboneError: no backbone has this name, or the name is ambiguous.
            PluginError: the plugin that provides the backbone failed.
        """
        if isinstance(name, BackboneSpec):
            return name
        self._load()
        return self._find(name)[1]

    def head(self, name: str) -> HeadSpec:
        """Return the spec of a head.

        Args:
            name: name of the head, such as "fpn" or "distribution:name".

        Returns:
            The spec as its provider defines it.

        Raises:
            UnknownHeadError: no head has this name, or the name is ambiguous.
        """
        self._load()
        return self._find_in(self._heads, name)

    def runtime(self, name: str) -> RuntimeSpec:
        """Return the spec of a runtime.

        Args:
            name: name of the runtime, such as "onnxruntime" or "distribution:name".

        Returns:
            The spec as its provider defines it.

        Raises:
            UnknownRuntimeError: no runtime has this name, or the name is ambiguous.
        """
        self._load()
        return self._find_in(self._runtimes, name)

    def weights_of(self, name: str | BackboneSpec) -> tuple[WeightsEntry, ...]:
        """Return the published weights of a backbone.

        Args:
            name: a name or alias, or a `BackboneSpec`.

        Returns:
            The entries, starting with the default weights.

        Raises:
            UnknownBackboneError: no backbone has this name.
        """
        return self.weights_index.of(self.backbone(name))

    def weights_with_digest(self, digest: str) -> WeightsEntry | None:
        """Return the published weights whose file has the SHA-256 `digest` (64 hexadecimal digits), or None."""
        return next(
            (entry for entry in self.published_weights if entry.sha256 and digest.startswith(entry.sha256)), None
        )

    def provider(self, name: str) -> str:
        """Return the provider of a backbone.

        Args:
            name: name of the backbone.

        Returns:
            The name of a distribution, or the path of the user's catalogue.

        Raises:
            UnknownBackboneError: no backbone has this name.
        """
        self._load()
        return self._find(name)[0]

    def is_user_defined(self, name: str) -> bool:
        """Return whether the backbone `name` is defined in the user's catalogue, which other machines do not have."""
        return self.provider(name) == str(self._user.path)

    def needs_torch(self, name: str) -> bool:
        """Return whether describing the backbone `name` may import torch, as for namespaces and their variants."""
        self._load()
        return name in self._deferred or "/" in name

    def _load(self) -> None:
        """Read plugins and the user's catalogue on the first call."""
        if self._state == "read":
            return
        with self._lock:
            if self._state == "read":
                return
            if self._state == "reading":
                raise PluginError(
                    "a plugin used the registry that is loading it; import the specs it builds on instead"
                )
            self._state = "reading"
            try:
                self._read()
                self._state = "read"
            finally:
                if self._state == "reading":
                    self._state = "unread"

    def _read(self) -> None:
        self._user = read_user_catalogue() if self._discover else NO_USER_FILE
        policy = read_policy(self._user.disable, self._user.only)
        self._plugins = (
            *load_installed(policy, builtins=self._builtins, others=self._discover),
            *(load_module(module, policy) for module in self._modules),
        )
        self._backbones: NameIndex[BackboneSpec] = NameIndex("backbone", UnknownBackboneError)
        self._heads: NameIndex[HeadSpec] = NameIndex("head", UnknownHeadError)
        self._runtimes: NameIndex[RuntimeSpec] = NameIndex("runtime", UnknownRuntimeError)
        for plugin in self._plugins:
            self._backbones.add_all(plugin.distribution, plugin.backbones, built_in=plugin.built_in)
            self._heads.add_all(plugin.distribution, plugin.heads, built_in=plugin.built_in)
            self._runtimes.add_all(plugin.distribution, plugin.runtimes, built_in=plugin.built_in)
        # Resolved backbones: name → (provider, spec).
        self._found: dict[str, tuple[str, BackboneSpec]] = {}
        # The user's variants of backbones in namespaces, resolved later because that may import torch:
        # name or alias → name.
        self._deferred: dict[str, str] = {}
        # Entries of the user's catalogue that cannot be used because a plugin is missing: name → error.
        self._unusable: dict[str, CatalogueError] = {}
        # Open namespaces that could not be listed: plugin → message.
        self._namespace_errors: dict[str, str] = {}
        self._add_user_backbones()
        self._weights = WeightsIndex(self._plugins, self._user, self._user_weights())

    def _problems(self) -> Iterator[str]:
        yield from (plugin.failure for plugin in self._plugins if plugin.status == "failed")
        for index in (self._backbones, self._heads, self._runtimes, self._weights):
            yield from index.conflicts()
        yield from map(str, self._unusable.values())
        yield from self._namespace_errors.values()
        known = {plugin.distribution for plugin in self._plugins}
        for key, distributions in (("disable", self._user.disable), ("only", self._user.only or ())):
            for distribution in sorted(distributions):
                if normalize_name(distribution) not in known:
                    yield (
                        f"{self._user.path}: plugins.{key} names {distribution!r}, which provides no installed plugin"
                    )

    def _find(self, name: str) -> tuple[str, BackboneSpec]:
        """Return the provider and the spec of a backbone."""
        if not isinstance(name, str):
            raise UnknownBackboneError(f"a backbone must be a name or a BackboneSpec; got {name!r}")
        if name in self._unusable:
            raise self._unusable[name]
        if name not in self._found:
            variant = self._deferred.get(name)
            if variant is None:
                self._found[name] = self._find_provided(name)
            else:
                spec = self._user.resolve(variant, lambda base: self._find_base(base, variant))
                for alias in (variant, *spec.aliases):
                    self._found[alias] = str(self._user.path), spec
        return self._found[name]

    def _find_base(self, base: str, variant: str) -> BackboneSpec:
        # A variant may have the name of its base; the base is then the backbone that the variant replaces.
        return (self._find_provided if self._deferred.get(base) == variant else self._find)(base)[1]

    def _find_provided(self, name: str) -> tuple[str, BackboneSpec]:
        found = self._backbones.find(name) or self._find_in_open_namespace(name)
        if found is None:
            near = self._suggest(name)
            hint = None if near else Hint("see", "registry.list_backbones()")
            raise self._unknown(UnknownBackboneError, "backbone", name, near, hint)
        return found

    def _suggest(self, name: str) -> str:
        """Return a suggestion for an unknown backbone, as the end of an error message, or ""."""
        names = self._backbones.names
        variants = [known for known in sorted(names) if known.startswith(f"{name}_")]
        if variants:
            # Variants follow the backbones they are based on.
            variants.sort(key=lambda known: bool(names[known][0][1].variant_of))
            return f"; there are {first_few(variants, SHOWN)}"
        family = next((family for family in EXAMPLES if name.replace("_", "").startswith(family)), None)
        if family and not any(known.replace("_", "").startswith(family) for known in names):
            plugin = EXAMPLES[family]
            return f"; the plugin {plugin} provides it; in a checkout, run: pip install ./examples/{plugin}"
        near = self._backbones.nearest(name) or did_you_mean(name, self._deferred, self._deferred)
        others = [] if near or set(name) & {"/", ":"} else self._match_backbones(f"*/{escape(name)}")
        return f"; did you mean {' or '.join(map(repr, others))}?" if others else near

    def _find_in(self, index: NameIndex[Named], name: str) -> Named:
        if not isinstance(name, str):
            raise index.unknown(f"a {index.kind} name must be a string; got {name!r}")
        found = index.find(name)
        if found is None:
            near = index.nearest(name) or f"; known {index.kind}s: {', '.join(sorted(index.names))}"
            raise self._unknown(index.unknown, index.kind, name, near)
        return found[1]

    def _find_in_open_namespace(self, name: str) -> tuple[str, BackboneSpec] | None:
        if "/" not in name:
            return None
        provider, colon, inner = name.rpartition(":")
        failure: PluginError | None = None
        for plugin in self._plugins:
            if colon and plugin.distribution != normalize_name(provider):
                continue
            try:
                spec = plugin.call_hook("find_backbone", name=inner)
                if isinstance(spec, BackboneSpec):
                    return plugin.distribution, spec
                if spec is not None:
                    raise PluginError(f"{plugin.label} must return a BackboneSpec for {inner!r}; got {spec!r}")
            except PluginError as error:
                # Another plugin may provide the name.
                failure = failure or error
        if failure:
            raise failure
        return None

    def _unknown(
        self, error: type[FeaturetapError], kind: str, name: str, near: str, hint: Hint | None = None
    ) -> FeaturetapError:
        """Return the error for an unknown name, with failed or disabled plugins as a possible reason."""
        provider, colon, _ = name.partition(":")
        for plugin in self._plugins if colon else ():
            if plugin.distribution == normalize_name(provider) and plugin.status == "failed":
                raise PluginError(f"{name!r} is not available because {plugin.failure}") from plugin.error
            if plugin.distribution == normalize_name(provider) and plugin.status == "disabled":
                return error(
                    f"{name!r} is not available because {plugin.label} is disabled; enable it in FEATURETAP_PLUGINS or "
                    "under [plugins] in featuretap.toml"
                )
        failed = [plugin for plugin in self._plugins if plugin.status == "failed"]
        note = f" ({'; '.join(plugin.failure for plugin in failed)})" if failed else ""
        unknown = error(f"no {kind} named {name!r}{near}{note}", hint=hint)
        unknown.__cause__ = failed[0].error if failed else None
        return unknown

    def _is_incomplete(self) -> bool:
        """Return whether a plugin is failed or disabled, so that names may be missing."""
        return any(plugin.status != "loaded" for plugin in self._plugins)

    def _add_user_backbones(self) -> None:
        user = self._user
        deferred = [name for name in user.backbones if "/" in user.foundation(name)]
        for name in deferred:
            names = (name, *user.backbones[name].get("aliases", ()))
            self._check_shadows_nothing(names)
            self._deferred.update(dict.fromkeys(names, name))
        for name, spec in user.resolve_all(lambda name: self._find(name)[1], deferred).items():
            if isinstance(spec, CatalogueError):
                # A mistake in the file is raised immediately. An entry based on a missing plugin may be valid.
                if not (self._is_incomplete() and isinstance(spec.__cause__, UnknownBackboneError | PluginError)):
                    raise spec
                self._unusable[name] = spec
                continue
            self._check_shadows_nothing((spec.name, *spec.aliases))
            self._backbones.override(str(user.path), spec)
        self._found.clear()

    def _check_shadows_nothing(self, names: Sequence[str]) -> None:
        taken = sorted(self._backbones.built_in & set(names))
        if taken:
            raise CatalogueError(
                f"{self._user.path}: backbones.{names[0]} would shadow the built-in {taken[0]!r}; choose another name"
            )

    def _user_weights(self) -> Iterator[WeightsEntry]:
        """Yield the weights in the user's catalogue, with aliases of backbones replaced by their names."""
        user = self._user
        defaults = set()
        for entry in user.weights:
            try:
                spec = self._find(entry.backbone)[1]
                self._find_in(self._heads, entry.head)
            except FeaturetapError as error:
                key = f"weights.{entry.name}" + (".head" if isinstance(error, UnknownHeadError) else "")
                unusable = user.error(key, f"cannot be used: {error}")
                if not self._is_incomplete():
                    raise unusable from error
                self._unusable[entry.name] = unusable
                continue
            layouts = (NATIVE, *spec.layouts)
            if entry.layout not in layouts:
                hint = did_you_mean(entry.layout, layouts) or ";"
                raise user.error(
                    f"weights.{entry.name}.layout",
                    f"is {entry.layout!r}, which {spec.name!r} does not support{hint} supported: {', '.join(layouts)}",
                )
            if entry.default and spec.name in defaults:
                raise CatalogueError(f"{user.path}: {spec.name!r} has two default weights; keep default = true for one")
            defaults |= {spec.name} if entry.default else set()
            yield replace(entry, name=f"{spec.name}.{entry.tag}")


def _match(names: Iterable[str], pattern: str) -> list[str]:
    return sorted(name for name in names if fnmatchcase(name, pattern))


def read_user_catalogue() -> CatalogueFile:
    """Read the user's `featuretap.toml`.

    The path is in `FEATURETAP_CONFIG`, or else the file is in the user's config folder.

    Returns:
        The file, or an empty one if the config folder has none.

    Raises:
        CatalogueError: the file cannot be read, or is invalid.
    """
    configured = os.environ.get("FEATURETAP_CONFIG")
    path = Path(configured) if configured else user_config_path("featuretap", appauthor=False) / "featuretap.toml"
    return read_catalogue(path, code=False) if configured or path.exists() else NO_USER_FILE
