"""timm's models as backbones: their maps under our addresses, their options and their weights as timm has them.

A map is C1 to C5 where it is the last of its stride, 2 to 32 (with dilation: the map that would have that stride
without). Any other map has timm's name of the module that it comes from, "blocks.9".
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from featuretap.registry.addresses import LEVELS
from featuretap.registry.errors import SpecError, UnknownBackboneError, did_you_mean
from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.specs import BackboneSpec, Tap
from featuretap.registry.weights.timm_config import preprocessing_of

__all__ = ["TimmBackbone", "build", "describe", "find", "match"]

PREFIX = "timm/"
STATED = {"in_chans": 3, "output_stride": 32}
"""Options whose default is a value; that of the others is None, which leaves the choice to the model."""
NOT_OPTIONS = {"num_classes", "global_pool", "device", "dtype"}
"""Arguments of timm's networks that make no difference to a map, or that other means are for."""
PROBE = 225
"""Height and width of an image that is one pixel larger than whole: the last pixel is rounded up or dropped."""


class TimmBackbone(nn.Module):
    """Images (N, in_chans, H, W) → dict from address to map (N, C, H', W'), in the order of `addresses`.

    Attributes:
        network: timm's network with `features_only=True`.
        preprocessing: how images were prepared for the weights that were fetched, if any were.
    """

    preprocessing: Preprocessing

    def __init__(self, network: nn.Module, made: Iterable[str], asked: Iterable[str], channels_last: bool) -> None:
        super().__init__()
        self.network = network
        self.made = tuple(made)
        self.addresses = tuple(asked)
        self.channels_last = channels_last

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps."""
        maps: dict[str, Tensor] = {}
        for address, feature in zip(self.made, self.network(images)):  # noqa: B905 - torch.jit.script knows no strict
            maps[address] = feature.permute(0, 3, 1, 2) if self.channels_last else feature
        asked: dict[str, Tensor] = {}
        for address in self.addresses:
            asked[address] = maps[address]
        return asked


def match(pattern: str) -> list[str]:
    """Return "timm/…" of every architecture of timm that matches a shell pattern, with feature maps or without."""
    return [name for name in (f"{PREFIX}{model}" for model in timm.list_models()) if fnmatchcase(name, pattern)]


def find(name: str) -> BackboneSpec:
    """Return the spec of "timm/architecture" or "timm/architecture.tag".

    Raises:
        UnknownBackboneError: timm has no such architecture, or no such weights for it.
        SpecError: it has no feature maps.
    """
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(name, match("*")) or "; featuretap list 'timm/*' names them"
        raise UnknownBackboneError(f"timm has no model {architecture!r}{hint}")
    tags = _tags(architecture)
    if tag and tag not in tags:
        hint = did_you_mean(tag, tags) or ";"
        raise UnknownBackboneError(
            f"timm has no weights {tag!r} for {architecture!r}{hint} its tags are {', '.join(tags)}"
        )
    taps = _taps(architecture, {})
    usual = {address: tap for address, tap in taps.items() if address in LEVELS} or dict([*taps.items()][-1:])
    return BackboneSpec(
        name,
        taps=usual,
        more_taps={address: tap for address, tap in taps.items() if address not in usual},
        factory="featuretap.plugins.timm_features:build",
        describe="featuretap.plugins.timm_features:describe",
        options=_options(architecture),
        tags=(tag,) if tag else tags,
        description=f"{architecture} of timm {timm.__version__}",
    )


def describe(spec: BackboneSpec, **options: Any) -> BackboneSpec:
    """Return a spec of ours with channels and strides as they are with `options`, which are spelled as timm's."""
    taps = _taps(_architecture(spec), _given(options))
    return replace(
        spec,
        taps={address: taps[address] for address in spec.taps},
        more_taps={address: taps[address] for address in spec.more_taps},
        in_channels=options["in_chans"],
    )


def build(spec: BackboneSpec, *, taps: tuple[str, ...], pretrained: str | None = None, **options: Any) -> TimmBackbone:
    """Return timm's model as a backbone.

    Args:
        spec: one of ours.
        taps: addresses.
        pretrained: tag of weights, which timm downloads into its own cache; None for fresh ones.
        **options: as timm spells them; None leaves them out.
    """
    architecture = _architecture(spec)
    addresses = _addresses(architecture)
    indices = sorted(addresses.index(address) for address in taps)
    tagged = f"{architecture}.{pretrained}" if pretrained else architecture
    network = timm.create_model(
        tagged, pretrained=bool(pretrained), features_only=True, out_indices=indices, **_given(options)
    )
    made = [addresses[index] for index in indices]
    backbone = TimmBackbone(network, made, taps, _channels_last(network))
    if pretrained:
        backbone.preprocessing = preprocessing_of(tagged, network.pretrained_cfg) or Preprocessing()
    return backbone


def _architecture(spec: BackboneSpec) -> str:
    # A variant of a user's catalogue has a name of its own.
    return (spec.variant_of or spec.name).removeprefix(PREFIX).partition(".")[0]


def _tags(architecture: str) -> tuple[str, ...]:
    default = timm.get_pretrained_cfg_value(architecture, "tag")
    names = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    return tuple(sorted(names, key=lambda tag: tag != default))


@lru_cache(maxsize=64)
def _options(architecture: str) -> dict[str, Any]:
    features = _on_meta(architecture, {})
    # Where timm wraps a network to get at its maps, the options are those of what is in the wrapping.
    own = type(features).__module__ != "timm.models._features"
    kind = type(features if own else _created(architecture))
    parameters = inspect.signature(kind.__init__).parameters.values()
    names = [p.name for p in parameters if p.default is not p.empty and p.name not in NOT_OPTIONS]
    return {name: STATED.get(name) for name in names}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@lru_cache(maxsize=64)
def _addresses(architecture: str) -> tuple[str, ...]:
    """Return the address of every map of an architecture, in timm's order, by the strides that it has by default."""
    found = _on_meta(architecture, {}).feature_info.info
    strides = [map_["reduction"] for map_ in found]
    names = []
    for index, map_ in enumerate(found):
        level = next((name for n, name in enumerate(LEVELS, start=1) if 2**n == strides[index]), None)
        names.append(level if level and strides[index] not in strides[index + 1 :] else map_["module"])
    return tuple(names)


def _taps(architecture: str, options: Mapping[str, Any]) -> dict[str, Tap]:
    """Return address → tap of every map of an architecture with options."""
    addresses = _addresses(architecture)
    network = _on_meta(architecture, {**options, "out_indices": tuple(range(len(addresses)))})
    found, sizes = network.feature_info.info, _sizes(network, options.get("in_chans", 3))
    taps = {}
    for index, (address, map_) in enumerate(zip(addresses, found, strict=True)):
        stride = map_["reduction"]
        floors = bool(sizes) and sizes[index] == PROBE // stride != -(-PROBE // stride)
        taps[address] = Tap(map_["num_chs"], stride, "floor" if floors else "ceil")
    return taps


@torch.no_grad()
def _sizes(network: nn.Module, channels: int) -> list[int]:
    """Return the heights of the maps of an image of `PROBE` pixels; none of a network that takes one size only."""
    try:
        with torch.device("meta"):
            maps = network.eval()(torch.empty(1, channels, PROBE, PROBE))
    except (AssertionError, RuntimeError, ValueError):
        return []
    axis = 1 if _channels_last(network) else 2
    return [feature.shape[axis] for feature in maps]


def _channels_last(network: nn.Module) -> bool:
    return str(getattr(getattr(network, "output_fmt", None), "value", "NCHW")) == "NHWC"


def _on_meta(architecture: str, options: Mapping[str, Any]) -> Any:
    try:
        return _created(architecture, features_only=True, **options)
    except (AttributeError, AssertionError, RuntimeError, TypeError, KeyError) as error:
        if options.keys() - {"out_indices"}:
            raise
        text = " ".join(str(error).split())
        raise SpecError(f"timm's {architecture!r} has no feature maps ({type(error).__name__}: {text})") from error


def _created(architecture: str, **options: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(architecture, **options)
