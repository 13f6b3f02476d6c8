"""Networks to be timed: backbones in eager mode and in runtimes, and the same networks of other libraries."""

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

EAGER = "eager"
"""Name of PyTorch's eager mode, beside the names of runtimes."""

SIDE = 64
"""Pixels of the image on which maps of two libraries are compared."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """A network that computes the maps of the backbone `name` by a runtime, by a library, or "eager"."""

    name: str
    by: str
    run: Callable[[Tensor], object]
    spec: BackboneSpec
    parameters: int


def build_baselines(
    names: Iterable[str],
    runtimes: Iterable[str] = (EAGER,),
    against: Iterable[str] = (),
    *,
    arguments: Mapping[str, Any] = {},
    threads: int | None = None,
    begin: Callable[[str], object] = lambda label: None,
) -> tuple[list[Baseline], list[str]]:
    """Return every backbone by every runtime and library, and a sentence for each that a library does not have.

    `arguments` are taps and options of the backbones, `threads` those of the runtimes (None: as many as PyTorch has).
    `begin` is called with a label of the next one, which may take long to compile.
    """
    names, runtimes, against = (tuple(dict.fromkeys(values)) for values in (names, runtimes, against))
    # Errors are reported before a runtime compiles for minutes.
    for runtime in runtimes:
        if runtime != EAGER:
            registry.default.runtime(runtime).check_installed()
    for name in names:
        registry.spec(name, features_only=True, **arguments)
    baselines, left_out = [], []
    for name in names:
        for runtime in runtimes:
            begin(f"{name}, {runtime}")
            baselines.append(build_own(name, runtime, arguments, threads=threads))
        for library in against:
            begin(f"{name}, {library}")
            try:
                baselines.append(build_counterpart(name, library, arguments))
            except MismatchError as mismatch:
                left_out.append(str(mismatch))
    return baselines, left_out


def build_own(
    name: str, runtime: str = EAGER, arguments: Mapping[str, Any] = {}, *, threads: int | None = None
) -> Baseline:
    """Return a randomly initialised backbone of the registry, in eager mode or compiled for a runtime."""
    model = registry.build(name, features_only=True, **arguments).eval()
    run = model if runtime == EAGER else registry.compile(model, runtime, threads=threads)
    return _baseline(name, runtime, run, model, arguments)


def build_counterpart(name: str, library: str, arguments: Mapping[str, Any] = {}) -> Baseline:
    """Return another library's randomly initialised network that computes the maps of a backbone, in eager mode.

    Raises:
        OptionError: an unknown library.
        MismatchError: the library has no such network, or its feature extractor returns other maps.
    """
    if library not in LIBRARIES:
        raise OptionError(
            f"there is nothing to compare with of {library!r}; libraries are {', '.join(LIBRARIES)}"
            f"{did_you_mean(library, LIBRARIES)}"
        )
    spec: Any = registry.spec(name, features_only=True, **arguments)
    label = format_options(name, {option: value for option, value in arguments.items() if option != "taps"})
    try:
        layout = layout_for(spec, library)
    except MismatchError:
        layout = None
    if layout is None or not layout.architecture:
        raise MismatchError(f"{library} has no network that is {label}; it is measured without")
    # The libraries return the last maps of a resolution only.
    model = LIBRARIES[library](layout, spec).eval() if set(spec.taps) <= set(LEVELS) else None
    if model is None or _map_shapes(model, spec) != list(spec.tap_shapes(SIDE, SIDE).values()):
        raise MismatchError(
            f"{layout.architecture} of {library} does not put out {', '.join(spec.taps)} of {label}; it is measured "
            "without"
        )
    return _baseline(name, library, model, model, arguments)


class TimmMaps(nn.Module):
    """timm's maps where its feature extractors lack the last one, behind all blocks, as in MobileNetV2."""

    def __init__(self, network: Any, indices: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.indices = list(indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of images (N, C, H, W), the last one in place of that before it."""
        last, maps = self.network.forward_intermediates(images, indices=self.indices)
        return [*maps[:-1], last]


def _build_timm(layout: Layout, spec: BackboneSpec) -> nn.Module:
    import timm

    indices = tuple(LEVELS.index(level) for level in spec.taps)
    features: Any = timm.create_model(layout.architecture, features_only=True, out_indices=indices, **layout.arguments)
    if features.feature_info.channels() != [tap.channels for tap in spec.taps.values()]:
        features = TimmMaps(timm.create_model(layout.architecture, num_classes=0, **layout.arguments), indices)
    model: nn.Module = features
    return model


def _build_torchvision(layout: Layout, spec: BackboneSpec) -> nn.Module:
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    network = get_model(layout.architecture, weights=None, **layout.arguments)
    blocks = {}
    for address, path in spec.paths.items():
        theirs = next(theirs for ours, theirs in layout.names.items() if ours.startswith(f"{path}."))
        # Blocks are children of torchvision's `features`: "features.16.0.weight" is of the block "features.16".
        blocks[".".join(theirs.split(".")[:2])] = address
    extractor: nn.Module = create_feature_extractor(network, blocks)
    return extractor


LIBRARIES: Mapping[str, Callable[[Layout, BackboneSpec], nn.Module]] = {
    "timm": _build_timm,
    "torchvision": _build_torchvision,
}
"""Library → function that builds its network for a layout, with the maps of a spec."""


@torch.inference_mode()
def _map_shapes(model: nn.Module, spec: BackboneSpec) -> list[tuple[int, ...]]:
    maps = model(torch.zeros(1, spec.in_channels, SIDE, SIDE))
    return [tuple(feature.shape[1:]) for feature in (maps.values() if isinstance(maps, dict) else maps)]


def _baseline(
    name: str, by: str, run: Callable[[Tensor], object], model: nn.Module, arguments: Mapping[str, Any]
) -> Baseline:
    spec = registry.spec(name, features_only=True, **arguments)
    assert isinstance(spec, BackboneSpec)
    return Baseline(name, by, run, spec, sum(parameter.numel() for parameter in model.parameters()))
