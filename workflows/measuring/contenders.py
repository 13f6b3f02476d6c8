"""What is compared: a backbone in eager mode and in runtimes, and the same network of other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featuretap import registry
from featuretap.specs import BackboneSpec
from featuretap.specs.addresses import LEVELS
from featuretap.specs.description import format_options
from featuretap.specs.layout import Layout
from featuretap.support.errors import OptionError, did_you_mean
from featuretap.weights.layouts import MismatchError, layout_for

__all__ = ["EAGER", "LIBRARIES", "Contender", "contenders", "counterpart", "own"]

EAGER = "eager"
"""What a model is computed by that no runtime was asked for."""

SIDE = 64
"""Pixels of the image by which maps of two libraries are compared."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A network that computes a backbone's maps.

    Args:
        name: the backbone's, as it was asked for.
        by: what computes it: "eager", a runtime, or a library.
        run: images (N, C, H, W) → its maps.
        spec: of the backbone.
        parameters: that it holds.
    """

    name: str
    by: str
    run: Callable[[Tensor], object]
    spec: BackboneSpec
    parameters: int


def contenders(
    names: Iterable[str],
    runtimes: Iterable[str] = (EAGER,),
    against: Iterable[str] = (),
    *,
    taps: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    threads: int | None = None,
    begin: Callable[[str], object] = lambda words: None,
) -> tuple[list[Contender], list[str]]:
    """Return every backbone by every runtime and library, and a sentence for each that a library does not have.

    Args:
        names: of backbones.
        runtimes: "eager", and names of runtimes.
        against: "timm", "torchvision".
        taps: which maps, C1 to C5 by default.
        options: of the backbones, by name.
        threads: of the runtimes; None for as many as torch has.
        begin: called with what is made next, in words, since some runtimes take their time.

    Raises:
        UnknownRuntimeError: no runtime has one of these names.
        MissingExtraError: a runtime is not installed.
        OptionError: a library that is not known here.
        FeaturetapError: as `registry.build` and `registry.compile` do.
    """
    names, runtimes, against = (tuple(dict.fromkeys(given)) for given in (names, runtimes, against))
    for runtime in runtimes:
        if runtime != EAGER:
            # Known before another one has compiled for minutes.
            registry.default.runtime(runtime).check_installed()
    for name in names:
        _spec(name, taps, options)
    made, left_out = [], []
    for name in names:
        for runtime in runtimes:
            begin(f"{name}, {runtime}")
            made.append(own(name, runtime, taps=taps, options=options, threads=threads))
        for library in against:
            begin(f"{name}, {library}")
            try:
                made.append(counterpart(name, library, taps=taps, options=options))
            except MismatchError as misfit:
                left_out.append(str(misfit))
    return made, left_out


def own(
    name: str,
    runtime: str = EAGER,
    *,
    taps: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Contender:
    """Return a backbone of the registry's, with fresh weights, in eager mode or compiled for a runtime.

    Raises:
        FeaturetapError: as `registry.build` and `registry.compile` do.
    """
    model = registry.build(name, features_only=True, taps=taps, **(options or {})).eval()
    run = model if runtime == EAGER else registry.compile(model, runtime, threads=threads)
    return Contender(name, runtime, run, _spec(name, taps, options), _parameters(model))


def counterpart(
    name: str, library: str, *, taps: Sequence[str] | None = None, options: Mapping[str, Any] | None = None
) -> Contender:
    """Return another library's network that computes the maps of a backbone, with fresh weights, in eager mode.

    Raises:
        OptionError: a library that is not known here.
        MismatchError: the library has no such network, or its own tool puts out other maps.
    """
    if library not in LIBRARIES:
        raise OptionError(
            f"there is nothing to compare with of {library!r}; libraries are {', '.join(LIBRARIES)}"
            f"{did_you_mean(library, LIBRARIES)}"
        )
    spec = _spec(name, taps, options)
    words = format_options(name, options or {})
    try:
        layout = layout_for(spec, library)
    except MismatchError:
        layout = None
    if layout is None or not layout.architecture:
        raise MismatchError(f"{library} has no network that is {words}; it is measured without")
    # The libraries know the last maps of a resolution only.
    inner = [address for address in spec.taps if address not in LEVELS]
    model = None if inner else LIBRARIES[library](layout, spec).eval()
    if model is None or _shapes(model, spec) != list(spec.tap_shapes(SIDE, SIDE).values()):
        raise MismatchError(
            f"{layout.architecture} of {library} does not put out {', '.join(spec.taps)} of {words}; it is measured "
            "without"
        )
    return Contender(name, library, model, spec, _parameters(model))


class TimmMaps(nn.Module):
    """timm's maps where its last one, behind all blocks, is no part of its feature extractors, as in MobileNetV2."""

    def __init__(self, network: Any, indices: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.indices = list(indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of images (N, C, H, W), the last one in place of that before it."""
        last, maps = self.network.forward_intermediates(images, indices=self.indices)
        return [*maps[:-1], last]


def _timm(layout: Layout, spec: BackboneSpec) -> nn.Module:
    import timm

    indices = tuple(LEVELS.index(level) for level in spec.taps)
    features: Any = timm.create_model(layout.architecture, features_only=True, out_indices=indices, **layout.arguments)
    if features.feature_info.channels() == [tap.channels for tap in spec.taps.values()]:
        made: nn.Module = features
        return made
    return TimmMaps(timm.create_model(layout.architecture, num_classes=0, **layout.arguments), indices)


def _torchvision(layout: Layout, spec: BackboneSpec) -> nn.Module:
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    network = get_model(layout.architecture, weights=None, **layout.arguments)
    # Blocks are children of torchvision's `features`: "features.16.0.weight" is of the block "features.16".
    blocks = {address: ".".join(_theirs(layout, path).split(".")[:2]) for address, path in spec.paths.items()}
    extractor: nn.Module = create_feature_extractor(network, {block: address for address, block in blocks.items()})
    return extractor


LIBRARIES: Mapping[str, Callable[[Layout, BackboneSpec], nn.Module]] = {"timm": _timm, "torchvision": _torchvision}
"""Library → what makes its network for a layout, with the maps of a spec."""


def _theirs(layout: Layout, path: str) -> str:
    """Return what a library calls some tensor below one of our paths."""
    return next(theirs for ours, theirs in layout.names.items() if ours.startswith(f"{path}."))


@torch.inference_mode()
def _shapes(model: nn.Module, spec: BackboneSpec) -> list[tuple[int, ...]]:
    maps = model(torch.zeros(1, spec.in_channels, SIDE, SIDE))
    return [tuple(feature.shape[1:]) for feature in (maps.values() if isinstance(maps, dict) else maps)]


def _spec(name: str, taps: Sequence[str] | None, options: Mapping[str, Any] | None) -> BackboneSpec:
    spec = registry.spec(name, features_only=True, taps=taps, **(options or {}))
    assert isinstance(spec, BackboneSpec)
    return spec


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
