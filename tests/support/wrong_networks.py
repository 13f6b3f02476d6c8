"""Backbones with one mistake each, for the tests of the conformance kit."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Dict, Final, Tuple  # noqa: UP035 - torch.jit.script knows typing's names only

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from featuretap.backbones.modules import ConvolutionLayer
from featuretap.registry.specs import RE, BackboneSpec, Conv, Convolution, Tap


def layer(width: int, stride: int) -> nn.Sequential:
    """Return a convolution that rounds sizes up, followed by a norm."""
    channels = 3 if stride == 2 else width
    return nn.Sequential(nn.Conv2d(channels, width, stride + 1, stride, stride // 2), nn.BatchNorm2d(width))


class Sound(nn.Module):
    """C1 after one layer, and C5 after another, which is built only if C5 is requested."""

    addresses: Final[Tuple[str, ...]]  # noqa: UP006
    deep: Final[bool]

    def __init__(self, taps: tuple[str, ...], width: int = 8) -> None:
        super().__init__()
        self.addresses = taps
        self.deep = "C5" in taps
        self.first = layer(width, 2)
        self.last = layer(width, 16) if self.deep else nn.Identity()

    def forward(self, images: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        first = self.first(images)
        maps = {"C1": first, "C5": self.last(first) if self.deep else first}
        asked: Dict[str, Tensor] = {}  # noqa: UP006
        for address in self.addresses:
            asked[address] = maps[address]
        return asked


class Changed(Sound):
    """A sound backbone whose maps are replaced by the result of `changed`."""

    def forward(self, images: Tensor) -> Any:
        return self.changed(super().forward(images), images)

    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        raise NotImplementedError


class Stemmed(Sound):
    """A sound backbone whose input images are replaced by the result of `stem`."""

    def forward(self, images: Tensor) -> Any:
        return super().forward(self.stem(images))

    def stem(self, images: Tensor) -> Tensor:
        raise NotImplementedError


# --- Outputs --------------------------------------------------------------------------------------------------------


class OtherChannels(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        return {address: values.repeat(1, 2, 1, 1) for address, values in maps.items()}


class RoundsDown(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.first[0] = nn.Conv2d(3, 8, 2, 2)


class OwnOrder(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        return dict(sorted(maps.items()))


class AlwaysBoth(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        return {**maps, "C1": self.first(images)}


class ReturnsList(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        return list(maps.values())


class ReturnsLists(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        return {address: [values] for address, values in maps.items()}


class Pools(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        return {address: values.mean((2, 3)) for address, values in maps.items()}


class ForgetsTheBatch(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        return {address: values[:1] for address, values in maps.items()}


class Fails(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        raise ValueError("no\nidea " + "at all " * 100)


class Exits(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        raise SystemExit(0)


class Skips(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        pytest.skip("nothing to see")


class ExitsWhenBuilt(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        raise SystemExit(0)


# --- Dependencies of the maps ---------------------------------------------------------------------------------------


class WritesIntoATap(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        if self.deep:
            self.last.insert(0, nn.ReLU(inplace=True))


class DropsInEvaluation(Stemmed):
    def stem(self, images: Tensor) -> Tensor:
        return functional.dropout(images, 0.1, training=True)


class LooksAtNeighbours(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.first[1] = nn.BatchNorm2d(8, track_running_stats=False)


class LooksAtTheImageBefore(Stemmed):
    def stem(self, images: Tensor) -> Tensor:
        return images.cumsum(0)


class IdleParameter(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.idle = nn.Parameter(torch.zeros(3))


class DetachesAMap(Changed):
    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        return {**maps, "C1": maps["C1"].detach()} if "C1" in maps else maps


class DetachesTheImage(Stemmed):
    def stem(self, images: Tensor) -> Tensor:
        return images.detach()


class DetachesBetween(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.last.register_forward_pre_hook(lambda module, given: (given[0].detach(),))


class InfiniteGradient(Stemmed):
    def stem(self, images: Tensor) -> Tensor:
        return images + (images * 0).abs().sqrt()


class OverwritesWhatGradientsNeed(Stemmed):
    def stem(self, images: Tensor) -> Tensor:
        return images.sigmoid().add_(1)


class Attends(Stemmed):
    """A correct backbone."""

    def stem(self, images: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(images, images, images)


# --- Names of tensors -----------------------------------------------------------------------------------------------


class RenamesWhenCut(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        if not self.deep:
            self.first = nn.Sequential(self.first)


class ReshapesWhenCut(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        if not self.deep:
            self.first[0] = nn.Conv2d(3, 8, 5, 2, 2)


class NormForATap(Sound):
    """A norm for C1 only, as in detectors built on transformers. A classifier does not read C1 and has no such norm."""

    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        if "C1" in taps:
            self.norm = nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Any:
        maps = super().forward(images)
        return {address: self.norm(values) if address == "C1" else values for address, values in maps.items()}


# --- Options and freezing -------------------------------------------------------------------------------------------


class IgnoresWidth(Sound):
    def __init__(self, taps: tuple[str, ...], width: int = 8) -> None:
        super().__init__(taps)


class TrainsWhatIsFrozen(Sound):
    """The mistake shows only in batches: a single image does not use the shift."""

    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.shift = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, images: Tensor) -> Any:
        return super().forward(images + self.shift if len(images) > 1 else images)


class SharesItsParameters(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.last = nn.AvgPool2d(17, 16, 8)
        self.idle = nn.Parameter(torch.zeros(3))


class DropsWhatIsFrozen(Changed):
    """Dropout on the maps follows the backbone's training mode, so it stays active when a level is frozen."""

    def changed(self, maps: dict[str, Tensor], images: Tensor) -> Any:
        return {address: functional.dropout(values, 0.5, self.training) for address, values in maps.items()}


class DriftsWhenItTrains(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Any:
        maps = super().forward(images - self.mean)
        if self.training:
            self.mean = self.mean + 1
        return maps


class Restless(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> "Restless":
        return super().train(True)


class NormThatNeverRests(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.first[1] = Restless(8)


# --- Copies, scripts, exports ---------------------------------------------------------------------------------------


class HidesItsState(Stemmed):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.scale = torch.rand(1)

    def stem(self, images: Tensor) -> Tensor:
        return images * self.scale


class CopiesAfresh(Sound):
    def __deepcopy__(self, memo: Any) -> Sound:
        return Sound(self.addresses)


class HoldsALock(Sound):
    def __init__(self, taps: tuple[str, ...]) -> None:
        super().__init__(taps)
        self.lock = threading.Lock()


class KeepsWhatIsNoTensor(Sound):
    def get_extra_state(self) -> Any:
        return {"calls": 0}

    def set_extra_state(self, state: Any) -> None:
        pass


class CannotBeScripted(Stemmed):
    def stem(self, images: Tensor, **options: Any) -> Tensor:
        return images


class ScriptsToSomethingElse(Sound):
    def forward(self, images: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        first = self.first(images)
        if torch.jit.is_scripting():
            first = first + 1
        maps = {"C1": first, "C5": self.last(first) if self.deep else first}
        asked: Dict[str, Tensor] = {}  # noqa: UP006
        for address in self.addresses:
            asked[address] = maps[address]
        return asked


class CannotBeExported(Stemmed):
    def stem(self, images: Tensor) -> Tensor:
        return images + 1 if images.sum() > 0 else images


class ExportsToSomethingElse(Stemmed):
    def stem(self, images: Tensor) -> Tensor:
        return images + 1 if torch.compiler.is_exporting() else images


# --- Tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Biased(Convolution):
    module: ClassVar[str] = f"{__name__}:biased"


def biased(layer: Convolution, norm: Callable[[int], nn.Module]) -> nn.Module:
    built = ConvolutionLayer(layer, norm)
    built.conv.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return built


@dataclass(frozen=True)
class Twice(Convolution):
    module: ClassVar[str] = f"{__name__}:twice"


class TwiceLayer(ConvolutionLayer):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + super().forward(images)


def twice(layer: Convolution, norm: Callable[[int], nn.Module]) -> nn.Module:
    return TwiceLayer(layer, norm)


@dataclass(frozen=True)
class OwnNorm(Convolution):
    module: ClassVar[str] = f"{__name__}:own_norm"


def own_norm(layer: Convolution, norm: Callable[[int], nn.Module]) -> nn.Module:
    return ConvolutionLayer(layer, nn.BatchNorm2d)


@dataclass(frozen=True)
class AlwaysStrides(Convolution):
    module: ClassVar[str] = f"{__name__}:always_strides"


def always_strides(layer: Convolution, norm: Callable[[int], nn.Module]) -> nn.Module:
    return ConvolutionLayer(replace(layer, stride=2, dilation=1), norm)


class RowOf(Conv):
    """A row that builds another kind of layer than a convolution's row."""

    kind: ClassVar[type[Convolution]]

    def layers(self, in_channels: int) -> tuple[Convolution, ...]:
        return (self.kind("conv", in_channels, self.out, self.kernel, 1, self.activation, strided=True),)


def row_of(kind: type[Convolution]) -> RowOf:
    return type(kind.__name__, (RowOf,), {"kind": kind})(3, 8, RE)


class Unwidened:
    """A row that does not implement the full contract."""

    shortcut = False

    def layers(self, in_channels: int) -> tuple[Convolution, ...]:
        return Conv(3, 8, RE).layers(in_channels)


TABLES = [
    BackboneSpec(kind.__name__, stages=((row_of(kind),),) * 5) for kind in (Biased, Twice, OwnNorm, AlwaysStrides)
] + [BackboneSpec("Unwidened", stages=((Unwidened(),),))]


def kinds(base: type[Sound]) -> dict[str, type[Sound]]:
    found = {kind.__name__: kind for kind in base.__subclasses__()}
    return {"Sound": Sound, **found, **kinds(Changed), **kinds(Stemmed)} if base is Sound else found


KINDS = kinds(Sound)


def build(spec: BackboneSpec, *, taps: tuple[str, ...], **options: Any) -> nn.Module:
    return KINDS[spec.name](taps, **options)


def describe(spec: BackboneSpec, *, width: int) -> BackboneSpec:
    return replace(spec, taps={address: Tap(width, tap.stride) for address, tap in spec.taps.items()})


FACTORIES = [
    BackboneSpec(
        name,
        taps={"C1": Tap(8, 2), "C5": Tap(8, 32)},
        factory=f"{__name__}:build",
        **({"describe": f"{__name__}:describe", "options": {"width": 8}} if name in ("Sound", "IgnoresWidth") else {}),
    )
    for name in KINDS
]
