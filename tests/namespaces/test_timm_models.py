"""featuretap's backbones as timm models: registration, configuration and head."""

import importlib

import pytest
import timm
import torch
from support import oracles
from support.timm_models import (
    CLOSE,
    NAMES,
    OURS,
    SIZE,
    SMALLEST,
    SOME,
    backbone_and_options,
    random_model,
    timm_counterpart,
)
from torch import nn

from featuretap.adapters import timm as timm_adapter
from featuretap.registry.errors import OptionError


def test_every_backbone_is_registered_with_a_full_and_with_a_reduced_tail() -> None:
    assert len(NAMES) == 48
    assert sorted(timm.list_models("featuretap_*")) == sorted(NAMES)
    assert sorted(timm.list_models(module="timm")) == sorted(NAMES)


def test_reloading_the_module_keeps_the_registered_models() -> None:
    before = timm.models.model_entrypoint("featuretap_mobilenet_v2")
    importlib.reload(timm_adapter)
    assert timm.models.model_entrypoint("featuretap_mobilenet_v2") is before
    everything: dict[str, object] = {}
    exec("from featuretap.adapters.timm import *", everything)
    assert everything["featuretap_mobilenet_v2"] is before


@pytest.mark.parametrize("name", SMALLEST)
def test_logits_and_maps_equal_those_of_the_registry(name: str) -> None:
    backbone, options = backbone_and_options(name)
    built = oracles.randomised(OURS.build(backbone, num_classes=7, **options))
    model = timm_counterpart(built, name, num_classes=7)
    images = torch.randn(SIZE, dtype=torch.float64)
    tap, last = next(iter(OURS.spec(backbone, features_only=True, taps=("C5",), **options).taps.items()))
    with torch.no_grad():
        torch.testing.assert_close(model(images), built(images), **CLOSE)
        torch.testing.assert_close(model.forward_features(images), built.backbone(images)[tap], **CLOSE)
    assert model.num_features == last.channels


def test_a_wrong_epsilon_would_be_noticed() -> None:
    built = oracles.randomised(OURS.build("mobilenet_v3_small"))
    model = timm_counterpart(built, "featuretap_mobilenet_v3_small")
    images = torch.randn(SIZE, dtype=torch.float64)
    model.stages.C3[0].expand.norm.eps = 1e-5
    with torch.no_grad(), pytest.raises(AssertionError, match="Tensor-likes are not close"):
        torch.testing.assert_close(model(images), built(images), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_describes_the_model(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    cfg = model.default_cfg
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert cfg["architecture"] == name
    assert (model.num_classes, model.in_chans) == (cfg["num_classes"], cfg["input_size"][0]) == (1000, 3)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert model.get_submodule(cfg["first_conv"]) is first
    backbone, options = backbone_and_options(name)
    spec = OURS.spec(backbone, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.parameters
    assert (model.num_features, *cfg["pool_size"]) == spec.backbone.tap_shapes(*cfg["input_size"][1:])["C5"]


@pytest.mark.parametrize("name", SMALLEST)
def test_the_configuration_states_the_size_of_the_last_map(name: str) -> None:
    model = timm.create_model(name).eval()
    with torch.no_grad():
        features = model.forward_features(torch.zeros(1, *model.default_cfg["input_size"]))
        assert features.shape == (1, model.num_features, *model.default_cfg["pool_size"])
        assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)


@pytest.mark.parametrize("name", SOME)
def test_logits_have_the_dtype_of_the_model(name: str) -> None:
    model = timm.create_model(name, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 33, 33, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model("featuretap_mobilenet_v2", not_an_argument=1)


def test_the_dropout_rate_defaults_to_the_familys() -> None:
    rates = [timm.create_model("featuretap_mobilenet_v2", **given).drop_rate for given in ({}, {"drop_rate": 0.5})]
    assert rates == [OURS.build("mobilenet_v2").head.dropout.p, 0.5] == [0.2, 0.5]
    model = timm.create_model("featuretap_mobilenet_v1_025", drop_rate=0.9).train()
    features = torch.ones(2, model.num_features, 1, 1)
    assert (model.forward_head(features, pre_logits=True) == 0).float().mean() > 0.5


@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans_sets_the_number_of_image_channels(in_chans: int) -> None:
    built = oracles.randomised(OURS.build("mobilenet_v3_small", in_channels=in_chans))
    model = timm_counterpart(built, "featuretap_mobilenet_v3_small", in_chans=in_chans)
    images = torch.randn(2, in_chans, 65, 33, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), built(images), **CLOSE)
    assert model.in_chans == in_chans


@pytest.mark.parametrize("name", SOME)
def test_reset_classifier_replaces_and_removes_the_classifier(name: str) -> None:
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
    backbone, options = backbone_and_options(name)
    built = oracles.randomised(OURS.build(backbone, num_classes=0, **options))
    model = timm_counterpart(built, name, num_classes=0)
    images = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), built(images), **CLOSE)


def test_a_new_classifier_has_the_device_dtype_and_mode_of_the_model() -> None:
    model = timm.create_model("featuretap_mobilenet_v3_small").to(device="meta", dtype=torch.float64).eval()
    model.requires_grad_(False)
    model.reset_classifier(0, "max")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.reset_classifier(2)
    assert {(p.device.type, p.dtype) for p in model.get_classifier().parameters()} == {("meta", torch.float64)}
    assert not any(module.training for module in model.modules())
    assert model.global_pool.pool_type == "max"


@pytest.mark.parametrize("name", SOME)
def test_global_pool_selects_the_pooling(name: str) -> None:
    model = random_model(name, num_classes=0)
    model.head.hidden = model.head.norm = model.head.activation = model.head.dropout = nn.Identity()
    features = torch.randn(2, model.num_features, 3, 5, dtype=torch.float64)
    mean, largest = features.mean((2, 3)), features.amax((2, 3))
    for kind, expected in {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2, "": features}.items():
        model.reset_classifier(0, kind)
        torch.testing.assert_close(model.forward_head(features), expected, **CLOSE)


@pytest.mark.parametrize("name", SOME)
def test_without_pooling_the_head_reads_every_position(name: str) -> None:
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
    message = "global_pool='catavgmax' doubles the channels, which the head does not support; use 'avg' or 'avgmax'"
    with pytest.raises(OptionError) as error:
        timm.create_model("featuretap_mobilenet_v2", global_pool="catavgmax")
    assert str(error.value) == message
    with pytest.raises(OptionError) as error:
        timm.create_model("featuretap_mobilenet_v2").reset_classifier(7, "catavgmax")
    assert str(error.value) == message
