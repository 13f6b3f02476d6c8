"""The namespace `torchvision/`: weights and preprocessing, from torchvision's own cache."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data
from support.namespaces import maps_of
from support.oracles import torchvision_model
from torchvision.models import MobileNet_V2_Weights

from featuretap.registry import Registry
from featuretap.registry.errors import (
    UnknownWeightsError,
    WeightsError,
)
from featuretap.specs.preprocessing import Preprocessing


@pytest.fixture
def cache() -> Path:
    """The folder where torch.hub, and so torchvision, stores downloads."""
    folder = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_official_weights_give_the_maps_of_our_own_network(
    registry: Registry, cache: Path, official_weights: Path
) -> None:
    shutil.copy(official_weights, cache / "mobilenet_v2-b0353104.pth")
    theirs = registry.build("torchvision/mobilenet_v2", features_only=True, pretrained="IMAGENET1K_V1").eval()
    ours = registry.build("mobilenet_v2", features_only=True, pretrained="imagenet1k_v1").eval()
    picture = Image.fromarray(data.chelsea())
    prepared = registry.transforms(theirs)(picture)
    torch.testing.assert_close(prepared, MobileNet_V2_Weights.IMAGENET1K_V1.transforms()(picture))
    found, expected = maps_of(theirs, prepared[None]), maps_of(ours, prepared[None])
    assert list(found) == list(expected) == ["C1", "C2", "C3", "C4", "C5"]
    for level, values in expected.items():
        torch.testing.assert_close(found[level], values, rtol=1e-4, atol=1e-4)
    assert theirs.description.weights == "torchvision/mobilenet_v2.IMAGENET1K_V1"
    assert theirs.description.preprocessing == ours.description.preprocessing


def test_the_default_weights_are_torchvisions(registry: Registry, cache: Path) -> None:
    whole = torchvision_model("mobilenet_v2")
    torch.save(whole.state_dict(), cache / "mobilenet_v2-7ebf99e0.pth")
    backbone = registry.build("torchvision/mobilenet_v2", features_only=True, pretrained=True)
    assert torch.equal(next(backbone.parameters()), next(whole.parameters()))
    assert backbone.description.weights == "torchvision/mobilenet_v2.IMAGENET1K_V2"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert backbone.description.preprocessing == Preprocessing(232, 224, mean, std, "bilinear")


def test_unavailable_weights_explain_what_to_do(registry: Registry, cache: Path) -> None:
    asked = {"features_only": True, "pretrained": "IMAGENET1K_V1"}
    by_hand = (
        f"put https://download.pytorch.org/models/mobilenet_v2-b0353104.pth at {cache / 'mobilenet_v2-b0353104.pth'}"
    )
    with pytest.raises(WeightsError) as error:
        registry.build("torchvision/mobilenet_v2", **asked)
    assert str(error.value) == (
        "'torchvision/mobilenet_v2.IMAGENET1K_V1' is not on this machine, and FEATURETAP_OFFLINE forbids downloads; "
        f"{by_hand}"
    )
    torch.save(torchvision_model("mobilenet_v3_small").state_dict(), cache / "mobilenet_v2-b0353104.pth")
    with pytest.raises(WeightsError) as error:
        registry.build("torchvision/mobilenet_v2", **asked)
    assert str(error.value).startswith("torchvision cannot load IMAGENET1K_V1 for 'mobilenet_v2': Error(s) in loading")
    assert str(error.value).endswith(f"; {by_hand}")


def test_unknown_weights_list_the_known_ones(registry: Registry) -> None:
    with pytest.raises(UnknownWeightsError) as error:
        registry.build("torchvision/mobilenet_v2", features_only=True, pretrained="IMAGENET1K_V3")
    assert str(error.value) == (
        "'torchvision/mobilenet_v2' has no weights 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V2'? its tags are "
        "IMAGENET1K_V2, IMAGENET1K_V1"
    )
