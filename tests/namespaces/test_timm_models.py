"""Our backbones as timm's models: what timm asks of a model, and what other libraries make of it."""

import copy
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from support import oracles
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from transformers import TimmBackbone, TimmBackboneConfig

from featuretap.plugins import timm_models
from featuretap.registry import Registry
from featuretap.registry.errors import OptionError, WeightsError

OURS = Registry(discover=False)
NAMES = [f"featuretap_{name}{tail}" for name in OURS.list_backbones() for tail in ("", "_reduced_tail")]
SOME = [
    "featuretap_mobilenet_v1_025",
    "featuretap_mobilenet_v2_050_reduced_tail",
    "featuretap_mobilenet_v3_large_paddle",
    "featuretap_mobilenet_v3_small_reduced_tail",
]
SIZE = (2, 3, 97, 161)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
scripting_is_deprecated = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated:FutureWarning")


def in_registry(name: str) -> tuple[str, dict[str, bool]]:
    """Return the backbone and the options that a model of timm stands for."""
    backbone = name.removeprefix("featuretap_")
    return backbone.removesuffix("_reduced_tail"), {"reduced_tail": backbone.endswith("_reduced_tail")}


def in_timm(built: nn.Module, name: str, **arguments: object) -> nn.Module:
    """Make a model of timm with the weights of one from the registry, which must have the same names and shapes."""
    model = timm.create_model(name, **arguments).double().eval()
    model.load_state_dict({key.removeprefix("backbone."): value for key, value in built.state_dict().items()})
    return model


def random_model(name: str, **arguments: object) -> nn.Module:
    return oracles.randomised(timm.create_model(name, **arguments))


def gradients(model: nn.Module) -> list[str]:
    """Return the parameters without a gradient."""
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


# What is registered


def test_every_backbone_is_there_whole_and_with_a_reduced_tail() -> None:
    assert len(NAMES) == 36
    assert sorted(timm.list_models("featuretap_*")) == sorted(NAMES)
    assert sorted(timm.list_models(module="timm_models")) == sorted(NAMES)


def test_importing_again_is_silent_and_changes_nothing() -> None:
    before = timm.models.model_entrypoint("featuretap_mobilenet_v2")
    importlib.reload(timm_models)
    assert timm.models.model_entrypoint("featuretap_mobilenet_v2") is before
    everything: dict[str, object] = {}
    exec("from featuretap.plugins.timm_models import *", everything)
    assert everything["featuretap_mobilenet_v2"] is before


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_maps_equal_those_of_the_registry(name: str) -> None:
    backbone, options = in_registry(name)
    built = oracles.randomised(OURS.build(backbone, num_classes=7, **options))
    model = in_timm(built, name, num_classes=7)
    images = torch.randn(SIZE, dtype=torch.float64)
    tap, last = next(iter(OURS.spec(backbone, features_only=True, taps=("C5",), **options).taps.items()))
    with torch.no_grad():
        torch.testing.assert_close(model(images), built(images), **CLOSE)
        torch.testing.assert_close(model.forward_features(images), built.backbone(images)[tap], **CLOSE)
    assert model.num_features == last.channels


def test_a_wrong_epsilon_would_be_noticed() -> None:
    built = oracles.randomised(OURS.build("mobilenet_v3_small"))
    model = in_timm(built, "featuretap_mobilenet_v3_small")
    images = torch.randn(SIZE, dtype=torch.float64)
    model.stages.C3[0].expand.norm.eps = 1e-5
    with torch.no_grad(), pytest.raises(AssertionError, match="Tensor-likes are not close"):
        torch.testing.assert_close(model(images), built(images), **CLOSE)


# What timm asks of the configuration and the constructor


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_says_what_the_model_is(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16).eval()
    cfg = model.default_cfg
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert cfg["architecture"] == name
    assert (model.num_classes, model.in_chans) == (cfg["num_classes"], cfg["input_size"][0]) == (1000, 3)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert model.get_submodule(cfg["first_conv"]) is first
    images = torch.empty(1, *cfg["input_size"], device="meta", dtype=torch.bfloat16)
    features = model.forward_features(images)
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    assert model(images).dtype == torch.bfloat16


def test_an_argument_that_is_not_known_is_refused() -> None:
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model("featuretap_mobilenet_v2", not_an_argument=1)


def test_the_dropout_is_the_familys_unless_it_is_given() -> None:
    rates = [timm.create_model("featuretap_mobilenet_v2", **given).drop_rate for given in ({}, {"drop_rate": 0.5})]
    assert rates == [OURS.build("mobilenet_v2").head.dropout.p, 0.5] == [0.2, 0.5]
    model = timm.create_model("featuretap_mobilenet_v1_025", drop_rate=0.9).train()
    features = torch.ones(2, model.num_features, 1, 1)
    assert (model.forward_head(features, pre_logits=True) == 0).float().mean() > 0.5


@pytest.mark.parametrize("in_chans", [1, 4])
def test_images_may_have_other_numbers_of_channels(in_chans: int) -> None:
    built = oracles.randomised(OURS.build("mobilenet_v3_small", in_channels=in_chans))
    model = in_timm(built, "featuretap_mobilenet_v3_small", in_chans=in_chans)
    images = torch.randn(2, in_chans, 65, 33, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), built(images), **CLOSE)
    assert model.in_chans == in_chans


# The head


@pytest.mark.parametrize("name", SOME)
def test_the_classifier_is_replaced_and_taken_away(name: str) -> None:
    model = random_model(name)
    images = torch.randn(2, 3, 65, 33, dtype=torch.float64)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        model.reset_classifier(10)
        assert model(images).shape == (2, model.num_classes) == (2, 10)
        assert (model.get_classifier().weight.std() - 0.01).abs() < 0.001
        torch.testing.assert_close(model(images), model.get_classifier()(features), **CLOSE)
        model.reset_classifier(0)
        torch.testing.assert_close(model(images), features, **CLOSE)
    assert (model.num_classes, features.shape[1]) == (0, model.head_hidden_size)


@pytest.mark.parametrize("name", SOME)
def test_without_classes_the_features_equal_those_of_the_registry(name: str) -> None:
    backbone, options = in_registry(name)
    built = oracles.randomised(OURS.build(backbone, num_classes=0, **options))
    model = in_timm(built, name, num_classes=0)
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), built(images), **CLOSE)


def test_a_new_classifier_is_like_the_model() -> None:
    model = timm.create_model("featuretap_mobilenet_v3_small").to(device="meta", dtype=torch.float64).eval()
    model.requires_grad_(False)
    model.reset_classifier(0, "max")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.reset_classifier(2)
    assert {(p.device.type, p.dtype) for p in model.get_classifier().parameters()} == {("meta", torch.float64)}
    assert not any(module.training for module in model.modules())
    assert model.global_pool.pool_type == "max"


@pytest.mark.parametrize("name", SOME)
def test_pooling_is_what_was_asked_for(name: str) -> None:
    model = random_model(name, num_classes=0)
    model.head.hidden = model.head.norm = model.head.activation = nn.Identity()
    features = torch.randn(2, model.num_features, 3, 5, dtype=torch.float64)
    mean, largest = features.mean((2, 3)), features.amax((2, 3))
    for kind, expected in {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2, "": features}.items():
        model.reset_classifier(0, kind)
        torch.testing.assert_close(model.forward_head(features), expected, **CLOSE)


@pytest.mark.parametrize("name", SOME)
def test_without_pooling_the_head_reads_every_place(name: str) -> None:
    pooling = random_model(name, num_classes=5)
    model = timm.create_model(name, num_classes=5, global_pool="").double().eval()
    model.load_state_dict(pooling.state_dict())
    images = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        features, logits = model.forward_features(images), model(images)
        assert logits.shape == (2, 5, 3, 4)
        for row, column in ((0, 0), (2, 1)):
            place = features[:, :, row : row + 1, column : column + 1]
            torch.testing.assert_close(logits[:, :, row, column], pooling.forward_head(place), **CLOSE)


def test_pooling_that_doubles_the_channels_is_refused() -> None:
    message = "global_pool='catavgmax' doubles the channels, which no head here reads; take 'avg' or 'avgmax'"
    with pytest.raises(OptionError) as error:
        timm.create_model("featuretap_mobilenet_v2", global_pool="catavgmax")
    assert str(error.value) == message
    with pytest.raises(OptionError) as error:
        timm.create_model("featuretap_mobilenet_v2").reset_classifier(7, "catavgmax")
    assert str(error.value) == message


# Maps


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", SOME)
def test_lists_of_maps_equal_the_taps_of_the_registry(name: str, output_stride: int) -> None:
    backbone, options = in_registry(name)
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


def test_levels_behind_the_last_map_are_dropped() -> None:
    for out_indices, taps in (((0, 2), ("C1", "C3")), ((-2,), ("C4",)), (2, ("C4", "C5"))):
        model = timm.create_model("featuretap_mobilenet_v3_large", features_only=True, out_indices=out_indices)
        spec = OURS.spec("mobilenet_v3_large", features_only=True, taps=taps)
        assert model.feature_info.channels() == [tap.channels for tap in spec.taps.values()]
        assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "fx", "getter"])
def test_every_way_of_timm_to_extract_maps_finds_the_same(feature_cls: str) -> None:
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
def test_intermediates_are_the_maps_of_the_levels(name: str) -> None:
    backbone, options = in_registry(name)
    built = oracles.randomised(OURS.build(backbone, taps=("C5",), **options))
    maps = OURS.build(backbone, features_only=True, **options).double().eval()
    maps.load_state_dict({k.removeprefix("backbone."): v for k, v in built.state_dict().items() if "stages" in k})
    model = in_timm(built, name)
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
def test_pruning_keeps_the_maps_and_leaves_nothing_unused(name: str) -> None:
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
        assert gradients(pruned) == []
    assert model.prune_intermediate_layers(1, prune_head=False) == [4]
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, **CLOSE)


# Training, tracing and scripting


@pytest.mark.parametrize("name", SOME)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = timm.create_model(name, num_classes=42).train()
    model(torch.randn(2, 3, 64, 64)).mean().backward()
    assert gradients(model) == []


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
    backbone, options = in_registry(name)
    blocks = OURS.spec(backbone, features_only=True, **options).all_blocks
    levels = {block.level for block in blocks[1:]}
    assert len(set(depths)) == 2 + len(levels if coarse else blocks[1:])


@scripting_is_deprecated
@pytest.mark.parametrize("name", SOME)
def test_models_and_their_maps_are_scripted(name: str) -> None:
    images = torch.randn(1, 3, 65, 33)
    maps = {"features_only": True, "out_indices": (1, 3)}
    for arguments in ({}, maps, {**maps, "feature_cls": "getter"}):
        model = timm.create_model(name, scriptable=True, **arguments).eval()
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.script(model)(images), model(images))


@pytest.mark.parametrize("name", SOME)
def test_models_are_traced_and_exported(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    images = torch.randn(2, 3, 65, 33)
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), model(images))
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), model(images))


# Weights


def test_published_weights_of_classifiers_are_tags() -> None:
    published = [
        f"{name}.{entry.tag}"
        for name in NAMES
        for entry in OURS.weights_of(in_registry(name)[0])
        if entry.head == "classification"
    ]
    assert sorted(timm.list_pretrained("featuretap_*")) == sorted(published)
    assert get_pretrained_cfg("featuretap_mobilenet_v3_large").tag == "imagenet1k_v2"
    assert get_pretrained_cfg("featuretap_mobilenet_v3_large.miil_in21k").num_classes == 11221


@pytest.mark.parametrize("name", timm.list_pretrained("featuretap_*"))
def test_images_are_prepared_as_the_weights_want(name: str) -> None:
    architecture, tag = name.split(".")
    entries = OURS.weights_of(in_registry(architecture)[0])
    wanted = next(entry.preprocessing for entry in entries if entry.tag == tag)
    config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
    assert config["input_size"] == (3, wanted.crop, wanted.crop)
    assert math.floor(wanted.crop / config["crop_pct"]) == wanted.resize
    assert (config["mean"], config["std"]) == (wanted.mean, wanted.std)
    assert config["interpolation"] == wanted.interpolation


@pytest.fixture
def cached(official_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's MobileNetV2 where torch.hub keeps it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    path.parent.mkdir(parents=True)
    path.symlink_to(official_weights)
    return path


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("name", ["featuretap_mobilenet_v2", "featuretap_mobilenet_v2.imagenet1k_v1"])
def test_published_weights_are_loaded(name: str) -> None:
    built = OURS.build("mobilenet_v2", pretrained=True).eval()
    images = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        expected = built(images)
        torch.testing.assert_close(timm.create_model(name, pretrained=True).eval()(images), expected)
        maps = timm.create_model(name, pretrained=True, features_only=True).eval()(images)
        torch.testing.assert_close(maps[-1], built.backbone(images)["C5"])


@pytest.mark.usefixtures("cached")
def test_published_weights_are_adapted_as_the_registry_does(caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("featuretap_mobilenet_v2", pretrained=True, in_chans=1, num_classes=5).eval()
    assert "has 1000 classes, not 5" in caplog.text
    whole = OURS.build("mobilenet_v2", pretrained=True, in_channels=1).eval()
    images = torch.randn(2, 1, 65, 33)
    with torch.no_grad():
        assert model(images).shape == (2, 5)
        torch.testing.assert_close(model.forward_features(images), whole.backbone(images)["C5"])
        none = timm.create_model("featuretap_mobilenet_v2", pretrained=True, in_chans=1, num_classes=0).eval()
        torch.testing.assert_close(none(images), whole.backbone(images)["C5"].mean((2, 3)))


@pytest.mark.usefixtures("cached")
def test_a_reduced_tail_takes_the_strongest_half_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("featuretap_mobilenet_v2_reduced_tail", pretrained=True).eval()
    assert "fine-tune it before use" in caplog.text
    built = OURS.build("mobilenet_v2", pretrained=True, reduced_tail=True).eval()
    images = torch.randn(1, 3, 65, 33)
    with torch.no_grad():
        torch.testing.assert_close(model(images), built(images))


def test_another_file_in_the_cache_is_refused(cached: Path) -> None:
    cached.unlink()
    torch.save({"a": torch.zeros(1)}, cached)
    with pytest.raises(WeightsError, match=r"is not 'mobilenet_v2\.imagenet1k_v1': its SHA-256 begins with"):
        timm.create_model("featuretap_mobilenet_v2", pretrained=True)


def test_another_cache_is_refused() -> None:
    with pytest.raises(OptionError) as error:
        timm.create_model("featuretap_mobilenet_v2", pretrained=True, cache_dir="elsewhere")
    assert str(error.value) == (
        "cannot keep the weights of 'featuretap_mobilenet_v2' in cache_dir='elsewhere'; they are kept in the caches of "
        "torch.hub and huggingface_hub, which TORCH_HOME and HF_HOME name"
    )


def test_a_model_without_published_weights_says_so_as_timms_do() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for featuretap_mobilenet_v2_075"):
        timm.create_model("featuretap_mobilenet_v2_075", pretrained=True)
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(nonesuch\) for featuretap_mobilenet_v2"):
        timm.create_model("featuretap_mobilenet_v2.nonesuch")


def test_weights_of_another_epsilon_survive_a_checkpoint_that_does_not_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = oracles.with_statistics(oracles.timm_model("mobilenetv3_small_100"))
    published = tmp_path / "model.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), published)

    def found(repository: str, *_: object, **__: object) -> str | None:
        return str(published) if repository == "timm/mobilenetv3_small_100.lamb_in1k" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", found)
    model = timm.create_model("featuretap_mobilenet_v3_small.lamb_in1k", pretrained=True).eval()
    checkpoint = tmp_path / "checkpoint.safetensors"
    safetensors.torch.save_file(model.state_dict(), checkpoint)
    again = timm.create_model("featuretap_mobilenet_v3_small", checkpoint_path=checkpoint).eval()
    images = torch.randn(2, 3, 97, 65)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(images), model(images))


def test_our_files_are_checkpoints_of_timm(tmp_path: Path) -> None:
    built = OURS.build("mobilenet_v3_small", num_classes=3, reduced_tail=True).eval()
    path = OURS.save(built, tmp_path / "ours.safetensors")
    name = "featuretap_mobilenet_v3_small_reduced_tail"
    images = torch.randn(1, 3, 65, 33)
    for source in ({"checkpoint_path": path}, {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}):
        overlay = {**source.get("pretrained_cfg_overlay", {}), "num_classes": 3}
        model = timm.create_model(name, num_classes=3, **{**source, "pretrained_cfg_overlay": overlay}).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(images), built(images))


def test_folders_that_timm_saves_are_loaded_by_it(tmp_path: Path) -> None:
    model = timm.create_model("featuretap_mobilenet_v1_025", num_classes=3, in_chans=1).eval()
    save_for_hf(model, tmp_path, model_args={"in_chans": 1})
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "featuretap_mobilenet_v1_025"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 1, 65, 33)
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images))


# Other libraries


@pytest.mark.parametrize("make", [smp.Unet, smp.FPN])
@pytest.mark.parametrize("name", SOME)
def test_segmentation_models_learn(make: Callable[..., nn.Module], name: str) -> None:
    model = make(f"tu-{name}", encoder_weights=None, classes=3).train()
    logits = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 3, 64, 96)
    logits.pow(2).mean().backward()
    assert gradients(model) == []


def test_segmentation_models_dilate() -> None:
    model = smp.DeepLabV3Plus("tu-featuretap_mobilenet_v3_small", encoder_weights=None, encoder_output_stride=8)
    assert model.encoder(torch.randn(1, 3, 64, 96))[-1].shape == (1, 576, 8, 12)
    model.train()(torch.randn(2, 3, 64, 96)).mean().backward()
    assert gradients(model) == []


@pytest.mark.usefixtures("cached")
def test_segmentation_models_take_published_weights() -> None:
    model = smp.Unet("tu-featuretap_mobilenet_v2.imagenet1k_v1", encoder_weights=True).eval()
    built = OURS.build("mobilenet_v2", features_only=True, pretrained=True).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(images)[1:], list(built(images).values()))
    assert smp.encoders.get_preprocessing_params("tu-featuretap_mobilenet_v2")["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("name", SOME)
def test_transformers_backbones_learn(name: str) -> None:
    config = TimmBackboneConfig(backbone=name, out_indices=[1, 2, 3], num_channels=4, output_stride=16)
    model = TimmBackbone(config).train()
    assert (model.stage_names, model.out_features) == (["C1", "C2", "C3", "C4", "C5"], ["C2", "C3", "C4"])
    maps = model(torch.randn(2, 4, 64, 96)).feature_maps
    assert [feature.shape[1] for feature in maps] == model.channels
    assert [feature.shape[2:] for feature in maps] == [(16, 24), (8, 12), (4, 6)]
    sum(feature.pow(2).mean() for feature in maps).backward()
    assert gradients(model) == []


def test_transformers_backbones_return_all_levels_beside_those_asked_for() -> None:
    model = TimmBackbone(TimmBackboneConfig(backbone="featuretap_mobilenet_v3_small", freeze_batch_norm_2d=True))
    out = model(torch.randn(1, 3, 64, 96), output_hidden_states=True)
    assert [level.shape[1] for level in out.hidden_states] == [16, 16, 24, 48, 576]
    assert len(out.feature_maps) == 1
    assert out.feature_maps[0] is out.hidden_states[-1]
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", SOME)
def test_a_detector_of_torchvision_learns(name: str) -> None:
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
    assert gradients(model) == []
    (found,) = model.eval()([torch.rand(3, 64, 96)])
    assert set(found) == {"boxes", "labels", "scores"}


def as_mmpretrain(images: Tensor, model_name: str, **arguments: object) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build and call a model as `TIMMBackbone` of mmpretrain 1.2.0 does, which needs too much to be installed here."""
    model = timm.create_model(
        model_name=model_name, pretrained=False, in_chans=images.shape[1], checkpoint_path="", **arguments
    )
    if hasattr(model, "reset_classifier"):
        model.reset_classifier(0, "")
    features = model(images)
    return model, tuple(features) if isinstance(features, list | tuple) else (features,)


@pytest.mark.parametrize("name", SOME)
def test_mmpretrains_calls_give_maps(name: str) -> None:
    images = torch.randn(2, 4, 64, 96)
    model, maps = as_mmpretrain(images, name, features_only=True, out_indices=(2, 4))
    assert [feature.shape[1:] for feature in maps] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    ]
    sum(feature.pow(2).mean() for feature in maps).backward()
    assert gradients(model) == []
    whole, (last,) = as_mmpretrain(images, name, features_only=False)
    assert last.shape == (2, whole.head_hidden_size, 2, 3)
    last.pow(2).mean().backward()
    assert gradients(whole) == []
