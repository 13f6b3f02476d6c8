"""Heads on backbones: forward and backward passes, shapes, copies, freezing and parts in evaluation mode."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from support.heads import FAMILIES, HEADS, SEGMENTERS, build_head, images, loss_of, outputs
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError
from featuretap.registry.specs import BackboneSpec, Tap

SINGLE_PIXELS = ("ssd", "ssdlite", "deeplab_v3")
"""Heads with a batch norm that reads a map of one pixel."""
SIZES = [(97, 161), (64, 33)]
# Every head on one architecture. On the others, the heads that read taps inside blocks or every level.
PAIRINGS = [
    *(("mobilenet_v3_small", head) for head in HEADS),
    *((name, head) for name in FAMILIES if name != "mobilenet_v3_small" for head in ("ssdlite", "lraspp", "fpn")),
]


@pytest.mark.parametrize(("name", "head"), PAIRINGS)
def test_a_head_trains_and_predicts_at_odd_sizes(registry: Registry, name: str, head: str) -> None:
    model = build_head(registry, name, head, width=0.25)
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
    # As in torchvision, norms on 1×1 maps cannot train on a single image, which has no variance.
    if head not in SINGLE_PIXELS:
        loss_of(model.train(), head, 1, 97, 161).backward()


@pytest.mark.parametrize("head", SINGLE_PIXELS)
def test_heads_that_read_single_pixels_explain_that_they_need_two_images(registry: Registry, head: str) -> None:
    options = {"auxiliary": True} if head == "deeplab_v3" else {}
    model = build_head(registry, "mobilenet_v2", head, width=0.25, **options).train()
    with pytest.raises(OptionError) as error:
        loss_of(model, head, 1, 97, 161)
    assert str(error.value) == (
        f"head '{head}' cannot train on a single image: a batch norm reads a map of one pixel and needs more than 1 "
        "value per channel; give two images or more, or set its norms to evaluation mode"
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    loss_of(model, head, 1, 97, 161).backward()


def test_a_deeplab_traces_and_scripts_in_training(registry: Registry) -> None:
    model = build_head(registry, "mobilenet_v2", "deeplab_v3", width=0.25).train()
    traced = torch.fx.symbolic_trace(model)
    assert traced(torch.rand(2, 3, 65, 97))["out"].shape == (2, 3, 65, 97)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", ["fpn", *SEGMENTERS])
def test_maps_and_logits_have_the_shapes_of_the_spec(registry: Registry, name: str, head: str) -> None:
    """The sizes include images smaller than the stride, where every map is one pixel."""
    options = {"extra_levels": "p6p7"} if head == "fpn" else {"num_classes": 3}
    model = registry.build(name, head=head, width=0.25, **options).eval()
    spec = registry.spec(name, head=head, width=0.25, **options)
    for size in ((1, 1), (7, 300), (97, 161)):
        with torch.inference_mode():
            found = model(torch.rand(2, 3, *size))
        assert {name: tuple(tensor.shape[1:]) for name, tensor in found.items()} == spec.outputs(*size)
        assert all(len(tensor) == 2 for tensor in found.values())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(lambda model, given: torch.jit.script(model), id="scripted"),
        pytest.param(lambda model, given: torch.export.export(model, (given,)).module(), id="exported"),
    ],
)
def test_scripted_and_exported_pyramids_keep_the_order_of_their_levels(
    registry: Registry, convert: Callable[[nn.Module, torch.Tensor], nn.Module]
) -> None:
    """The conformance kit compares the outputs of every head by name (see `test_conformance.py`), not by order."""
    model, given = registry.build("mobilenet_v1_025", head="fpn").eval(), torch.rand(1, 3, 64, 96)
    assert list(convert(model, given)(given)) == list(model(given)) == ["P2", "P3", "P4", "P5"]


@pytest.mark.parametrize("head", HEADS)
def test_copies_share_no_tensor_with_the_model(registry: Registry, head: str) -> None:
    model = build_head(registry, "mobilenet_v1_025", head).eval()
    given = images(1, 64, 96)
    before = [tensor.clone() for tensor in outputs(model, head, given)]
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in copies:
        for ours, theirs in zip(outputs(other, head, given), before, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("head", ["ssdlite", "faster_rcnn", "lraspp", "fpn"])
def test_freezing_applies_to_the_backbone_only(registry: Registry, head: str) -> None:
    model = build_head(registry, "mobilenet_v2_050", head, freeze="C3", freeze_norm=True)
    still = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items() if name < "stages.C4"}
    loss_of(model.train(), head, 2, 64, 96).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    for name, tensor in still.items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name
    assert any(parameter.grad is not None for parameter in model.head.parameters())


@pytest.mark.parametrize("head", ["ssdlite", "faster_rcnn"])
def test_parts_of_a_detector_stay_in_evaluation_when_it_trains(registry: Registry, head: str) -> None:
    """Fine-tuning puts batch norms in evaluation mode, and a forward pass must not change that."""
    model = build_head(registry, "mobilenet_v2_050", head).train()
    model.backbone.eval()
    model.head.neck.eval()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    loss_of(model, head, 2, 64, 96)
    assert not any(module.training for part in (model.backbone, model.head.neck) for module in part.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())


def patches(spec: object, *, taps: tuple[str, ...]) -> nn.Module:
    """Return a patchifying network, which drops pixels that do not fill a patch."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3, 8, stride, stride) for stride in (8, 16))

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: layer(images) for name, layer in zip(taps, self.layers, strict=True)}

    return Patches()


@pytest.mark.parametrize("extra", [None, "pool", "p6p7"])
def test_pyramids_on_maps_that_round_down_have_the_shapes_of_the_spec(registry: Registry, extra: str | None) -> None:
    spec = BackboneSpec(
        "patches", taps={"C3": Tap(8, 8, "floor"), "C4": Tap(8, 16, "floor")}, factory="test_heads_running:patches"
    )
    model = registry.build(spec, head="fpn", extra_levels=extra, taps=("C3", "C4")).eval()
    stated = registry.spec(spec, head="fpn", extra_levels=extra, taps=("C3", "C4"))
    found = {name: tuple(level.shape[1:]) for name, level in model(torch.rand(1, 3, 97, 161)).items()}
    assert found == stated.tap_shapes(97, 161) == stated.outputs(97, 161)


def test_pyramid_levels_are_named_after_their_strides(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_large", head="fpn", taps=("C3", "C4", "C5"), extra_levels="p6p7").eval()
    assert list(model.taps) == ["P3", "P4", "P5", "P6", "P7"]
    assert [(tap.channels, tap.stride) for tap in model.taps.values()] == [(256, 2**n) for n in range(3, 8)]
    assert list(model(torch.rand(1, 3, 97, 161))) == list(model.taps)
    assert registry.spec("mobilenet_v3_large", head="fpn", output_stride=16).taps["P5"].stride == 16
    same_stride = registry.spec("mobilenet_v3_large", head="fpn", taps=("C5.first", "C5"), extra_levels="pool")
    assert {name: tap.stride for name, tap in same_stride.taps.items()} == {"P5": 32, "P6": 32, "P7": 64}


def test_the_gate_of_lraspp_is_computed_in_windows_on_large_maps(registry: Registry) -> None:
    """On maps over 49×49, the paper's gate varies by position. torchvision's is one number per channel."""
    fine, coarse, small = torch.rand(1, 88, 129, 257), torch.rand(1, 576, 65, 129), torch.rand(1, 576, 7, 11)
    for pooling in ("window", "global"):
        head = registry.build("mobilenet_v3_small", head="lraspp", pooling=pooling).eval().head
        seen: list[torch.Tensor] = []
        head.gate.register_forward_hook(lambda *call, seen=seen: seen.append(call[1][0]))
        with torch.inference_mode():
            head({"C3.depthwise": fine, "C5": coarse})
            head({"C3.depthwise": fine, "C5": small})
        if pooling == "window":
            # Figure 10 of the paper: windows of 49×49 with strides of 16 and 20.
            assert seen[0].shape[-2:] == (2, 5)
            torch.testing.assert_close(seen[0][0, :, 1, 2], coarse[0, :, 16:65, 40:89].mean((1, 2)))
        else:
            torch.testing.assert_close(seen[0], coarse.mean((2, 3), keepdim=True))
        torch.testing.assert_close(seen[1], small.mean((2, 3), keepdim=True))


def test_transforms_of_segmenters_do_not_crop(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", head="lraspp")
    prepared = registry.transforms(model)(torch.zeros(3, 100, 150, dtype=torch.uint8))
    assert prepared.shape == (3, 520, 780)
    assert prepared[:, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
