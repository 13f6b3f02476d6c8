"""Files become the models that they describe, whole or in part, as they are or with something else asked for."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from torch import Tensor, nn

from featuretap.backbones.mobilenet_v2 import V2
from featuretap.registry import Registry
from featuretap.registry.errors import UnknownOptionError, UnknownTapError, WeightsError
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.specs import BackboneSpec

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


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
        else:
            tensor.fill_(7)
    return model


def assert_same(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert str(a) == str(b)
    assert [p.requires_grad for p in a.parameters()] == [p.requires_grad for p in b.parameters()]
    said = a.description
    assert replace(said, weights=None) == replace(b.description, weights=None)


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "featuretap"):
        yield caplog


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_comes_back_as_it_was_saved(registry: Registry, tmp_path: Path, name: str) -> None:
    model = randomised(registry.build(name))
    assert_same(registry.load(registry.save(model, tmp_path / "file.safetensors")), model)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["mobilenet_v1_025", "mobilenet_v2_050", "mobilenet_v3_small"])
def test_every_option_comes_back_as_it_was_saved(
    registry: Registry, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    model = randomised(registry.build(name, **options))
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert_same(loaded, model)
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_preprocessing_and_label_set_travel(registry: Registry, tmp_path: Path) -> None:
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
    """A classifier of 7 classes, and its file."""
    model = randomised(registry.build("mobilenet_v3_small", num_classes=7))
    return model, registry.save(model, tmp_path / "seven.safetensors")


@pytest.mark.parametrize("taps", [None, ("C3", "C1"), ("C4.expansion",)])
def test_features_are_taken_from_a_classifiers_file(
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
def test_another_number_of_classes_keeps_all_but_the_last_layer_and_says_so(
    registry: Registry, saved: tuple[nn.Module, Path], classes: int, notes: pytest.LogCaptureFixture
) -> None:
    whole, path = saved
    for model in (
        registry.load(path, num_classes=classes),
        registry.build("mobilenet_v3_small", num_classes=classes, pretrained=path),
    ):
        assert_same_but_logits(model, whole)
        assert model.head.logits.weight.shape == (classes, 1024)
        # Freshly drawn: torchvision's deviation of 0.01, no bias.
        assert 0.009 < model.head.logits.weight.std().item() < 0.011
        assert not model.head.logits.bias.any()
        assert model.description.classes == ""
    assert (
        notes.messages
        == [
            f"'mobilenet_v3_small': {path} has 7 classes, not {classes}; the backbone's weights are taken, and "
            "head.logits starts with fresh ones"
        ]
        * 2
    )


def assert_same_but_logits(model: nn.Module, whole: nn.Module) -> None:
    expected = whole.state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("head.logits"):
            assert torch.equal(tensor, expected[name])


def test_without_classes_the_pooled_features_are_the_files(
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
    assert notes.messages[0].endswith(
        "has 0 classes, not 4; the backbone's weights are taken, and head.logits starts with fresh ones"
    )


def test_a_backbones_file_gets_a_fresh_head_and_says_so(
    registry: Registry, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    backbone = randomised(registry.build("mobilenet_v2_050", features_only=True))
    path = registry.save(backbone, tmp_path / "file.safetensors")
    for model in (
        registry.load(path, head="classification", num_classes=2),
        registry.build("mobilenet_v2_050", pretrained=path, num_classes=2),
    ):
        assert_equal_states(model.backbone, backbone)
        assert model.head.logits.weight.std().item() < 0.011
    assert (
        notes.messages
        == [f"'mobilenet_v2_050': {path} has no head; the head 'classification' starts with fresh weights"] * 2
    )


def assert_equal_states(a: nn.Module, b: nn.Module) -> None:
    for (name, ours), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_options_that_change_no_tensor_can_be_given_anew(registry: Registry, saved: tuple[nn.Module, Path]) -> None:
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


def test_what_is_asked_for_wrongly_is_the_askers_error(registry: Registry, saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(UnknownOptionError, match=r"takes no option 'widht'; did you mean 'width'\?"):
        registry.load(saved[1], widht=0.5)
    with pytest.raises(UnknownTapError, match=r"'mobilenet_v3_small' has no tap 'C6'"):
        registry.load(saved[1], features_only=True, taps=("C6",))


def test_what_the_file_says_wrongly_is_the_files_error(registry: Registry, tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def featuretap_backbones(self) -> list[BackboneSpec]:
            return [replace(V2, name="somebodys_net")]

    other = Registry(plugins=[Plugin()], discover=False)
    path = other.save(other.build("somebodys_net", features_only=True, taps=("C1",)), tmp_path / "file.safetensors")
    assert other.load(path).description.name == "somebodys_net"
    with pytest.raises(WeightsError) as error:
        registry.load(path)
    assert str(error.value) == (
        f"'{path}' describes a model that cannot be built here: no backbone named 'somebodys_net'; "
        "registry.list_backbones() names them"
    )


def test_tensors_of_another_network_with_the_same_shapes_are_refused(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(
        registry.build("mobilenet_v3_large", features_only=True, taps=("C2",)), tmp_path / "file.safetensors"
    )
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v3_large_minimalistic", features_only=True, taps=("C2",), pretrained=path)
    assert str(error.value) == (
        f"weights do not fit 'mobilenet_v3_large_minimalistic': {path} holds another network of the same shapes; "
        "the file fits 'mobilenet_v3_large'"
    )


def test_a_file_of_half_a_network_does_not_fill_a_whole_one(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(
        registry.build("mobilenet_v2", features_only=True, taps=("C3",)), tmp_path / "file.safetensors"
    )
    with pytest.raises(WeightsError) as error:
        registry.load(path, taps=("C4",))
    assert str(error.value) == (f"weights do not fit 'mobilenet_v2': {path} lacks stages.C4.0.expand.conv.weight")


def test_sixteen_threads_get_sixteen_right_models(registry: Registry, tmp_path: Path) -> None:
    paths = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = randomised(registry.build(("mobilenet_v2_050", "mobilenet_v3_small")[seed % 2], num_classes=10 + seed))
        paths.append(registry.save(model, tmp_path / f"{seed}.safetensors"))
    expected = [registry.load(path).state_dict() for path in paths]

    def load(turn: int) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
        which = turn % len(paths)
        name = ("mobilenet_v2_050", "mobilenet_v3_small")[which % 2]
        built = registry.build(name, pretrained=paths[which], num_classes=10 + which)
        return which, registry.load(paths[which]).state_dict(), built.state_dict()

    with ThreadPoolExecutor(16) as pool:
        for which, *states in pool.map(load, range(48)):
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
    model.initialise()
    for name, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        if name.endswith("running_var"):
            assert (tensor == 1).all()


# --- Reduced tails out of whole weights ---------------------------------------------------------------------------

FAMILIES = ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v3_large_paddle"]


@torch.no_grad()
def with_silent_half(whole: nn.Module, reduced: nn.Module) -> nn.Module:
    """Silence so many channels behind C4 as the reduced network does not have: the last ones, everywhere."""
    sizes = reduced.state_dict()
    for name, tensor in whole.state_dict(keep_vars=True).items():
        silent = slice(len(sizes[name]), None) if tensor.ndim else slice(0)
        if tensor.shape != sizes[name].shape and not name.endswith("running_var"):
            tensor[silent] = 0
    return whole


@pytest.mark.parametrize(("kind", "asked"), [(True, "reduced_tail"), ("segmentation", "reduced_tail='segmentation'")])
@pytest.mark.parametrize("name", FAMILIES)
def test_channels_that_do_nothing_are_the_ones_that_go(
    registry: Registry, tmp_path: Path, name: str, kind: Any, asked: str, notes: pytest.LogCaptureFixture
) -> None:
    """With half the channels silent, the reduced network computes exactly what the whole one does."""
    whole = with_silent_half(
        oracles.randomised(registry.build(name, num_classes=9)).float(),
        registry.build(name, reduced_tail=kind, num_classes=9),
    )
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build(name, reduced_tail=kind, num_classes=9, pretrained=path)
    assert notes.messages == [
        f"{name!r} with {asked}: the reduced tail keeps the strongest half of the channels behind C4 in {path}; "
        "fine-tune it before use"
    ]
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(reduced.double().eval()(images), whole.double().eval()(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_everything_through_c4_is_the_files(registry: Registry, tmp_path: Path, name: str) -> None:
    whole = oracles.randomised(registry.build(name)).float()
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build(name, features_only=True, reduced_tail=True, pretrained=path)
    state = reduced.state_dict()
    for key, tensor in whole.backbone.state_dict().items():
        if not key.startswith("stages.C5"):
            assert torch.equal(state[key], tensor), key
    loaded = registry.load(path, features_only=True, reduced_tail=True)
    assert_equal_states(loaded, reduced)


def test_the_strongest_channels_stay_in_their_order(registry: Registry, tmp_path: Path) -> None:
    whole = oracles.randomised(registry.build("mobilenet_v2", features_only=True)).float()
    last = whole.stages.C5[4]
    order = torch.randperm(1280)
    with torch.no_grad():
        last.norm.weight.copy_(order + 1.0)
    path = registry.save(whole, tmp_path / "whole.safetensors")
    reduced = registry.build("mobilenet_v2", features_only=True, reduced_tail=True, pretrained=path)
    assert torch.equal(reduced.stages.C5[4].norm.weight, last.norm.weight[order >= 640])


def test_published_weights_fill_a_reduced_tail_and_a_reduced_file_stays_what_it_is(
    registry: Registry, official_weights: Path, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    model = registry.build("mobilenet_v2", reduced_tail=True, pretrained=official_weights)
    assert len(notes.messages) == 1
    assert model.description.weights == "mobilenet_v2.imagenet1k_v1"
    path = registry.save(model, tmp_path / "reduced.safetensors")
    assert_same(registry.load(path), model)
    assert len(notes.messages) == 1
