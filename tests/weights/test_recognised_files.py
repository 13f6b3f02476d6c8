"""Files of torchvision and timm without metadata are recognized by their tensors."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from support import oracles
from support.layouts import TIMM, relative_difference
from support.oracles import with_statistics

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError


@pytest.mark.parametrize(("name", "options", "architecture"), TIMM)
def test_files_of_timm_are_recognised(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], architecture: str
) -> None:
    theirs = with_statistics(timm.create_model(architecture, num_classes=7))
    path = tmp_path / f"{architecture}.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    if "width" in options:
        # The catalogue has no name for this width, so the file alone does not identify the model.
        ours = registry.build(name, num_classes=7, pretrained=path, **options)
    else:
        ours = registry.load(path)
        assert (ours.description.name, ours.description.num_classes) == (name.removesuffix("_tf"), 7)
    assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("mobilenet_v2", {}), ("mobilenet_v3_large", {}), ("mobilenet_v3_small", {"reduced_tail": True})],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_torchvision_are_recognised(
    registry: Registry, tmp_path: Path, name: str, arguments: dict[str, Any], suffix: str
) -> None:
    theirs = with_statistics(oracles.torchvision_model(name, num_classes=5, **arguments))
    path = tmp_path / f"file.{suffix}"
    (torch.save if suffix == "pth" else safetensors.torch.save_file)(theirs.state_dict(), path)
    ours = registry.load(path)
    said = ours.description
    assert (said.name, dict(said.options), said.num_classes) == (name, arguments, 5)
    assert relative_difference(ours, theirs) < 1e-5


def test_timms_feature_extractors_are_recognised(registry: Registry, tmp_path: Path) -> None:
    theirs = with_statistics(timm.create_model("mobilenetv3_large_100", features_only=True))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    ours = registry.load(tmp_path / "file.safetensors").eval()
    assert (ours.description.name, ours.description.head) == ("mobilenet_v3_large", None)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(list(ours.double()(images).values()), theirs.double()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 5])
def test_the_number_of_image_channels_is_recognised(registry: Registry, tmp_path: Path, channels: int) -> None:
    theirs = with_statistics(timm.create_model("mobilenetv1_100", in_chans=channels))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    ours = registry.load(tmp_path / "file.safetensors")
    assert ours.description.options == {"in_channels": channels}
    assert relative_difference(ours, theirs, channels) < 1e-5


def test_files_of_unknown_networks_are_refused(registry: Registry, tmp_path: Path) -> None:
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), tmp_path / "file.safetensors")
    for ask in (registry.load, lambda path: registry.convert(path, tmp_path / "other.safetensors")):
        with pytest.raises(WeightsError) as error:
            ask(tmp_path / "file.safetensors")
        assert str(error.value) == (
            f"'{tmp_path}/file.safetensors' does not describe its model, and its tensors match no backbone in the "
            "layouts of torchvision, timm, PaddleClas or featuretap; name the model: registry.load(path, name=...)"
        )


def test_the_error_explains_the_wider_stem_of_timm(registry: Registry, tmp_path: Path) -> None:
    safetensors.torch.save_file(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v3_small_050", pretrained=tmp_path / "x.safetensors")
    assert str(error.value) == (
        "weights do not fit 'mobilenet_v3_small_050': stages.C1.0.conv.weight is (16, 3, 3, 3) in the file, "
        "(8, 3, 3, 3) in the model (below width 0.75, timm keeps 16 channels in the stem, whereas the paper's width "
        "multiplier scales it)"
    )
