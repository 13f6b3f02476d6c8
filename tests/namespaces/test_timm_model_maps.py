"""featuretap's backbones as timm models: feature maps, training, tracing and scripting."""

import copy

import pytest
import timm
import torch
import torchvision
from support import oracles
from support.timm_models import (
    CLOSE,
    OURS,
    SIZE,
    SOME,
    backbone_and_options,
    random_model,
    timm_counterpart,
    without_gradient,
)
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

scripting_is_deprecated = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", SOME)
def test_lists_of_maps_equal_the_taps_of_the_registry(name: str, output_stride: int) -> None:
    backbone, options = backbone_and_options(name)
    taps = ("C2", "C4", "C5")
    built = OURS.build(backbone, features_only=True, taps=taps, output_stride=output_stride, **options)
    oracles.randomised(built)
    model = timm.create_model(name, features_only=True, out_indices=(1, 3, 4), output_stride=output_stride)
    model.load_state_dict({key.removeprefix("stages."): value for key, value in built.state_dict().items()})
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        maps = model.double().eval()(images)
        for ours, theirs in zip(maps, built(images).values(), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
    assert model.feature_info.channels() == [tap.channels for tap in built.taps.values()]
    assert model.feature_info.reduction() == [tap.stride for tap in built.taps.values()]
    assert model.feature_info.module_name() == list(taps)


def test_levels_after_the_last_map_are_dropped() -> None:
    for out_indices, taps in (((0, 2), ("C1", "C3")), ((-2,), ("C4",)), (2, ("C4", "C5"))):
        model = timm.create_model("featuretap_mobilenet_v3_large", features_only=True, out_indices=out_indices)
        spec = OURS.spec("mobilenet_v3_large", features_only=True, taps=taps)
        assert model.feature_info.channels() == [tap.channels for tap in spec.taps.values()]
        assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "fx", "getter"])
def test_every_feature_cls_returns_the_same_maps(feature_cls: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("featuretap_mobilenet_v3_small", features_only=True, out_indices=(0, 2, 4)).eval()
    torch.manual_seed(0)
    other = timm.create_model(
        "featuretap_mobilenet_v3_small", features_only=True, out_indices=(0, 2, 4), feature_cls=feature_cls
    ).eval()
    images = torch.randn(1, 3, 65, 33)
    with torch.no_grad():
        found = other(images)
        torch.testing.assert_close(list(found.values()) if feature_cls == "dict" else list(found), model(images))
    assert other.feature_info.channels() == model.feature_info.channels()


@pytest.mark.parametrize("name", SOME)
def test_forward_intermediates_returns_the_maps_of_the_levels(name: str) -> None:
    backbone, options = backbone_and_options(name)
    built = oracles.randomised(OURS.build(backbone, taps=("C5",), **options))
    maps = OURS.build(backbone, features_only=True, **options).double().eval()
    maps.load_state_dict({k.removeprefix("backbone."): v for k, v in built.state_dict().items() if "stages" in k})
    model = timm_counterpart(built, name)
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        expected = list(maps(images).values())
        last, every = model.forward_intermediates(images)
        torch.testing.assert_close([last, *every], [expected[-1], *expected], **CLOSE)
        for indices, taken in ((2, expected[3:]), ([0, -2], [expected[0], expected[3]])):
            found = model.forward_intermediates(images, indices=indices, intermediates_only=True)
            torch.testing.assert_close(found, taken, **CLOSE)
        last, (third,) = model.forward_intermediates(images, indices=[2], stop_early=True, norm=True)
        assert last is third
        torch.testing.assert_close(third, expected[2], **CLOSE)
    with pytest.raises(AssertionError, match="maps are returned as NCHW only"):
        model.forward_intermediates(images, output_fmt="NHWC")


@pytest.mark.parametrize("name", SOME)
def test_prune_intermediate_layers_keeps_the_maps_and_no_unused_parameter(name: str) -> None:
    model = random_model(name)
    images = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        logits, maps = model(images), model.forward_intermediates(images, intermediates_only=True)
    for index in range(5):
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index - 5]) == [index]
        assert pruned.num_features == pruned.head_hidden_size == maps[index].shape[1]
        with torch.no_grad():
            torch.testing.assert_close(pruned(images), maps[index], **CLOSE)
            torch.testing.assert_close(pruned.forward_intermediates(images, [index])[1], [maps[index]], **CLOSE)
            pruned.reset_classifier(7, "avg")
            assert pruned(images).shape == (2, 7)
            pruned.reset_classifier(0)
            torch.testing.assert_close(pruned(images), maps[index].mean((2, 3)), **CLOSE)
        pruned.train()(images).sum().backward()
        assert without_gradient(pruned) == []
    assert model.prune_intermediate_layers(1, prune_head=False) == [4]
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, **CLOSE)


@pytest.mark.parametrize("name", SOME)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = timm.create_model(name, num_classes=42).train()
    model(torch.randn(2, 3, 64, 64)).mean().backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointing_changes_no_gradient(features_only: bool) -> None:
    images, found = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("featuretap_mobilenet_v3_small", features_only=features_only, drop_rate=0.0)
        model.set_grad_checkpointing(enable)
        passes = [0]
        layer = model.C2[0].depthwise if features_only else model.stages.C2[0].depthwise
        layer.register_forward_hook(lambda *_, passes=passes: passes.__setitem__(0, passes[0] + 1))
        out = model.train()(images)
        sum(part.pow(2).mean() for part in (out if features_only else [out])).backward()
        found.append(([parameter.grad for parameter in model.parameters()], passes[0]))
    (kept, once), (recomputed, twice) = found
    assert (once, twice) == (1, 2)
    torch.testing.assert_close(recomputed, kept)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_parameters_are_grouped_from_the_stem_to_the_head(name: str, coarse: bool) -> None:
    model = timm.create_model(name)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True)
    depths = [groups[parameter] for parameter, _ in model.named_parameters()]
    assert depths == sorted(depths)
    assert groups[model.default_cfg["first_conv"] + ".weight"] == 0
    assert groups["head.logits.weight"] == max(depths)
    backbone, options = backbone_and_options(name)
    blocks = OURS.spec(backbone, features_only=True, **options).all_blocks
    levels = {block.level for block in blocks[1:]}
    assert len(set(depths)) == 2 + len(levels if coarse else blocks[1:])


@scripting_is_deprecated
@pytest.mark.parametrize("name", SOME)
def test_models_and_their_maps_can_be_scripted(name: str) -> None:
    images = torch.randn(1, 3, 65, 33)
    maps = {"features_only": True, "out_indices": (1, 3)}
    for arguments in ({}, maps, {**maps, "feature_cls": "getter"}):
        model = timm.create_model(name, scriptable=True, **arguments).eval()
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.script(model)(images), model(images))


@pytest.mark.parametrize("name", SOME)
def test_models_can_be_traced_and_exported(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    images = torch.randn(2, 3, 65, 33)
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), model(images))
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), model(images))


@pytest.mark.parametrize("name", SOME)
def test_a_detector_of_torchvision_trains(name: str) -> None:
    backbone = timm.create_model(name, features_only=True, out_indices=(3,), feature_cls="dict")
    (backbone.out_channels,) = backbone.feature_info.channels()
    model = FasterRCNN(
        backbone,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(sizes=((16, 32),), aspect_ratios=((1.0,),)),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["3"], output_size=3, sampling_ratio=2),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(9 * backbone.out_channels, 16)),
        box_predictor=torchvision.models.detection.faster_rcnn.FastRCNNPredictor(16, 3),
    )
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = model.train()([torch.rand(3, 64, 96)] * 2, [target] * 2)
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    (found,) = model.eval()([torch.rand(3, 64, 96)])
    assert set(found) == {"boxes", "labels", "scores"}


def as_mmpretrain(images: Tensor, model_name: str, **arguments: object) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build and call a model like `TIMMBackbone` of mmpretrain 1.2.0, whose dependencies are too many to install."""
    model = timm.create_model(
        model_name=model_name, pretrained=False, in_chans=images.shape[1], checkpoint_path="", **arguments
    )
    if hasattr(model, "reset_classifier"):
        model.reset_classifier(0, "")
    features = model(images)
    return model, tuple(features) if isinstance(features, list | tuple) else (features,)


@pytest.mark.parametrize("name", SOME)
def test_calls_as_mmpretrain_makes_them_return_maps(name: str) -> None:
    images = torch.randn(2, 4, 64, 96)
    model, maps = as_mmpretrain(images, name, features_only=True, out_indices=(2, 4))
    assert [feature.shape[1:] for feature in maps] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    ]
    sum(feature.pow(2).mean() for feature in maps).backward()
    assert without_gradient(model) == []
    whole, (last,) = as_mmpretrain(images, name, features_only=False)
    assert last.shape == (2, whole.head_hidden_size, 2, 3)
    last.pow(2).mean().backward()
    assert without_gradient(whole) == []
