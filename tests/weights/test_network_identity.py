"""A file identifies its network by name and digest: variants, plugins and specs that share names or shapes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.saved_models import assert_equal_states, fill_randomly
from torch import Tensor, nn

from featuretap.backbones.mobilenet_v2 import V2
from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import BackboneSpec, Bneck, Conv, Tap
from featuretap.specs.network_digest import network_digest

DIGESTS = {
    "mobilenet_v1": "d387db54bfa0283f",
    "mobilenet_v2": "c6d5cacff3d9539e",
    "small": "8031847ec8d995b7",
    "stride": "8031847ec8d995b7",
    "paddle": "590c863848c036ad",
}


def test_a_users_variant_is_saved_as_its_base_with_options(
    registry: Registry, tmp_path: Path, configured: Callable[[str], Registry]
) -> None:
    mine = configured(
        '[backbones.dense]\nbase = "mobilenet_v2_050"\noptions = { output_stride = 16 }\n'
        '[backbones.denser]\nbase = "dense"\noptions = { dilate_entry = true }\n'
    )
    model = fill_randomly(mine.build("denser", num_classes=4, in_channels=1))
    loaded = registry.load(mine.save(model, tmp_path / "file.safetensors"))
    said = loaded.description
    assert said.name == "mobilenet_v2"
    assert said.options == {"width": 0.5, "output_stride": 16, "dilate_entry": True, "in_channels": 1}
    assert_equal_states(loaded, model)
    assert str(loaded.backbone) == str(model.backbone)


class Tiny:
    """A plugin whose network changes its activation in the next release."""

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
            f"weights do not fit 'tinynet': {path} contains another network with the same shapes, or the network has "
            "changed"
        )
    with pytest.raises(WeightsError) as error:
        new.convert(path, tmp_path / "converted.safetensors")
    assert str(error.value) == (
        f"cannot convert '{path}', which is described as 'tinynet': the network has changed since the file was written"
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
        with pytest.raises(
            WeightsError, match=r"contains another network with the same shapes, or the network has changed"
        ):
            ask()
    assert_equal_states(registry.load(path, name=plain), registry.build(plain, pretrained=path))


def test_the_digest_of_a_network_never_changes(registry: Registry) -> None:
    """Existing files identify their networks by these digests."""
    digests = {name: network_digest(registry.backbone(name)) for name in ("mobilenet_v1", "mobilenet_v2")}
    digests["small"] = network_digest(registry.spec("mobilenet_v3_small", features_only=True, in_channels=1))
    digests["stride"] = network_digest(registry.spec("mobilenet_v3_small", features_only=True, output_stride=8))
    digests["paddle"] = network_digest(registry.backbone("mobilenet_v3_small_paddle"))
    assert digests == DIGESTS


def test_a_plugin_that_cannot_describe_its_backbone_hides_no_other(tmp_path: Path, official_weights: Path) -> None:
    class Broken(Tiny):
        @hookimpl
        def featuretap_backbones(self) -> list[BackboneSpec]:
            (spec,) = Tiny("relu").featuretap_backbones()
            return [replace(spec, name="broken", layouts={"timm": "nowhere.at:all"}), spec]

    mine = Registry(plugins=[Tiny("relu"), Broken("relu")], discover=False)
    assert mine.load(official_weights).description.name == "mobilenet_v2"


def test_a_file_of_an_unknown_network_is_refused(registry: Registry, tmp_path: Path) -> None:
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
        "see registry.list_backbones()"
    )


def test_tensors_of_another_network_with_the_same_shapes_are_refused(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(
        registry.build("mobilenet_v3_large", features_only=True, taps=("C2",)), tmp_path / "file.safetensors"
    )
    with pytest.raises(WeightsError) as error:
        registry.build("mobilenet_v3_large_minimalistic", features_only=True, taps=("C2",), pretrained=path)
    assert str(error.value) == (
        f"weights do not fit 'mobilenet_v3_large_minimalistic': {path} contains another network with the same shapes, "
        "or the network has changed; the file fits 'mobilenet_v3_large'"
    )


def made(spec: BackboneSpec, *, taps: tuple[str, ...], norm: str = "batch") -> nn.Module:
    """A third-party backbone whose modules are also named `backbone` and `head`."""

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
    model = fill_randomly(registry.build(spec, features_only=True, norm="other")).eval()
    loaded = registry.load(registry.save(model, tmp_path / "file.safetensors"), name=spec).eval()
    assert_equal_states(loaded, model)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images)["C2"], model(images)["C2"])
