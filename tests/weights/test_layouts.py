"""Weights in featuretap's, torchvision's and timm's layouts give the same network, up to rounding."""

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations, product
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from support import oracles
from support.layouts import TIMM, relative_difference
from support.oracles import with_statistics
from torch import nn

from featuretap.backbones.layouts.timm import ARCHITECTURES
from featuretap.registry import Registry

OTHERS = ["torchvision", "timm"]
REDUCED = {"reduced_tail": True}

TORCHVISION = [
    ("mobilenet_v2", {}, {}),
    ("mobilenet_v2_050", {}, {"width_mult": 0.5}),
    ("mobilenet_v2_140", {}, {"width_mult": 1.4}),
    ("mobilenet_v2", {"width": 0.62}, {"width_mult": 0.62}),
    ("mobilenet_v3_large", {}, {}),
    ("mobilenet_v3_large", {"reduced_tail": True}, {"reduced_tail": True}),
    ("mobilenet_v3_small", {}, {}),
    ("mobilenet_v3_small", {"reduced_tail": True}, {"reduced_tail": True}),
    ("mobilenet_v3_large", {"output_stride": 16, "dilate_entry": True}, {"dilated": True}),
    (
        "mobilenet_v3_small",
        {"output_stride": 16, "dilate_entry": True, "reduced_tail": True},
        REDUCED | {"dilated": True},
    ),
]
"""Our name, our options, torchvision's arguments."""


@pytest.mark.parametrize(("name", "options", "arguments"), TORCHVISION)
def test_torchvision_loads_what_is_saved_for_it_strictly(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], arguments: dict[str, Any]
) -> None:
    ours = with_statistics(registry.build(name, **options))
    path = registry.save(ours, tmp_path / "file.safetensors", "torchvision")
    theirs = oracles.torchvision_model(name.removesuffix("_050").removesuffix("_140"), **arguments)
    theirs.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(("name", "options", "architecture"), TIMM)
def test_timm_builds_what_is_saved_for_it(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], architecture: str
) -> None:
    ours = with_statistics(registry.build(name, **options))
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True)
    assert relative_difference(ours, theirs) < 1e-5
    timm.create_model(architecture).load_state_dict(
        safetensors.torch.load_file(tmp_path / "folder" / "model.safetensors"), strict=True
    )


def test_every_network_that_timm_and_featuretap_share_is_covered() -> None:
    ours = set(ARCHITECTURES)
    assert ours == {architecture for _, _, architecture in TIMM}
    registered = set(timm.list_models(["mobilenetv1*", "mobilenetv2*", "mobilenetv3_*", "tf_mobilenet*"]))
    # timm's other models have a different architecture: deeper, another head, or a stem that no width multiplier gives.
    assert registered - ours == {
        *("mobilenetv1_100h", "mobilenetv2_110d", "mobilenetv2_120d", "mobilenetv3_rw", "mobilenetv3_small_050"),
        "mobilenetv3_large_150d",
    }


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        *(("mobilenet_v3_small", *pair) for pair in product(["featuretap", "torchvision", "timm"], repeat=2)),
        # All layouts of V2 use the same epsilon; V3-Large has a separate name table.
        *((name, *pair) for name in ("mobilenet_v2", "mobilenet_v3_large") for pair in permutations(OTHERS)),
    ],
)
def test_every_conversion_computes_the_same(
    registry: Registry, tmp_path: Path, name: str, source: str, target: str
) -> None:
    ours = with_statistics(registry.build(name))
    path = registry.save(ours, tmp_path / "source.safetensors", source)
    converted = registry.convert(path, tmp_path / "target.safetensors", target)
    assert relative_difference(registry.load(converted), ours.float()) < 1e-5


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
def test_conversion_between_layouts_of_equal_eps_is_lossless(registry: Registry, tmp_path: Path, layout: str) -> None:
    ours = with_statistics(registry.build("mobilenet_v2"))
    there = registry.save(ours, tmp_path / "there.safetensors", layout)
    back = registry.convert(there, tmp_path / "back.safetensors")
    assert back.read_bytes() == registry.save(ours, tmp_path / "ours.safetensors").read_bytes()


@pytest.mark.parametrize(("layout", "eps"), [("torchvision", 1e-3), ("timm", 1e-5)])
def test_a_loaded_model_has_the_eps_of_its_layout(registry: Registry, tmp_path: Path, layout: str, eps: float) -> None:
    path = registry.save(registry.build("mobilenet_v3_small"), tmp_path / "file.safetensors", layout)
    for model in (registry.load(path), registry.build("mobilenet_v3_small", pretrained=path)):
        assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {eps}
        again = registry.save(model, tmp_path / "again.safetensors", layout)
        assert again.read_bytes() == path.read_bytes()


def test_eps_is_folded_into_the_variance_where_it_can_be_and_into_the_weight_elsewhere(
    registry: Registry, tmp_path: Path
) -> None:
    timms = registry.load(registry.save(registry.build("mobilenet_v3_small"), tmp_path / "a.safetensors", "timm"))
    norm = timms.backbone.stages.C1[0].norm
    norm.running_var[:2] = torch.tensor([0.5, 1e-6])
    path = registry.save(timms, tmp_path / "b.safetensors", "torchvision")
    written = safetensors.torch.load_file(path)
    weight, variance = (written[f"features.0.1.{kind}"][:2].tolist() for kind in ("weight", "running_var"))
    assert weight == pytest.approx([1.0, math.sqrt((1e-6 + 1e-3) / (1e-6 + 1e-5))], rel=1e-6)
    assert variance == pytest.approx([0.5 + 1e-5 - 1e-3, 1e-6], rel=1e-6)


def test_norms_of_several_eps_keep_theirs_and_are_folded_for_others(registry: Registry, tmp_path: Path) -> None:
    model = with_statistics(registry.build("mobilenet_v2"))
    for norm in (model.backbone.stages.C1[0].norm, model.backbone.stages.C4[2].project.norm):
        norm.eps = 1e-2
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert relative_difference(loaded, model) == 0
    timms = registry.load(registry.convert(path, tmp_path / "timm.safetensors", "timm"))
    assert {module.eps for module in timms.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}
    assert relative_difference(timms, model) < 1e-5


def test_torchvisions_classifier_takes_a_bare_backbone_without_strictness(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(
        registry.build("mobilenet_v3_large", features_only=True), tmp_path / "x.safetensors", "torchvision"
    )
    theirs = oracles.torchvision_model("mobilenet_v3_large")
    keys = theirs.load_state_dict(safetensors.torch.load_file(path), strict=False)
    assert keys.unexpected_keys == []
    assert {key.partition(".")[0] for key in keys.missing_keys} == {"classifier"}


@pytest.mark.parametrize("load", [safetensors.torch.load_model, huggingface_hub.load_torch_model])
@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_hugging_faces_loaders_take_the_file_strictly(
    registry: Registry, tmp_path: Path, load: Callable[..., Any], layout: str
) -> None:
    ours = with_statistics(registry.build("mobilenet_v3_small"))
    path = registry.save(ours, tmp_path / "file.safetensors", layout)
    theirs = (
        timm.create_model("mobilenetv3_small_100")
        if layout == "timm"
        else oracles.torchvision_model("mobilenet_v3_small")
    )
    load(theirs, path, strict=True)
    assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
def test_official_weights_classify_photographs_in_every_layout(
    registry: Registry, tmp_path: Path, official_weights: Path, layout: str
) -> None:
    from skimage import data
    from torchvision.models import MobileNet_V2_Weights

    path = registry.convert(official_weights, tmp_path / "file.safetensors", layout)
    names = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    model = registry.load(path).eval()
    said = model.description
    assert (said.weights, said.classes) == ("mobilenet_v2.imagenet1k_v1", "imagenet1k")
    transform = registry.transforms(model)
    for photograph, name, probability in ((data.chelsea(), "Egyptian cat", 0.717), (data.coffee(), "espresso", 0.992)):
        with torch.inference_mode():
            probabilities = model(transform(Image.fromarray(photograph))[None]).softmax(1)[0]
        assert names[probabilities.argmax()] == name
        assert probabilities.max().item() == pytest.approx(probability, abs=5e-4)


def test_frozen_batch_norms_are_held_by_every_layout(registry: Registry, tmp_path: Path) -> None:
    from torchvision.ops import FrozenBatchNorm2d

    ours = registry.build("mobilenet_v3_small", norm=partial(FrozenBatchNorm2d, eps=1e-3))
    ours.load_state_dict(with_statistics(registry.build("mobilenet_v3_small")).state_dict(), strict=False)
    theirs = oracles.torchvision_model("mobilenet_v3_small")
    path = registry.save(ours, tmp_path / "file.safetensors", "torchvision")
    theirs.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert relative_difference(ours, theirs) < 1e-5
