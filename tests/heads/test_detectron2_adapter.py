"""featuretap's backbones in Detectron2, tested with a stand-in for `detectron2.modeling`.

Detectron2 has no wheel. The stand-in has the interface of version 0.6: an abstract `Backbone` whose `output_shape`
reads three attributes, and a pyramid that accepts only a `Backbone` and adds maps of exactly twice the size.
"""

import copy
import pickle
import sys
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from featuretap.adapters import detectron2 as adapter
from featuretap.adapters.detectron2 import as_detectron2
from featuretap.registry import Registry
from featuretap.registry.errors import MissingExtraError, OptionError


class ShapeSpec(NamedTuple):
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Backbone(nn.Module, metaclass=ABCMeta):
    @abstractmethod
    def forward(self) -> dict[str, Tensor]: ...

    @property
    def size_divisibility(self) -> int:
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        attributes: Any = self
        channels, strides = attributes._out_feature_channels, attributes._out_feature_strides
        return {name: ShapeSpec(channels=channels[name], stride=strides[name]) for name in attributes._out_features}


class FPN(nn.Module):
    def __init__(self, bottom_up: nn.Module, in_features: list[str], out_channels: int) -> None:
        super().__init__()
        assert isinstance(bottom_up, Backbone)
        shapes = bottom_up.output_shape()
        self.laterals = nn.ModuleDict({name: nn.Conv2d(shapes[name].channels, out_channels, 1) for name in in_features})
        self.bottom_up = bottom_up

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.bottom_up(images)
        levels: list[Tensor] = []
        for name, lateral in reversed(self.laterals.items()):
            level = lateral(maps[name])
            levels.append(level + nn.functional.interpolate(levels[-1], scale_factor=2) if levels else level)
        return levels[::-1]


@pytest.fixture
def detectron2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package, modeling = ModuleType("detectron2"), ModuleType("detectron2.modeling")
    package.__spec__ = ModuleSpec("detectron2", None, is_package=True)
    modeling.Backbone = Backbone  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "detectron2", package)
    monkeypatch.setitem(sys.modules, "detectron2.modeling", modeling)
    adapter._backbone_class.cache_clear()
    yield
    adapter._backbone_class.cache_clear()


pytestmark = pytest.mark.usefixtures("detectron2")


def test_a_backbone_is_one_of_detectron2s(registry: Registry) -> None:
    body = registry.build("mobilenet_v2_050", features_only=True, taps=("C3", "C4.expansion", "C5"))
    backbone = as_detectron2(body)
    assert isinstance(backbone, Backbone)
    assert backbone.output_shape() == {
        "C3": ShapeSpec(channels=16, stride=8),
        "C4.expansion": ShapeSpec(channels=288, stride=16),
        "C5": ShapeSpec(channels=1280, stride=32),
    }
    assert backbone.padding_constraints == {}
    images = torch.rand(2, 3, 64, 96)
    for name, feature in backbone.eval()(images).items():
        shape = backbone.output_shape()[name]
        assert feature.shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
        assert torch.equal(feature, body(images)[name])


@pytest.mark.parametrize(
    ("taps", "options", "divisibility"),
    [(("C2", "C3"), {}, 8), (("C3", "C4", "C5"), {}, 32), (("C3", "C4", "C5"), {"output_stride": 16}, 16)],
    ids=["C3", "C5", "C5 at output stride 16"],
)
def test_images_are_padded_to_multiples_of_the_largest_stride(
    registry: Registry, taps: tuple[str, ...], options: dict[str, int], divisibility: int
) -> None:
    body = registry.build("mobilenet_v1_025", features_only=True, taps=taps, **options)
    assert as_detectron2(body).size_divisibility == divisibility


def test_added_levels_of_a_pyramid_need_no_padding(registry: Registry) -> None:
    pyramid = registry.build("mobilenet_v1_025", head="fpn", out_channels=8, taps=("C4", "C5"), extra_levels="p6p7")
    backbone = as_detectron2(pyramid)
    assert [shape.stride for shape in backbone.output_shape().values()] == [16, 32, 64, 128]
    assert backbone.size_divisibility == 32


def test_detectron2s_pyramid_adds_the_maps_of_padded_images_only(registry: Registry) -> None:
    taps = ["C3", "C4", "C5"]
    pyramid = FPN(as_detectron2(registry.build("mobilenet_v1_025", features_only=True, taps=tuple(taps))), taps, 8)
    multiple = pyramid.bottom_up.size_divisibility
    padded = [-(-size // multiple) * multiple for size in (97, 161)]
    assert [tuple(level.shape[2:]) for level in pyramid(torch.rand(1, 3, *padded))] == [(16, 24), (8, 12), (4, 6)]
    with pytest.raises(RuntimeError, match="must match the size"):
        pyramid(torch.rand(1, 3, 97, 161))


def test_gradients_reach_the_body_and_frozen_levels_stay_frozen(registry: Registry) -> None:
    body = registry.build("mobilenet_v1_025", features_only=True, taps=("C3", "C5"), freeze="C2")
    backbone = as_detectron2(body).train()
    torch.stack([feature.mean() for feature in backbone(torch.rand(2, 3, 64, 64)).values()]).sum().backward()
    with_gradient = {name.split(".")[2] for name, p in backbone.named_parameters() if p.grad is not None}
    assert with_gradient == {"C3", "C4", "C5"}
    assert not body.stages.C2.training


def test_it_is_copied_and_pickled(registry: Registry) -> None:
    backbone = as_detectron2(registry.build("mobilenet_v1_025", features_only=True, taps=("C3",))).eval()
    images = torch.rand(1, 3, 32, 32)
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert type(other) is adapter.Detectron2Backbone
        assert torch.equal(other(images)["C3"], backbone(images)["C3"])


def test_models_without_maps_are_refused(registry: Registry) -> None:
    with pytest.raises(OptionError, match="HeadedModel does not return feature maps; use a backbone"):
        as_detectron2(registry.build("mobilenet_v1_025"))


def test_detectron2_has_to_be_installed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(MissingExtraError) as error:
        as_detectron2(registry.build("mobilenet_v1_025", features_only=True))
    assert str(error.value) == (
        "as_detectron2 needs detectron2; run pip install 'git+https://github.com/facebookresearch/detectron2'"
    )
    with pytest.raises(AttributeError, match=r"module 'featuretap\.adapters\.detectron2' has no attribute 'nothing'"):
        _ = adapter.nothing
