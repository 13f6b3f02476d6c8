"""torchvision's classifiers as backbones: `create_feature_extractor` at the modules that end a resolution.

C1 to C5 are the last maps of strides 2 to 32 that a whole block puts out. A block is whatever stands in a chain of
blocks; what is inside one, such as an expansion at the resolution that the block leaves, is no map of its own.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor

from featuretap.plugins.map_sizes import roundings
from featuretap.specs import BackboneSpec, Tap
from featuretap.specs.addresses import LEVELS
from featuretap.specs.description import options_in_words
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import OptionError, SpecError, UnknownBackboneError, WeightsError, did_you_mean
from featuretap.weights.downloads import offline

__all__ = ["TorchvisionFeatures", "build", "describe", "find", "match"]

PREFIX = "torchvision/"
NOT_OPTIONS = {"num_classes", "aux_logits", "transform_input", "init_weights", "dropout"}
"""Arguments of torchvision's networks that make no difference to a map, or that other means are for."""
SIZES = ((224, 256), (224, 224))
"""Heights and widths of images that show the strides; the second is for networks that take no other size."""


class Place(NamedTuple):
    """Where a map comes from: the path of a module, and whether its channels come last."""

    path: str
    tap: Tap
    channels_last: bool


class TorchvisionFeatures(nn.Module):
    """Images (N, 3, H, W) → dict from address to map (N, C, H', W'), in the order of `addresses`.

    Attributes:
        network: torchvision's network, cut behind the last map.
        preprocessing: how images were prepared for the weights that were fetched, if any were.
    """

    preprocessing: Preprocessing

    def __init__(self, network: nn.Module, places: Mapping[str, Place]) -> None:
        super().__init__()
        wanted = {place.path: name for name, place in places.items()}
        # GoogLeNet's two losses by the way run in training only, and are no maps.
        self.network = create_feature_extractor(network, wanted, suppress_diff_warning=True)
        self.addresses = tuple(places)
        self.channels_last = tuple(name for name, place in places.items() if place.channels_last)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps."""
        maps: dict[str, Tensor] = self.network(images)
        asked: dict[str, Tensor] = {}
        for address in self.addresses:
            feature = maps[address]
            asked[address] = feature.permute(0, 3, 1, 2) if address in self.channels_last else feature
        return asked

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A deep copy of torchvision's extractor is always in training.
        self.train(self.training)


def match(pattern: str) -> list[str]:
    """Return "torchvision/…" of every classifier of torchvision that matches a shell pattern, with maps or without."""
    return [name for name in _names() if fnmatchcase(name, pattern)]


def find(name: str) -> BackboneSpec:
    """Return the spec of "torchvision/name".

    Raises:
        UnknownBackboneError: torchvision has no such classifier.
        SpecError: it has no feature maps.
    """
    network = name.removeprefix(PREFIX)
    names = {known.removeprefix(PREFIX): known for known in _names()}
    if network not in names:
        hint = did_you_mean(network, names, names) or "; featuretap list 'torchvision/*' names them"
        raise UnknownBackboneError(f"torchvision has no classifier {network!r}{hint}")
    weights = get_model_weights(network)
    default = getattr(weights, "DEFAULT", None)
    return BackboneSpec(
        name,
        taps={address: place.tap for address, place in _places(network).items()},
        factory="featuretap.plugins.torchvision_features:build",
        describe="featuretap.plugins.torchvision_features:describe",
        options=dict.fromkeys(_options(network)),
        tags=tuple(sorted((entry.name for entry in weights), key=lambda tag: default is None or tag != default.name)),
        description=f"{network} of torchvision {torchvision.__version__}",
    )


def describe(spec: BackboneSpec, **options: Any) -> BackboneSpec:
    """Return a spec of ours with channels and strides as they are with `options`, which are spelled as torchvision's.

    Addresses go by the strides without options: C5 stays what it was where dilation keeps it at stride 16.
    """
    name = _network_of(spec)
    network, usual = _on_meta(name, _given(options)), _places(name)
    found = _maps(network)
    places = _rounded(network, {address: found[usual[address].path] for address in spec.taps})
    return replace(spec, taps={address: place.tap for address, place in places.items()})


def build(
    spec: BackboneSpec, *, taps: tuple[str, ...], pretrained: str | None = None, **options: Any
) -> TorchvisionFeatures:
    """Return torchvision's network as a backbone.

    Args:
        spec: one of ours.
        taps: addresses.
        pretrained: name of weights, "IMAGENET1K_V1", which torchvision downloads into its own cache; None for fresh
            ones.
        **options: as torchvision spells them; None leaves them out.

    Raises:
        WeightsError: torchvision cannot get the weights, or they do not fit.
    """
    name = _network_of(spec)
    weights = get_model_weights(name)[pretrained] if pretrained else None
    network = _filled(name, weights, _given(options)) if weights else _made(name, _given(options))
    usual = _places(name)
    backbone = TorchvisionFeatures(network, {address: usual[address] for address in taps})
    if weights:
        backbone.preprocessing = _preprocessing(weights.transforms())
    return backbone


def _filled(name: str, weights: Any, options: Mapping[str, Any]) -> nn.Module:
    """Return torchvision's network with its weights: out of torch.hub's cache, or downloaded into it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(weights.url).name
    by_hand = f"put {weights.url} at {path}"
    if offline() and not path.is_file():
        raise WeightsError(
            f"'torchvision/{name}.{weights.name}' is not on this machine, and FEATURETAP_OFFLINE forbids downloads; "
            f"{by_hand}"
        )
    try:
        return _made(name, options, weights)
    except Exception as error:
        # torchvision lets through whatever the libraries below it raise.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"torchvision cannot fill {name!r} with {weights.name}: {reason}; {by_hand}") from error


def _names() -> list[str]:
    return [f"{PREFIX}{name}" for name in list_models(module=torchvision.models)]


def _network_of(spec: BackboneSpec) -> str:
    # A variant of a user's catalogue has a name of its own.
    return (spec.variant_of or spec.name).removeprefix(PREFIX)


def _options(name: str) -> list[str]:
    """Return the arguments of the network's class that its builder leaves to the caller."""
    parameters = inspect.signature(type(_on_meta(name, {})).__init__).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty and p.name not in NOT_OPTIONS]


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@lru_cache(maxsize=64)
def _places(name: str) -> dict[str, Place]:
    """Return level → where its map comes from in a network without options."""
    network = _on_meta(name, {})
    by_stride = {place.tap.stride: place for place in _maps(network).values()}
    levels = {level: by_stride[2**n] for n, level in enumerate(LEVELS, start=1) if 2**n in by_stride}
    places = _rounded(network, levels)
    if len(places) < 2:
        raise SpecError(
            f"torchvision's {name!r} has no feature maps: no two of its blocks put out an image's size divided by 2, "
            "4, 8, 16 or 32"
        )
    return places


def _maps(network: nn.Module) -> dict[str, Place]:
    """Return path → place of everything of a whole stride that a block puts out, in order of execution."""
    size, shapes = next(((size, shapes) for size in SIZES if (shapes := _shapes(network, *size))), (SIZES[0], {}))
    maps = {}
    for path, shape in shapes.items():
        for channels_last in (False, True):
            height, width = shape[1:3] if channels_last else shape[2:]
            stride = size[0] // height
            if (height * stride, width * stride) == size:
                maps[path] = Place(path, Tap(shape[3 if channels_last else 1], stride), channels_last)
                break
    return maps


def _rounded(network: nn.Module, places: Mapping[str, Place]) -> dict[str, Place]:
    """Return the places with what is known of the sizes of their maps, without those that follow no stride."""

    def heights(size: int) -> list[int]:
        shapes = _shapes(network, size, size)
        return [shapes[place.path][1 if place.channels_last else 2] for place in places.values()] if shapes else []

    found = roundings([place.tap.stride for place in places.values()], heights, SIZES[0][0])
    return {
        name: place._replace(tap=replace(place.tap, rounding=rounding))
        for (name, place), rounding in zip(places.items(), found, strict=True)
        if rounding is not None
    }


@torch.no_grad()
def _shapes(network: nn.Module, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return path → shape of the four-dimensional outputs of blocks; nothing where the network refuses the size."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(path: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                shapes.pop(path, None)
                shapes[path] = tuple(output.shape)

        return hook

    handles = [module.register_forward_hook(record(path)) for path, module in _blocks(network)]
    try:
        with torch.device("meta"):
            network.eval()(torch.empty(1, 3, height, width))
    except (AssertionError, RuntimeError, ValueError):
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _blocks(network: nn.Module, above: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield what stands in the chains of a network; a chain of nothing but layers inside another is one block."""
    for name, module in network.named_children():
        path = f"{above}.{name}" if above else name
        layers_only = not any(list(child.children()) for child in module.children())
        if isinstance(module, nn.Sequential | nn.ModuleList) and not (above and layers_only):
            yield from _blocks(module, path)
        yield path, module


def _on_meta(name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return _made(name, options)
    except Exception as error:
        # torchvision checks little of what it is asked for, and what it cannot do fails in ways of its own.
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise OptionError(f"torchvision cannot build {options_in_words(name, options)} ({reason})") from error


def _made(name: str, options: Mapping[str, Any], weights: Any = None) -> nn.Module:
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce that their initial weights will change.
        warnings.filterwarnings("ignore", "The default weight initialization", FutureWarning)
        try:
            network: nn.Module = get_model(name, weights=weights, **options)
        except NotImplementedError:
            # RegNets compute their widths with tensors, whose values the meta device does not have.
            device = torch.get_default_device()
            with torch.device("cpu"):
                network = get_model(name, weights=weights, **options).to(device)
    return network


def _preprocessing(preset: Any) -> Preprocessing:
    """Return what torchvision's preset of transforms for a set of weights states."""
    return Preprocessing(
        preset.resize_size[0], preset.crop_size[0], tuple(preset.mean), tuple(preset.std), preset.interpolation.value
    )
