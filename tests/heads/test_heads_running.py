"""Every head on every architecture: forwards, backwards, scripts, exports, copies and files."""

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from support.heads import DETECTORS, FAMILIES, HEADS, SEGMENTERS, SMALL, images, loss_of, outputs
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError
from featuretap.registry.specs import BackboneSpec, Tap

SIZES = [(97, 161), (64, 33)]


def built(registry: Registry, name: str, head: str, **options: object) -> nn.Module:
    classes = {} if head == "fpn" else {"num_classes": 3}
    return registry.build(name, head=head, **classes, **SMALL.get(head, {}), **options)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_a_head_learns_and_predicts_at_odd_sizes(registry: Registry, name: str, head: str) -> None:
    model = built(registry, name, head)
    for height, width in SIZES:
        model.train()
        loss_of(model, head, 3, height, width).backward()
        assert torch.isfinite(torch.stack([p.grad.abs().sum() for p in model.parameters() if p.grad is not None])).all()
        model.eval()
        for batch in (1, 3):
            found = outputs(model, head, images(batch, height, width))
            assert found
            assert all(torch.isfinite(tensor).all() for tensor in found)
    assert model.backbone.stages.C1[0].conv.weight.grad.abs().sum() > 0
    # Norms that see 1×1 maps have no variance to learn from in a single image, here as in torchvision.
    if head not in ("ssdlite", "deeplab_v3"):
        loss_of(model.train(), head, 1, 97, 161).backward()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", ["fpn", *SEGMENTERS])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (97, 161)])
def test_maps_and_logits_have_the_shapes_that_the_spec_states(
    registry: Registry, name: str, head: str, size: tuple[int, int]
) -> None:
    """Images smaller than the stride too, of which every map is one pixel."""
    options = {"extra_levels": "p6p7"} if head == "fpn" else {"num_classes": 3}
    model = registry.build(name, head=head, **options).eval()
    spec = registry.spec(name, head=head, **options)
    with torch.inference_mode():
        found = model(torch.rand(2, 3, *size))
    assert {name: tuple(tensor.shape[1:]) for name, tensor in found.items()} == spec.outputs(*size)
    assert all(len(tensor) == 2 for tensor in found.values())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.filterwarnings(r"ignore:\w+ always returns a \(Losses, Detections\) tuple in scripting:UserWarning")
@pytest.mark.parametrize("head", HEADS)
def test_a_scripted_model_says_the_same(registry: Registry, head: str) -> None:
    model = built(registry, "mobilenet_v3_small", head).eval()
    given = images(2, 97, 161)
    scripted = torch.jit.script(model)
    with torch.inference_mode():
        said = scripted(given)[1] if head in DETECTORS else scripted(torch.stack(given))
    tables = said if isinstance(said, list) else [said] if isinstance(said, dict) else [{"out": said}]
    for ours, theirs in zip(
        outputs(model, head, given), [tensor for table in tables for tensor in table.values()], strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("head", [head for head in HEADS if head not in DETECTORS])
def test_what_is_no_detector_is_exported_whole(registry: Registry, head: str) -> None:
    model = built(registry, "mobilenet_v2_050", head).eval()
    given = images(2, 97, 161)
    exported = torch.export.export(model, (torch.stack(given),)).module()
    with torch.inference_mode():
        said = exported(torch.stack(given))
    for ours, theirs in zip(
        outputs(model, head, given), said.values() if isinstance(said, dict) else [said], strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("head", HEADS)
def test_copies_are_of_their_own(registry: Registry, head: str) -> None:
    model = built(registry, "mobilenet_v1_025", head).eval()
    given = images(1, 64, 96)
    before = [tensor.clone() for tensor in outputs(model, head, given)]
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in copies:
        for ours, theirs in zip(outputs(other, head, given), before, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_is_loaded_with_its_head(registry: Registry, tmp_path: Path, head: str) -> None:
    model = built(registry, "mobilenet_v3_small_050", head, reduced_tail=True).eval()
    path = registry.save(model, tmp_path / "a.safetensors")
    again = registry.load(path).eval()
    assert again.description.head == head
    given = images(2, 64, 96)
    for ours, theirs in zip(outputs(again, head, given), outputs(model, head, given), strict=True):
        assert torch.equal(ours, theirs)
    assert registry.save(again, tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    assert registry.convert(path, tmp_path / "c.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("head", [head for head in HEADS if head != "fpn"])
def test_other_classes_keep_all_but_the_last_layers(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str
) -> None:
    model = built(registry, "mobilenet_v2_050", head)
    path = registry.save(model, tmp_path / "three.safetensors")
    with caplog.at_level(logging.WARNING, "featuretap"):
        other = registry.load(path, num_classes=5)
    assert "has 3 classes, not 5; the backbone's weights are taken, and head." in caplog.text
    before, after = model.state_dict(), other.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed
    per_class = tuple(f"head.{beginning}" for beginning in registry.head(head).per_class)
    for name in before:
        assert (name in changed) == name.startswith(per_class)
        if name not in changed:
            assert torch.equal(before[name], after[name]), name


def test_a_detector_learns_on_a_classifiers_weights(
    registry: Registry, official_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = registry.build("mobilenet_v2", head="ssdlite", num_classes=3, pretrained=official_weights)
    whole = registry.build("mobilenet_v2", pretrained=official_weights)
    assert caplog.messages == [
        f"'mobilenet_v2': {official_weights} has a head 'classification'; the head 'ssdlite' starts with fresh weights"
    ]
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, whole.backbone.state_dict()[name])
    assert model.description.preprocessing.inside
    assert model.head.transform.image_mean == [0.485, 0.456, 0.406]


def test_a_backbone_is_taken_out_of_a_detectors_file(registry: Registry, tmp_path: Path) -> None:
    model = built(registry, "mobilenet_v2_050", "retinanet")
    path = registry.save(model, tmp_path / "detector.safetensors")
    for backbone in (
        registry.load(path, features_only=True),
        registry.build("mobilenet_v2_050", features_only=True, pretrained=path),
    ):
        assert (backbone.description.preprocessing.crop, backbone.description.preprocessing.inside) == (224, False)
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, model.backbone.state_dict()[name])


@pytest.mark.parametrize("head", ["ssdlite", "faster_rcnn", "lraspp", "fpn"])
def test_freezing_reaches_the_backbone_alone(registry: Registry, head: str) -> None:
    model = built(registry, "mobilenet_v2_050", head, freeze="C3", freeze_norm=True)
    still = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items() if name < "stages.C4"}
    loss_of(model.train(), head, 2, 64, 96).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    for name, tensor in still.items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name
    assert any(parameter.grad is not None for parameter in model.head.parameters())


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_the_output_stride_of_a_segmenter_survives_its_file(registry: Registry, tmp_path: Path, stride: int) -> None:
    """Also where it is the backbone's own default and not the head's, and under no head at all."""
    model = registry.build("mobilenet_v3_small_050", head="lraspp", output_stride=stride).eval()
    path = registry.save(model, tmp_path / "a.safetensors")
    images = torch.rand(1, 3, 97, 161)
    with torch.inference_mode():
        assert torch.equal(registry.load(path).eval()(images)["out"], model(images)["out"])
        bare = registry.load(path, features_only=True, taps=("C5",)).eval()
        assert torch.equal(bare(images)["C5"], model.backbone(images)["C5"])


def test_the_output_stride_that_a_head_sets_is_said(registry: Registry) -> None:
    assert registry.build("mobilenet_v2_050", head="lraspp").description.options == {"output_stride": 16}


@pytest.mark.parametrize("head", ["ssdlite", "faster_rcnn"])
def test_parts_of_a_detector_stay_in_evaluation_when_it_trains(registry: Registry, head: str) -> None:
    """What fine-tuning does to batch norms: none of it is undone by a forward pass."""
    model = built(registry, "mobilenet_v2_050", head).train()
    model.backbone.eval()
    model.head.neck.eval()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    loss_of(model, head, 2, 64, 96)
    assert not any(module.training for part in (model.backbone, model.head.neck) for module in part.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "head", "eps"), [("mobilenet_v2_050", "ssdlite", 1e-5), ("mobilenet_v3_small_050", "deeplab_v3", 1e-3)]
)
def test_the_epsilon_of_a_heads_norms_is_its_files_even_where_it_is_the_backbones(
    registry: Registry, tmp_path: Path, name: str, head: str, eps: float
) -> None:
    model = registry.build(name, head=head)
    for module in model.head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    again = registry.load(registry.save(model, tmp_path / "a.safetensors"))
    assert {module.eps for module in again.head.modules() if isinstance(module, nn.BatchNorm2d)} == {eps}


def test_a_fresh_head_has_its_own_epsilon_and_not_that_of_the_files_head(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v2_050", head="lraspp"), tmp_path / "a.safetensors")
    fresh = registry.load(path, head="ssdlite", output_stride=32)
    assert {module.eps for module in fresh.head.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


def test_equal_models_give_equal_files_whether_options_are_lists_or_tuples(registry: Registry, tmp_path: Path) -> None:
    contents = set()
    for rates in ([6, 12], (6, 12)):
        torch.manual_seed(0)
        model = registry.build("mobilenet_v2_050", head="deeplab_v3", atrous_rates=rates)
        assert model.description.options["atrous_rates"] == (6, 12)
        contents.add(registry.save(model, tmp_path / "a.safetensors").read_bytes())
    assert len(contents) == 1


def patches(spec: object, *, taps: tuple[str, ...]) -> nn.Module:
    """A patchifying network, which drops what does not fill a patch."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3, 8, stride, stride) for stride in (8, 16))

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: layer(images) for name, layer in zip(taps, self.layers, strict=True)}

    return Patches()


@pytest.mark.parametrize("extra", [None, "pool", "p6p7"])
def test_levels_on_maps_that_round_down_have_the_shapes_that_are_stated(registry: Registry, extra: str | None) -> None:
    spec = BackboneSpec(
        "patches", taps={"C3": Tap(8, 8, "floor"), "C4": Tap(8, 16, "floor")}, factory="test_heads_running:patches"
    )
    model = registry.build(spec, head="fpn", extra_levels=extra, taps=("C3", "C4")).eval()
    stated = registry.spec(spec, head="fpn", extra_levels=extra, taps=("C3", "C4"))
    found = {name: tuple(level.shape[1:]) for name, level in model(torch.rand(1, 3, 97, 161)).items()}
    assert found == stated.tap_shapes(97, 161) == stated.outputs(97, 161)


def test_pyramid_levels_are_read_by_their_names(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_large", head="fpn", taps=("C3", "C4", "C5"), extra_levels="p6p7").eval()
    assert list(model.taps) == ["P3", "P4", "P5", "P6", "P7"]
    assert [(tap.channels, tap.stride) for tap in model.taps.values()] == [(256, 2**n) for n in range(3, 8)]
    assert list(model(torch.rand(1, 3, 97, 161))) == list(model.taps)
    assert registry.spec("mobilenet_v3_large", head="fpn", output_stride=16).taps["P5"].stride == 16
    same_stride = registry.spec("mobilenet_v3_large", head="fpn", taps=("C5.first", "C5"), extra_levels="pool")
    assert {name: tap.stride for name, tap in same_stride.taps.items()} == {"P5": 32, "P6": 32, "P7": 64}


def test_the_gate_of_lraspp_is_computed_in_windows_on_large_maps(registry: Registry) -> None:
    """On maps over 49×49 the paper's gate varies from place to place; torchvision's is one number a channel."""
    fine, coarse, small = torch.rand(1, 88, 129, 257), torch.rand(1, 576, 65, 129), torch.rand(1, 576, 7, 11)
    for pooling in ("window", "global"):
        head = registry.build("mobilenet_v3_small", head="lraspp", pooling=pooling).eval().head
        seen: list[torch.Tensor] = []
        head.gate.register_forward_hook(lambda *call, seen=seen: seen.append(call[1][0]))
        with torch.inference_mode():
            head({"C3.depthwise": fine, "C5": coarse})
            head({"C3.depthwise": fine, "C5": small})
        if pooling == "window":
            # Figure 10 of the paper: windows of 49×49 in steps of 16 and 20.
            assert seen[0].shape[-2:] == (2, 5)
            torch.testing.assert_close(seen[0][0, :, 1, 2], coarse[0, :, 16:65, 40:89].mean((1, 2)))
        else:
            torch.testing.assert_close(seen[0], coarse.mean((2, 3), keepdim=True))
        torch.testing.assert_close(seen[1], small.mean((2, 3), keepdim=True))


def test_detectors_see_images_as_their_weights_were_trained(registry: Registry, tmp_path: Path) -> None:
    model = built(registry, "mobilenet_v2_050", "fcos", image_mean=[0.1, 0.2, 0.3], image_std=(0.4, 0.5, 0.6))
    again = registry.load(registry.save(model, tmp_path / "a.safetensors"))
    for detector in (model, again):
        assert detector.head.transform.image_mean == [0.1, 0.2, 0.3]
        assert detector.description.preprocessing.std == (0.4, 0.5, 0.6)
    prepared = registry.transforms(model)(torch.full((3, 50, 70), 255, dtype=torch.uint8))
    assert prepared.shape == (3, 50, 70)
    assert (prepared == 1).all()


def test_segmenters_see_whole_images(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", head="lraspp")
    prepared = registry.transforms(model)(torch.zeros(3, 100, 150, dtype=torch.uint8))
    assert prepared.shape == (3, 520, 780)
    assert prepared[:, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "1 images came with 0 targets; give one dict for each image"),
        ([{"boxes": torch.ones(0, 4)}], "targets[0] has no 'labels'; give boxes (M, 4) and labels (M,)"),
        ([{"labels": torch.ones(0).long()}], "targets[0] has no 'boxes'; give boxes (M, 4) and labels (M,)"),
        (
            [{"boxes": torch.tensor([[1.0, 2, 30, 40]] * 2), "labels": torch.tensor([1, 4])}],
            "targets[0] has labels from 1 to 4, and the head knows 0 to 3; build it with num_classes=5, or more",
        ),
        (
            [{"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([-1])}],
            "targets[0] has labels from -1 to -1, and the head knows 0 to 3; count them from 0",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused_in_training(
    registry: Registry, targets: list[dict[str, torch.Tensor]], message: str
) -> None:
    detector = registry.build("mobilenet_v2_050", head="ssdlite", num_classes=4)
    with pytest.raises(OptionError) as error:
        detector([torch.zeros(3, 64, 64)], targets)
    assert str(error.value) == message
