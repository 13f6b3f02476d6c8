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
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import timm
import torch
from torch import Tensor, nn

from featuretap.plugins.map_sizes import roundings
from featuretap.specs import BackboneSpec, Tap
from featuretap.specs.addresses import LEVELS
from featuretap.specs.description import options_in_words
from featuretap.specs.preprocessing import Preprocessing
from featuretap.specs.validation import count
from featuretap.support.errors import OptionError, SpecError, UnknownBackboneError, WeightsError, did_you_mean
from featuretap.weights.downloads import offline
from featuretap.weights.timm_config import preprocessing_of

__all__ = ["TimmBackbone", "build", "describe", "find", "match"]

PREFIX = "timm/"
STATED = {"in_chans": 3, "output_stride": 32}
"""Options whose default is a value; that of the others is None, which leaves the choice to the model."""
CHECKED = {"in_chans": count(3)}
"""Options whose values timm takes without a look."""
NOT_OPTIONS = {"num_classes", "global_pool", "out_indices", "device", "dtype"}
"""Arguments of timm's networks that make no difference to a map, or that other means are for."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of timm's files on the Hugging Face hub, in the order in which it looks for them."""


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
        # torch.jit.script pairs a list of maps with a list only.
        self.made = list(made)
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
    """Return the spec of "timm/architecture"; that of "timm/architecture.tag" has other default weights.

    Raises:
        UnknownBackboneError: timm has no such architecture, or no such weights for it.
        SpecError: it has no feature maps.
    """
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    if not timm.is_model(architecture):
        names = {model: f"{PREFIX}{model}" for model in timm.list_models()}
        hint = did_you_mean(architecture, names, names) or "; featuretap list 'timm/*' names them"
        raise UnknownBackboneError(f"timm has no model {architecture!r}{hint}")
    tags = _tags(architecture)
    if tag and tag not in tags:
        hint = did_you_mean(tag, tags) or ";"
        there = f"its tags are {', '.join(tags)}" if tags else "it has none"
        raise UnknownBackboneError(f"timm has no weights {tag!r} for {architecture!r}{hint} {there}")
    taps = _taps(architecture, {})
    usual = {address: tap for address, tap in taps.items() if address in LEVELS} or dict([*taps.items()][-1:])
    return BackboneSpec(
        f"{PREFIX}{architecture}",
        taps=usual,
        more_taps={address: tap for address, tap in taps.items() if address not in usual},
        factory="featuretap.plugins.timm_features:build",
        describe="featuretap.plugins.timm_features:describe",
        options=_options(architecture),
        tags=tuple(sorted(tags, key=lambda known: known != tag)),
        description=f"{architecture} of timm {timm.__version__}",
    )


def describe(spec: BackboneSpec, **options: Any) -> BackboneSpec:
    """Return a spec of ours with channels and strides as they are with `options`, which are spelled as timm's."""
    taps = _taps(_architecture(spec), _given(options))
    return replace(
        spec,
        taps={address: taps[address] for address in spec.taps},
        more_taps={address: taps[address] for address in spec.more_taps},
        in_channels=options.get("in_chans", spec.in_channels),
    )


def build(spec: BackboneSpec, *, taps: tuple[str, ...], pretrained: str | None = None, **options: Any) -> TimmBackbone:
    """Return timm's model as a backbone.

    Args:
        spec: one of ours.
        taps: addresses.
        pretrained: tag of weights, which timm downloads into its own cache; None for fresh ones.
        **options: as timm spells them; None leaves them out.

    Raises:
        WeightsError: timm cannot get the weights, or they do not fit.
    """
    architecture = _architecture(spec)
    addresses = _addresses(architecture)
    indices = sorted(addresses.index(address) for address in taps)
    asked = {"features_only": True, "out_indices": indices, **_given(options)}
    network = _filled(f"{architecture}.{pretrained}", asked) if pretrained else timm.create_model(architecture, **asked)
    made = [addresses[index] for index in indices]
    backbone = TimmBackbone(network, made, taps, _channels_last(network))
    if pretrained:
        origin = f"{spec.name}.{pretrained}"
        backbone.preprocessing = preprocessing_of(origin, network.pretrained_cfg) or Preprocessing()
    return backbone


def _filled(tagged: str, asked: Mapping[str, Any]) -> nn.Module:
    """Return timm's model with its weights: out of timm's cache, or downloaded into it."""
    stated = timm.get_pretrained_cfg(tagged)
    cached, by_hand = _cached(stated)
    if cached is None and offline():
        raise WeightsError(
            f"'timm/{tagged}' is not on this machine, and FEATURETAP_OFFLINE forbids downloads; {by_hand}"
        )
    overlay = {"file": cached} if cached else {}
    try:
        network: nn.Module = timm.create_model(tagged, pretrained=True, pretrained_cfg_overlay=overlay, **asked)
    except Exception as error:
        # timm lets through whatever the libraries below it raise.
        reason = " ".join(str(error).split()) or type(error).__name__
        source = cached or "its weights"
        raise WeightsError(f"timm cannot fill {tagged!r} with {source}: {reason}; {by_hand}") from error
    return network


def _cached(stated: Any) -> tuple[str | None, str]:
    """Return where weights of timm lie in its cache, if they do, and how to get them there by hand."""
    if stated.hf_hub_id:
        files = [stated.hf_hub_filename] if stated.hf_hub_filename else FILES
        found = (huggingface_hub.try_to_load_from_cache(stated.hf_hub_id, file) for file in files)
        by_hand = f"run 'hf download {stated.hf_hub_id} {files[0]}' where there is a network"
        return next((path for path in found if isinstance(path, str)), None), by_hand
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(stated.url).name
    return str(path) if path.is_file() else None, f"put {stated.url} at {path}"


def _architecture(spec: BackboneSpec) -> str:
    # A variant of a user's catalogue has a name of its own.
    return (spec.variant_of or spec.name).removeprefix(PREFIX).partition(".")[0]


def _tags(architecture: str) -> tuple[str, ...]:
    default = getattr(timm.get_pretrained_cfg(architecture), "tag", None)
    names = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    return tuple(sorted(names, key=lambda tag: tag != default))


@lru_cache(maxsize=64)
def _options(architecture: str) -> dict[str, Any]:
    features = _on_meta(architecture, {})
    # Where timm wraps a network to get at its maps, the options are those of what is in the wrapping.
    wrapped = type(features).__module__.startswith("timm.models._features")
    parameters = _parameters(type(_created(architecture) if wrapped else features))
    names = [p.name for p in parameters.values() if p.default is not p.empty and p.name not in NOT_OPTIONS]
    return {name: CHECKED.get(name, STATED.get(name)) for name in names}


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class, those that it hands on to the class that it is made of included."""
    own = dict(inspect.signature(kind.__init__).parameters)
    above = kind.__mro__[1]
    if above is nn.Module or not any(p.kind is p.VAR_KEYWORD for p in own.values()):
        return own
    return {**own, **_parameters(above)}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value != STATED.get(name)}


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
    """Return address → tap of every map of an architecture with options whose size is an image's, divided."""
    addresses = _addresses(architecture)
    network = _on_meta(architecture, {**options, "out_indices": tuple(range(len(addresses)))})
    own = network.pretrained_cfg.get("input_size", (0,))[-1]
    found = network.feature_info.info
    if len(found) != len(addresses):
        raise OptionError(
            f"timm's {_in_words(architecture, options)} has {len(found)} maps, and {len(addresses)} addresses are "
            f"known: {', '.join(addresses)}"
        )
    sizes = roundings(
        [map_["reduction"] for map_ in found], lambda size: _heights(network, options.get("in_chans", 3), size), own
    )
    taps = {
        address: Tap(map_["num_chs"], map_["reduction"], rounding)
        for address, map_, rounding in zip(addresses, found, sizes, strict=True)
        if rounding is not None
    }
    if not taps:
        raise SpecError(f"timm's {architecture!r} has no feature maps of an image's size divided by their strides")
    return taps


@torch.no_grad()
def _heights(network: nn.Module, channels: int, size: int) -> list[int]:
    """Return the heights of the maps of a square image; none where the network refuses its size."""
    try:
        with torch.device("meta"):
            maps = network.eval()(torch.empty(1, channels, size, size))
    except (AssertionError, RuntimeError, ValueError):
        return []
    axis = 1 if _channels_last(network) else 2
    return [feature.shape[axis] for feature in maps]


def _in_words(architecture: str, options: Mapping[str, Any]) -> str:
    return options_in_words(architecture, {name: options[name] for name in options if name != "out_indices"})


def _channels_last(network: nn.Module) -> bool:
    return str(getattr(getattr(network, "output_fmt", None), "value", "NCHW")) == "NHWC"


def _on_meta(architecture: str, options: Mapping[str, Any]) -> Any:
    try:
        return _created(architecture, features_only=True, **options)
    except Exception as error:
        # timm checks little of what it is asked for, and what it cannot do fails in ways of its own.
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        if options.keys() - {"out_indices"}:
            raise OptionError(f"timm cannot build {_in_words(architecture, options)} ({reason})") from error
        raise SpecError(f"timm's {architecture!r} has no feature maps ({reason})") from error


def _created(architecture: str, **options: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(architecture, **options)
