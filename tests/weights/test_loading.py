"""Files become the models that they describe, whole or in part, as they are or with something else asked for."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support import oracles
from torch import Tensor, nn

from featuretap.backbones.mobilenet_v2 import V2
from featuretap.registry import Registry
from featuretap.registry.errors import OptionError, UnknownOptionError, UnknownTapError, WeightsError
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.preprocessing import Preprocessing
from featuretap.registry.specs import BackboneSpec, Bneck, Conv, Tap
from featuretap.registry.weights.network import network_digest

DATA = Path(__file__).parent / "data"

DIGESTS = {
    "mobilenet_v1": "d387db54bfa0283f",
    "mobilenet_v2": "c6d5cacff3d9539e",
    "small": "8031847ec8d995b7",
    "stride": "8031847ec8d995b7",
    "paddle": "da5a2626d4f36172",
}

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
        f"weights do not fit 'mobilenet_v3_large_minimalistic': {path} holds another network of the same shapes, or "
        "one that has changed since; the file fits 'mobilenet_v3_large'"
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
    for part in (model.backbone, model.head):
        part.initialise()
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


# --- What a file calls its model must still mean the same ---------------------------------------------------------


def test_a_users_variant_travels_as_what_it_stands_for(
    registry: Registry, tmp_path: Path, configured: Callable[[str], Registry]
) -> None:
    mine = configured(
        '[backbones.dense]\nbase = "mobilenet_v2_050"\noptions = { output_stride = 16 }\n'
        '[backbones.denser]\nbase = "dense"\noptions = { dilate_entry = true }\n'
    )
    model = randomised(mine.build("denser", num_classes=4, in_channels=1))
    loaded = registry.load(mine.save(model, tmp_path / "file.safetensors"))
    said = loaded.description
    assert said.name == "mobilenet_v2"
    assert said.options == {"width": 0.5, "output_stride": 16, "dilate_entry": True, "in_channels": 1}
    assert_equal_states(loaded, model)
    assert str(loaded.backbone) == str(model.backbone)


class Tiny:
    """A plugin whose network has another activation in its next release."""

    def __init__(self, activation: str) -> None:
        self.activation = activation

    @hookimpl
    def featuretap_backbones(self) -> list[BackboneSpec]:
        rows = ((Conv(3, 8, self.activation),), (Bneck(3, 32, 16, self.activation),))
        return [BackboneSpec("tinynet", stages=rows)]


def test_a_plugins_network_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    old, new = (Registry(plugins=[Tiny(activation)], discover=False) for activation in ("relu", "hard_swish"))
    path = old.save(old.build("tinynet", features_only=True), tmp_path / "file.safetensors")
    old.load(path)
    for ask in (new.load, lambda path: new.build("tinynet", features_only=True, pretrained=path)):
        with pytest.raises(WeightsError) as error:
            ask(path)
        assert str(error.value) == (
            f"weights do not fit 'tinynet': {path} holds another network of the same shapes, or one that has changed "
            "since"
        )
    with pytest.raises(WeightsError) as error:
        new.convert(path, tmp_path / "converted.safetensors")
    assert str(error.value) == (
        f"cannot convert '{path}', which says it is 'tinynet': it was another network when the file was written"
    )


def test_a_spec_of_its_own_is_not_taken_for_a_named_network(registry: Registry, tmp_path: Path) -> None:
    plain = replace(
        V2,
        stages=tuple(tuple(replace(row, activation="relu") for row in rows) for rows in V2.stages),
    )
    path = registry.save(registry.build(plain), tmp_path / "file.safetensors")
    for ask in (
        lambda: registry.load(path, name="mobilenet_v2"),
        lambda: registry.build("mobilenet_v2", pretrained=path, num_classes=3),
    ):
        with pytest.raises(WeightsError, match=r"holds another network of the same shapes, or one that has changed"):
            ask()
    assert_equal_states(registry.load(path, name=plain), registry.build(plain, pretrained=path))


def test_the_digest_of_a_network_never_changes(registry: Registry) -> None:
    """Files of before name their networks by it."""
    digests = {name: network_digest(registry.catalogued(name)) for name in ("mobilenet_v1", "mobilenet_v2")}
    digests["small"] = network_digest(registry.spec("mobilenet_v3_small", features_only=True, in_channels=1))
    digests["stride"] = network_digest(registry.spec("mobilenet_v3_small", features_only=True, output_stride=8))
    digests["paddle"] = network_digest(registry.catalogued("mobilenet_v3_small_paddle"))
    assert digests == DIGESTS


def test_options_at_their_defaults_leave_no_trace(registry: Registry, tmp_path: Path) -> None:
    files = set()
    for number, options in enumerate([{}, {"width": 1}, {"width": 1.0}, {"reduced_tail": False}, {"dropout": None}]):
        torch.manual_seed(0)
        path = registry.save(registry.build("mobilenet_v2_050", **options), tmp_path / f"{number}.safetensors")
        files.add(path.read_bytes())
    # A width is relative to what the name stands for.
    assert len(files) == 2


def test_features_of_a_file_built_with_an_option_of_its_head(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v2_050", dropout=0.5, in_channels=1), tmp_path / "file.safetensors")
    backbone = registry.load(path, features_only=True)
    assert dict(backbone.description.options) == {"in_channels": 1}


def test_a_head_on_a_backbones_file_reads_its_own_taps(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v2_050", features_only=True), tmp_path / "file.safetensors")
    assert registry.load(path, num_classes=4).description.taps == ("C5",)


def test_fresh_layers_have_the_files_type(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v2_050").half(), tmp_path / "file.safetensors")
    model = registry.load(path, num_classes=5)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_file_that_is_not_recognised_can_be_named(registry: Registry, tmp_path: Path) -> None:
    theirs = timm.create_model("mobilenetv2_035", num_classes=6).half()
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"says nothing of its model.*registry.load\(path, name=...\)"):
        registry.load(tmp_path / "file.pth")
    model = registry.load(tmp_path / "file.pth", name="mobilenet_v2", width=0.35, num_classes=6)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_load_takes_no_other_weights(registry: Registry, saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(OptionError) as error:
        registry.load(saved[1], pretrained=True)
    assert str(error.value) == f"registry.load takes the weights of '{saved[1]}'; leave pretrained out"


def test_a_digest_known_to_the_catalogue_settles_epsilon_everywhere(
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


def test_a_plugin_that_cannot_describe_its_backbone_hides_no_other(tmp_path: Path, official_weights: Path) -> None:
    class Broken(Tiny):
        @hookimpl
        def featuretap_backbones(self) -> list[BackboneSpec]:
            (spec,) = Tiny("relu").featuretap_backbones()
            return [replace(spec, name="broken", layouts={"timm": "nowhere.at:all"}), spec]

    mine = Registry(plugins=[Tiny("relu"), Broken("relu")], discover=False)
    assert mine.load(official_weights).description.name == "mobilenet_v2"


def test_a_folder_is_found_by_its_bare_name(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry.save(registry.build("mobilenet_v2_050"), "for-timm", layout="timm")
    registry.build("mobilenet_v2_050", pretrained="for-timm")
    assert registry.save(registry.build("mobilenet_v2_050"), "net.of_ours") == Path("net.of_ours/model.safetensors")


def test_taps_before_the_tail_are_not_called_halved(
    registry: Registry, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    path = registry.save(registry.build("mobilenet_v2"), tmp_path / "file.safetensors")
    registry.load(path, features_only=True, taps=("C4", "C4.expansion"), reduced_tail=True)
    assert notes.messages == []


def test_a_classifier_without_classes_may_have_nothing_to_fill(
    registry: Registry, tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    path = registry.save(registry.build("mobilenet_v2_050", num_classes=0), tmp_path / "file.safetensors")
    registry.load(path)
    assert notes.messages == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.to("meta"), "cannot save tensors without values (on the meta device); give the model"),
        (lambda model: model.to(torch.complex64), "cannot save tensors of torch.complex64; give the model values of a"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_what_no_file_can_hold_is_not_saved(
    registry: Registry, tmp_path: Path, change: Callable[[nn.Module], nn.Module], message: str
) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    description = model.description
    changed = change(model)
    changed.description = description
    with pytest.raises(WeightsError) as error:
        registry.save(changed, tmp_path / "file.safetensors")
    assert message in str(error.value)


def made(spec: BackboneSpec, *, taps: tuple[str, ...], norm: str = "batch") -> nn.Module:
    """A backbone of somebody's own, with names that are ours too."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(3, 8, 3, 2, 1)
            self.head = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8, eps=3e-2))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            first = self.backbone(x)
            return {"C1": first, "C2": self.head(first)}

    return Own()


def test_a_factorys_own_names_and_options_are_its_own(registry: Registry, tmp_path: Path) -> None:
    spec = BackboneSpec(
        "own", taps={"C1": Tap(8, 2), "C2": Tap(8, 4)}, factory=f"{__name__}:made", options={"norm": "batch"}
    )
    model = randomised(registry.build(spec, features_only=True, norm="other")).eval()
    loaded = registry.load(registry.save(model, tmp_path / "file.safetensors"), name=spec).eval()
    assert_equal_states(loaded, model)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images)["C2"], model(images)["C2"])


def test_a_description_without_its_backbone_is_refused(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    model.description = replace(model.description, backbone=None)
    with pytest.raises(OptionError) as error:
        registry.save(model, tmp_path / "file.safetensors")
    assert str(error.value) == ("the model's description lacks its backbone; change it with dataclasses.replace only")
