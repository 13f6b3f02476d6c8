"""The model of a run is described from a weights file without building it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from featuretap import registry
from featuretap.registry.errors import WeightsError
from featuretap.registry.specs import BackboneSpec
from featuretap.specs.variants import widened
from featuretap.workflows.training.configuration import make_configuration
from featuretap.workflows.training.models import resolve_model


@pytest.fixture
def lraspp(tmp_path: Path) -> Path:
    model = registry.build(
        "mobilenet_v3_small", head="lraspp", width=0.25, in_channels=1, num_classes=3, inter_channels=32
    )
    return registry.save(model, tmp_path / "lraspp.safetensors")


def test_a_checkpoint_is_described_without_building_its_model(lraspp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise AssertionError("a module was built")

    monkeypatch.setattr(torch.nn.Conv2d, "__init__", refuse)
    settings = {"data": "images", "head": "lraspp", "weights": str(lraspp), "options": {"inter_channels": 64}}
    configuration, spec = resolve_model(make_configuration(settings))
    expected = {"width": 0.25, "in_channels": 1, "inter_channels": 64, "output_stride": 16}
    assert (configuration.backbone, configuration.options) == ("mobilenet_v3_small", expected)
    assert (spec.backbone.in_channels, spec.head.name) == (1, "lraspp")


def test_another_head_takes_the_options_of_the_backbone_alone(lraspp: Path) -> None:
    configuration, spec = resolve_model(make_configuration({"data": "digits", "weights": str(lraspp)}))
    assert configuration.options == {"width": 0.25, "in_channels": 1, "output_stride": 16}
    assert spec.head.name == "classification"


def test_a_checkpoint_of_torchvisions_layout_is_identified(official_weights: Path) -> None:
    configuration, _ = resolve_model(make_configuration({"data": "digits", "weights": str(official_weights)}))
    assert configuration.backbone == "mobilenet_v2"


def test_a_checkpoint_of_a_backbone_without_a_name_is_refused(tmp_path: Path) -> None:
    spec = registry.spec("mobilenet_v1", features_only=True)
    assert isinstance(spec, BackboneSpec)
    path = registry.save(registry.build(widened(spec, 0.25), num_classes=3), tmp_path / "own.safetensors")
    with pytest.raises(WeightsError) as caught:
        resolve_model(make_configuration({"data": "digits", "weights": str(path)}))
    assert str(caught.value) == (
        f"{str(path)!r} was saved from the BackboneSpec 'mobilenet_v1', which has no name in the registry; only "
        "registered backbones can be trained"
    )
