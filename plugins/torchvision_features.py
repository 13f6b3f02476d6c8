"""torchvision's classifiers as backbones: `create_feature_extractor` at the modules that end a resolution.

C1 to C5 are the last maps of strides 2 to 32 that a whole block puts out. A block is whatever stands in a chain of
blocks; what is inside one, such as an expansion at the resolution that the block leaves, is no map of its own.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor

from featuretap.backbones.inputs import ImageModel
from featuretap.plugins import library_layouts, namespaces
from featuretap.specs import BackboneSpec, Tap
from featuretap.specs.description import format_options
from featuretap.specs.layout import Layout
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.errors import OptionError, SpecError
from featuretap.support.text import error_line
from featuretap.weights.downloads import torch_hub_path

PREFIX = "torchvision/"
NOT_OPTIONS = {"num_classes", "aux_logits", "transform_input", "init_weights", "dropout"}
"""Arguments of torchvision's networks that make no difference to a map, or that other means are for."""
SIZES = ((224, 256), (224, 224))
"""Heights and widths of images that show the strides; the second is for networks that take no other size."""


class MapSource(NamedTuple):
    """The module that a map comes from, the map's tap, and whether its channels come last."""

    path: str
    tap: Tap
    channels_last: bool


class TorchvisionFeatures(ImageModel):
    """Images (N, 3, H, W) → dict from address to map (N, C, H', W'), in the order of `addresses`.

    `network` is torchvision's network, cut behind the last map; `preprocessing` is there if weights were loaded.
    """

    preprocessing: Preprocessing

    def __init__(self, network: nn.Module, sources: Mapping[str, MapSource]) -> None:
        super().__init__()
        requested = {source.path: address for address, source in sources.items()}
        # GoogLeNet's auxiliary classifiers run in training only, and are no maps.
        self.network = create_feature_extractor(network, requested, suppress_diff_warning=True)
        self.addresses = tuple(sources)
        self.channels_last = tuple(address for address, source in sources.items() if source.channels_last)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps."""
        maps: dict[str, Tensor] = self.network(images)
        requested: dict[str, Tensor] = {}
        for address in self.addresses:
            feature = maps[address]
            requested[address] = feature.permute(0, 3, 1, 2) if address in self.channels_last else feature
        return requested

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A deep copy of torchvision's extractor is always in training.
        self.train(self.training)


def match(pattern: str) -> list[str]:
    """Return "torchvision/…" of every classifier of torchvision that matches a shell pattern, with maps or without."""
    return namespaces.match_names(PREFIX, _classifiers(), pattern)


def find(name: str) -> BackboneSpec:
    """Return the spec of "torchvision/name".

    Raises:
        UnknownBackboneError: torchvision has no such classifier.
        SpecError: it has no feature maps.
    """
    classifier = name.removeprefix(PREFIX)
    if classifier not in _classifiers():
        raise namespaces.unknown_network("torchvision has no classifier", PREFIX, classifier, _classifiers())
    weights = get_model_weights(classifier)
    default = getattr(weights, "DEFAULT", None)
    return BackboneSpec(
        name,
        taps={address: source.tap for address, source in _level_sources(classifier).items()},
        factory="featuretap.plugins.torchvision_features:build",
        describe="featuretap.plugins.torchvision_features:describe",
        options=dict.fromkeys(_options(classifier)),
        layouts={"torchvision": "featuretap.plugins.torchvision_features:layout"},
        tags=tuple(entry.name for entry in sorted(weights, key=lambda entry: entry is not default)),
        description=f"{classifier} of torchvision {torchvision.__version__}",
    )


def describe(spec: BackboneSpec, **options: Any) -> BackboneSpec:
    """Return a spec of `find` with channels and strides as they are with `options`, which are spelled as torchvision's.

    Addresses go by the strides without options: C5 stays what it was where dilation keeps it at stride 16.
    """
    classifier = namespaces.network_name(spec, PREFIX)
    network, usual = _on_meta(classifier, namespaces.changed_options(options, {})), _level_sources(classifier)
    found = _map_sources(network)
    sources = _with_roundings(network, {address: found[usual[address].path] for address in spec.taps})
    return replace(spec, taps={address: source.tap for address, source in sources.items()})


def build(
    spec: BackboneSpec, *, taps: tuple[str, ...], pretrained: str | None = None, **options: Any
) -> TorchvisionFeatures:
    """Return torchvision's network as a backbone; `pretrained` is the name of weights, from torchvision's own cache."""
    classifier = namespaces.network_name(spec, PREFIX)
    arguments = namespaces.changed_options(options, {})
    weights: Any = get_model_weights(classifier)[pretrained] if pretrained else None
    network = _load_pretrained(classifier, weights, arguments) if weights else _create(classifier, arguments)
    sources = _level_sources(classifier)
    backbone = TorchvisionFeatures(network, {address: sources[address] for address in taps})
    if weights:
        preset = weights.transforms()
        backbone.preprocessing = Preprocessing(
            preset.resize_size[0],
            preset.crop_size[0],
            tuple(preset.mean),
            tuple(preset.std),
            preset.interpolation.value,
        )
    return backbone


@lru_cache(maxsize=8)
def layout(spec: BackboneSpec) -> Layout:
    """Return how torchvision's own files name the tensors of a backbone, with the classifier if it is one of ours."""
    classifier, options = namespaces.network_name(spec, PREFIX), namespaces.changed_options(spec.options, {})
    with torch.device("meta"):
        features = build(spec, taps=tuple(spec.taps), **spec.options).state_dict()
    return library_layouts.make_layout(
        features,
        _on_meta(classifier, options).state_dict(),
        _classifier(classifier) if [*_level_sources(classifier)][-1] in spec.taps else "",
        architecture=classifier,
        arguments=options,
    )


@lru_cache(maxsize=64)
def _classifier(classifier: str) -> str:
    """Return the path of torchvision's last layer if it reads the average of the last map; else nothing."""
    full, last = _on_meta(classifier, {}), [*_level_sources(classifier).values()][-1]
    with torch.device("meta"):
        features = TorchvisionFeatures(_on_meta(classifier, {}), {"last": last}).state_dict()
    path = library_layouts.unpaired_layer(features, full.state_dict())
    with torch.random.fork_rng(devices=[]):
        return path if path and library_layouts.reads_pooled_map(_create(classifier, {}), path, last.path) else ""


def _load_pretrained(classifier: str, weights: Any, options: Mapping[str, Any]) -> nn.Module:
    """Return torchvision's network with its weights: out of torch.hub's cache, or downloaded into it."""
    path = torch_hub_path(weights.url)
    problem = f"torchvision cannot fill {classifier!r} with {weights.name}"
    by_hand = f"put {weights.url} at {path}"
    with namespaces.explain_download(f"{PREFIX}{classifier}.{weights.name}", path.is_file(), problem, by_hand):
        return _create(classifier, options, weights)


def _classifiers() -> list[str]:
    return list_models(module=torchvision.models)


def _options(classifier: str) -> list[str]:
    """Return the arguments of the network's class that its builder leaves to the caller."""
    parameters = inspect.signature(type(_on_meta(classifier, {})).__init__).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty and p.name not in NOT_OPTIONS]


@lru_cache(maxsize=64)
def _level_sources(classifier: str) -> dict[str, MapSource]:
    """Return level → where its map comes from in a network without options."""
    network = _on_meta(classifier, {})
    by_stride = {source.tap.stride: source for source in _map_sources(network).values()}
    levels = {level: by_stride[stride] for stride, level in namespaces.LEVEL_AT_STRIDE.items() if stride in by_stride}
    sources = _with_roundings(network, levels)
    if len(sources) < 2:
        raise SpecError(
            f"torchvision's {classifier!r} has no feature maps: no two of its blocks put out an image's size divided "
            "by 2, 4, 8, 16 or 32"
        )
    return sources


def _map_sources(network: nn.Module) -> dict[str, MapSource]:
    """Return path → source of every block's output whose stride is a whole number, in order of execution."""
    size, shapes = next(((size, shapes) for size in SIZES if (shapes := _shapes(network, *size))), (SIZES[0], {}))
    sources = {}
    for path, shape in shapes.items():
        for channels_last in (False, True):
            height, width = shape[1:3] if channels_last else shape[2:]
            stride = size[0] // height
            if (height * stride, width * stride) == size:
                sources[path] = MapSource(path, Tap(shape[3 if channels_last else 1], stride), channels_last)
                break
    return sources


def _with_roundings(network: nn.Module, sources: Mapping[str, MapSource]) -> dict[str, MapSource]:
    """Return the sources with the rounding of their maps' sizes, without those that follow no stride."""

    def measure(size: int) -> list[int]:
        shapes = _shapes(network, size, size)
        return [shapes[source.path][1 if source.channels_last else 2] for source in sources.values()] if shapes else []

    roundings = namespaces.find_roundings([source.tap.stride for source in sources.values()], measure, SIZES[0][0])
    return {
        address: source._replace(tap=replace(source.tap, rounding=rounding))
        for (address, source), rounding in zip(sources.items(), roundings, strict=True)
        if rounding is not None
    }


@torch.no_grad()
def _shapes(network: nn.Module, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return path → shape of the four-dimensional outputs of blocks; nothing where the network refuses the size."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
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


def _on_meta(classifier: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return _create(classifier, options)
    except Exception as error:
        # torchvision checks few of its arguments, and fails on the others with errors of any type.
        raise OptionError(
            f"torchvision cannot build {format_options(classifier, options)} ({error_line(error)})"
        ) from error


def _create(classifier: str, options: Mapping[str, Any], weights: Any = None) -> nn.Module:
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce that their initial weights will change.
        warnings.filterwarnings("ignore", "The default weight initialization", FutureWarning)
        try:
            network: nn.Module = get_model(classifier, weights=weights, **options)
        except NotImplementedError:
            # RegNets compute their widths with tensors, whose values the meta device does not have.
            device = torch.get_default_device()
            with torch.device("cpu"), _ParametersOn(device):
                network = get_model(classifier, weights=weights, **options).to(device)
    return network


class _ParametersOn(TorchFunctionMode):
    """Creates what is to be initialised, which parameters are, on a device, and all other tensors as without it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(named or {})
        if function is torch.empty and named.get("device") is None:
            named["device"] = self.device
        return function(*arguments, **named)
