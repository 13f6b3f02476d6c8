"""Backbone specs: a table of stages, or a declaration of a backbone that a factory function builds.

Taps, channels, strides, map sizes, parameters and multiply-adds are computed from the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from featuretap.specs.activations import peak_bytes
from featuretap.specs.addresses import LEVELS, describe_unknown_tap, find_addresses
from featuretap.specs.blocks import Block, place_rows, truncate
from featuretap.specs.layers import PADDINGS, SYMMETRIC, Activation, BatchNorm, Linear
from featuretap.specs.rows import RE, Row
from featuretap.specs.taps import Tap
from featuretap.specs.validation import (
    BOOLEAN,
    COUNT,
    EPS,
    IMPORT_STRING,
    NAMED_STRINGS,
    OPTIONS,
    POSITIVE,
    STRING,
    STRINGS,
    TAPS,
    check_fields,
    check_name,
)
from featuretap.support.errors import OptionError, SpecError, TapError, UnknownTapError
from featuretap.support.import_strings import load

COUNTING = "featuretap.models.counting"

Stages = tuple[tuple[Row, ...], ...]


@dataclass(frozen=True)
class Classifier:
    """The layers of a family's classifier: pooled features, an optional hidden layer, dropout, logits.

    Args:
        hidden: channels of the hidden layer, or 0 for no hidden layer.
        hidden_bias: whether the hidden layer has a bias.
        activation: activation after the hidden layer.
        dropout: dropout rate during training.
        hidden_norm: whether a batch norm follows the hidden layer.
        inverted_dropout: if True, dropout divides the remaining units by 1 - rate during training, as in PyTorch. If
            False, training leaves them unscaled and evaluation multiplies all units by 1 - rate, as in the original
            paper (Srivastava et al., JMLR 15, 2014, section 4) and in Paddle's mode "downscale_in_infer".

    Examples:
        >>> from featuretap.registry.specs import HS, Classifier
        >>> classifier = Classifier(hidden=1280, activation=HS)
        >>> [layer.parameters for layer in classifier.layers(channels=960, num_classes=1000)]
        [1230080, 1281000]
    """

    hidden: int = 0
    hidden_bias: bool = True
    activation: Activation = RE
    dropout: float = 0.2
    hidden_norm: bool = False
    inverted_dropout: bool = True

    def evaluation_scale(self, dropout: float | None = None) -> float:
        """Return the factor applied to the last hidden units during evaluation.

        Args:
            dropout: dropout rate during training; None uses the rate of this classifier.

        Returns:
            1.0 with inverted dropout, otherwise 1 - rate.
        """
        rate = self.dropout if dropout is None else dropout
        return 1.0 if self.inverted_dropout else 1 - rate

    def layers(self, channels: int, num_classes: int) -> tuple[Linear | BatchNorm, ...]:
        """Return the layers from the pooled features to the logits.

        Args:
            channels: channels of the pooled features.
            num_classes: number of logits; 0 omits the last layer.

        Returns:
            The layers in execution order.
        """
        layers: list[Linear | BatchNorm] = []
        if self.hidden:
            layers.append(Linear("hidden", channels, self.hidden, self.hidden_bias))
            channels = self.hidden
            if self.hidden_norm:
                layers.append(BatchNorm("norm", channels))
        if num_classes:
            layers.append(Linear("logits", channels, num_classes))
        return tuple(layers)


FIELDS = {
    "factory": IMPORT_STRING,
    "describe": IMPORT_STRING,
    "options": OPTIONS,
    "in_channels": COUNT,
    "output_stride": ("32, 16 or 8", lambda value: value in (32, 16, 8)),
    "dilate_entry": BOOLEAN,
    "padding": (" or ".join(map(repr, PADDINGS)), lambda value: value in PADDINGS),
    "width": POSITIVE,
    "norm": ("None or a function channels -> nn.Module", lambda value: value is None or callable(value)),
    "norm_eps": EPS,
    "norm_momentum": EPS,
    "classifier": ("a Classifier", lambda value: isinstance(value, Classifier)),
    "layouts": NAMED_STRINGS,
    "published_as": STRING,
    "variant_of": STRING,
    "description": STRING,
    "tags": STRINGS,
}
SHOWN = {
    "factory": "",
    "in_channels": 3,
    "output_stride": 32,
    "dilate_entry": False,
    "padding": SYMMETRIC,
    "width": 1.0,
    "norm": None,
}
"""Fields that `repr` shows if they differ from these defaults. It never shows `stages`, which is too long."""

DECLARED = {"taps": TAPS, "more_taps": TAPS}


@dataclass(frozen=True)
class BackboneSpec:
    """A torch-free description of a backbone: a table of rows, or a declaration with a factory function.

    A table sets `stages`. Its `taps` are the addresses to return, in order; by default, the last map of every stage.
    Layers after the last tap are neither counted nor built.

    A backbone that is not a table sets `taps` to a mapping from address to `Tap`, `options` to its options with their
    defaults, and `factory` to the import string of `factory(spec, *, taps, **options) -> nn.Module`. The module returns
    a dict of maps. To count its parameters and multiply-adds, featuretap builds it on PyTorch's meta device, without
    allocating memory.

    Args:
        name: name of the backbone in the registry.
        stages: one tuple of rows for each resolution. The first row of a stage has stride 2; the output of the last row
            is the stage's tap.
        taps: tap addresses (table), or a mapping from address to `Tap` (factory). Always a mapping after construction.
        factory: import string of the function that builds a backbone without a table.
        options: for a factory, every option with its default value or an `Option`, which also defines the valid values.
            For a table, defaults that replace those of the standard options.
        aliases: other names of the backbone.
        in_channels: channels of the images (N, in_channels, H, W).
        output_stride: maximum stride of a map. Stages beyond it dilate instead.
        dilate_entry: whether the block that would have strided already uses the dilation of its stage.
        padding: padding of the convolutions: "symmetric", or "same" for TensorFlow's rule, which weights trained in
            TensorFlow require.
        width: width multiplier already applied to the channels. Some heads scale their channels by it, too.
        norm: function that takes channels and returns a module to use instead of batch norm. Its parameters are
            counted.
        norm_eps: epsilon of batch norm in the family's reference code.
        norm_momentum: momentum of batch norm in the family's reference code, in PyTorch's convention.
        classifier: layers that the `classification` head adds.
        layouts: mapping from layout name to the import string of `layout(spec) -> Layout`, which maps tensor names to
            those of another library.
        published_as: for a variant with the same tensors, name of the backbone whose published weights fit it.
        variant_of: for a variant from a catalogue, name of the backbone that its options apply to.
        description: one-line description.
        more_taps: for a factory, mapping from address to `Tap` of maps that are returned only on request.
        describe: for a factory, import string of `describe(spec, **options) -> BackboneSpec`. Required if taps or image
            channels depend on the options. May import torch.
        tags: for a factory, tags of weights that the factory downloads itself, the default first. The factory is then
            called with `pretrained=tag`, and its module may have an attribute `preprocessing` for these weights.

    Raises:
        SpecError: the spec has neither stages nor taps with a factory, or a field is invalid.
        UnknownTapError: a tap address does not exist in this architecture.
        TapError: `taps` is empty or repeats an address.

    Examples:
        >>> from featuretap.registry.specs import HS, RE, BackboneSpec, Bneck, Conv
        >>> spec = BackboneSpec("tinynet", stages=((Conv(3, 16, HS),), (Bneck(3, 48, 24, RE), Bneck(3, 96, 24, RE))))
        >>> spec
        BackboneSpec('tinynet', taps=('C1', 'C2'))
        >>> list(spec.addresses)
        ['C1', 'C1.bottleneck', 'C1.expansion', 'C1.first', 'C2', 'C2.bottleneck', 'C2.first', 'C2.depthwise']
        >>> spec.parameters, spec.macs(224, 224)
        (8960, 37180416)
        >>> spec.with_taps(["C1.expansion"]).tap_shapes(224, 224)
        {'C1.expansion': (48, 112, 112)}
    """

    name: str
    stages: Stages = ()
    taps: Mapping[str, Tap] = field(default_factory=dict, hash=False)
    factory: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    aliases: tuple[str, ...] = ()
    in_channels: int = 3
    output_stride: int = 32
    dilate_entry: bool = False
    padding: str = SYMMETRIC
    width: float = 1.0
    norm: Callable[[int], Any] | None = None
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    classifier: Classifier = Classifier()
    layouts: Mapping[str, str] = field(default_factory=dict, hash=False)
    published_as: str = ""
    variant_of: str = ""
    description: str = ""
    more_taps: Mapping[str, Tap] = field(default_factory=dict, hash=False)
    describe: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("backbone", self.name, self.aliases)
        check_fields(f"backbone {self.name!r}", self, FIELDS)
        object.__setattr__(self, "options", dict(self.options))
        object.__setattr__(self, "layouts", dict(self.layouts))
        if self.stages:
            if not all(self.stages) or len(self.stages) > len(LEVELS):
                raise SpecError(
                    f"{self.name!r} has an empty stage, or more than {len(LEVELS)} stages; correct its table"
                )
            requested = self.taps or LEVELS[: len(self.stages)]
            object.__setattr__(self, "taps", self._taps_at(requested))
        elif self.taps and self.factory:
            check_fields(f"backbone {self.name!r}", self, DECLARED)
            object.__setattr__(self, "taps", dict(self.taps))
            object.__setattr__(self, "more_taps", dict(self.more_taps))
        else:
            raise SpecError(f"{self.name!r} has neither stages nor a factory; define stages, or taps and a factory")

    def __repr__(self) -> str:
        shown = {"taps": tuple(self.taps)}
        for name, default in SHOWN.items():
            if getattr(self, name) != default:
                shown[name] = getattr(self, name)
        return f"BackboneSpec({self.name!r}, {', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @cached_property
    def all_blocks(self) -> tuple[Block, ...]:
        """All blocks of the table in execution order, regardless of the taps."""
        return place_rows(self.stages, self.in_channels, self.output_stride, self.dilate_entry, self.padding)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks to build: up to the last requested tap, with the last block cut at the tap."""
        return truncate(self.all_blocks, set(self.paths.values()))

    @cached_property
    def addresses(self) -> Mapping[str, str]:
        """Mapping from every tap address of the architecture to the path of the submodule whose output it is."""
        return find_addresses(self.all_blocks) if self.stages else dict.fromkeys(self._declared, "")

    @property
    def stem(self) -> str:
        """Name of the weight tensor that reads the image, whose shape depends on `in_channels`."""
        return f"{next(iter(self.all_blocks[0].layer_paths()))[0]}.conv.weight"

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that the architecture has, such as C1 to C5."""
        return tuple(address for address in self.addresses if address in LEVELS)

    @property
    def paths(self) -> dict[str, str]:
        """Mapping from requested tap address to submodule path, in the order of the request."""
        return {address: self.addresses[address] for address in self.taps}

    @property
    def parameters(self) -> int:
        """Number of parameters of the layers to build, including gamma and beta of the norms.

        Counting a backbone with a factory imports torch.

        Raises:
            PluginError: the backbone's factory failed.
        """
        if not self.stages:
            counted: int = load(f"{COUNTING}:factory_parameters")(self)
            return counted
        return sum(
            layer.parameters + self._norm_parameters(layer.norm_channels) for b in self.blocks for layer in b.layers
        )

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-adds of the layers to build.

        A table counts convolutions and linear layers, including the two of squeeze-excite, and nothing else. A backbone
        with a factory also counts the matrix products of attention.

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            Multiply-adds for one image.

        Raises:
            PluginError: the backbone's factory failed.
        """
        check_size(height, width)
        if not self.stages:
            counted: int = load(f"{COUNTING}:factory_macs")(self, height, width)
            return counted
        total = 0
        for block in self.blocks:
            for layer in block.layers:
                total += layer.macs(height, width)
                height, width = layer.output_size(height, width)
        return total

    def activation_memory(self, height: int, width: int) -> int:
        """Return the peak memory of the activations in inference, in bytes.

        This is the maximum total size of the tensors in memory at one time, for one image in float32. A convolution
        with its norm and activation is one step, and the addition of a shortcut is another. Each step needs its input
        and output, the input of an unfinished shortcut, and the maps of all requested taps reached so far. The image
        counts until the first layer has read it. Parameters, padded copies for `padding="same"`, and the scratch memory
        of a runtime do not count.

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            The peak memory in bytes.

        Raises:
            SpecError: the backbone is not a table, so the lifetimes of its tensors are unknown.

        Examples:
            >>> from featuretap import registry
            >>> registry.spec("mobilenet_v2", features_only=True).activation_memory(224, 224)
            6823936
        """
        check_size(height, width)
        if not self.stages:
            raise SpecError(
                f"the activation memory of {self.name!r} is not known, because it is not a table of rows; measure it "
                "with PyTorch's profiler"
            )
        return peak_bytes(self.blocks, set(self.paths.values()), self.in_channels, height, width)

    def tap_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Return a mapping from tap to (channels, height, width).

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            A mapping in the order of `taps`.
        """
        check_size(height, width)
        return {name: tap.shape(height, width) for name, tap in self.taps.items()}

    def with_taps(self, addresses: Iterable[str]) -> BackboneSpec:
        """Return a copy of this spec that returns the taps at `addresses`. Layers after the last tap are dropped.

        Args:
            addresses: tap addresses, in the order in which their maps are returned.

        Returns:
            The new spec.

        Raises:
            UnknownTapError: the architecture does not have an address.
            TapError: `addresses` is empty or repeats an address.

        Examples:
            >>> from featuretap import registry
            >>> spec = registry.spec("mobilenet_v2", features_only=True)
            >>> spec.with_taps(["C3", "C4.expansion"]).tap_shapes(224, 224)
            {'C3': (32, 28, 28), 'C4.expansion': (576, 14, 14)}
        """
        taps = self._taps_at(addresses)
        spec = copy(self)
        object.__setattr__(spec, "taps", taps)
        if not self.stages:
            object.__setattr__(spec, "more_taps", {a: tap for a, tap in self._declared.items() if a not in taps})
        # Only `blocks` depends on the taps; the other cached properties stay valid.
        vars(spec).pop("blocks", None)
        return spec

    def _taps_at(self, requested: Iterable[str]) -> dict[str, Tap]:
        """Return the taps at the `requested` addresses, in the same order."""
        if isinstance(requested, str):
            raise TapError(f"taps={requested!r} is a string; give a tuple of addresses, such as taps=({requested!r},)")
        if not isinstance(requested, Iterable):
            raise TapError(f"taps must be a tuple of addresses, such as ('C3', 'C4', 'C5'); got {requested!r}")
        addresses = tuple(requested)
        if not addresses:
            raise TapError(f"taps of {self.name!r} is empty; name at least one of {', '.join(self.addresses)}")
        for address in addresses:
            if not isinstance(address, str) or address not in self.addresses:
                raise UnknownTapError(describe_unknown_tap(self.name, address, self.addresses))
        repeated = sorted({address for address in addresses if addresses.count(address) > 1})
        if repeated:
            raise TapError(f"taps of {self.name!r} repeats {', '.join(repeated)}; name each tap once")
        available = {a: self._outputs[path] for a, path in self.addresses.items()} if self.stages else self._declared
        return {address: available[address] for address in addresses}

    @property
    def _declared(self) -> dict[str, Tap]:
        """All taps that a factory declares; empty for a table."""
        return {} if self.stages else {**self.taps, **self.more_taps}

    @cached_property
    def _outputs(self) -> dict[str, Tap]:
        # For an image of the maximum stride, the height of a map is the maximum stride divided by the map's stride.
        image = 2 ** len(self.stages)
        return {
            path: Tap(channels, image // height, "ceil" if above > height else self._rounding(path, image))
            for path, (channels, height, above) in self._maps(image, image + 1).items()
        }

    def _maps(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Return a mapping from path to (channels, height, width) for images of `height` × `width` pixels."""
        maps = {}
        size = height, width
        for block in self.all_blocks:
            for path, layer in block.layer_paths():
                size = layer.output_size(*size)
                maps[path] = layer.out_channels, *size
            maps[block.path] = block.out_channels, *size
        return maps

    def _rounding(self, path: str, image: int) -> Literal["floor"] | int:
        """Return the rounding of a map after an even kernel, which drops a last pixel without a neighbor."""
        _, height, _ = self._maps(image, image)[path]
        stride = image // height
        extra = next(extra for extra in range(1, stride + 1) if self._maps(image + extra, image)[path][1] > height)
        return "floor" if extra == stride else stride - extra

    def _norm_parameters(self, channels: int) -> int:
        if channels == 0:
            return 0
        if self.norm is None:
            return 2 * channels
        return sum(parameter.numel() for parameter in self.norm(channels).parameters())


def check_size(height: int, width: int) -> None:
    """Check that `height` and `width` are a valid image size in pixels.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.

    Raises:
        OptionError: `height` or `width` is not a positive integer.
    """
    for size in (height, width):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise OptionError(
                f"height and width of an image must be positive integers, in pixels; got {height!r}×{width!r}"
            )
