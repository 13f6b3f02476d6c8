"""The comparisons with other libraries on the pages are correct. The tests run those libraries."""

import re
from collections.abc import Callable

import pytest
import segmentation_models_pytorch
import timm
import torch
import torchvision
from support import ROOT
from torchvision.models.detection.backbone_utils import mobilenet_backbone
from torchvision.models.detection.ssdlite import _mobilenet_extractor

from featuretap import registry

PAGE = (ROOT / "docs" / "taps.md").read_text()
IMAGE = torch.zeros(1, 3, 224, 224)

LARGE, V2 = "mobilenet_v3_large", "mobilenet_v2"
TIMM = {LARGE: "mobilenetv3_large_100", V2: "mobilenetv2_100"}
SMP = {LARGE: "tu-mobilenetv3_large_100", V2: "mobilenet_v2"}

Maps = list[tuple[int, ...]]


def of_timm(name: str) -> Maps:
    return [tuple(feature.shape[1:]) for feature in timm.create_model(TIMM[name], features_only=True).eval()(IMAGE)]


def of_smp(name: str) -> Maps:
    encoder = segmentation_models_pytorch.encoders.get_encoder(SMP[name], weights=None).eval()
    return [tuple(feature.shape[1:]) for feature in encoder(IMAGE)[1:]]


def of_torchvision(name: str) -> Maps:
    extractor = mobilenet_backbone(backbone_name=name, weights=None, fpn=True, returned_layers=[3, 4, 5]).eval()
    return [tuple(feature.shape[1:]) for feature in extractor.body(IMAGE).values()]


def of_ssdlite(name: str) -> Maps:
    whole = torchvision.models.get_model(name, weights=None)
    extractor = _mobilenet_extractor(whole, 6, torch.nn.BatchNorm2d).eval()
    return [tuple(feature.shape[1:]) for feature in extractor(IMAGE).values()]


def ours(name: str, address: str) -> tuple[int, ...]:
    return registry.spec(name, features_only=True, taps=(address,)).tap_shapes(224, 224)[address]


def rows(beginning: str) -> list[str]:
    return [line for line in PAGE.splitlines() if line.startswith(f"| {beginning}")]


def written(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


@pytest.mark.parametrize(
    ("library", "name", "index", "address", "row"),
    [
        (of_timm, LARGE, 3, "C4", "timm, `features_only=True`"),
        (of_timm, V2, 3, "C4", "timm, `features_only=True`"),
        (of_timm, LARGE, 4, "C5", "timm, `out_indices` 4"),
        (of_timm, V2, 4, "C5.bottleneck", "timm, `out_indices` 4"),
        (of_torchvision, LARGE, 0, "C4.first", "torchvision, detection backbones (`mobilenet_backbone`)"),
        (of_torchvision, V2, 0, "C4.first", "torchvision, detection backbones (`mobilenet_backbone`)"),
        (of_torchvision, LARGE, 1, "C5.first", "torchvision, detection backbones, the last two"),
        (of_torchvision, LARGE, 2, "C5", "torchvision, detection backbones, the last two"),
        (of_torchvision, V2, 1, "C5.first", "torchvision, detection backbones, the last two"),
        (of_torchvision, V2, 2, "C5", "torchvision, detection backbones, the last two"),
        (of_ssdlite, LARGE, 0, "C4.expansion", "torchvision, `ssdlite320_mobilenet_v3_large`"),
        (of_smp, LARGE, 3, "C4", "segmentation_models_pytorch | feature 4"),
        (of_smp, V2, 3, "C4", "segmentation_models_pytorch | feature 4"),
        (of_smp, LARGE, 4, "C5", "segmentation_models_pytorch, feature 5"),
        (of_smp, V2, 4, "C5", "segmentation_models_pytorch, feature 5"),
    ],
)
def test_the_page_of_taps_says_what_a_library_returns_and_which_address_that_is(
    library: Callable[[str], Maps], name: str, index: int, address: str, row: str
) -> None:
    theirs = library(name)[index]
    assert theirs == ours(name, address)
    (line,) = rows(row)
    cell = line.split("|")[-4 if name == LARGE else -3].replace("**", "")
    assert written(theirs) in cell
    assert address in re.findall(r"`([^`]+)`", line.split("|")[-2])


@pytest.mark.parametrize(("name", "channels"), [(LARGE, 672), (V2, 576)])
def test_the_row_of_the_paper_is_the_expansion(name: str, channels: int) -> None:
    (line,) = rows("the MobileNetV3 paper")
    assert ours(name, "C4.expansion") == (channels, 14, 14)
    assert f"{channels}×14×14" in line


@pytest.mark.parametrize(("name", "parameters"), [("tu-mobilenetv3_large_100", 2_971_952), ("mobilenet_v2", 2_223_872)])
def test_segmentation_models_pytorch_keeps_whole_encoders_at_any_depth(name: str, parameters: int) -> None:
    encoder = segmentation_models_pytorch.encoders.get_encoder(name, weights=None, depth=3)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters


def test_misspelled_options_that_the_pages_call_swallowed_are_swallowed() -> None:
    whole = torchvision.models.mobilenet_v3_large(weights=None, reduced_tial=True)
    assert sum(parameter.numel() for parameter in whole.parameters()) == 5_483_032
    encoder = segmentation_models_pytorch.encoders.get_encoder("mobilenet_v2", weights=None, reduced_tail=True)
    assert encoder.out_channels[-1] == 1280
    with pytest.raises(TypeError, match="reduced_tial"):
        timm.create_model("mobilenetv3_large_100", reduced_tial=True)


@pytest.mark.parametrize(("name", "level"), [("mobilenet_v3_large", "C3"), ("mobilenet_v2", "C3")])
def test_three_trainable_layers_of_torchvision_s_are_frozen_through_a_level_here(name: str, level: str) -> None:
    theirs = mobilenet_backbone(backbone_name=name, weights=None, fpn=True, trainable_layers=3).body
    ours = registry.build(name, features_only=True, taps=("C5.first", "C5"), freeze=level)
    # torchvision's norms are frozen and have no parameters.
    frozen = [
        sum(weight.numel() for weight in body.parameters() if weight.ndim == 4 and not weight.requires_grad)
        for body in (theirs, ours)
    ]
    assert frozen[0] == frozen[1] > 0


def test_the_pyramid_of_torchvision_s_mobilenets_reads_what_the_page_says() -> None:
    theirs = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True).eval()(IMAGE)
    options = {"taps": ("C5.first", "C5"), "extra_levels": "pool"}
    ours = registry.build("mobilenet_v3_large", head="fpn", **options).eval()(IMAGE)
    assert [tuple(level.shape) for level in theirs.values()] == [tuple(level.shape) for level in ours.values()]


def test_the_deeplab_of_segmentation_models_pytorch_works_at_stride_8() -> None:
    theirs = segmentation_models_pytorch.DeepLabV3("mobilenet_v2", encoder_weights=None).encoder.eval()(IMAGE)[-1]
    ours = registry.spec("mobilenet_v2", head="deeplab_v3", output_stride=8).backbone
    assert ours.tap_shapes(224, 224)["C5"] == tuple(theirs.shape[1:]) == (1280, 28, 28)
