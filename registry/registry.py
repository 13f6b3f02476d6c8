"""The registry: names to specs to models. Imports no torch until something is built."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from platformdirs import user_config_path

from featuretap.registry.catalogue import CatalogueFile, read_catalogue
from featuretap.registry.contents import Contents
from featuretap.registry.description import Description, prepared_for
from featuretap.registry.errors import HeadError, OptionError, PluginError
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.options import Freezing, options_of
from featuretap.registry.pairing import features, paired, set_by
from featuretap.registry.plugin_loading import Plugin, discover, load_module
from featuretap.registry.policy import policy_from
from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.pretrained import brought, chosen
from featuretap.registry.request import Request
from featuretap.registry.specs import BackboneSpec, HeadSpec, ModelSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Registry"]

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
        """Say whether a backbone's name is from the user's catalogue, which other machines do not have."""
        return self._contents.is_users(name)

    def head(self, name: str) -> HeadSpec:
        """Return a head's spec.

        Raises:
            UnknownHeadError: no head has this name.
        """
        return self._contents.head(name)

    def known_as(self, digest: str) -> WeightsEntry | None:
        """Return the published weights whose file has a SHA-256, or None."""
        return next((entry for entry in self.published if entry.sha256 and digest.startswith(entry.sha256)), None)

    @property
    def mirrors(self) -> Mapping[str, str]:
        """Beginning of an address → what the user's catalogue puts in its place when something is downloaded."""
        return self._contents.mirrors

    def list_backbones(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of backbones that match a shell pattern; aliases are not listed.

        Names of open namespaces, such as "timm/resnet18", are listed for patterns with a slash only: "timm/*".
        """
        return self._contents.matching(pattern)

    def list_heads(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of heads that match a shell pattern."""
        return _matching(self._contents.heads.names, pattern)

    def list_plugins(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of the distributions whose plugins were found, failed and disabled ones included."""
        return _matching({plugin.distribution: [] for plugin in self.plugins}, pattern)

    def list_weights(self, pattern: str = "*") -> list[str]:
        """Return the sorted names, `backbone.tag`, of published weights that match a shell pattern."""
        return _matching(self._contents.weights.entries, pattern)

    def list_runtimes(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of the runtimes that plugins provide."""
        return _matching({runtime.name: [] for p in self.plugins for runtime in p.runtimes}, pattern)

    def needs_torch(self, name: str) -> bool:
        """Say whether describing a backbone may need torch: those of open namespaces, and a user's variants of them."""
        return self._contents.needs_torch(name)

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
        return self._contents.weights.of(self.catalogued(name))

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
        asked = {"features_only": features_only, "taps": taps, "head": head, "num_classes": num_classes, **options}
        return self.request(name, **brought(self._weights(name, pretrained), self.catalogued(name), asked)).spec

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
            pretrained: True for the catalogue's default weights, a tag, or the path of a file. Published weights of a
                detector or a segmenter, asked for by their tag, bring head and options that are not given.
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
        asked = {"features_only": features_only, "taps": taps, "head": head, "num_classes": num_classes, **options}
        weights = self._weights(name, pretrained)
        request = self.request(name, **brought(weights, self.catalogued(name), asked))
        from featuretap.registry.building import assemble

        if weights is None or isinstance(weights, str):
            return assemble(request, fetched=weights)
        from featuretap.registry.weights.sources import source_of

        return assemble(request, source_of(weights, self))

    def save(self, model: nn.Module, path: str | os.PathLike[str], layout: str = "featuretap") -> Path:
        """Write a model's weights, and what is needed to build it again, as safetensors.

        The file is written whole or not at all. Equal models give equal bytes. DataParallel, torch.compile and moving
        averages around a model are looked through.

        Args:
            model: a model that `build` or `load` returned.
            path: a name that ends in ".safetensors", or a folder, which gets `model.safetensors` and `config.json`.
            layout: whose names the tensors get: "featuretap", or "torchvision" or "timm", which then load the file
                with their own tools in strict mode (a folder in timm's layout with
                `timm.create_model("local-dir:folder", pretrained=True)`).

        Returns:
            the path of the file.

        Raises:
            OptionError: the model was not built by featuretap, or the path names another kind of file.
            WeightsError: the model is no longer what it was built as, the layout cannot hold it, or the file cannot be
                written.
        """
        from featuretap.registry.weights.storing import store

        return store(self, model, Path(path), layout)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | BackboneSpec | None = None,
        features_only: bool | None = None,
        taps: Sequence[str] | None = None,
        head: str | None = None,
        num_classes: int | None = None,
        finite: bool = False,
        **options: Any,
    ) -> nn.Module:
        """Build the model that a file describes, and fill it from the file.

        Files of torchvision's and timm's classifiers, and of torchvision's detectors and segmenters on MobileNetV3, are
        recognised by the names and shapes of their tensors. The model's numbers are of the file's type, such as
        float16.

        Args:
            path: a file that `save` wrote, one in torchvision's or timm's layout (.safetensors, or .pth, of which no
                code is run), or a folder with a `model.safetensors`.
            name: a backbone in place of the file's; a `BackboneSpec` where the model was built from one.
            features_only: True for the bare backbone of a file with a head.
            taps: as for `build`, in place of the file's.
            head: as for `build`, in place of the file's.
            num_classes: as for `build`, in place of the file's; the last layer then starts with fresh weights.
            finite: whether to refuse weights that hold NaN or infinity.
            **options: as for `build`, in place of the file's.

        Raises:
            WeightsError: the file cannot be read, is not what it should be, or does not fit.
            the errors of `build`, for what is given here in place of the file's.
        """
        from featuretap.registry.weights.restoring import restore

        asked = {"features_only": features_only, "taps": taps, "head": head, "num_classes": num_classes}
        return restore(self, Path(path), name, asked, options, finite)

    def convert(
        self, source: str | os.PathLike[str], target: str | os.PathLike[str], layout: str = "featuretap"
    ) -> Path:
        """Rewrite a file of weights in another layout, without building the model.

        Batch norms compute the same afterwards, to rounding, where the layouts disagree about their epsilon.

        Args:
            source: whatever `load` reads.
            target: whatever `save` writes; may be the source.
            layout: "featuretap", "torchvision" or "timm".

        Returns:
            the path of the file that was written.

        Raises:
            OptionError: the target names a kind of file that is not written.
            WeightsError: the file cannot be read or recognised, or the layout cannot hold the model.
        """
        from featuretap.registry.weights.storing import convert

        return convert(self, Path(source), Path(target), layout)

    def transforms(self, model: nn.Module) -> Callable[[Any], Any]:
        """Return the preprocessing that a model's weights were trained with.

        It maps a PIL image, or a tensor (C, H, W) of bytes or floats from 0 to 1, to a float tensor: (C, crop, crop)
        for classifiers, (C, H', W') of the whole image for segmenters, (C, H, W) with values from 0 to 1 for detectors,
        which do the rest themselves. A model with fresh weights gets ImageNet's usual one.

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

    def request(
        self,
        name: str | BackboneSpec,
        *,
        features_only: bool = False,
        taps: Sequence[str] | None = None,
        head: str | None = None,
        num_classes: int | None = None,
        **options: Any,
    ) -> Request:
        """Resolve the arguments of `build` into all that building needs besides weights. For tools.

        Raises:
            the same errors as `build`, but for those of weights.
        """
        backbone = self.catalogued(name)
        if features_only:
            for asked, value in (("head", head), ("num_classes", num_classes)):
                if value is not None:
                    raise HeadError(
                        f"features_only=True returns the bare backbone of {backbone.name!r}, which has no "
                        f"{asked}={value!r}; leave one of the two out"
                    )

        def resolved(options: Mapping[str, Any]) -> tuple[BackboneSpec | ModelSpec, Freezing]:
            if features_only:
                return features(backbone, taps, options)
            chosen = self.head("classification" if head is None else head)
            return paired(backbone, chosen, taps, num_classes, options)

        spec, freezing = resolved(options)
        reduced = {**options_of(backbone), **options}.get("reduced_tail", False)
        whole = resolved({**options, "reduced_tail": False})[0] if reduced else None
        # A name with its distribution stays; an alias becomes what it stands for.
        said = name if isinstance(name, str) and ":" in name else backbone.name
        if isinstance(spec, ModelSpec):
            # What the head sets is said, since under another head, or under none, it would be otherwise.
            options = {**set_by(spec.head, backbone), **options}
            options = {option: spec.head_options.get(option, value) for option, value in options.items()}
        return Request(spec, freezing, _described(said, spec, options), whole)

    def catalogued(self, name: str | BackboneSpec) -> BackboneSpec:
        """Return a backbone's spec as its provider states it, options not yet applied.

        Raises:
            UnknownBackboneError: no backbone has this name.
        """
        return name if isinstance(name, BackboneSpec) else self._contents.find(name)[1]

    def _weights(
        self, name: str | BackboneSpec, pretrained: bool | str | os.PathLike[str]
    ) -> WeightsEntry | Path | str | None:
        return chosen(self.catalogued(name), pretrained, self._contents.weights)

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


def _described(name: str, spec: BackboneSpec | ModelSpec, options: Mapping[str, Any]) -> Description:
    backbone = spec.backbone if isinstance(spec, ModelSpec) else spec
    return Description(
        name,
        tuple(backbone.taps),
        options,
        spec.head.name if isinstance(spec, ModelSpec) else None,
        spec.num_classes if isinstance(spec, ModelSpec) else None,
        prepared_for(spec, Preprocessing()),
        backbone=backbone if backbone.norm is None else replace(backbone, norm=None),
    )


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return sorted(name for name in names if fnmatchcase(name, pattern))


def _user_catalogue() -> Path | None:
    named = os.environ.get("FEATURETAP_CONFIG")
    if named:
        return Path(named)
    usual = user_config_path("featuretap", appauthor=False) / "featuretap.toml"
    return usual if usual.exists() else None
