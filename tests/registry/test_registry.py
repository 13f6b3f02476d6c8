"""Names: listing, aliases, precedence and suggestions, and specs used in place of names."""

import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import oracles

import featuretap.registry
from featuretap.backbones.mobilenet_v3 import LARGE
from featuretap.registry import Registry
from featuretap.registry.errors import HeadError, OptionError, SpecError, UnknownBackboneError, UnknownHeadError
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import RE, BackboneSpec, Bneck, Conv, HeadSpec, Tap
from featuretap.specs.variants import widened, with_output_stride

THERE = "module 'featuretap.registry' has no attribute"

TINY = BackboneSpec("tinynet", stages=((Conv(3, 8, RE),), (Bneck(3, 16, 12, RE),), (Bneck(3, 24, 20, RE),)))


class TwoMaps(torch.nn.Module):
    """A backbone without a table: C2 from a patchifying stem that rounds down, C3 by pooling."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(*[torch.nn.Conv2d(3, 6, 4, 4)] * depth)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        stem = self.stem(images)
        return {"C2": stem, "C3": torch.nn.functional.max_pool2d(stem, 2)}


def two_maps(spec: BackboneSpec, *, taps: tuple[str, ...], depth: int) -> torch.nn.Module:
    assert taps == tuple(spec.taps)
    return TwoMaps(depth)


DECLARED = BackboneSpec(
    "twomaps",
    taps={"C2": Tap(6, 4, rounding="floor"), "C3": Tap(6, 8, rounding="floor")},
    options={"depth": 1},
    factory="test_registry:two_maps",
)


def with_hooks(name: str, *backbones: BackboneSpec, heads: tuple[HeadSpec, ...] = ()) -> Any:
    def featuretap_backbones() -> Any:
        return backbones

    def featuretap_heads() -> Any:
        return heads

    return SimpleNamespace(
        __name__=name,
        featuretap_backbones=hookimpl(featuretap_backbones),
        featuretap_heads=hookimpl(featuretap_heads),
    )


def test_names_are_listed_sorted_and_filtered(registry: Registry) -> None:
    names = registry.list_backbones()
    assert names == sorted(names)
    assert len(names) == 24
    assert registry.list_backbones("*large") == ["mobilenet_v3_large"]
    assert registry.list_backbones("resnet*") == []
    assert registry.list_heads() == [
        "classification",
        "deeplab_v3",
        "faster_rcnn",
        "fcos",
        "fpn",
        "lraspp",
        "mask_rcnn",
        "retinanet",
        "ssd",
        "ssdlite",
    ]
    assert registry.list_plugins() == ["featuretap"]
    assert registry.list_weights("mobilenet_v2.*") == [
        "mobilenet_v2.imagenet1k_v1",
        "mobilenet_v2.imagenet1k_v2",
        "mobilenet_v2.ra_in1k",
        "mobilenet_v2.ssdlite300_person",
    ]
    assert registry.list_runtimes() == ["aot", "fused", "inductor", "onnxruntime", "openvino"]


@pytest.mark.parametrize("alias", oracles.TIMM)
def test_timms_names_mean_timms_networks(registry: Registry, alias: str) -> None:
    with torch.device("meta"):
        theirs = sum(parameter.numel() for parameter in oracles.timm_model(alias).parameters())
    assert registry.spec(alias).parameters == theirs


def test_timms_small_at_half_width_is_a_different_network_and_has_no_alias(registry: Registry) -> None:
    with torch.device("meta"):
        theirs = sum(parameter.numel() for parameter in oracles.timm_model("mobilenetv3_small_050").parameters())
    assert (theirs, registry.spec("mobilenet_v3_small_050").parameters) == (1_593_224, 1_592_704)
    with pytest.raises(UnknownBackboneError):
        registry.spec("mobilenetv3_small_050")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("mobilenetv3_lage", "no backbone named 'mobilenetv3_lage'; did you mean 'mobilenet_v3_large'?"),
        ("mobilenet_v2_149", "no backbone named 'mobilenet_v2_149'; did you mean 'mobilenet_v2_140'?"),
        (
            "mobilenet_v3",
            "no backbone named 'mobilenet_v3'; there are mobilenet_v3_large, mobilenet_v3_large_minimalistic, "
            "mobilenet_v3_large_paddle, mobilenet_v3_small, mobilenet_v3_small_minimalistic, mobilenet_v3_small_paddle "
            "and 9 more",
        ),
        ("resnet50", "no backbone named 'resnet50'; did you mean 'timm/resnet50' or 'torchvision/resnet50'?"),
        ("regnet_y_8gf", "no backbone named 'regnet_y_8gf'; did you mean 'torchvision/regnet_y_8gf'?"),
        *(
            (
                name,
                f"no backbone named {name!r}; the plugin {plugin} provides it; in a checkout, run: "
                f"pip install ./examples/{plugin}",
            )
            for name, plugin in [
                ("mobilenetv4_conv_small", "featuretap-mobilenet-v4"),
                ("tf_efficientnet_lite0", "featuretap-efficientnet-lite"),
            ]
        ),
        ("banana", "no backbone named 'banana'; see registry.list_backbones()"),
        ("", "no backbone named ''; see registry.list_backbones()"),
        (3, "a backbone must be a name or a BackboneSpec; got 3"),
        (["mobilenet_v2"], "a backbone must be a name or a BackboneSpec; got ['mobilenet_v2']"),
        (None, "a backbone must be a name or a BackboneSpec; got None"),
    ],
)
def test_unknown_names_get_the_nearest(registry: Registry, asked: Any, message: str) -> None:
    for ask in (registry.spec, registry.build):
        with pytest.raises(UnknownBackboneError) as error:
            ask(asked, features_only=True)
        assert str(error.value) == message


def test_an_unknown_head_gets_the_nearest(registry: Registry) -> None:
    with pytest.raises(UnknownHeadError) as error:
        registry.build("mobilenet_v2", head="clasification")
    assert str(error.value) == "no head named 'clasification'; did you mean 'classification'?"
    with pytest.raises(UnknownHeadError) as error:
        registry.build("mobilenet_v2", head="banana")
    assert str(error.value) == (
        "no head named 'banana'; known heads: classification, deeplab_v3, faster_rcnn, fcos, fpn, lraspp, mask_rcnn, "
        "retinanet, ssd, ssdlite"
    )
    for strange, message in (
        (3, "head must be a name, several names"),
        ([], "head=.. is empty"),
        ("", "no head named ''"),
    ):
        with pytest.raises((HeadError, UnknownHeadError), match=message):
            registry.build("mobilenet_v2", head=strange)  # type: ignore[arg-type]


def test_a_spec_is_a_variant_without_packaging(registry: Registry) -> None:
    model = registry.build(widened(LARGE, 0.6), features_only=True)
    assert model(torch.zeros(2, 3, 32, 32))["C5"].shape == (2, 576, 1, 1)


def test_a_plugins_backbone_is_built_by_name(registry: Registry) -> None:
    mine = Registry([with_hooks("tiny_plugin", TINY)], discover=False)
    assert "tinynet" in mine.list_backbones()
    maps = mine.build("tinynet", features_only=True)(torch.zeros(2, 3, 97, 161))
    assert {name: tuple(values.shape[1:]) for name, values in maps.items()} == TINY.tap_shapes(97, 161)
    assert mine.provider("tinynet") == "tiny-plugin"


def test_without_builtins_only_the_plugin_is_there() -> None:
    assert Registry([with_hooks("tiny_plugin", TINY)], discover=False, builtins=False).list_backbones() == ["tinynet"]


def test_width_one_leaves_uneven_channels_alone_and_others_round_them() -> None:
    mine = Registry([with_hooks("tiny_plugin", TINY)], discover=False)
    assert [tap.channels for tap in mine.spec("tinynet", features_only=True).taps.values()] == [8, 12, 20]
    assert [tap.channels for tap in mine.spec("tinynet", features_only=True, width=2).taps.values()] == [16, 24, 40]


def test_a_classifier_on_a_backbone_without_c5_is_refused() -> None:
    mine = Registry([with_hooks("tiny_plugin", TINY)], discover=False)
    with pytest.raises(HeadError) as error:
        mine.build("tinynet")
    assert str(error.value) == "head 'classification' reads C5, but 'tinynet' ends at C3"
    assert mine.build("tinynet", taps=("C3",), num_classes=5)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduced_tail": True}, "'tinynet' has no C5 for reduced_tail to halve; it ends at C3"),
        ({"freeze": "C4"}, "'tinynet' cannot freeze through C4; it ends at C3"),
    ],
)
def test_options_that_a_short_table_cannot_take_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        Registry([with_hooks("tiny_plugin", TINY)], discover=False).build("tinynet", features_only=True, **options)
    assert str(error.value) == message


def test_built_in_names_and_aliases_are_never_shadowed() -> None:
    impostors = [BackboneSpec(name, stages=TINY.stages) for name in ("mobilenet_v2", "mobilenetv2_100")]
    mine = Registry([with_hooks("impostor", *impostors)], discover=False)
    for name in ("mobilenet_v2", "mobilenetv2_100"):
        assert mine.spec(name).parameters == 3_504_872
        assert len(mine.spec(f"impostor:{name}", features_only=True).taps) == 3


def test_a_name_that_two_plugins_provide_is_ambiguous() -> None:
    wide = BackboneSpec("tinynet", stages=((Conv(3, 64, RE),),))
    mine = Registry([with_hooks("first", TINY), with_hooks("second", wide)], discover=False)
    with pytest.raises(UnknownBackboneError) as error:
        mine.build("tinynet", features_only=True)
    assert str(error.value) == (
        "2 plugins provide a backbone named 'tinynet'; choose one: 'first:tinynet' or 'second:tinynet'"
    )
    assert len(mine.spec("first:tinynet", features_only=True).taps) == 3
    assert len(mine.spec("second:tinynet", features_only=True).taps) == 1


def test_a_declared_backbone_is_built_by_its_factory() -> None:
    mine = Registry([with_hooks("declaring", DECLARED)], discover=False)
    backbone = mine.build("twomaps", features_only=True, depth=1)
    spec = mine.spec("twomaps", features_only=True)
    maps = backbone(torch.zeros(1, 3, 97, 161))
    assert {name: tuple(values.shape[1:]) for name, values in maps.items()} == spec.tap_shapes(97, 161)
    assert backbone.taps == {"C2": Tap(6, 4, "floor"), "C3": Tap(6, 8, "floor")}
    assert spec.parameters == sum(parameter.numel() for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "'x' has neither stages nor a factory; define stages, or taps and a factory"),
        ({"stages": ((),)}, "'x' has an empty stage, or more than 5 stages; correct its table"),
        ({"stages": ((Conv(3, 8, RE),),) * 6}, "'x' has an empty stage, or more than 5 stages; correct its table"),
    ],
)
def test_an_incomplete_spec_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        BackboneSpec("x", **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "tap",
    [
        {"channels": 0, "stride": 2},
        {"channels": 8, "stride": 0},
        {"channels": 8, "stride": 4, "rounding": "round"},
        {"channels": 8, "stride": 4, "rounding": 4},
        {"channels": 8, "stride": 4, "rounding": -1},
    ],
)
def test_an_invalid_tap_is_refused(tap: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as error:
        Tap(**tap)
    assert str(error.value) == (
        f"a tap cannot have channels={tap['channels']}, stride={tap['stride']}, "
        f"rounding={tap.get('rounding', 'ceil')!r}; "
        "channels and stride must be positive, and rounding 'ceil', 'floor' or a number of pixels below the stride"
    )


@pytest.mark.parametrize(
    ("rounding", "sizes"), [("ceil", (8, 9, 9)), ("floor", (8, 8, 8)), (0, (8, 8, 8)), (3, (8, 8, 9)), (7, (8, 9, 9))]
)
def test_sizes_of_maps_are_rounded_as_the_tap_declares(rounding: Any, sizes: tuple[int, ...]) -> None:
    assert tuple(Tap(4, 8, rounding).shape(height, 64)[1] for height in (64, 65, 69)) == sizes


def test_a_model_has_a_description(registry: Registry) -> None:
    model = registry.build("mobilenetv3_large_100", reduced_tail=True, num_classes=10)
    said = model.description
    assert (said.name, said.taps, said.options) == ("mobilenet_v3_large", ("C5",), {"reduced_tail": True})
    assert (said.head, said.num_classes, said.weights) == ("classification", 10, None)
    assert registry.build("mobilenet_v2", features_only=True).description.head is None


def test_threads_that_load_the_registry_at_once_get_the_same_names() -> None:
    fresh, answers = Registry(discover=False), []
    threads = [threading.Thread(target=lambda: answers.append(fresh.list_backbones())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [answers[0]] * 8


def test_models_can_be_built_in_several_threads_at_once(registry: Registry) -> None:
    built: list[torch.nn.Module] = []
    threads = [
        threading.Thread(target=lambda: built.append(registry.build("mobilenet_v3_small").eval())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    # Layers that PyTorch creates at the same time must still be initialized by PyTorch.
    convolutions = [torch.nn.Conv2d(3, 8, 3) for _ in range(200)]
    for thread in threads:
        thread.join()
    assert all(0 < layer.weight.abs().max() < 1 for layer in convolutions)
    assert all(model(torch.zeros(1, 3, 32, 32)).isfinite().all() for model in built)
    assert {type(module) for model in built for module in model.modules() if hasattr(module, "kernel_size")} == {
        torch.nn.Conv2d
    }


def test_options_set_by_variant_functions_are_kept_when_building(registry: Registry) -> None:
    dilated = with_output_stride(LARGE, 16)
    assert registry.build(dilated, features_only=True)(torch.zeros(2, 3, 64, 64))["C5"].shape[2:] == (4, 4)
    assert registry.spec(dilated, features_only=True, output_stride=32).taps["C5"].stride == 32
    grey = replace(LARGE, in_channels=1)
    assert registry.build(grey, features_only=True, taps=("C1",))(torch.zeros(2, 1, 64, 64))["C1"].shape[1] == 16


def test_a_plugin_that_queries_the_registry_while_loading_fails_instead_of_hanging() -> None:
    def featuretap_backbones() -> Any:
        return [mine.spec("mobilenet_v2", features_only=True)]

    module = SimpleNamespace(__name__="asking", featuretap_backbones=hookimpl(featuretap_backbones))
    mine = Registry([module], discover=False)
    assert "mobilenet_v2" in mine.list_backbones()
    failure = next(plugin.failure for plugin in mine.plugins if plugin.name == "asking")
    assert failure == (
        "plugin 'asking' of distribution 'asking' failed: a plugin used the registry that is loading it; "
        "import the specs it builds on instead"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("list_models", f"{THERE} 'list_models'; use registry.list_backbones"),
        ("create_model", f"{THERE} 'create_model'; use registry.build"),
        ("get_model", f"{THERE} 'get_model'; use registry.build"),
        ("banana", f"{THERE} 'banana'"),
    ],
)
def test_function_names_of_other_libraries_are_answered_with_ours(name: str, message: str) -> None:
    with pytest.raises(AttributeError) as error:
        getattr(featuretap.registry, name)
    assert str(error.value) == message


def test_python_suggests_the_nearest_function_of_the_registry() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "from featuretap import registry\nregistry.buidl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr.endswith("has no attribute 'buidl'. Did you mean: 'build'?\n")
