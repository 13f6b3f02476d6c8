"""timm's models as backbones, with featuretap's tap addresses and timm's options and weights.

The last map of each stride from 2 to 32 is C1 to C5. With dilation, it is the map that would have that stride without
dilation. Other maps are named after timm's module, such as "blocks.9".
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import huggingface_hub
import timm
import torch
from torch import Tensor, nn

from featuretap.backbones.inputs import ImageModel
from featuretap.plugins import library_layouts, namespaces
from featuretap.specs import BackboneSpec, Tap
from featuretap.specs.addresses import LEVELS
from featuretap.specs.description import format_options
from featuretap.specs.layout import Layout
from featuretap.specs.preprocessing import Preprocessing
from featuretap.specs.validation import count
from featuretap.support.errors import OptionError, SpecError, UnknownBackboneError, did_you_mean
from featuretap.support.text import error_line
from featuretap.weights.downloads import torch_hub_path
from featuretap.weights.timm_config import preprocessing_of

PREFIX = "timm/"
DEFAULTS = {"in_chans": 3, "output_stride": 32}
"""Options whose default is not None. None leaves the value to the model."""
CHECKED = {"in_chans": count(3)}
"""Options whose values timm does not validate."""
NOT_OPTIONS = {"num_classes", "global_pool", "out_indices", "device", "dtype"}
"""Arguments of timm's networks that do not affect the maps, or that featuretap sets in another way."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of timm's files on the Hugging Face Hub, in timm's search order."""


class TimmBackbone(ImageModel):
    """A timm network as a backbone.

    It maps images (N, in_chans, H, W) to maps (N, C, H', W') by address, in the order of `addresses`. The attribute
    `network` is timm's network with `features_only=True`. `preprocessing` is only set if weights were loaded.
    """

    preprocessing: Preprocessing

    def __init__(
        self, network: nn.Module, returned: Iterable[str], requested: Iterable[str], channels_last: bool
    ) -> None:
        super().__init__()
        self.network = network
        # A list, since torch.jit.script cannot zip a list with a tuple.
        self.returned = list(returned)
        self.addresses = tuple(requested)
        self.channels_last = channels_last

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the requested maps."""
        maps: dict[str, Tensor] = {}
        for address, feature in zip(self.returned, self.network(images)):  # noqa: B905 - torch.jit.script: no strict
            maps[address] = feature.permute(0, 3, 1, 2) if self.channels_last else feature
        requested: dict[str, Tensor] = {}
        for address in self.addresses:
            requested[address] = maps[address]
        return requested


def match(pattern: str) -> list[str]:
    """Return "timm/…" for every timm architecture that matches a shell pattern, with or without feature maps."""
    return namespaces.match_names(PREFIX, timm.list_models(), pattern)


def find(name: str) -> BackboneSpec:
    """Return the spec of a timm model.

    Args:
        name: "timm/architecture", or "timm/architecture.tag" to make these weights the default.

    Returns:
        The spec.

    Raises:
        UnknownBackboneError: timm does not have the architecture or the weights.
        SpecError: the architecture has no feature maps.
    """
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    if not timm.is_model(architecture):
        raise namespaces.unknown_network("timm has no model", PREFIX, architecture, timm.list_models())
    tags = _tags(architecture)
    if tag and tag not in tags:
        hint = did_you_mean(tag, tags) or ";"
        there = f"its tags are {', '.join(tags)}" if tags else "it has no pretrained weights"
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
        layouts={"timm": "featuretap.plugins.timm_features:layout"},
        tags=tuple(sorted(tags, key=lambda known: known != tag)),
        description=f"{architecture} of timm {timm.__version__}",
    )


def describe(spec: BackboneSpec, **options: Any) -> BackboneSpec:
    """Return the spec with the channels and strides for some options, which have timm's names.

    Args:
        spec: a spec from `find`.
        **options: timm's options.

    Returns:
        The spec with these options.
    """
    taps = _taps(_architecture(spec), namespaces.changed_options(options, DEFAULTS))
    return replace(
        spec,
        taps={address: taps[address] for address in spec.taps},
        more_taps={address: taps[address] for address in spec.more_taps},
        in_channels=options.get("in_chans", spec.in_channels),
    )


def build(spec: BackboneSpec, *, taps: tuple[str, ...], pretrained: str | None = None, **options: Any) -> TimmBackbone:
    """Build a timm model as a backbone.

    Args:
        spec: a spec from `find`.
        taps: addresses of the maps to return.
        pretrained: tag of the weights, which timm loads from its own cache; None for random weights.
        **options: timm's options.

    Returns:
        The backbone.
    """
    architecture = _architecture(spec)
    addresses = _addresses(architecture)
    indices = sorted(addresses.index(address) for address in taps)
    arguments = {"features_only": True, "out_indices": indices, **namespaces.changed_options(options, DEFAULTS)}
    if pretrained:
        network = _load_pretrained(f"{architecture}.{pretrained}", arguments)
    else:
        network = timm.create_model(architecture, **arguments)
    backbone = TimmBackbone(network, [addresses[index] for index in indices], taps, _channels_last(network))
    if pretrained:
        origin = f"{spec.name}.{pretrained}"
        backbone.preprocessing = preprocessing_of(origin, network.pretrained_cfg) or Preprocessing()
    return backbone


@lru_cache(maxsize=8)
def layout(spec: BackboneSpec) -> Layout:
    """Return the tensor names of timm's files for a backbone, including the classifier if it equals featuretap's."""
    architecture, options = _architecture(spec), namespaces.changed_options(spec.options, DEFAULTS)
    with torch.device("meta"):
        features = build(spec, taps=tuple(spec.taps), **spec.options).state_dict()
    addresses, is_buildable = _addresses(architecture), True
    try:
        full = _create_on_meta(architecture, **options)
    except Exception:
        # Some classifiers accept fewer options than feature extractors and raise arbitrary errors.
        is_buildable, options = False, {"in_chans": spec.in_channels}
        full = _create_on_meta(architecture, **options)
    return library_layouts.make_layout(
        features,
        full.state_dict(),
        _classifier(architecture) if is_buildable and addresses[-1] in spec.taps else "",
        # timm loads all other layers even without a classifier.
        required=_create_on_meta(architecture, **options, num_classes=0).state_dict(),
        architecture=architecture,
        arguments=namespaces.changed_options(spec.options, DEFAULTS),
        feature_taps=addresses,
        first_conv=full.pretrained_cfg.get("first_conv"),
        image_size=full.pretrained_cfg["input_size"][1:] if full.pretrained_cfg.get("fixed_input_size") else (),
    )


@lru_cache(maxsize=64)
def _classifier(architecture: str) -> str:
    """Return the path of timm's last layer if it reads the average of the last map, like featuretap's; else ""."""
    features = _features_on_meta(architecture, {}, out_indices=tuple(range(len(_addresses(architecture)))))
    path = library_layouts.find_unpaired_layer(features.state_dict(), _create_on_meta(architecture).state_dict())
    last = features.feature_info.info[-1]["module"]
    with torch.random.fork_rng(devices=[]):
        return path if path and library_layouts.reads_pooled_map(timm.create_model(architecture), path, last) else ""


def _load_pretrained(tagged: str, arguments: Mapping[str, Any]) -> Any:
    """Return a timm model with weights from timm's cache, which are downloaded if necessary."""
    cfg: Any = timm.get_pretrained_cfg(tagged)
    if cfg.hf_hub_id:
        files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else FILES
        found = (huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, file) for file in files)
        cached = next((path for path in found if isinstance(path, str)), None)
        by_hand = f"run 'hf download {cfg.hf_hub_id} {files[0]}' with network access"
    else:
        path = torch_hub_path(cfg.url)
        cached = str(path) if path.is_file() else None
        by_hand = f"put {cfg.url} at {path}"
    overlay = {"file": cached} if cached else {}
    problem = f"timm cannot load {tagged!r} from {cached or 'the Hub'}"
    with namespaces.explain_download(f"timm/{tagged}", bool(cached), problem, by_hand):
        return timm.create_model(tagged, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)


def _architecture(spec: BackboneSpec) -> str:
    return namespaces.network_name(spec, PREFIX).partition(".")[0]


def _tags(architecture: str) -> tuple[str, ...]:
    """Return the tags of an architecture's weights, default first."""
    default = getattr(timm.get_pretrained_cfg(architecture), "tag", None)
    names = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    return tuple(sorted(names, key=lambda tag: tag != default))


@lru_cache(maxsize=64)
def _options(architecture: str) -> dict[str, Any]:
    features = _features_on_meta(architecture, {})
    # If timm wraps a network to extract its maps, the options are those of the wrapped network.
    wrapped = type(features).__module__.startswith("timm.models._features")
    parameters = _parameters(type(_create_on_meta(architecture) if wrapped else features))
    names = [p.name for p in parameters.values() if p.default is not p.empty and p.name not in NOT_OPTIONS]
    return {name: CHECKED.get(name, DEFAULTS.get(name)) for name in names}


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class's constructor, including those of its base class if it passes `**kwargs` on."""
    own = dict(inspect.signature(kind.__init__).parameters)
    base = kind.__mro__[1]
    if base is nn.Module or not any(p.kind is p.VAR_KEYWORD for p in own.values()):
        return own
    return {**own, **_parameters(base)}


@lru_cache(maxsize=64)
def _addresses(architecture: str) -> tuple[str, ...]:
    """Return the addresses of an architecture's maps, in timm's order. They follow from the default strides."""
    maps = _features_on_meta(architecture, {}).feature_info.info
    last = {info["reduction"]: index for index, info in enumerate(maps)}
    addresses = [info["module"] for info in maps]
    for stride, level in namespaces.LEVEL_AT_STRIDE.items():
        if stride in last:
            addresses[last[stride]] = level
    return tuple(addresses)


def _taps(architecture: str, options: Mapping[str, Any]) -> dict[str, Tap]:
    """Return address → tap of the maps whose size is the image size divided by a stride."""
    addresses = _addresses(architecture)
    network = _features_on_meta(architecture, options, out_indices=tuple(range(len(addresses))))
    maps = network.feature_info.info
    if len(maps) != len(addresses):
        raise OptionError(
            f"timm's {format_options(architecture, options)} has {len(maps)} maps, but should have {len(addresses)}: "
            f"{', '.join(addresses)}"
        )
    roundings = namespaces.find_roundings(
        [info["reduction"] for info in maps],
        lambda size: _heights(network, options.get("in_chans", 3), size),
        network.pretrained_cfg.get("input_size", (0,))[-1],
    )
    taps = {
        address: Tap(info["num_chs"], info["reduction"], rounding)
        for address, info, rounding in zip(addresses, maps, roundings, strict=True)
        if rounding is not None
    }
    if not taps:
        raise SpecError(f"timm's {architecture!r} has no feature maps whose size is the image size divided by a stride")
    return taps


@torch.no_grad()
def _heights(network: nn.Module, channels: int, size: int) -> list[int]:
    """Return the heights of the maps of a square image, or nothing if the network rejects its size."""
    try:
        with torch.device("meta"):
            maps = network.eval()(torch.empty(1, channels, size, size))
    except (AssertionError, RuntimeError, ValueError):
        return []
    axis = 1 if _channels_last(network) else 2
    return [feature.shape[axis] for feature in maps]


def _channels_last(network: nn.Module) -> bool:
    return str(getattr(getattr(network, "output_fmt", None), "value", "NCHW")) == "NHWC"


def _features_on_meta(architecture: str, options: Mapping[str, Any], **selected: Any) -> Any:
    try:
        return _create_on_meta(architecture, features_only=True, **options, **selected)
    except Exception as error:
        # timm validates few of its arguments and raises arbitrary errors for the others.
        if options:
            problem = f"timm cannot build {format_options(architecture, options)} ({error_line(error)})"
            raise OptionError(problem) from error
        raise SpecError(f"timm's {architecture!r} has no feature maps ({error_line(error)})") from error


def _create_on_meta(architecture: str, **options: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(architecture, **options)
