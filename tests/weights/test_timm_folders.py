"""Hub folders that timm reads, and folders that timm wrote: options, preprocessing and configuration."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from support.layouts import relative_difference
from support.oracles import with_statistics
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.specs.preprocessing import Preprocessing


@pytest.mark.parametrize(
    ("name", "options", "channels", "arguments"),
    [
        ("mobilenet_v2_050", {"in_channels": 1}, 1, {}),
        ("mobilenet_v2_050", {"in_channels": 4}, 4, {}),
        ("mobilenet_v2_050", {"output_stride": 16}, 3, {}),
        ("mobilenet_v2_050", {"output_stride": 8}, 3, {}),
        ("mobilenet_v2_050", {"num_classes": 10}, 3, {}),
        ("mobilenet_v2_050", {"num_classes": 0}, 3, {}),
        ("mobilenet_v2_050", {"num_classes": 10}, 3, {"num_classes": 3}),
        # Other layer tables and other heads
        ("mobilenet_v1", {"output_stride": 16}, 3, {}),
        ("mobilenet_v1", {"output_stride": 8}, 3, {}),
        ("mobilenet_v1", {"num_classes": 0}, 3, {}),
        ("mobilenet_v3_small", {"in_channels": 1}, 1, {}),
        ("mobilenet_v3_small", {"num_classes": 10}, 3, {}),
        ("mobilenet_v3_small", {"num_classes": 0}, 3, {}),
        ("mobilenet_v3_small", {"num_classes": 10}, 3, {"num_classes": 3}),
    ],
)
def test_timm_builds_models_with_options_from_the_folder_alone(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any], channels: int, arguments: dict[str, Any]
) -> None:
    ours = with_statistics(registry.build(name, **options))
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True, **arguments)
    if arguments:
        assert theirs(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    else:
        assert relative_difference(ours, theirs, channels) < 1e-5


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_large"])
def test_timm_reads_bare_backbones_as_features(
    registry: Registry, tmp_path: Path, name: str, output_stride: int
) -> None:
    ours = with_statistics(registry.build(name, features_only=True, output_stride=output_stride))
    registry.save(ours, tmp_path / "folder", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for mine, its in zip(ours.double()(images).values(), theirs.double()(images), strict=True):
            assert (mine - its).abs().max() < 1e-5 * its.abs().max()


@pytest.mark.parametrize(
    ("name", "taps", "indices"),
    [
        ("mobilenet_v1", ("C5",), [4]),
        ("mobilenet_v1", ("C1.bottleneck", "C2"), [0, 1]),
        ("mobilenet_v2", ("C3",), [2]),
        ("mobilenet_v2", ("C4", "C2"), [1, 3]),
        ("mobilenet_v2", ("C1", "C2", "C3", "C4", "C5.bottleneck"), [0, 1, 2, 3, 4]),
        ("mobilenet_v2_050", ("C5.bottleneck", "C3"), [2, 4]),
        ("mobilenet_v3_large", ("C3", "C5"), [2, 4]),
        ("mobilenet_v3_small", ("C1.first", "C4"), [0, 3]),
    ],
)
@pytest.mark.parametrize("output_stride", [32, 16])
def test_timm_returns_the_maps_of_a_bare_backbone_from_the_folder_alone(
    registry: Registry, tmp_path: Path, name: str, taps: tuple[str, ...], indices: list[int], output_stride: int
) -> None:
    ours = with_statistics(registry.build(name, features_only=True, taps=taps, output_stride=output_stride))
    registry.save(ours, tmp_path / "folder", "timm")
    arguments = json.loads((tmp_path / "folder" / "config.json").read_text())["model_args"]
    assert arguments["out_indices"] == indices
    theirs = timm.create_model(f"local-dir:{tmp_path}/folder", pretrained=True).double().eval()
    images = torch.randn(1, 3, 97, 65, dtype=torch.float64)
    with torch.no_grad():
        maps = dict(zip(sorted(taps), theirs(images), strict=True))
        for address, mine in ours.double()(images).items():
            assert mine.shape == maps[address].shape
            assert (mine - maps[address]).abs().max() < 1e-5 * mine.abs().max()


@pytest.mark.parametrize(
    ("name", "taps", "unnumbered", "numbered"),
    [
        ("mobilenet_v1", ("C1.first", "C3"), "C1.first", "C1, C2, C3, C4, C5"),
        ("mobilenet_v2", None, "C5", "C1, C2, C3, C4, C5.bottleneck"),
        ("mobilenet_v3_large", ("C4.expansion", "C5.bottleneck"), "C4.expansion, C5.bottleneck", "C1, C2, C3, C4, C5"),
    ],
)
def test_taps_that_timm_has_no_index_for_are_refused_with_those_that_have_one(
    registry: Registry, tmp_path: Path, name: str, taps: tuple[str, ...] | None, unnumbered: str, numbered: str
) -> None:
    model = registry.build(name, features_only=True, taps=taps)
    with pytest.raises(WeightsError) as error:
        registry.save(model, tmp_path / "folder", "timm")
    assert str(error.value) == (
        f"cannot save the taps {unnumbered} in the layout 'timm', which has no index for them; build the "
        f"backbone with taps among {numbered}"
    )
    assert not (tmp_path / "folder").exists()
    # A single file has no config.json that could be wrong.
    registry.save(model, tmp_path / "file.safetensors", "timm")


@pytest.mark.parametrize("resize", [224, 232, 235, 248, 256, 255, 300])
def test_timm_applies_the_same_preprocessing(registry: Registry, tmp_path: Path, resize: int) -> None:
    from skimage import data

    model = registry.build("mobilenet_v2_050")
    prepared = Preprocessing(resize, 224, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic")
    model.description = replace(model.description, preprocessing=prepared)
    registry.save(model, tmp_path / "folder", "timm")
    theirs = create_transform(**resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}/folder")))
    photograph = Image.fromarray(data.chelsea())
    torch.testing.assert_close(registry.transforms(model)(photograph), theirs(photograph))
    (tmp_path / "bare").mkdir()
    # Without featuretap's metadata, config.json next to the file provides it.
    tensors = safetensors.torch.load_file(tmp_path / "folder" / "model.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "bare" / "model.safetensors")
    (tmp_path / "bare" / "config.json").write_bytes((tmp_path / "folder" / "config.json").read_bytes())
    assert registry.load(tmp_path / "bare").description.preprocessing == prepared
    built = registry.build("mobilenet_v2_050", pretrained=tmp_path / "bare")
    assert built.description.preprocessing == prepared


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pretrained_cfg": 3}', '{"pretrained_cfg": {"input_size": []}}'])
def test_an_unusable_config_json_is_ignored_or_refused(registry: Registry, tmp_path: Path, content: str) -> None:
    model = registry.build("mobilenet_v2_050")
    path = registry.save(model, tmp_path / "folder", "timm")
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    (tmp_path / "folder" / "config.json").write_text(content)
    if content.startswith("{") and len(content) > 1:
        assert registry.load(tmp_path / "folder").description.preprocessing == Preprocessing()
    else:
        with pytest.raises(
            WeightsError, match=r"config.json' (is not valid JSON|is not a JSON object); get it again from its source"
        ):
            registry.load(tmp_path / "folder")


def hub_folder(path: Path, model: nn.Module, **arguments: Any) -> Path:
    """Write a hub folder with timm's own function."""
    from timm.models._hub import save_for_hf

    save_for_hf(model, str(path), model_args=arguments, safe_serialization=True)
    return path


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("mobilenetv2_100", {"output_stride": 16}),
        ("mobilenetv2_100", {"bn_eps": 1e-3}),
        ("mobilenetv3_small_100", {"bn_eps": 1e-2}),
    ],
)
def test_options_are_read_from_folders_that_timm_wrote(
    registry: Registry, run: Callable[..., Any], tmp_path: Path, architecture: str, arguments: dict[str, Any]
) -> None:
    theirs = with_statistics(timm.create_model(architecture, **arguments))
    ours = registry.load(hub_folder(tmp_path / "folder", theirs, **arguments))
    assert relative_difference(ours, theirs) < 1e-5
    converted = registry.convert(tmp_path / "folder", tmp_path / "ours.safetensors")
    assert relative_difference(registry.load(converted), theirs) < 1e-5
    stated = json.loads(run("inspect", tmp_path / "folder", "--json").out)["options"]
    assert stated == {name: value for name, value in arguments.items() if name == "output_stride"}


def test_folders_of_another_network_with_the_same_tensors_are_refused(registry: Registry, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "folder", timm.create_model("tf_mobilenetv3_large_100"))
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v3_large", pretrained=folder)
    assert str(error.value) == (
        f"weights do not fit 'mobilenet_v3_large': the config.json next to {folder}/model.safetensors describes timm's "
        "'tf_mobilenetv3_large_100', which differs from timm's 'mobilenetv3_large_100'; the file "
        "fits 'mobilenet_v3_large' with padding='same'"
    )


def test_folders_with_unknown_arguments_of_timm_are_refused(registry: Registry, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "folder", timm.create_model("mobilenetv2_100"), pad_type="valid")
    with pytest.raises(WeightsError) as error:
        registry.load(folder)
    assert str(error.value) == (
        f"'{folder}/config.json' builds 'mobilenetv2_100' with pad_type='valid', which is not supported; load the "
        "model with timm"
    )


def test_unknown_preprocessing_in_a_folder_is_logged(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hub_folder(tmp_path / "folder", timm.create_model("mobilenetv2_100"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"bicubic"', '"lanczos"').replace("bilinear", "lanczos"))
    registry.load(folder)
    assert "has an unsupported preprocessing (preprocessing has interpolation='lanczos'" in (caplog.text)
