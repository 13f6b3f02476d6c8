"""Options of heads: supported backbones, valid values, torchvision's defaults, anchors and sizes."""

import inspect
from typing import Any

import pytest
import torch
from support.heads import DETECTORS, FAMILIES, SMALL, images
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import ssdlite320_mobilenet_v3_large

from featuretap.heads.detection import anchor_sizes
from featuretap.registry import Registry
from featuretap.registry.errors import HeadError, OptionError, SpecError, UnknownHeadError, UnknownOptionError
from featuretap.registry.specs import RE, BackboneSpec, Bneck, Conv, HeadSpec

TINYNET = BackboneSpec(
    "tinynet", stages=((Conv(3, 16, RE),), (Bneck(3, 64, 24, RE),), (Bneck(5, 72, 32, RE), Conv(1, 64, RE)))
)

WRONG_PAIRINGS: list[tuple[str, str | BackboneSpec, dict[str, Any], str]] = [
    ("fpn", TINYNET, {}, "head 'fpn' reads C2, C3, C4, C5, but 'tinynet' ends at C3"),
    ("lraspp", TINYNET, {}, "head 'lraspp' reads C3.depthwise or C3, C5, but 'tinynet' ends at C3"),
    (
        "fpn",
        "mobilenet_v2",
        {"taps": ("C3", "C5")},
        "head 'fpn' reads consecutive levels, each with the stride of the level before it or twice that, but C5 "
        "(stride 32) follows C3 (stride 8)",
    ),
    (
        "retinanet",
        "mobilenet_v2",
        {"taps": ("C5", "C4")},
        "head 'retinanet' reads consecutive levels, each with the stride of the level before it or twice "
        "that, but C4 (stride 16) follows C5 (stride 32)",
    ),
    ("lraspp", "mobilenet_v2", {"taps": ("C5",)}, "head 'lraspp' reads 2 taps, but taps has 1: C5; give 2"),
    (
        "deeplab_v3",
        "mobilenet_v2",
        {"auxiliary": True, "taps": ("C5",)},
        "head 'deeplab_v3' reads 2 taps, but taps has 1: C5; give 2",
    ),
    (
        "deeplab_v3",
        "mobilenet_v2",
        {"output_stride": 32},
        "head 'deeplab_v3' requires output stride 16 or 8, but C5 of 'mobilenet_v2' has stride 32; build it with "
        "output_stride=16, or choose another tap",
    ),
]

WHOLE = "it must be a positive integer"
WITH_BACKGROUND = "it must be an integer of at least 2, counting the background"

WRONG_VALUES: list[tuple[str, dict[str, Any], str]] = [
    *[(head, {"num_classes": 0}, f"cannot take num_classes=0; {WHOLE}") for head in ("lraspp", "retinanet", "fcos")],
    *[
        (head, {"num_classes": few}, f"cannot take num_classes={few}; {WITH_BACKGROUND}")
        for head in ("ssdlite", "faster_rcnn", "mask_rcnn")
        for few in (0, 1)
    ],
    ("deeplab_v3", {"num_classes": True}, f"cannot take num_classes=True; {WHOLE}"),
    ("fpn", {"num_classes": 5}, "head 'fpn' has no classes; omit num_classes=5"),
    ("fpn", {"extra_levels": "p6"}, "cannot take extra_levels='p6'; it must be None, 'pool' or 'p6p7'"),
    ("fpn", {"out_channels": 0}, "cannot take out_channels=0; it must be a positive integer up to 65536"),
    (
        "fpn",
        {"fpn_norm": "group_norm", "out_channels": 48},
        "fpn_norm='group_norm' uses 32 groups; out_channels must be a multiple of 32, got 48",
    ),
    (
        "fcos",
        {"out_channels": 48},
        "head 'fcos' uses group norm with 32 groups; out_channels must be a multiple of 32, got 48",
    ),
    ("lraspp", {"pooling": "mean"}, "cannot take pooling='mean'; it must be 'window' or 'global'"),
    ("lraspp", {"gate_bias": 1}, "cannot take gate_bias=1; it must be True or False"),
    (
        "deeplab_v3",
        {"atrous_rates": ()},
        "cannot take atrous_rates=(); it must be one or more positive integers, such as (6, 12, 18)",
    ),
    ("ssdlite", {"size": (320,)}, "cannot take size=(320,); it must be a number of pixels, or (height, width)"),
    ("ssdlite", {"nms_thresh": 1.5}, "cannot take nms_thresh=1.5; it must be a number from 0.0 to 1.0"),
    (
        "ssdlite",
        {"image_mean": (0.5,)},
        "image_mean has 1 values, but the images have 3 channels; give one value for each channel",
    ),
    ("ssdlite", {"image_std": "0.5"}, "cannot take image_std='0.5'; it must be None or a number for each channel"),
    (
        "retinanet",
        {"min_size": []},
        "cannot take min_size=[]; it must be a number of pixels, or several to choose from",
    ),
    (
        "retinanet",
        {"anchor_sizes": ((32,), (64,))},
        "anchor_sizes is for 2 levels, but the head has 5: P3, P4, P5, P6, P7; give one entry for each level",
    ),
    (
        "faster_rcnn",
        {"anchor_sizes": ((8,), (16,), (32,), (64,), (128, 256))},
        "anchor_sizes and aspect_ratios define different numbers of anchors per level; use the same number for all",
    ),
    (
        "retinanet",
        {"fg_iou_thresh": 0.3},
        "bg_iou_thresh=0.4 exceeds fg_iou_thresh=0.3; lower it to 0.3 or less",
    ),
    (
        "faster_rcnn",
        {"rpn_bg_iou_thresh": 0.9},
        "rpn_bg_iou_thresh=0.9 exceeds rpn_fg_iou_thresh=0.7; lower it to 0.7 or less",
    ),
    (
        "mask_rcnn",
        {"aspect_ratios": 2},
        "cannot take aspect_ratios=2; it must be None or, for each level, height / width",
    ),
]


@pytest.mark.parametrize(("head", "name", "options", "message"), WRONG_PAIRINGS)
@pytest.mark.parametrize("how", ["spec", "build"])
def test_a_head_that_does_not_fit_the_backbone_is_refused(
    registry: Registry, how: str, head: str, name: str | BackboneSpec, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(HeadError) as error:
        getattr(registry, how)(name, head=head, **options)
    assert str(error.value) == message


@pytest.mark.parametrize(("head", "options", "message"), WRONG_VALUES)
@pytest.mark.parametrize("how", ["spec", "build"])
def test_invalid_values_of_head_options_are_refused_with_the_valid_ones(
    registry: Registry, how: str, head: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError) as error:
        getattr(registry, how)("mobilenet_v2", head=head, **options)
    assert message in str(error.value)


def test_a_misspelled_option_and_head_are_named_with_the_nearest(registry: Registry) -> None:
    with pytest.raises(UnknownOptionError) as error:
        registry.build("mobilenet_v2", head="fpn", out_chanels=64)
    assert str(error.value).startswith(
        "'mobilenet_v2' with head 'fpn' takes no option 'out_chanels'; did you mean 'out_channels'? Options: width, "
    )
    with pytest.raises(UnknownHeadError, match=r"^no head named 'retinnet'; did you mean 'retinanet'\?$"):
        registry.spec("mobilenet_v2", head="retinnet")


@pytest.mark.parametrize("head", ["lraspp", "deeplab_v3"])
def test_segmenters_work_at_output_stride_16_unless_asked_otherwise(registry: Registry, head: str) -> None:
    assert registry.spec("mobilenet_v2", head=head).backbone.output_stride == 16
    assert registry.spec("mobilenet_v2", head=head, output_stride=8).backbone.output_stride == 8


def test_the_output_stride_of_a_spec_overrides_the_default_of_the_head(registry: Registry) -> None:
    spec = BackboneSpec("mine", stages=registry.spec("mobilenet_v2").backbone.stages, output_stride=8)
    assert registry.spec(spec, head="lraspp").backbone.output_stride == 8


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_reads_an_alternative_tap_where_the_first_is_missing(registry: Registry, name: str) -> None:
    first = "C4" if name == "mobilenet_v1" else "C4.expansion"
    assert tuple(registry.spec(name, head="ssdlite").backbone.taps) == (first, "C5")
    assert tuple(registry.spec(TINYNET, head="ssdlite", taps=("C2", "C3")).backbone.taps) == ("C2", "C3")


DETECTOR_CLASSES = [("retinanet", RetinaNet), ("fcos", FCOS), ("faster_rcnn", FasterRCNN), ("mask_rcnn", MaskRCNN)]


@pytest.mark.parametrize(("head", "theirs"), DETECTOR_CLASSES)
def test_options_of_detectors_have_torchvisions_names_and_defaults(registry: Registry, head: str, theirs: type) -> None:
    usual = {name: parameter.default for name, parameter in inspect.signature(theirs).parameters.items()}
    ours = registry.head(head).options
    pyramids = {"out_channels", "extra_levels", "fpn_norm", "depthwise", "anchor_sizes", "aspect_ratios"}
    shared = ours.keys() - pyramids
    assert {name: ours[name] for name in shared} == {name: usual[name] for name in shared}
    # The remaining arguments take modules, or are for keypoints.
    left = {name for name in usual.keys() - ours.keys() if not isinstance(usual[name], type(None))}
    assert left <= {"backbone", "num_classes", "kwargs"}


def test_options_of_ssdlite_have_torchvisions_names_and_the_defaults_of_its_ssdlite(registry: Registry) -> None:
    usual = {name: parameter.default for name, parameter in inspect.signature(SSD).parameters.items()}
    ours = registry.head("ssdlite").options
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    for name in ("score_thresh", "nms_thresh", "detections_per_img", "topk_candidates"):
        assert ours[name] == getattr(model, name)
        assert name in usual
    for name in ("iou_thresh", "positive_fraction", "image_mean", "image_std"):
        assert ours[name] == usual[name]


def test_anchor_sizes_follow_the_strides() -> None:
    assert anchor_sizes("retinanet", [8, 16]) == ((32, 40, 50), (64, 80, 101))
    assert anchor_sizes("fcos", [8, 16, 32]) == ((8,), (16,), (32,))
    assert anchor_sizes("faster_rcnn", [4, 8, 16, 32, 64]) == ((32,), (64,), (128,), (256,), (512,))
    # torchvision's Faster R-CNN on MobileNetV3 uses all five sizes on three levels of strides 32, 32 and 64.
    assert anchor_sizes("faster_rcnn", [32, 32, 64]) == ((32, 64, 128, 256, 512),) * 3


def test_the_finest_map_of_ssdlite_has_three_boxes_at_each_place(registry: Registry) -> None:
    model = registry.build("mobilenet_v2_050", head="ssdlite")
    generator = model.head.anchor_generator
    assert generator.num_anchors_per_location() == [3, 6, 6, 6, 6, 6]
    assert [len(pairs) for pairs in generator._wh_pairs] == [3, 6, 6, 6, 6, 6]
    root = 2**0.5
    expected = torch.tensor([[0.1, 0.1], [0.2 * root, 0.2 / root], [0.2 / root, 0.2 * root]])
    torch.testing.assert_close(generator._wh_pairs[0], expected)
    # The other maps are unchanged: they use their own scale, and one between it and the next map's.
    torch.testing.assert_close(generator._wh_pairs[1][0], torch.tensor([0.35, 0.35]))


def test_boxes_are_pooled_from_backbone_levels_only(registry: Registry) -> None:
    """Added levels are only used for proposals, as in the FPN paper and torchvision."""
    heads = registry.build("mobilenet_v2_050", head="mask_rcnn").head.roi_heads
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        assert pool.featmap_names == ["P2", "P3", "P4", "P5"]


def test_sizes_of_ssdlite_are_height_and_width(registry: Registry) -> None:
    model = registry.build("mobilenet_v2_050", head="ssdlite", size=(64, 160)).eval()
    seen: list[tuple[int, ...]] = []
    model.backbone.register_forward_hook(lambda *call: seen.append(tuple(call[1][0].shape)))
    model(images(2, 50, 50))
    assert seen == [(2, 3, 64, 160)]


@pytest.mark.parametrize("head", DETECTORS)
def test_an_image_smaller_than_the_stride_is_enlarged(registry: Registry, head: str) -> None:
    model = registry.build("mobilenet_v2_050", head=head, num_classes=3, **SMALL[head]).eval()
    (found,) = model([torch.rand(3, 5, 7)])
    assert (found["boxes"][:, 2] <= 7).all()
    assert (found["boxes"][:, 3] <= 5).all()


def test_the_head_of_a_plugin_can_restrict_the_values_of_its_options(registry: Registry) -> None:
    from featuretap.specs.validation import choice

    head = HeadSpec(
        "pooled",
        reads=("C5",),
        factory="featuretap.heads.modules.classification:classification",
        layers="featuretap.heads.classification:classification_layers",
        num_classes=7,
        options={"dropout": choice(0.1, 0.2)},
    )
    plugin = type("plugin", (), {"featuretap_heads": staticmethod(_hook([head]))})
    ours = Registry(plugins=[plugin], discover=False)
    assert ours.spec("mobilenet_v2", head="pooled").head_options == {"dropout": 0.1}
    with pytest.raises(OptionError, match=r"^head 'pooled' cannot take dropout=0.3; it must be 0.1 or 0.2$"):
        ours.build("mobilenet_v2", head="pooled", dropout=0.3)


def test_an_inconsistent_head_spec_is_refused(registry: Registry) -> None:
    usual: dict[str, Any] = {"factory": "x:y", "num_classes": 2}
    with pytest.raises(SpecError, match=r"^head 'odd' reads no taps; correct its HeadSpec$"):
        HeadSpec("odd", reads=(), **usual)
    with pytest.raises(
        SpecError,
        match=r"^head 'odd' has optional_reads for 'aux', which is not one of its "
        r"options; correct",
    ):
        HeadSpec("odd", reads=("C5",), optional_reads={"aux": ("C3",)}, **usual)
    head = HeadSpec("odd", reads=("C5",), options={"width": 3}, **usual)
    plugin = type("plugin", (), {"featuretap_heads": staticmethod(_hook([head]))})
    with pytest.raises(SpecError) as error:
        Registry(plugins=[plugin], discover=False).spec("mobilenet_v2", head="odd")
    assert str(error.value) == "head 'odd' and 'mobilenet_v2' both have an option 'width'; rename the head's"


def _hook(answer: list[HeadSpec]) -> Any:
    from featuretap.registry.hookspecs import hookimpl

    def featuretap_heads() -> list[HeadSpec]:
        return answer

    return hookimpl(featuretap_heads)
