"""Adapters: pyramids, backbones and detectors in the form that torchvision and Detectron2 expect."""

from collections.abc import Callable

import pytest
import torch
from support.heads import SMALL, images
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead

from featuretap.adapters.torchvision import ShapeSpec, as_torchvision, output_shape
from featuretap.registry import Registry
from featuretap.registry.errors import OptionError
from featuretap.registry.specs import Tap


def test_a_pyramid_is_a_backbone_for_torchvisions_detectors(registry: Registry) -> None:
    pyramid = registry.build("mobilenet_v3_small", head="fpn", out_channels=32, extra_levels="pool")
    body = as_torchvision(pyramid)
    assert body.out_channels == 32
    assert list(body(torch.rand(1, 3, 64, 64))) == ["0", "1", "2", "3", "pool"]
    detector = FasterRCNN(body, 3, min_size=64, max_size=96, rpn_post_nms_top_n_train=20)
    losses = detector(images(1, 64, 96), [{"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([1])}])
    torch.stack(list(losses.values())).sum().backward()
    assert pyramid.backbone.stages.C1[0].conv.weight.grad.abs().sum() > 0


def test_extra_levels_have_torchvisions_names(registry: Registry) -> None:
    pyramid = registry.build("mobilenet_v2", head="fpn", taps=("C3", "C4", "C5"), extra_levels="p6p7")
    assert list(as_torchvision(pyramid)(torch.rand(1, 3, 64, 64))) == ["0", "1", "2", "p6", "p7"]


def test_a_backbone_with_one_tap_is_a_backbone_for_torchvisions_detectors(registry: Registry) -> None:
    body = as_torchvision(registry.build("mobilenet_v2", features_only=True, taps=("C5",)))
    assert body.out_channels == 1280
    assert list(body(torch.rand(1, 3, 64, 64))) == ["0"]


def test_a_detector_is_converted_to_torchvisions_class(registry: Registry) -> None:
    model = registry.build("mobilenet_v2_050", head="retinanet", num_classes=3, **SMALL["retinanet"]).eval()
    detector = as_torchvision(model)
    assert isinstance(detector, RetinaNet)
    assert not detector.training
    given = images(1, 64, 96)
    with torch.inference_mode():
        for name, tensor in detector(given)[0].items():
            assert torch.equal(tensor, model(given)[0][name])


@pytest.mark.parametrize("taps", [("C3", "C4", "C5"), ("C4.expansion", "C5")], ids="-".join)
def test_maps_of_different_channels_are_a_backbone_for_torchvisions_ssd(
    registry: Registry, taps: tuple[str, ...]
) -> None:
    backbone = registry.build("mobilenet_v2_050", features_only=True, taps=taps)
    body = as_torchvision(backbone)
    boxes = DefaultBoxGenerator([[2]] * len(taps))
    detector = SSD(body, boxes, size=(96, 96), num_classes=3)
    channels = [head.in_channels for head in detector.head.classification_head.module_list]
    assert channels == [tap.channels for tap in backbone.taps.values()]
    targets = [{"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([1])}] * 2
    losses = detector.train()(images(2, 64, 96), targets)
    torch.stack(list(losses.values())).sum().backward()
    assert backbone.stages.C1[0].conv.weight.grad.abs().sum() > 0
    assert sorted(detector.eval()(images(1, 64, 96))[0]) == ["boxes", "labels", "scores"]


def test_ssdlites_predictors_read_the_channels_of_the_taps(registry: Registry) -> None:
    backbone = registry.build("mobilenet_v3_small", features_only=True, taps=("C4.expansion", "C5"))
    boxes = DefaultBoxGenerator([[2, 3]] * 2)
    channels = [tap.channels for tap in backbone.taps.values()]
    head = SSDLiteHead(channels, boxes.num_anchors_per_location(), 3, nn.BatchNorm2d)
    detector = SSD(as_torchvision(backbone), boxes, (96, 96), 3, head=head).eval()
    assert detector(images(1, 64, 96))[0]["boxes"].shape[1] == 4


@pytest.mark.parametrize("detector", [FasterRCNN, RetinaNet])
def test_detectors_that_need_one_number_of_channels_refuse_others(
    registry: Registry, detector: Callable[..., object]
) -> None:
    body = as_torchvision(registry.build("mobilenet_v2_050", features_only=True, taps=("C4", "C5")))
    with pytest.raises(ValueError, match="backbone should contain an attribute out_channels"):
        detector(body, 3)


def test_models_without_maps_have_no_output_shape(registry: Registry) -> None:
    with pytest.raises(OptionError) as error:
        output_shape(registry.build("mobilenet_v2_050"))
    assert str(error.value) == (
        "HeadedModel does not return feature maps; use a backbone (features_only=True) or a model with head='fpn'"
    )


def test_output_shapes_are_those_that_detectron2_reads(registry: Registry) -> None:
    """Detectron2 reads `.channels` and `.stride` by name, and builds its own FPN from them."""
    backbone = registry.build("mobilenet_v2", features_only=True, taps=("C3", "C5"))
    assert output_shape(backbone) == {"C3": ShapeSpec(channels=32, stride=8), "C5": ShapeSpec(channels=1280, stride=32)}
    pyramid = registry.build("mobilenet_v2", head="fpn", out_channels=64, taps=("C4", "C5"))
    assert {name: (shape.channels, shape.stride) for name, shape in output_shape(pyramid).items()} == {
        "P4": (64, 16),
        "P5": (64, 32),
    }
    assert pyramid.taps["P4"] == Tap(64, 16)
