"""featuretap's backbones as timm models in segmentation_models_pytorch and transformers."""

from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import torch
from support.timm_models import OURS, SOME, without_gradient
from torch import nn
from transformers import TimmBackbone, TimmBackboneConfig


@pytest.mark.parametrize(("name", "make"), [*((name, smp.Unet) for name in SOME), (SOME[-1], smp.FPN)])
def test_models_of_segmentation_models_pytorch_train(name: str, make: Callable[..., nn.Module]) -> None:
    model = make(f"tu-{name}", encoder_weights=None, classes=3).train()
    logits = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 3, 64, 96)
    logits.pow(2).mean().backward()
    assert without_gradient(model) == []


def test_output_stride_of_segmentation_models_pytorch_dilates() -> None:
    model = smp.DeepLabV3Plus("tu-featuretap_mobilenet_v3_small", encoder_weights=None, encoder_output_stride=8)
    assert model.encoder(torch.randn(1, 3, 64, 96))[-1].shape == (1, 576, 8, 12)
    model.train()(torch.randn(2, 3, 64, 96)).mean().backward()
    assert without_gradient(model) == []


def test_segmentation_models_pytorch_loads_published_weights() -> None:
    model = smp.Unet("tu-featuretap_mobilenet_v2.imagenet1k_v1", encoder_weights=True).eval()
    built = OURS.build("mobilenet_v2", features_only=True, pretrained=True).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(images)[1:], list(built(images).values()))
    assert smp.encoders.get_preprocessing_params("tu-featuretap_mobilenet_v2")["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("name", SOME)
def test_backbones_of_transformers_train(name: str) -> None:
    config = TimmBackboneConfig(backbone=name, out_indices=[1, 2, 3], num_channels=4, output_stride=16)
    model = TimmBackbone(config).train()
    assert (model.stage_names, model.out_features) == (["C1", "C2", "C3", "C4", "C5"], ["C2", "C3", "C4"])
    maps = model(torch.randn(2, 4, 64, 96)).feature_maps
    assert [feature.shape[1] for feature in maps] == model.channels
    assert [feature.shape[2:] for feature in maps] == [(16, 24), (8, 12), (4, 6)]
    sum(feature.pow(2).mean() for feature in maps).backward()
    assert without_gradient(model) == []


def test_backbones_of_transformers_return_all_levels_as_hidden_states() -> None:
    model = TimmBackbone(TimmBackboneConfig(backbone="featuretap_mobilenet_v3_small", freeze_batch_norm_2d=True))
    out = model(torch.randn(1, 3, 64, 96), output_hidden_states=True)
    assert [level.shape[1] for level in out.hidden_states] == [16, 16, 24, 48, 576]
    assert len(out.feature_maps) == 1
    assert out.feature_maps[0] is out.hidden_states[-1]
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
