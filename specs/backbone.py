"""A backbone as data: a table of stages, or the declaration of what somebody's factory builds.

Taps, channels, strides, sizes, parameters and multiply-adds are computed from the table, never written down beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from featuretap.specs.activations import peak_bytes
from featuretap.specs.addresses import LEVELS, addresses_of, describe_unknown_tap
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
    """What a family puts between its pooled features and its logits: a hidden layer, then dropout.

    Args:
        hidden: channels of the hidden layer, 0 for none.
        hidden_bias: whether the hidden layer has a bias.
        activation: behind the hidden layer.
        dropout: rate in training.
        hidden_norm: whether a batch norm stands between the hidden layer and its activation.
        inverted_dropout: whether dropout divides the units that it keeps by 1 - rate in training, as PyTorch's does.
            Where False, they keep their values, and evaluation multiplies all units by 1 - rate instead, as in the
            paper (Srivastava et al., JMLR 15, 2014, section 4) and in Paddle's mode "downscale_in_infer".
    """

    hidden: int = 0
    hidden_bias: bool = True
    activation: Activation = RE
    dropout: float = 0.2
    hidden_norm: bool = False
    inverted_dropout: bool = True

    def evaluation_scale(self, dropout: float | None = None) -> float:
        """Return the factor in evaluation between the last hidden units and the logits.

        Args:
            dropout: the rate in training; None is the family's own.
        """
        rate = self.dropout if dropout is None else dropout
        return 1.0 if self.inverted_dropout else 1 - rate

    def layers(self, channels: int, num_classes: int) -> tuple[Linear | BatchNorm, ...]:
        """Return the layers between the pooled features and the logits.

        Args:
            channels: of the pooled features.
            num_classes: number of logits; 0 leaves them out.
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
"""Field → the usual value; others are a part of a spec's text. Its table is not: `stages` has it."""

DECLARED = {"taps": TAPS, "more_taps": TAPS}


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone as data: a table of rows, or the declaration of one that somebody's factory builds.

    A table gives `stages`; `taps` are the addresses to return, in order (default: the last map of every stage). What
    comes after the last of them belongs to no count and is not built. A backbone that is no table gives `taps` as a
    mapping from address to `Tap`, the `options` that it takes with their defaults, and a `factory`: the import string
    of `factory(spec, *, taps, **options) -> nn.Module`, whose module returns a dict of maps. It is counted by building
    it without memory, on torch's meta device.

    Args:
        name: what `registry.build` knows it by.
        stages: rows by resolution; the first row of a stage strides, its last row ends it.
        taps: addresses (a table) or address → `Tap` (a factory); after construction always a mapping.
        factory: import string of the function that builds it, where it is no table.
        more_taps: for a factory, address → `Tap` of maps that come back only where they are asked for.
        describe: for a factory, import string of `describe(spec, **options) -> BackboneSpec`, where taps or image
            channels follow from the options; may need torch.
        tags: for a factory, names of weights that it fetches itself, the default first; it is then called with
            `pretrained=tag` besides, and its module may have the `preprocessing` that they were trained with.
        options: for a factory, every option with its default, or with an `Option`, which also says what values it
            takes; for a table, defaults that differ from the usual ones.
        aliases: other names for it.
        in_channels: channels of the images, (N, in_channels, H, W).
        output_stride: no map is smaller than the image divided by this; later stages dilate instead.
        dilate_entry: whether the block that would have strided already uses the stage's dilation.
        padding: of convolutions: "symmetric", or "same" for TensorFlow's rule, which weights from there need.
        width: the multiplier that its channels were scaled by, which some heads scale theirs by too.
        norm: a factory channels → module in place of batch norm, counted as it is.
        norm_eps: epsilon of batch norm in the family's reference code.
        norm_momentum: momentum of batch norm there, in torch's convention.
        classifier: what the `classification` head puts on it.
        layouts: layout name → import string of `layout(spec) -> Layout`, which names its tensors as that library does.
        published_as: name of the backbone whose published weights fit this one too, where it is a variant that changes
            no tensor.
        variant_of: name of the backbone that its options are to be applied to, where it is a variant of a catalogue.
        description: one line for people.

    Raises:
        SpecError: it has neither stages nor taps with a factory, or its table is malformed.
        UnknownTapError: a requested address does not exist in this architecture.
        TapError: an empty or repeated request.
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
                raise SpecError(f"{self.name!r} has a stage without rows, or more than {len(LEVELS)} stages")
            wanted = self.taps or LEVELS[: len(self.stages)]
            object.__setattr__(self, "taps", self._taps_at(wanted))
        elif self.taps and self.factory:
            check_fields(f"backbone {self.name!r}", self, DECLARED)
            object.__setattr__(self, "taps", dict(self.taps))
            object.__setattr__(self, "more_taps", dict(self.more_taps))
        else:
            raise SpecError(f"{self.name!r} is neither a table nor declared; give it stages, or taps and a factory")

    def __repr__(self) -> str:
        shown = {"taps": tuple(self.taps)}
        for name, default in SHOWN.items():
            if getattr(self, name) != default:
                shown[name] = getattr(self, name)
        return f"BackboneSpec({self.name!r}, {', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @cached_property
    def all_blocks(self) -> tuple[Block, ...]:
        """Every block of the table in order of execution, whatever the taps."""
        return place_rows(self.stages, self.in_channels, self.output_stride, self.dilate_entry, self.padding)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks that are built: those up to the last requested tap, the last one cut where the tap is."""
        return truncate(self.all_blocks, set(self.paths.values()))

    @cached_property
    def addresses(self) -> Mapping[str, str]:
        """Every tap address that the architecture has → the path of the submodule whose output it is."""
        return addresses_of(self.all_blocks) if self.stages else dict.fromkeys(self._declared, "")

    @property
    def stem(self) -> str:
        """Name of the weight that reads the image, which `in_channels` changes."""
        return f"{next(iter(self.all_blocks[0].layer_paths()))[0]}.conv.weight"

    @property
    def levels(self) -> tuple[str, ...]:
        """The whole levels among its addresses, such as C1 to C5."""
        return tuple(address for address in self.addresses if address in LEVELS)

    @property
    def paths(self) -> dict[str, str]:
        """Requested address → submodule path, in the order of the request."""
        return {address: self.addresses[address] for address in self.taps}

    @property
    def parameters(self) -> int:
        """Parameters of what is built, the norms' gamma and beta included. What is no table needs torch to be counted.

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
        """Multiply-adds of what is built, for one image of `height` × `width` pixels.

        Those of convolutions and linear layers, squeeze-excite's two included; nothing else counts in a table. In what
        is no table, the products of attention count too.

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

        This is the largest sum of all tensors that are in memory at one time, for one image in float32. A convolution
        with its norm and its activation is one step, and so is the addition of a shortcut. The input and the output of
        a step are in memory together, with the input of an unfinished shortcut and the maps of all requested taps
        reached so far. The image counts until the first layer has read it. Parameters, the padded copies that
        `padding="same"` may need, and the scratch memory of a runtime do not count.

        Args:
            height: height of the image in pixels.
            width: width of the image in pixels.

        Raises:
            SpecError: the backbone is not a table of rows, so the lifetimes of its tensors are not known.

        Example:
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
        """Tap → (channels, height, width) for images of `height` × `width` pixels."""
        check_size(height, width)
        return {name: tap.shape(height, width) for name, tap in self.taps.items()}

    def with_taps(self, addresses: Iterable[str]) -> BackboneSpec:
        """Return this spec with the taps of some `addresses`; layers after the last of them are dropped.

        Raises:
            UnknownTapError: the architecture lacks an address.
            TapError: none was given, or one twice.
        """
        taps = self._taps_at(addresses)
        spec = copy(self)
        object.__setattr__(spec, "taps", taps)
        if not self.stages:
            object.__setattr__(spec, "more_taps", {a: tap for a, tap in self._declared.items() if a not in taps})
        # The table and what was computed from it stay; only where it is cut depends on the taps.
        vars(spec).pop("blocks", None)
        return spec

    def _taps_at(self, wanted: Iterable[str]) -> dict[str, Tap]:
        """Return the taps at the addresses `wanted`, in that order."""
        if isinstance(wanted, str):
            raise TapError(f"taps={wanted!r} is a string; give a tuple of addresses, such as taps=({wanted!r},)")
        if not isinstance(wanted, Iterable):
            raise TapError(f"taps={wanted!r} should be a tuple of addresses, such as ('C3', 'C4', 'C5')")
        addresses = tuple(wanted)
        if not addresses:
            raise TapError(f"no taps were asked of {self.name!r}; name at least one of {', '.join(self.addresses)}")
        for address in addresses:
            if not isinstance(address, str) or address not in self.addresses:
                raise UnknownTapError(describe_unknown_tap(self.name, address, self.addresses))
        repeated = sorted({address for address in addresses if addresses.count(address) > 1})
        if repeated:
            raise TapError(f"{', '.join(repeated)} is asked of {self.name!r} more than once; name each tap once")
        available = {a: self._outputs[path] for a, path in self.addresses.items()} if self.stages else self._declared
        return {address: available[address] for address in addresses}

    @property
    def _declared(self) -> dict[str, Tap]:
        """Every tap that a factory declares; none of a table."""
        return {} if self.stages else {**self.taps, **self.more_taps}

    @cached_property
    def _outputs(self) -> dict[str, Tap]:
        # An image as large as the largest stride shrinks to the quotient of the two strides.
        image = 2 ** len(self.stages)
        return {
            path: Tap(channels, image // height, "ceil" if above > height else self._rounding(path, image))
            for path, (channels, height, above) in self._maps(image, image + 1).items()
        }

    def _maps(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Path → (channels, height, width) of the map of an image of `height` × `width` pixels."""
        maps = {}
        size = height, width
        for block in self.all_blocks:
            for path, layer in block.layer_paths():
                size = layer.output_size(*size)
                maps[path] = layer.out_channels, *size
            maps[block.path] = block.out_channels, *size
        return maps

    def _rounding(self, path: str, image: int) -> Literal["floor"] | int:
        """Return how a map rounds that is behind an even kernel, which drops a last pixel without a neighbour."""
        _, height, _ = self._maps(image, image)[path]
        stride = image // height
        more = next(more for more in range(1, stride + 1) if self._maps(image + more, image)[path][1] > height)
        return "floor" if more == stride else stride - more

    def _norm_parameters(self, channels: int) -> int:
        if channels == 0:
            return 0
        if self.norm is None:
            return 2 * channels
        return sum(parameter.numel() for parameter in self.norm(channels).parameters())


def check_size(height: int, width: int) -> None:
    """Refuse what is no size of an image in pixels.

    Raises:
        OptionError: `height` or `width` is no positive whole number.
    """
    for size in (height, width):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise OptionError(
                f"no image has {height!r}×{width!r} pixels; give height and width as positive whole numbers"
            )
