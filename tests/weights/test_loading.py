"""Files load as the models they describe, completely or partially, with the same or different options."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.saved_models import assert_equal_states, assert_same_model, fill_randomly
from torch import Tensor, nn

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError, UnknownOptionError, UnknownTapError, WeightsError
from featuretap.specs.preprocessing import Preprocessing

DATA = Path(__file__).parent / "data"
NAMES = Registry(discover=False).list_backbones()

OPTIONS: list[dict[str, Any]] = [
    {"width": 0.35},
    {"reduced_tail": True},
    {"reduced_tail": "segmentation"},
    {"in_channels": 5},
    {"output_stride": 16},
    {"output_stride": 8, "dilate_entry": True},
    {"features_only": True},
    {"features_only": True, "taps": ("C4.first", "C2")},
    {"features_only": True, "freeze": "C2", "freeze_norm": True},
    {"num_classes": 3, "dropout": 0.5},
    {"num_classes": 0},
    {"taps": ("C4",)},
]
OF_THE_TAIL: list[dict[str, Any]] = [
    {"reduced_tail": True},
    {"reduced_tail": "segmentation"},
    {"output_stride": 8, "dilate_entry": True},
    {"num_classes": 3, "dropout": 0.5},
    {"num_classes": 0},
    {"taps": ("C4",)},
]


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_is_restored_as_it_was_saved(registry: Registry, tmp_path: Path, name: str) -> None:
    model = fill_randomly(registry.build(name))
    assert_same_model(registry.load(registry.save(model, tmp_path / "file.safetensors")), model)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("mobilenet_v1_025", options) for options in OPTIONS),
        # Different tails and heads
        *((name, options) for name in ("mobilenet_v2_050", "mobilenet_v3_small") for options in OF_THE_TAIL),
    ],
    ids=str,
)
def test_every_option_is_restored_as_it_was_saved(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    model = fill_randomly(registry.build(name, **options))
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert_same_model(loaded, model)
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_preprocessing_and_label_set_are_saved_and_loaded(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    prepared = Preprocessing(100, 96, (0.0, 0.1, 0.2), (1.0, 2.0, 3.0), "bicubic")
    model.description = replace(model.description, preprocessing=prepared, classes="pets")
    said = registry.load(registry.save(model, tmp_path / "file.safetensors")).description
    assert (said.preprocessing, said.classes) == (prepared, "pets")


@pytest.mark.parametrize("name", ["schema1-backbone", "schema1-classifier"])
def test_files_of_every_released_schema_load(registry: Registry, name: str) -> None:
    model = registry.load(DATA / f"{name}.safetensors")
    assert sum(tensor.double().sum() for tensor in model.state_dict().values()).item() == pytest.approx(
        {"schema1-backbone": 539.0, "schema1-classifier": 6234.9375}[name]
    )
    said = model.description
    assert said.name == "mobilenet_v1"
    if said.head:
        assert (said.num_classes, dict(said.options)) == (3, {"width": 0.05, "reduced_tail": True})
    else:
        assert (said.taps, dict(said.options)) == (("C2", "C1"), {"width": 0.05, "in_channels": 1})


@pytest.fixture
def saved(registry: Registry, tmp_path: Path) -> tuple[nn.Module, Path]:
    """A classifier with 7 classes, and its weights file."""
    model = fill_randomly(registry.build("mobilenet_v3_small", num_classes=7))
    return model, registry.save(model, tmp_path / "seven.safetensors")


@pytest.mark.parametrize("taps", [None, ("C3", "C1"), ("C4.expansion",)])
def test_feature_backbones_load_from_a_classifiers_file(
    registry: Registry, saved: tuple[nn.Module, Path], taps: tuple[str, ...] | None, notes: pytest.LogCaptureFixture
) -> None:
    whole, path = saved
    loaded = registry.load(path, features_only=True, taps=taps)
    built = registry.build("mobilenet_v3_small", features_only=True, taps=taps, pretrained=path)
    for backbone in (loaded, built):
        assert tuple(backbone.taps) == (taps or ("C1", "C2", "C3", "C4", "C5"))
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, whole.backbone.state_dict()[name])
    assert notes.messages == []


@pytest.mark.parametrize("classes", [3, 1000])
def test_another_number_of_classes_keeps_all_but_the_last_layer_and_logs_it(
    registry: Registry, saved: tuple[nn.Module, Path], classes: int, notes: pytest.LogCaptureFixture
) -> None:
    whole, path = saved
    for model in (
        registry.load(path, num_classes=classes),
        registry.build("mobilenet_v3_small", num_classes=classes, pretrained=path),
    ):
        assert_same_but_logits(model, whole)
        assert model.head.logits.weight.shape == (classes, 1024)
        # Random initialization: torchvision's standard deviation of 0.01, zero bias.
        assert 0.009 < model.head.logits.weight.std().item() < 0.011
        assert not model.head.logits.bias.any()
        assert model.description.classes == ""
    assert (
        notes.messages
        == [
            f"'mobilenet_v3_small': loaded the backbone from {path}; head.logits is randomly initialized (the file has "
            f"7 classes, the model {classes})"
        ]
        * 2
    )


def assert_same_but_logits(model: nn.Module, whole: nn.Module) -> None:
    expected = whole.state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("head.logits"):
            assert torch.equal(tensor, expected[name])


def test_a_classifiers_file_loads_without_classes(
    registry: Registry, saved: tuple[nn.Module, Path], notes: pytest.LogCaptureFixture
) -> None:
    whole, path = saved
    pooled = registry.load(path, num_classes=0)
    assert_same_but_logits(pooled, whole)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert pooled.eval()(images).shape == (1, 1024)
    assert notes.messages == []
    path = registry.save(pooled, path.with_name("pooled.safetensors"))
    assert registry.load(path, num_classes=4).head.logits.weight.shape == (4, 1024)
    assert notes.messages[0].endswith("; head.logits is randomly initialized (the file has 0 classes, the model 4)")


def test_a_head_on_a_backbones_file_is_randomly_initialised_and_logged(
    registry: Registry, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    backbone = fill_randomly(registry.build("mobilenet_v2_050", features_only=True))
    path = registry.save(backbone, tmp_path / "file.safetensors")
    for model in (
        registry.load(path, head="classification", num_classes=2),
        registry.build("mobilenet_v2_050", pretrained=path, num_classes=2),
    ):
        assert_equal_states(model.backbone, backbone)
        assert model.head.logits.weight.std().item() < 0.011
    assert (
        notes.messages
        == [
            f"'mobilenet_v2_050': loaded the backbone from {path}, which has no head; the head 'classification' is "
            "randomly initialized"
        ]
        * 2
    )


def test_options_that_change_no_tensor_can_be_overridden(registry: Registry, saved: tuple[nn.Module, Path]) -> None:
    whole, path = saved
    model = registry.load(path, output_stride=8, freeze="C3", dropout=0.7)
    assert_equal_states(model, whole)
    assert dict(model.description.options) == {"output_stride": 8, "freeze": "C3", "dropout": 0.7}
    assert not model.backbone.stages.C3[0][0].conv.weight.requires_grad


@pytest.mark.parametrize("channels", [1, 4])
def test_another_number_of_image_channels_adapts_the_stem(
    registry: Registry, saved: tuple[nn.Module, Path], channels: int
) -> None:
    whole, path = saved
    model = registry.load(path, in_channels=channels)
    ours, theirs = (m.backbone.stages.C1[0].conv.weight for m in (model, whole))
    expected = theirs.sum(1) if channels == 1 else theirs[:, 0] * 3 / 4
    torch.testing.assert_close(ours[:, -1], expected)
    assert len(model.description.preprocessing.mean) == channels


def test_wrong_arguments_of_load_raise_the_errors_of_build(registry: Registry, saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(UnknownOptionError, match=r"takes no option 'widht'; did you mean 'width'\?"):
        registry.load(saved[1], widht=0.5)
    with pytest.raises(UnknownTapError, match=r"'mobilenet_v3_small' has no tap 'C6'"):
        registry.load(saved[1], features_only=True, taps=("C6",))


def test_a_truncated_backbones_file_does_not_fill_later_levels(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(
        registry.build("mobilenet_v2", features_only=True, taps=("C3",)), tmp_path / "file.safetensors"
    )
    with pytest.raises(WeightsError) as error:
        registry.load(path, taps=("C4",))
    assert str(error.value) == (
        f"weights do not fit 'mobilenet_v2': {path} does not have stages.C4.0.expand.conv.weight"
    )


def test_sixteen_threads_load_models_at_once(registry: Registry, tmp_path: Path) -> None:
    paths = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = fill_randomly(
            registry.build(("mobilenet_v2_050", "mobilenet_v3_small")[seed % 2], num_classes=10 + seed)
        )
        paths.append(registry.save(model, tmp_path / f"{seed}.safetensors"))
    expected = [registry.load(path).state_dict() for path in paths]

    def load(turn: int) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
        which = turn % len(paths)
        name = ("mobilenet_v2_050", "mobilenet_v3_small")[which % 2]
        built = registry.build(name, pretrained=paths[which], num_classes=10 + which)
        return which, registry.load(paths[which]).state_dict(), built.state_dict()

    with ThreadPoolExecutor(16) as pool:
        for which, *states in pool.map(load, range(32)):
            for state in states:
                assert all(torch.equal(tensor, expected[which][name]) for name, tensor in state.items())


def test_nothing_is_initialised_when_weights_follow(registry: Registry, saved: tuple[nn.Module, Path]) -> None:
    before = torch.get_rng_state()
    registry.load(saved[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_does_not_hold_on_to_its_file(registry: Registry, saved: tuple[nn.Module, Path]) -> None:
    whole, path = saved
    model = registry.load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_equal_states(model, whole)


def test_models_on_the_meta_device_can_be_initialised(registry: Registry) -> None:
    with torch.device("meta"):
        model = registry.build("mobilenet_v2_050")
    model = model.to_empty(device="cpu")
    for part in (model.backbone, model.head):
        part.initialize()
    for name, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        if name.endswith("running_var"):
            assert (tensor == 1).all()


def test_options_at_their_defaults_are_not_saved(registry: Registry, tmp_path: Path) -> None:
    files = set()
    for number, options in enumerate([{}, {"width": 1}, {"width": 1.0}, {"reduced_tail": False}, {"dropout": None}]):
        torch.manual_seed(0)
        path = registry.save(registry.build("mobilenet_v2_050", **options), tmp_path / f"{number}.safetensors")
        files.add(path.read_bytes())
    # The width option is relative to the width of the named model.
    assert len(files) == 2


def test_features_of_a_file_built_with_an_option_of_its_head(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v2_050", dropout=0.5, in_channels=1), tmp_path / "file.safetensors")
    backbone = registry.load(path, features_only=True)
    assert dict(backbone.description.options) == {"in_channels": 1}


def test_a_head_on_a_backbones_file_reads_its_own_taps(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v2_050", features_only=True), tmp_path / "file.safetensors")
    assert registry.load(path, num_classes=4).description.taps == ("C5",)


def test_randomly_initialised_layers_have_the_dtype_of_the_file(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v2_050").half(), tmp_path / "file.safetensors")
    model = registry.load(path, num_classes=5)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_file_that_is_not_recognised_can_be_named(registry: Registry, tmp_path: Path) -> None:
    theirs = timm.create_model("mobilenetv2_035", num_classes=6).half()
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"does not describe its model.*registry.load\(path, name=...\)"):
        registry.load(tmp_path / "file.pth")
    model = registry.load(tmp_path / "file.pth", name="mobilenet_v2", width=0.35, num_classes=6)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_load_takes_no_other_weights(registry: Registry, saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(OptionError) as error:
        registry.load(saved[1], pretrained=True)
    assert str(error.value) == f"registry.load reads the weights of '{saved[1]}'; remove pretrained"


def test_the_epsilon_of_a_file_comes_from_the_catalogue_entry_of_its_digest(
    tmp_path: Path, official_weights: Path, configured: Callable[[str], Registry]
) -> None:
    digest = hashlib.sha256(official_weights.read_bytes()).hexdigest()
    mine = configured(
        f'[weights."mobilenet_v2.mine"]\nurl = "https://x.org/a.pth"\nsha256 = "{digest}"\n'
        'layout = "torchvision"\nnorm_eps = 1e-3\n'
    )
    converted = mine.convert(official_weights, tmp_path / "file.safetensors")
    for model in (
        mine.load(official_weights),
        mine.load(converted),
        mine.build("mobilenet_v2", pretrained=official_weights),
    ):
        assert model.description.weights == "mobilenet_v2.mine"
        assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_a_folder_is_found_by_its_bare_name(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry.save(registry.build("mobilenet_v2_050"), "for-timm", layout="timm")
    registry.build("mobilenet_v2_050", pretrained="for-timm")
    assert registry.save(registry.build("mobilenet_v2_050"), "net.of_ours") == Path("net.of_ours/model.safetensors")


def test_loading_a_classifier_without_classes_logs_nothing(
    registry: Registry, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    path = registry.save(registry.build("mobilenet_v2_050", num_classes=0), tmp_path / "file.safetensors")
    registry.load(path)
    assert notes.messages == []
