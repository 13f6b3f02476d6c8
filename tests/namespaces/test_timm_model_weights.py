"""featuretap's backbones as timm models: published weights, checkpoints and folders."""

import json
import math
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from support import oracles
from support.timm_models import NAMES, OURS, backbone_and_options
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from timm.models._hub import save_for_hf

from featuretap.registry.errors import OptionError, WeightsError
from featuretap.weights.downloads import torch_hub_path


def test_published_weights_of_classifiers_are_tags() -> None:
    published = [
        f"{name}.{entry.tag}"
        for name in NAMES
        for entry in OURS.weights_of(backbone_and_options(name)[0])
        if entry.head == "classification"
    ]
    assert sorted(timm.list_pretrained("featuretap_*")) == sorted(published)
    assert get_pretrained_cfg("featuretap_mobilenet_v3_large").tag == "imagenet1k_v2"
    assert get_pretrained_cfg("featuretap_mobilenet_v3_large.miil_in21k").num_classes == 11221


@pytest.mark.parametrize("name", timm.list_pretrained("featuretap_*"))
def test_data_config_is_the_preprocessing_of_the_weights(name: str) -> None:
    architecture, tag = name.split(".")
    entries = OURS.weights_of(backbone_and_options(architecture)[0])
    wanted = next(entry.preprocessing for entry in entries if entry.tag == tag)
    config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
    assert config["input_size"] == (3, wanted.crop, wanted.crop)
    assert math.floor(wanted.crop / config["crop_pct"]) == wanted.resize
    assert (config["mean"], config["std"]) == (wanted.mean, wanted.std)
    assert config["interpolation"] == wanted.interpolation


@pytest.mark.parametrize("name", ["featuretap_mobilenet_v2", "featuretap_mobilenet_v2.imagenet1k_v1"])
def test_published_weights_are_loaded(name: str) -> None:
    built = OURS.build("mobilenet_v2", pretrained=True).eval()
    images = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        expected = built(images)
        torch.testing.assert_close(timm.create_model(name, pretrained=True).eval()(images), expected)
        maps = timm.create_model(name, pretrained=True, features_only=True).eval()(images)
        torch.testing.assert_close(maps[-1], built.backbone(images)["C5"])


def test_published_weights_are_adapted_as_the_registry_does(caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("featuretap_mobilenet_v2", pretrained=True, in_chans=1, num_classes=5).eval()
    assert "the file has 1000 classes, the model 5" in caplog.text
    whole = OURS.build("mobilenet_v2", pretrained=True, in_channels=1).eval()
    images = torch.randn(2, 1, 65, 33)
    with torch.no_grad():
        assert model(images).shape == (2, 5)
        torch.testing.assert_close(model.forward_features(images), whole.backbone(images)["C5"])
        none = timm.create_model("featuretap_mobilenet_v2", pretrained=True, in_chans=1, num_classes=0).eval()
        torch.testing.assert_close(none(images), whole.backbone(images)["C5"].mean((2, 3)))


def test_a_reduced_tail_keeps_the_strongest_channels_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("featuretap_mobilenet_v2_reduced_tail", pretrained=True).eval()
    assert "fine-tune it before use" in caplog.text
    built = OURS.build("mobilenet_v2", pretrained=True, reduced_tail=True).eval()
    images = torch.randn(1, 3, 65, 33)
    with torch.no_grad():
        torch.testing.assert_close(model(images), built(images))


@pytest.mark.usefixtures("no_packages")
def test_a_cached_file_with_another_hash_is_refused() -> None:
    cached = torch_hub_path("mobilenet_v2-b0353104.pth")
    cached.parent.mkdir(parents=True)
    torch.save({"a": torch.zeros(1)}, cached)
    with pytest.raises(WeightsError, match=r"is not 'mobilenet_v2\.imagenet1k_v1': its SHA-256 begins with"):
        timm.create_model("featuretap_mobilenet_v2", pretrained=True)


def test_cache_dir_is_refused() -> None:
    with pytest.raises(OptionError) as error:
        timm.create_model("featuretap_mobilenet_v2", pretrained=True, cache_dir="elsewhere")
    assert str(error.value) == (
        "cannot store the weights of 'featuretap_mobilenet_v2' in cache_dir='elsewhere'; they are stored in the caches "
        "of torch.hub and huggingface_hub, so set TORCH_HOME or HF_HOME instead"
    )


def test_models_without_published_weights_raise_timms_errors() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for featuretap_mobilenet_v2_075"):
        timm.create_model("featuretap_mobilenet_v2_075", pretrained=True)
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(nonesuch\) for featuretap_mobilenet_v2"):
        timm.create_model("featuretap_mobilenet_v2.nonesuch")


def test_checkpoints_of_weights_with_another_epsilon_keep_the_outputs(
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


def test_timm_loads_our_files_as_checkpoints(tmp_path: Path) -> None:
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
