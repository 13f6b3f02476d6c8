"""torchvision's classifiers as backbones, by `create_feature_extractor` at the last block of each resolution.

C1 to C5 are the last block outputs at strides 2 to 32. A block is any element of a chain of blocks. Maps inside a
block, such as an expansion at the block's input resolution, have no address.
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
"""Arguments of torchvision's networks that do not affect the maps, or that featuretap sets in another way."""
SIZES = ((224, 256), (224, 224))
"""(height, width) of the images for measuring strides. The second is for networks that accept no other size."""


class MapSource(NamedTuple):
    """The origin of a map.

    Args:
        path: path of the module that returns it.
        tap: its tap.
        channels_last: whether its channels are the last axis.
    """

    path: str
    tap: Tap
    channels_last: bool


class TorchvisionFeatures(ImageModel):
    """A torchvision network as a backbone.

    It maps images (N, 3, H, W) to maps (N, C, H', W') by address, in the order of `addresses`. The attribute `network`
    is torchvision's network, truncated after the last map. `preprocessing` is only set if weights were loaded.
    """

    preprocessing: Preprocessing

    def __init__(self, network: nn.Module, sources: Mapping[str, MapSource]) -> None:
        super().__init__()
        requested = {source.path: address for address, source in sources.items()}
        # The warning concerns GoogLeNet's auxiliary classifiers, which only run in training and do not affect the maps.
        self.network = create_feature_extractor(network, requested, suppress_diff_warning=True)
        self.addresses = tuple(sources)
        self.channels_last = tuple(address for address, source in sources.items() if source.channels_last)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the requested maps."""
        maps: dict[str, Tensor] = self.network(images)
        requested: dict[str, Tensor] = {}
        for address in self.addresses:
            feature = maps[address]
            requested[address] = feature.permute(0, 3, 1, 2) if address in self.channels_last else feature
        return requested

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A deep copy of torchvision's extractor is always in training mode.
        self.train(self.training)


def match(pattern: str) -> list[str]:
    """Return "torchvision/…" for every classifier that matches a shell pattern, with or without feature maps."""
    return namespaces.match_names(PREFIX, _classifiers(), pattern)


def find(name: str) -> BackboneSpec:
    """Return the spec of a torchvision classifier.

    Args:
        name: "torchvision/" and torchvision's name of the classifier.

    Returns:
        The spec.

    Raises:
        UnknownBackboneError: torchvision does not have the classifier.
        SpecError: the classifier has no feature maps.
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
    """Return the spec with the channels and strides for some options, which have torchvision's names.

    Addresses follow from the default strides: C5 is the same map even if dilation keeps it at stride 16.

    Args:
        spec: a spec from `find`.
        **options: torchvision's options.

    Returns:
        The spec with these options.
    """
    classifier = namespaces.network_name(spec, PREFIX)
    network, usual = _on_meta(classifier, namespaces.changed_options(options, {})), _level_sources(classifier)
    found = _map_sources(network)
    sources = _with_roundings(network, {address: found[usual[address].path] for address in spec.taps})
    return replace(spec, taps={address: source.tap for address, source in sources.items()})


def build(
    spec: BackboneSpec, *, taps: tuple[str, ...], pretrained: str | None = None, **options: Any
) -> TorchvisionFeatures:
    """Build a torchvision network as a backbone.

    Args:
        spec: a spec from `find`.
        taps: addresses of the maps to return.
        pretrained: name of the weights, which torchvision loads from its own cache; None for random weights.
        **options: torchvision's options.

    Returns:
        The backbone.
    """
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
    """Return the tensor names of torchvision's files, including the classifier if it equals featuretap's."""
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
    """Return the path of torchvision's last layer if it reads the average of the last map; else ""."""
    full, last = _on_meta(classifier, {}), [*_level_sources(classifier).values()][-1]
    with torch.device("meta"):
        features = TorchvisionFeatures(_on_meta(classifier, {}), {"last": last}).state_dict()
    path = library_layouts.find_unpaired_layer(features, full.state_dict())
    with torch.random.fork_rng(devices=[]):
        return path if path and library_layouts.reads_pooled_map(_create(classifier, {}), path, last.path) else ""


def _load_pretrained(classifier: str, weights: Any, options: Mapping[str, Any]) -> nn.Module:
    """Return a torchvision network with weights from torch.hub's cache, which are downloaded if necessary."""
    path = torch_hub_path(weights.url)
    problem = f"torchvision cannot load {weights.name} for {classifier!r}"
    by_hand = f"put {weights.url} at {path}"
    with namespaces.explain_download(f"{PREFIX}{classifier}.{weights.name}", path.is_file(), problem, by_hand):
        return _create(classifier, options, weights)


def _classifiers() -> list[str]:
    return list_models(module=torchvision.models)


def _options(classifier: str) -> list[str]:
    """Return the constructor arguments of the network's class that have defaults and affect the maps."""
    parameters = inspect.signature(type(_on_meta(classifier, {})).__init__).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty and p.name not in NOT_OPTIONS]


@lru_cache(maxsize=64)
def _level_sources(classifier: str) -> dict[str, MapSource]:
    """Return level → origin of its map in a network without options."""
    network = _on_meta(classifier, {})
    by_stride = {source.tap.stride: source for source in _map_sources(network).values()}
    levels = {level: by_stride[stride] for stride, level in namespaces.LEVEL_AT_STRIDE.items() if stride in by_stride}
    sources = _with_roundings(network, levels)
    if len(sources) < 2:
        raise SpecError(
            f"torchvision's {classifier!r} has no feature maps: fewer than two of its blocks have an output at stride "
            "2, 4, 8, 16 or 32"
        )
    return sources


def _map_sources(network: nn.Module) -> dict[str, MapSource]:
    """Return path → origin of every block output with an integer stride, in order of execution."""
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
    """Return the sources with the rounding of their map sizes, without maps whose size does not follow a stride."""

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
    """Return path → shape of the four-dimensional block outputs, or nothing if the network rejects the size."""
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
    """Yield the elements of a network's chains. A nested chain that contains only layers is one block."""
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
        # torchvision validates few of its arguments and raises arbitrary errors for the others.
        raise OptionError(
            f"torchvision cannot build {format_options(classifier, options)} ({error_line(error)})"
        ) from error


def _create(classifier: str, options: Mapping[str, Any], weights: Any = None) -> nn.Module:
    with warnings.catch_warnings():
        # GoogLeNet and Inception warn that their initialization will change.
        warnings.filterwarnings("ignore", "The default weight initialization", FutureWarning)
        try:
            network: nn.Module = get_model(classifier, weights=weights, **options)
        except NotImplementedError:
            # RegNets compute their widths with tensors, which have no values on the meta device.
            device = torch.get_default_device()
            with torch.device("cpu"), _ParametersOn(device):
                network = get_model(classifier, weights=weights, **options).to(device)
    return network


class _ParametersOn(TorchFunctionMode):
    """Create uninitialized tensors, such as parameters, on a device, and all other tensors on their usual device."""

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
