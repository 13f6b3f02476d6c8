"""The registry: names to specs to models. Imports no torch until something is built."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

from platformdirs import user_config_path

from featuretap.registry.catalogue import CatalogueFile, read_catalogue
from featuretap.registry.description import Description
from featuretap.registry.errors import (
    CatalogueError,
    FeaturetapError,
    HeadError,
    OptionError,
    PluginError,
    UnknownBackboneError,
    UnknownHeadError,
    UnknownWeightsError,
    did_you_mean,
)
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.options import Freezing
from featuretap.registry.pairing import features, paired
from featuretap.registry.plugin_loading import OURS, Plugin, discover, load_module, policy_from
from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.specs import BackboneSpec, HeadSpec, ModelSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Registry"]

Named = TypeVar("Named", BackboneSpec, HeadSpec)

EMPTY = CatalogueFile(Path(), {}, ())


class Registry:
    """Everything that can be built by name: what plugins provide, and what the user's catalogue adds.

    Nothing is read until the first question. Built-in names are never shadowed; the user's come next; a name that two
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
        self._loaded: _Contents | None = None

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """Every plugin that was found, the failed and the disabled ones included."""
        return self._contents.plugins

    def list_backbones(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of backbones that match a shell pattern; aliases are not listed."""
        return _matching(self._contents.backbones, pattern)

    def list_heads(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of heads that match a shell pattern."""
        return _matching({head.name: [] for p in self.plugins for head in p.heads}, pattern)

    def list_plugins(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of the distributions whose plugins were found, failed and disabled ones included."""
        return _matching({plugin.distribution: [] for plugin in self.plugins}, pattern)

    def list_weights(self, pattern: str = "*") -> list[str]:
        """Return the sorted names, `backbone.tag`, of published weights that match a shell pattern."""
        return _matching(self._contents.weights, pattern)

    def list_runtimes(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of the runtimes that plugins provide."""
        return _matching({runtime.name: [] for p in self.plugins for runtime in p.runtimes}, pattern)

    def provider(self, name: str) -> str:
        """Return the distribution that a backbone comes from, or the path of the user's catalogue.

        Raises:
            UnknownBackboneError: no backbone has this name.
        """
        return self._contents.find(name)[0]

    def weights_of(self, name: str | BackboneSpec) -> tuple[WeightsEntry, ...]:
        """Return the published weights of a backbone, those of `pretrained=True` first.

        Raises:
            UnknownBackboneError: no backbone has this name.
        """
        spec = self._backbone(name)
        entries = [entry for entry in self._contents.weights.values() if entry.backbone == spec.name]
        return tuple(sorted(entries, key=lambda entry: not entry.default))

    def spec(
        self,
        name: str | BackboneSpec,
        *,
        features_only: bool = False,
        taps: Sequence[str] | None = None,
        head: str | None = None,
        pretrained: bool | str | os.PathLike[str] = False,
        num_classes: int | None = None,
        **options: Any,
    ) -> BackboneSpec | ModelSpec:
        """Describe what `build` returns for the same arguments, without building it and without torch.

        Returns:
            a `BackboneSpec` with `features_only`, a `ModelSpec` otherwise. Both have `taps`, `parameters`,
            `macs(height, width)` and `tap_shapes(height, width)`.

        Raises:
            the same errors as `build`, but for those of reading weights.
        """
        spec, _ = self._resolved(name, features_only, taps, head, num_classes, options)
        self._weights(name, pretrained)
        return spec

    def build(
        self,
        name: str | BackboneSpec,
        *,
        features_only: bool = False,
        taps: Sequence[str] | None = None,
        head: str | None = None,
        pretrained: bool | str | os.PathLike[str] = False,
        num_classes: int | None = None,
        **options: Any,
    ) -> nn.Module:
        """Build a backbone or a model by name.

        Args:
            name: a name or alias from the catalogue, `distribution:name`, or a `BackboneSpec`.
            features_only: return the bare backbone, which maps images (N, in_channels, H, W) to a dict from tap
                address to feature map (N, channels, ceil(H / stride), ceil(W / stride)).
            taps: which maps come back, in this order (default: C1 to C5); layers after the last are not built. With a
                head: which maps it reads in place of its own choice.
            head: a head's name; without `features_only` the default is "classification".
            pretrained: True for the catalogue's default weights, a tag, or the path of a file.
            num_classes: classes of the head; None for the head's own number, 0 for pooled features where it pools.
            **options: options of the backbone and of the head; `registry.spec` and `featuretap show` name them.

        Returns:
            the module, in training mode as every new module of torch, with `.description`; a bare backbone has
            `.taps`, a model `.backbone` and `.head`.

        Raises:
            UnknownBackboneError, UnknownHeadError, UnknownWeightsError, UnknownOptionError, UnknownTapError: nothing
                has the name that was asked for.
            OptionError, TapError, HeadError: names that are known, with values or in a pairing that cannot be.
            WeightsError: the weights cannot be had, or do not fit.
        """
        spec, freezing = self._resolved(name, features_only, taps, head, num_classes, options)
        weights = self._weights(name, pretrained)
        from featuretap.registry.building import assemble

        return assemble(
            spec, freezing, weights, _described(name, spec, options), tuple(self._contents.weights.values())
        )

    def transforms(self, model: nn.Module) -> Callable[[Any], Any]:
        """Return the preprocessing that a model's weights were trained with.

        It maps a PIL image, or a tensor (C, H, W) of bytes or floats from 0 to 1, to a float tensor
        (C, crop, crop). A model with fresh weights gets ImageNet's usual one.

        Raises:
            OptionError: the model was not built by featuretap.
        """
        from featuretap.registry.image_transforms import compose

        description = getattr(model, "description", None)
        if not isinstance(description, Description):
            raise OptionError(
                f"{type(model).__name__} carries no description; registry.transforms reads models "
                "that registry.build returned"
            )
        return compose(description.preprocessing)

    def _resolved(
        self,
        name: str | BackboneSpec,
        features_only: bool,
        taps: Sequence[str] | None,
        head: str | None,
        num_classes: int | None,
        options: Mapping[str, Any],
    ) -> tuple[BackboneSpec | ModelSpec, Freezing]:
        backbone = self._backbone(name)
        if not features_only:
            return paired(backbone, self._head("classification" if head is None else head), taps, num_classes, options)
        for asked, value in (("head", head), ("num_classes", num_classes)):
            if value is not None:
                raise HeadError(
                    f"features_only=True returns the bare backbone of {backbone.name!r}, which has no "
                    f"{asked}={value!r}; leave one of the two out"
                )
        return features(backbone, taps, options)

    def _backbone(self, name: str | BackboneSpec) -> BackboneSpec:
        return name if isinstance(name, BackboneSpec) else self._contents.find(name)[1]

    def _head(self, name: str) -> HeadSpec:
        if not isinstance(name, str):
            raise UnknownHeadError(f"a head's name is a string, got {name!r}")
        claims = [(plugin.distribution, head) for plugin in self.plugins for head in plugin.heads if head.name == name]
        if claims:
            return _only(name, "head", claims, UnknownHeadError)[1]
        known = self.list_heads()
        hint = did_you_mean(name, known) or f"; known heads: {', '.join(known)}"
        raise UnknownHeadError(f"no head named {name!r}{hint}{self._contents.failures()}")

    def _weights(
        self, name: str | BackboneSpec, pretrained: bool | str | os.PathLike[str]
    ) -> WeightsEntry | Path | None:
        if pretrained is False:
            return None
        entries = self.weights_of(name)
        backbone = self._backbone(name).name
        if isinstance(pretrained, os.PathLike):
            return Path(pretrained)
        if not isinstance(pretrained, bool | str):
            raise OptionError(
                f"{backbone!r} cannot take pretrained={pretrained!r}; it is True, False, a tag, or the path of a file"
            )
        if isinstance(pretrained, bool):
            if entries and entries[0].default:
                return entries[0]
            raise UnknownWeightsError(
                f"{backbone!r} has no default weights ({_tags(entries)}); name a tag, or give the path of a file"
            )
        for entry in entries:
            if pretrained in (entry.tag, entry.name):
                return entry
        if os.sep in pretrained or Path(pretrained).suffix in (".pth", ".pt", ".safetensors"):
            return Path(pretrained)
        hint = did_you_mean(pretrained, [entry.tag for entry in entries]) or ";"
        raise UnknownWeightsError(f"{backbone!r} has no weights {pretrained!r}{hint} {_tags(entries)}")

    @property
    def _contents(self) -> _Contents:
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

    def _read(self) -> _Contents:
        user = read_catalogue(path, code=False) if self._discover and (path := _user_catalogue()) else EMPTY
        policy = policy_from(user.disable, user.only)
        plugins = [
            *discover(policy, builtins=self._builtins, others=self._discover),
            *(load_module(module, policy) for module in self._modules),
        ]
        return _Contents(tuple(plugins), user)


class _Contents:
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
        self._add_user(user)
        entries = [entry for plugin in plugins for entry in plugin.weights]
        self.weights: dict[str, WeightsEntry] = {}
        for entry in [*entries, *user.weights]:
            self.weights.setdefault(entry.name, entry)

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

    def failures(self) -> str:
        """Return a note on plugins that failed, since what is missing may be theirs."""
        failed = [plugin.failure for plugin in self.plugins if plugin.status == "failed"]
        return f" ({'; '.join(failed)})" if failed else ""

    def _add(self, provider: str, spec: BackboneSpec, closed: Collection[str]) -> None:
        for index, names in ((self.backbones, (spec.name,)), (self.aliases, spec.aliases)):
            for name in names:
                if name not in closed:
                    index.setdefault(name, []).append((provider, spec))

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


def _described(name: str | BackboneSpec, spec: BackboneSpec | ModelSpec, options: Mapping[str, Any]) -> Description:
    backbone = spec.backbone if isinstance(spec, ModelSpec) else spec
    return Description(
        name if isinstance(name, str) else name.name,
        tuple(backbone.taps),
        options,
        spec.head.name if isinstance(spec, ModelSpec) else None,
        spec.num_classes if isinstance(spec, ModelSpec) else None,
        Preprocessing().for_channels(backbone.in_channels),
    )


def _names(specs: Iterable[BackboneSpec]) -> list[str]:
    return [name for spec in specs for name in (spec.name, *spec.aliases)]


def _only(name: str, what: str, claims: Sequence[tuple[str, Named]], error: type[FeaturetapError]) -> tuple[str, Named]:
    built_in = [claim for claim in claims if claim[0] == OURS]
    if built_in or len(claims) == 1:
        return (built_in or claims)[0]
    choices = " or ".join(repr(f"{provider}:{name}") for provider, _ in claims)
    raise error(f"{len(claims)} plugins have a {what} named {name!r}; say which: {choices}")


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return sorted(name for name in names if fnmatchcase(name, pattern))


def _tags(entries: Sequence[WeightsEntry]) -> str:
    return f"its tags are {', '.join(entry.tag for entry in entries)}" if entries else "the catalogue has none for it"


def _user_catalogue() -> Path | None:
    named = os.environ.get("FEATURETAP_CONFIG")
    if named:
        return Path(named)
    usual = user_config_path("featuretap", appauthor=False) / "featuretap.toml"
    return usual if usual.exists() else None
