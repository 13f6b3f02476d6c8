"""Counts of models with heads, computed without building them, equal published counts and those of built models."""

from typing import Any

import pytest
import torch
import torchvision
from support.heads import FAMILIES, HEADS
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from featuretap.registry import Registry
from featuretap.registry.specs import ModelSpec

TORCHVISIONS_LRASPP = {
    "taps": ("C3.first", "C5"),
    "dilate_entry": True,
    "pooling": "global",
    "gate": "sigmoid",
    "gate_bias": False,
}

# head, options, parameters, multiply-adds, size: the rows of the papers and of torchvision's documentation.
PUBLISHED = [
    ("ssdlite", {"reduced_tail": True, "reduce_lowest_anchors": False}, 3_440_060, 583_171_904, (320, 320)),
    ("faster_rcnn", {"taps": ("C5.first", "C5")}, 19_410_754, None, None),
    ("lraspp", TORCHVISIONS_LRASPP, 3_221_538, 2_086_219_688, (520, 520)),
    ("deeplab_v3", {"auxiliary": True, "dilate_entry": True}, 11_029_328, 10_452_447_938, (520, 520)),
    ("deeplab_v3", {"dilate_entry": True}, 11_025_477, 10_436_350_688, (520, 520)),
    ("lraspp", {"reduced_tail": "segmentation", "num_classes": 19}, 1_507_198, 9_533_209_824, (1025, 2049)),
]


@pytest.mark.parametrize(("head", "options", "parameters", "macs", "size"), PUBLISHED)
def test_published_models_have_their_published_numbers(
    registry: Registry,
    head: str,
    options: dict[str, Any],
    parameters: int,
    macs: int | None,
    size: tuple[int, int] | None,
) -> None:
    spec = registry.spec("mobilenet_v3_large", head=head, **options)
    assert spec.parameters == parameters
    if size:
        assert spec.macs(*size) == macs


@pytest.mark.parametrize(
    ("reduced", "parameters", "macs"), [(False, 4_966_591, 613_143_104), (True, 3_215_311, 506_563_904)]
)
def test_ssdlite_has_the_papers_numbers_with_and_without_the_reduced_tail(
    registry: Registry, reduced: bool, parameters: int, macs: int
) -> None:
    """The paper's 4.97 M and 3.22 M do not include batch norm. Its 0.62 B and 0.51 B are for 320×320."""
    model = registry.build("mobilenet_v3_large", head="ssdlite", reduced_tail=reduced)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    of_norms = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    spec = registry.spec("mobilenet_v3_large", head="ssdlite", reduced_tail=reduced)
    assert spec.parameters - of_norms == parameters
    assert spec.macs(320, 320) == macs


def test_torchvisions_faster_rcnn_with_frozen_norms_has_its_published_parameters(registry: Registry) -> None:
    options = {"taps": ("C5.first", "C5"), "norm": torchvision.ops.FrozenBatchNorm2d}
    spec = registry.spec("mobilenet_v3_large", head="faster_rcnn", **options)
    model = registry.build("mobilenet_v3_large", head="faster_rcnn", **options)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters()) == 19_386_354


@pytest.mark.parametrize("name", [*FAMILIES, "mobilenet_v2_140"])
@pytest.mark.parametrize("head", HEADS)
def test_a_spec_counts_the_parameters_that_are_built(registry: Registry, name: str, head: str) -> None:
    options = {"in_channels": 4, **({"num_classes": 5} if head != "fpn" else {})}
    with torch.device("meta"):
        model = registry.build(name, head=head, **options)
    spec = registry.spec(name, head=head, **options)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("fpn", {"depthwise": True, "extra_levels": "p6p7", "out_channels": 48, "taps": ("C3", "C4", "C5")}),
        ("fpn", {"fpn_norm": "group_norm", "extra_levels": "pool", "width": 0.5}),
        ("lraspp", {"inter_channels": 40, "output_stride": 32, "width": 1.25}),
        ("deeplab_v3", {"output_stride": 8, "atrous_rates": (6, 12), "width": 0.35}),
        ("ssdlite", {"width": 0.35, "reduced_tail": True, "size": 96}),
    ],
)
def test_multiply_adds_are_those_of_the_convolutions_that_run(
    registry: Registry, head: str, options: dict[str, Any]
) -> None:
    """Count again from the weights and output sizes of every convolution in a forward pass."""
    model = registry.build("mobilenet_v2", head=head, **options).eval()
    counted = 0

    def count(module: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal counted
        counted += module.weight.numel() * output.shape[-2] * output.shape[-1]

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model([torch.rand(3, 96, 96)] if head == "ssdlite" else torch.rand(1, 3, 96, 96))
    assert registry.spec("mobilenet_v2", head=head, **options).macs(96, 96) == counted


def test_a_retinanet_has_as_many_parameters_as_torchvisions_own_on_the_same_maps(registry: Registry) -> None:
    features = torchvision.models.mobilenet_v2().features
    maps = {"6": "0", "13": "1", "18": "2"}
    body = BackboneWithFPN(features, maps, [32, 96, 1280], 256, extra_blocks=LastLevelP6P7(256, 256))
    theirs = RetinaNet(body, 91)
    ours = registry.spec("mobilenet_v2", head="retinanet")
    assert ours.parameters == sum(parameter.numel() for parameter in theirs.parameters()) == 12_226_903


def test_extra_layers_of_ssdlite_follow_the_width(registry: Registry) -> None:
    for width, channels in ((1.0, [512, 256, 256, 128]), (0.75, [384, 192, 192, 96]), (0.1, [51, 25, 25, 16])):
        model = registry.build("mobilenet_v2", head="ssdlite", width=width)
        assert [layer[-1].out_channels for layer in model.head.neck.extra] == channels
    variant = registry.build("mobilenet_v2_050", head="ssdlite", width=0.5)
    assert [layer[-1].out_channels for layer in variant.head.neck.extra] == [256, 128, 128, 64]


@pytest.mark.parametrize("head", HEADS)
def test_every_head_declares_its_outputs(registry: Registry, head: str) -> None:
    spec = registry.spec("mobilenet_v3_small", head=head)
    assert isinstance(spec, ModelSpec)
    expected = {
        "classification": {"logits": (1000,)},
        "fpn": {"P2": (256, 25, 41), "P3": (256, 13, 21), "P4": (256, 7, 11), "P5": (256, 4, 6)},
        "lraspp": {"out": (21, 97, 161)},
        "deeplab_v3": {"out": (21, 97, 161)},
    }
    found = spec.outputs(97, 161)
    if head in expected:
        assert found == expected[head]
    else:
        most = {"ssd": 300, "ssdlite": 300, "retinanet": 300}.get(head, 100)
        boxes = {"boxes": (f"0…{most}", 4), "labels": (f"0…{most}",), "scores": (f"0…{most}",)}
        masks = {"masks": (f"0…{most}", 1, 97, 161)} if head == "mask_rcnn" else {}
        assert found == {**boxes, **masks}
