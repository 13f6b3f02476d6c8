"""Backbones built by a factory: taps, counts, freezing, weights, and errors that name the backbone."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featuretap.registry import Registry, diagnosis
from featuretap.registry.conformance import check_shapes
from featuretap.registry.errors import OptionError, PluginError, SpecError
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import BackboneSpec, Option, Tap


class Pyramid(nn.Module):
    """Two levels in sequence, and a side branch after the first level, whose map is an extra tap."""

    def __init__(self, taps: tuple[str, ...], width: int, channels: int) -> None:
        super().__init__()
        self.addresses = taps
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.Dropout())
        self.side = nn.Conv2d(width, width, 1)
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.GroupNorm(1, width))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stem = self.stem(images)
        body = self.body(stem)
        maps = {"C1": stem, "C2": body, "side": self.side(stem)}
        return {address: maps[address] for address in self.addresses}


def build(spec: BackboneSpec, *, taps: tuple[str, ...], width: int, channels: int, pretrained: str = "") -> nn.Module:
    if width == 13:
        raise ValueError("13 is\nunlucky")
    if width == 14:
        return "no module"  # type: ignore[return-value]
    backbone = Pyramid(taps, width, channels)
    if pretrained:
        nn.init.constant_(backbone.side.weight, {"ones": 1.0, "twos": 2.0}[pretrained])
    return backbone


def describe(spec: BackboneSpec, *, width: int, channels: int) -> BackboneSpec:
    from dataclasses import replace

    def wide(taps: Any) -> dict[str, Tap]:
        return {address: Tap(width, tap.stride) for address, tap in taps.items()}

    return replace(spec, taps=wide(spec.taps), more_taps=wide(spec.more_taps), in_channels=channels)


SPEC = BackboneSpec(
    "pyramid",
    taps={"C1": Tap(8, 2), "C2": Tap(8, 4)},
    more_taps={"side": Tap(8, 2)},
    factory="test_factories:build",
    describe="test_factories:describe",
    options={"width": Option(8, lambda value: isinstance(value, int), "a whole number"), "channels": 3},
    tags=("ones", "twos"),
)


class Chain(nn.Sequential):
    """A backbone with one map."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"C1": super().forward(images)}


def chain(spec: BackboneSpec, *, taps: tuple[str, ...]) -> nn.Module:
    return Chain(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))


class Plain(nn.Module):
    """A backbone with one map that torch.jit.script supports."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"C1": self.body(images)}


def plain(spec: BackboneSpec, *, taps: tuple[str, ...]) -> nn.Module:
    return Plain()


SCRIPTED = BackboneSpec("scripted", taps={"C1": Tap(8, 2)}, factory="test_factories:plain")
CHAIN = BackboneSpec("chain", taps={"C1": Tap(8, 2)}, factory="test_factories:chain")


@pytest.fixture
def mine() -> Registry:
    plugin = SimpleNamespace(__name__="mine", featuretap_backbones=hookimpl(lambda: [SPEC]))
    return Registry([plugin], discover=False)


def test_taps_follow_from_the_options(mine: Registry) -> None:
    backbone = mine.build("pyramid", features_only=True, width=16, channels=1, taps=("side", "C2"))
    shapes = {name: tuple(values.shape) for name, values in backbone(torch.zeros(1, 1, 33, 32)).items()}
    assert shapes == {"side": (1, 16, 17, 16), "C2": (1, 16, 9, 8)}
    assert backbone.taps == {"side": Tap(16, 2), "C2": Tap(16, 4)}


def test_extra_taps_are_returned_on_request_only(mine: Registry) -> None:
    assert list(mine.build("pyramid", features_only=True).taps) == ["C1", "C2"]
    assert list(mine.spec("pyramid", features_only=True).addresses) == ["C1", "C2", "side"]


def test_counts_are_those_of_the_built_module(mine: Registry) -> None:
    spec = mine.spec("pyramid", features_only=True)
    stem, side, body, norms = 3 * 8 * 9 + 8, 8 * 8 + 8, 8 * 8 * 9 + 8, 3 * 2 * 8
    assert spec.parameters == stem + side + body + norms
    # The branch runs even if its map is not requested.
    assert spec.macs(32, 32) == 16 * 16 * (3 * 8 * 9 + 8 * 8) + 8 * 8 * 8 * 8 * 9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": "wide"}, OptionError, "'pyramid' cannot take width='wide'; it must be a whole number"),
        (
            {"width": 13},
            PluginError,
            "backbone 'pyramid': 'test_factories:build' raised ValueError: 13 is unlucky",
        ),
        (
            {"width": 14},
            PluginError,
            "backbone 'pyramid' cannot be built: 'test_factories:build' returned 'no module', which is not a module",
        ),
        ({"freeze": "C4"}, OptionError, "'pyramid' cannot freeze through C4; it ends at C2"),
        (
            {"freeze": "side"},
            OptionError,
            "'pyramid' cannot take freeze='side'; it must be None or the last level to freeze: C1, C2, C3, C4, C5",
        ),
    ],
)
def test_errors_name_the_backbone_that_failed(
    mine: Registry, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        mine.build("pyramid", features_only=True, **options)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere.at.all:build", "cannot import 'nowhere.at.all:build': no module named 'nowhere'"),
        ("test_factories.inner:build", "cannot import 'test_factories.inner:build': no module named "),
        ("test_factories:biuld", "cannot import 'test_factories:biuld': module 'test_factories' has no attribute"),
    ],
)
def test_a_missing_factory_is_named(mine: Registry, reference: str, message: str) -> None:
    from dataclasses import replace

    with pytest.raises(SpecError) as error:
        mine.build(replace(SPEC, factory=reference), features_only=True)
    assert str(error.value).startswith(message)


def trainable(backbone: nn.Module) -> set[str]:
    return {name.partition(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def awake(backbone: nn.Module) -> set[str]:
    return {name for name, module in backbone.named_modules() if module.training}


def test_freezing_a_level_freezes_the_modules_it_depends_on_and_no_others(mine: Registry) -> None:
    backbone = mine.build("pyramid", features_only=True, freeze="C1", taps=("C2", "side"))
    assert trainable(backbone) == {"side", "body"}
    for other in (backbone, copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert isinstance(other, Pyramid)
        other.train()
        # Dropout in a frozen level is also in evaluation mode.
        assert awake(other) == {"", "side", "body", "body.0", "body.1", "body.2"}
        before = other.stem[1].running_mean.clone()
        other(torch.randn(2, 3, 32, 32))
        assert torch.equal(other.stem[1].running_mean, before)
        assert awake(other.eval()) == set()


def test_a_backbone_can_be_frozen_completely(mine: Registry) -> None:
    backbone = mine.build("pyramid", features_only=True, freeze="C2", taps=("C2",))
    assert trainable(backbone) == {"side"}
    whole = Registry([SimpleNamespace(__name__="x", featuretap_backbones=hookimpl(lambda: [CHAIN]))], discover=False)
    for other in (backbone := whole.build("chain", features_only=True, freeze="C1"), copy.deepcopy(backbone)):
        assert trainable(other) == set()
        assert awake(other.train()) == set()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_a_frozen_backbone_of_a_factory_scripts() -> None:
    whole = Registry([SimpleNamespace(__name__="x", featuretap_backbones=hookimpl(lambda: [SCRIPTED]))], discover=False)
    backbone = whole.build("scripted", features_only=True, freeze_norm=True).eval()
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(torch.jit.script(backbone)(images)["C1"], backbone(images)["C1"])


class Refusing(Plain):
    """A network that rejects every image."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        raise ValueError("images are\nrefused")


def refusing(spec: BackboneSpec, *, taps: tuple[str, ...]) -> nn.Module:
    return Refusing()


def test_a_backbone_that_fails_on_every_image_cannot_be_frozen_by_level() -> None:
    spec = BackboneSpec("refusing", taps={"C1": Tap(8, 2)}, factory="test_factories:refusing")
    with pytest.raises(PluginError) as error:
        Registry(discover=False).build(spec, features_only=True, freeze="C1")
    assert str(error.value) == (
        "'refusing' cannot be frozen by level: it accepts none of the usual image sizes, so the layers of the level "
        "cannot be determined (images are refused)"
    )


class Doubled(Plain):
    """A network whose maps have another dtype than its images."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"C1": self.body(images).double()}


def doubled(spec: BackboneSpec, *, taps: tuple[str, ...]) -> nn.Module:
    return Doubled()


def test_maps_of_another_dtype_than_the_images_break_the_spec() -> None:
    spec = BackboneSpec("doubled", taps={"C1": Tap(8, 2)}, factory="test_factories:doubled")
    plugin = SimpleNamespace(__name__="x", featuretap_backbones=hookimpl(lambda: [spec]))
    with pytest.raises(SpecError) as error:
        check_shapes("doubled", Registry([plugin], discover=False))
    assert str(error.value) == (
        "'doubled' breaks its spec: for images of torch.float32 C1 should have the same dtype, got torch.float64"
    )


def test_a_plugin_that_hangs_fails_after_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.01)
    with pytest.raises(SpecError) as error:
        diagnosis.check_torch_free("featuretap.plugins.builtin")
    assert (
        str(error.value)
        == "'featuretap.plugins.builtin' takes more than 0.01 seconds to import and to answer its hooks"
    )


def test_freezing_norms_freezes_every_kind_of_norm(mine: Registry) -> None:
    backbone = mine.build("pyramid", features_only=True, freeze_norm=True).train()
    assert {name for name, p in backbone.named_parameters() if not p.requires_grad} == {
        f"{norm}.{kind}" for norm in ("stem.1", "body.1", "body.2") for kind in ("weight", "bias")
    }
    assert set(dict(backbone.named_modules())) - awake(backbone) == {"stem.1", "body.1", "body.2"}


def test_a_frozen_backbone_of_a_factory_is_saved_and_loaded(mine: Registry, tmp_path: Any) -> None:
    backbone = mine.build("pyramid", features_only=True, freeze="C1", width=16)
    loaded = mine.load(mine.save(backbone, tmp_path / "x.safetensors"))
    assert loaded.description.options == {"freeze": "C1", "width": 16}
    assert trainable(loaded) == {"side", "body"}
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.eval()(images)["C2"], backbone.eval()(images)["C2"])


@pytest.mark.parametrize(("asked", "value"), [(True, 1.0), ("ones", 1.0), ("twos", 2.0)])
def test_a_factory_fetches_its_own_weights_by_their_tags(mine: Registry, asked: Any, value: float) -> None:
    backbone = mine.build("pyramid", features_only=True, pretrained=asked)
    assert (backbone.side.weight == value).all()
    assert backbone.description.weights == f"pyramid.{'twos' if asked == 'twos' else 'ones'}"


def test_unknown_weights_of_a_factory_are_refused_with_the_known_tags(mine: Registry) -> None:
    with pytest.raises(LookupError) as error:
        mine.build("pyramid", features_only=True, pretrained="threes")
    assert str(error.value) == "'pyramid' has no weights 'threes'; its tags are ones, twos"


def test_a_warning_says_that_the_head_on_fetched_weights_is_new(
    mine: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    model = mine.build("pyramid", head="fpn", taps=("C1", "C2"), pretrained="twos")
    assert model.description.random_head
    assert caplog.messages == ["pyramid.twos: loaded the backbone; the head 'fpn' is randomly initialized"]


class Wrapped(nn.Module):
    """A backbone with one map whose submodule has the same name as a wrapper's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"C1": self.model(images)}


def wrapped(spec: BackboneSpec, *, taps: tuple[str, ...]) -> nn.Module:
    return Wrapped()


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone."])
def test_a_state_dict_is_read_whatever_the_factory_calls_its_module(
    mine: Registry, tmp_path: Path, prefix: str
) -> None:
    spec = BackboneSpec("wrapped", taps={"C1": Tap(8, 2)}, factory="test_factories:wrapped")
    source = mine.build(spec, features_only=True)
    for names in (source.state_dict(), source.model.state_dict()):
        torch.save({prefix + name: tensor for name, tensor in names.items()}, tmp_path / "file.pth")
        filled = mine.build(spec, features_only=True, pretrained=tmp_path / "file.pth")
        assert torch.equal(filled.model[0].weight, source.model[0].weight)
