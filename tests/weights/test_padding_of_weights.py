"""Padding cannot be inferred from tensors; it comes from the name, configuration, metadata, catalogue or caller."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from support.oracles import with_statistics
from torch import nn

from featuretap.catalogue.request import resolve_request
from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.specs.network_digest import network_digest

NAME = "tf_mobilenetv3_small_075"


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return with_statistics(timm.create_model(NAME, num_classes=3))


@pytest.fixture
def written(theirs: nn.Module, tmp_path: Path) -> Callable[[str], Path]:
    def written(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        state = theirs.state_dict()
        torch.save(state, path) if path.suffix == ".pth" else safetensors.torch.save_file(state, path)
        return path

    return written


@torch.no_grad()
def relative_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Return the relative difference of logits on images of an even size, where the two paddings differ."""
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    a, b = (copy.deepcopy(model).double().eval()(images) for model in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "name", [f"{NAME}-da427f52.pth", f"{NAME}.safetensors", f"{NAME}.in1k/model.safetensors", "plain/model.safetensors"]
)
def test_timms_name_in_a_path_or_a_configuration_selects_tensorflows_padding(
    registry: Registry,
    theirs: nn.Module,
    written: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    path = written(name)
    if name.startswith("plain"):
        path.with_name("config.json").write_text(json.dumps({"architecture": NAME}))
        caplog.set_level(logging.ERROR)
    loaded = registry.load(path)
    assert loaded.description.name == "mobilenet_v3_small_075"
    assert loaded.description.options == {"padding": "same"}
    assert relative_difference(loaded, theirs) < 1e-5
    assert relative_difference(registry.build(NAME, pretrained=path, num_classes=3), theirs) < 1e-5
    assert warnings_of(caplog) == []


def test_an_argument_of_timms_beside_the_file_selects_it(registry: Registry, tmp_path: Path) -> None:
    theirs = with_statistics(timm.create_model("mobilenetv2_035", num_classes=3, pad_type="same"))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    config = {"architecture": "mobilenetv2_035", "model_args": {"pad_type": "same"}, "pretrained_cfg": {}}
    path.with_name("config.json").write_text(json.dumps(config))
    loaded = registry.load(path, name="mobilenet_v2", width=0.35, num_classes=3)
    assert relative_difference(loaded, theirs) < 1e-5


def test_a_file_that_states_nothing_is_read_with_symmetric_padding_and_a_warning(
    registry: Registry, theirs: nn.Module, written: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = written("mine.safetensors")
    warning = (
        f"{path}: the tensors fit timm's 'mobilenetv3_small_075' and 'tf_mobilenetv3_small_075', which pad "
        "differently; assuming the first, padding='same' selects the second"
    )
    for read in (registry.load, lambda path: registry.build("mobilenet_v3_small_075", pretrained=path, num_classes=3)):
        loaded = read(path)
        assert loaded.description.options.get("padding") is None
        assert relative_difference(loaded, theirs) > 0.1
        assert warnings_of(caplog) == [warning]
        caplog.clear()
    for loaded in (registry.load(path, padding="same"), registry.load(path, name="mobilenet_v3_small_075_tf")):
        assert relative_difference(loaded, theirs) < 1e-5
    registry.load(path, padding="symmetric")
    assert warnings_of(caplog) == []


def test_a_network_that_timm_has_with_one_padding_only_needs_no_name(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = with_statistics(timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=3))
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    loaded = registry.load(path)
    assert loaded.description.name == "mobilenet_v3_small_minimalistic"
    assert relative_difference(loaded, theirs) < 1e-5
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("trained", "asked"), [("same", "mobilenet_v3_small_075"), ("symmetric", "mobilenet_v3_small_075_tf")]
)
@pytest.mark.parametrize("recorded", [True, False])
def test_weights_of_the_other_padding_are_refused_unless_the_caller_states_it(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, trained: str, asked: str, recorded: bool
) -> None:
    own = with_statistics(registry.build("mobilenet_v3_small_075", padding=trained, num_classes=3))
    prefix = "tf_" if trained == "same" else ""
    path = tmp_path / f"{prefix}mobilenetv3_small_075.safetensors"
    registry.save(own, path) if recorded else registry.save(own, path, "timm")
    other = {"same": "symmetric", "symmetric": "same"}[trained]
    with pytest.raises(WeightsError) as error:
        registry.build(asked, pretrained=path, num_classes=3)
    assert str(error.value) == (
        f"{path} was trained with padding={trained!r}, but {asked!r} has padding={other!r}; pass padding={trained!r}, "
        f"or padding={other!r} to use the weights anyway"
    )
    for padding in (trained, other):
        model = registry.build(asked, pretrained=path, num_classes=3, padding=padding)
        assert (relative_difference(model, own) < 1e-5) is (padding == trained)
    assert warnings_of(caplog) == [f"{path} was trained with padding={trained!r}, but is used with padding={other!r}"]


@pytest.mark.parametrize("layout", ["featuretap", "timm"])
def test_saved_models_keep_their_padding(registry: Registry, tmp_path: Path, layout: str) -> None:
    for name in ("mobilenet_v1_025", "mobilenet_v3_small_075"):
        model = with_statistics(registry.build(name, padding="same", num_classes=3))
        if layout == "timm" and name == "mobilenet_v1_025":
            model = with_statistics(registry.build("mobilenet_v1", padding="same", num_classes=3))
        folder = tmp_path / name
        registry.save(model, folder, layout)
        loaded = registry.load(folder)
        assert loaded.description.options["padding"] == "same"
        assert relative_difference(loaded, model) < 1e-5
        if layout == "timm":
            theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
            assert relative_difference(loaded, theirs) < 1e-5


def test_torchvision_has_no_such_networks(registry: Registry, tmp_path: Path) -> None:
    for name in ("mobilenet_v2", "mobilenet_v3_small"):
        with pytest.raises(
            WeightsError, match="with padding='same' in the layout 'torchvision', which does not have this network"
        ):
            registry.save(registry.build(name, padding="same"), tmp_path / "file.safetensors", "torchvision")


def test_padding_is_no_part_of_a_networks_digest(registry: Registry) -> None:
    # Weights may be used with the other padding, just as with another output stride.
    specs = [registry.spec("mobilenet_v2", features_only=True, padding=padding) for padding in ("same", "symmetric")]
    assert network_digest(specs[0]) == network_digest(specs[1])


@pytest.mark.parametrize("name", ["mobilenet_v3_large_tf", "tf_mobilenetv3_small_minimal_100"])
def test_published_weights_from_tensorflow_come_with_its_padding(registry: Registry, name: str) -> None:
    request = resolve_request(registry, name, pretrained=True)
    assert request.backbone.padding == "same"
    assert request.weights.entry.tag == "in1k"
