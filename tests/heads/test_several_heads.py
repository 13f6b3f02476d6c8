"""Several heads on one backbone: one pass computes all maps, and each head returns the same outputs as alone."""

import copy
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.heads import DETECTORS, SEGMENTERS, SMALL, images, outputs, targets
from support.oracles import randomised
from torch import Tensor, nn

from featuretap.catalogue.multi_head_request import RESERVED
from featuretap.heads.segmentation import LRASPP
from featuretap.registry import Registry
from featuretap.registry.errors import FeaturetapError, WeightsError
from featuretap.registry.hookspecs import hookimpl
from featuretap.registry.specs import HeadSpec, ModelSpec, MultiHeadSpec

SMALLEST = "mobilenet_v3_small_050"

COMBINATIONS: list[dict[str, str]] = [
    {"scene": "classification", "levels": "fpn"},
    {"road": "lraspp", "parts": "deeplab_v3", "scene": "classification"},
    {"road": "lraspp", "lanes": "lraspp"},
    *({"scene": "classification", "objects": detector, "road": "lraspp", "levels": "fpn"} for detector in DETECTORS),
    {"faces": "ssdlite", "objects": "ssdlite"},
]


def ids(heads: dict[str, str]) -> str:
    return "-".join(heads.values())


def options_of(heads: dict[str, str]) -> dict[str, dict[str, Any]]:
    classes = {label: {} if kind == "fpn" else {"num_classes": 3} for label, kind in heads.items()}
    return {label: {**classes[label], **SMALL.get(kind, {})} for label, kind in heads.items()}


def build(registry: Registry, heads: dict[str, str], name: str = SMALLEST, **options: Any) -> nn.Module:
    return randomised(registry.build(name, head=heads, **options_of(heads), **options)).float().eval()


def flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in flat(value)]


def equal(ours: Any, theirs: Any) -> bool:
    pairs = zip(flat(ours), flat(theirs), strict=True)
    return all(torch.equal(our, their) for our, their in pairs)


def test_two_heads_by_their_names_share_a_backbone(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_large", head=("ssdlite", "lraspp"))
    assert list(model.heads) == ["ssdlite", "lraspp"]
    assert list(model.backbone.taps) == ["C3.depthwise", "C4.expansion", "C5"]
    # The model uses the stride that LR-ASPP requires.
    assert model.backbone.taps["C5"].stride == 16
    assert model.description.heads["ssdlite"].options["output_stride"] == 16


@pytest.mark.parametrize("heads", COMBINATIONS, ids=ids)
def test_every_head_returns_what_it_returns_alone(registry: Registry, heads: dict[str, str]) -> None:
    model = build(registry, heads)
    detectors = [label for label, kind in heads.items() if kind in DETECTORS]
    given = images(2, 70, 90)
    with torch.inference_mode():
        together = model(given if detectors else torch.stack(given))
        assert list(together) == list(heads)
        batch = torch.stack(given)
        if detectors:
            prepared, _ = model.heads[detectors[0]].transform(given)
            batch = prepared.tensors
        for label, kind in heads.items():
            alone = registry.select_head(model, label)
            expected = alone(given if kind in DETECTORS else batch)
            if detectors and kind in SEGMENTERS:
                height, width = prepared.image_sizes[0]
                cut = expected["out"][:, :, :height, :width]
                resized = nn.functional.interpolate(cut, size=(70, 90), mode="bilinear", align_corners=False)
                expected = [{"out": logits} for logits in resized]
            assert equal(together[label], expected), label


def test_the_backbone_computes_once(registry: Registry) -> None:
    model = build(registry, COMBINATIONS[3])
    calls: list[int] = []
    model.backbone.stages.C1.register_forward_hook(lambda *_: calls.append(1))
    model(images(2, 70, 90))
    assert len(calls) == 1


@pytest.mark.parametrize("heads", COMBINATIONS, ids=ids)
def test_the_spec_counts_what_is_built(registry: Registry, heads: dict[str, str]) -> None:
    spec = registry.spec(SMALLEST, head=heads, **options_of(heads))
    model = registry.build(SMALLEST, head=heads, **options_of(heads))
    assert isinstance(spec, MultiHeadSpec)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    singles = list(spec.heads.values())
    shared = spec.backbone.macs(64, 96)
    assert spec.macs(64, 96) == shared + sum(single.macs(64, 96) - single.backbone.macs(64, 96) for single in singles)
    assert list(spec.outputs(64, 96)) == list(heads)


@pytest.mark.parametrize(
    ("name", "heads", "parameters", "macs"),
    [
        ("mobilenet_v3_large", ("ssdlite", "lraspp"), 5_258_129, 1_238_148_096),
        ("mobilenet_v2", ("classification", "fpn"), 6_232_808, 5_721_024_000),
    ],
)
def test_counts_are_pinned(registry: Registry, name: str, heads: tuple[str, str], parameters: int, macs: int) -> None:
    """Multiply-adds of convolutions and linear layers for one 320×320 image."""
    spec = registry.spec(name, head=heads)
    assert (spec.parameters, spec.macs(320, 320)) == (parameters, macs)
    # The backbone is counted once.
    singles = [registry.spec(name, head=head, output_stride=spec.backbone.output_stride) for head in heads]
    assert all(isinstance(single, ModelSpec) for single in singles)
    backbones = sum(single.backbone.parameters for single in singles)
    assert spec.parameters == sum(single.parameters for single in singles) - backbones + spec.backbone.parameters


def test_boxes_and_masks_are_in_the_pixels_of_each_image(registry: Registry) -> None:
    model = build(registry, {"objects": "mask_rcnn", "road": "lraspp", "scene": "classification"})
    given = [*images(1, 70, 90), *images(1, 120, 64)]
    with torch.inference_mode():
        found = model(given)
    assert [logits["out"].shape for logits in found["road"]] == [(3, 70, 90), (3, 120, 64)]
    assert [objects["masks"].shape[-2:] for objects in found["objects"]] == [(70, 90), (120, 64)]
    assert found["scene"].shape == (2, 3)
    for objects, image in zip(found["objects"], given, strict=True):
        height, width = image.shape[-2:]
        assert (objects["boxes"] <= torch.tensor([width, height, width, height])).all()


def test_heads_are_trained_one_by_one(registry: Registry) -> None:
    model = registry.build(SMALLEST, head=COMBINATIONS[3], **options_of(COMBINATIONS[3])).train()
    with pytest.raises(FeaturetapError) as error:
        model(images(2, 70, 90))
    assert str(error.value) == (
        "a model with several heads detects in evaluation mode only; train one head at a time: "
        "registry.select_head(model, 'objects')(images, targets)"
    )
    detector = registry.select_head(model, "objects")
    torch.stack(list(detector(images(2, 70, 90), targets(2, 70, 90)).values())).sum().backward()
    assert model.backbone.stages.C1[0].conv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.heads["road"].parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"head": ("ssdlite", "retinanet")},
            "heads 'ssdlite' and 'retinanet' preprocess images with size=320 and size=None; set one value for "
            "both, or build "
            "two models",
        ),
        (
            {"head": ("lraspp", "lraspp")},
            "head=('lraspp', 'lraspp') repeats a head; give each a custom name: head={'road': 'lraspp', ...}",
        ),
        ({"head": ()}, "head=() is empty; give at least one head: head={'road': 'lraspp', ...}"),
        (
            {"head": 3},
            "head must be a name, several names, or a mapping from custom names to names; got 3",
        ),
        (
            {"head": {"train": "lraspp"}},
            "'train' cannot be the name of a head; choose an identifier that is neither an argument nor an option of "
            "build, and not an attribute of torch.nn.ModuleDict",
        ),
        (
            {"head": {"width": "lraspp"}},
            "'width' cannot be the name of a head; choose an identifier that is neither an argument nor an option of "
            "build, and not an attribute of torch.nn.ModuleDict",
        ),
        (
            {"head": ("lraspp", "fpn"), "num_classes": 3},
            "num_classes=3 is an option of one head, but the model has several; pass it under the head's name: "
            "lraspp={'num_classes': 3}",
        ),
        (
            {"head": {"levels": "fpn", "road": "lraspp"}, "inter_channels": 64},
            "inter_channels=64 is an option of one head, but the model has several; pass it under the head's name: "
            "road={'inter_channels': 64}",
        ),
        (
            {"head": ("lraspp", "fpn"), "lrasp": {"num_classes": 3}},
            "no head named 'lrasp'; did you mean 'lraspp'? heads: lraspp, fpn",
        ),
        (
            {"head": ("lraspp", "fpn"), "lraspp": 3},
            "lraspp=3 is not a mapping of options for the head 'lraspp'; pass a dict: lraspp={'num_classes': 21}",
        ),
        (
            {"head": ("lraspp", "fpn"), "lraspp": {"output_stride": 8}},
            "output_stride of 'lraspp' is shared by all heads; pass it outside the options of the heads: "
            "output_stride=8",
        ),
        (
            {"head": ("lraspp", "fpn"), "features_only": True},
            "features_only=True returns the bare backbone, which has no heads; leave one of the two out",
        ),
        (
            {"head": ("classification", "deeplab_v3"), "output_stride": 32},
            "head 'deeplab_v3' requires output stride 16 or 8, but C5 of 'mobilenet_v3_small_050' has stride 32; build "
            "it with output_stride=16, or choose another tap",
        ),
    ],
)
def test_heads_that_cannot_be_together_are_refused(registry: Registry, arguments: dict[str, Any], message: str) -> None:
    for function in (registry.build, registry.spec):
        with pytest.raises(FeaturetapError) as error:
            function(SMALLEST, **arguments)
        assert str(error.value) == message


def with_heads(heads: list[HeadSpec]) -> Registry:
    """Return a registry with a plugin's heads."""
    plugin = types.ModuleType("plugin")
    plugin.featuretap_heads = hookimpl(specname="featuretap_heads")(lambda: heads)  # type: ignore[attr-defined]
    return Registry(plugins=[plugin], discover=False)


class Brightness(nn.Module):
    """A plugin's own model class, which reads the images as well as the maps."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.backbone(pictures)["C2"]).mean() + pictures.mean()


def identity(backbone: object, *, num_classes: None) -> nn.Module:
    return nn.Identity()


def test_a_head_of_a_plugin_with_a_model_of_its_own_takes_part() -> None:
    head = HeadSpec("brightness", ("C2",), f"{__name__}:identity", model=f"{__name__}:Brightness")
    registry = with_heads([head])
    model = registry.build(SMALLEST, head={"light": "brightness", "scene": "classification"}).eval()
    given = torch.stack(images(1, 64, 96))
    with torch.inference_mode():
        assert torch.equal(model(given)["light"], registry.select_head(model, "light")(given))


def test_two_strides_of_two_heads_are_refused() -> None:
    strides = {"eight": 8, "sixteen": 16}
    registry = with_heads(
        [replace(LRASPP, name=name, backbone_options={"output_stride": stride}) for name, stride in strides.items()]
    )
    with pytest.raises(FeaturetapError) as error:
        registry.build(SMALLEST, head=("eight", "sixteen"))
    assert str(error.value) == (
        "heads 'eight' and 'sixteen' require output_stride=8 and output_stride=16; set one value for both: "
        "output_stride=16"
    )
    assert registry.build(SMALLEST, head=("eight", "sixteen"), output_stride=16).backbone.taps["C5"].stride == 16


def test_reserved_names_are_those_that_pytorch_refuses() -> None:
    # Use a new process: transformers, which other tests import, adds a method to PyTorch's modules.
    code = "from torch import nn; print(*(name for name in dir(nn.ModuleDict()) if not name.startswith('_')))"
    names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert set(names) <= RESERVED


@pytest.mark.parametrize("heads", COMBINATIONS, ids=ids)
def test_one_file_holds_all_heads(registry: Registry, tmp_path: Path, heads: dict[str, str]) -> None:
    model = build(registry, heads)
    path = registry.save(model, tmp_path / "several.safetensors")
    again = registry.load(path).eval()
    assert list(again.heads) == list(heads)
    given: Any = images(1, 70, 90)
    given = given if set(heads.values()) & set(DETECTORS) else torch.stack(given)
    with torch.inference_mode():
        assert equal(again(given), model(given))
    assert registry.save(again, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    for label, kind in heads.items():
        alone = registry.load(path, head=label).eval()
        assert alone.description.head == kind
        ours, theirs = (outputs(one, kind, images(1, 70, 90)) for one in (alone, registry.select_head(model, label)))
        assert equal(ours, theirs)
        # A head loaded alone gives an ordinary model.
        registry.load(registry.save(alone, tmp_path / "alone.safetensors"))


def test_parts_of_a_file_with_several_heads_fill_other_models(registry: Registry, tmp_path: Path) -> None:
    model = build(registry, {"road": "lraspp", "scene": "classification"}, output_stride=32)
    path = registry.save(model, tmp_path / "several.safetensors")
    bare = registry.load(path, features_only=True).eval()
    assert list(bare.taps) == ["C3.depthwise", "C5"]
    given = torch.stack(images(1, 64, 96))
    with torch.inference_mode():
        assert equal(bare(given), model.backbone(given))
        filled = registry.build(SMALLEST, head="classification", num_classes=3, pretrained=path).eval()
        assert torch.equal(filled(given), model(given)["scene"])
    assert registry.load(path, freeze="C2").description.options == {"freeze": "C2"}


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda r, path: r.load(path, head="raod"), "{path} has no head 'raod'; did you mean 'road'? its heads are "),
        (
            lambda r, path: r.load(path, num_classes=3),
            "{path} contains a model with several heads: road, scene; choose one, such as with registry.load(path, "
            "head='road')",
        ),
        (
            lambda r, path: r.convert(path, path),
            "{path} contains a model with several heads: road, scene; choose one, ",
        ),
        (
            lambda r, path: r.save(r.load(path), path, layout="timm"),
            "cannot save a model with several heads in the layout 'timm', which supports one; save one head: "
            "registry.save(registry.select_head(model, 'road'), ...)",
        ),
    ],
    ids=["unknown head", "classes", "convert", "timm"],
)
def test_a_file_with_several_heads_is_refused_where_one_is_needed(
    registry: Registry, tmp_path: Path, use: Callable[[Registry, Path], object], message: str
) -> None:
    path = registry.save(build(registry, {"road": "lraspp", "scene": "classification"}), tmp_path / "a.safetensors")
    with pytest.raises(FeaturetapError) as error:
        use(registry, path)
    assert str(error.value).startswith(message.format(path=repr(str(path))))


def test_models_on_one_backbone_are_joined(registry: Registry, tmp_path: Path) -> None:
    model = build(registry, {"objects": "ssdlite", "road": "lraspp"})
    files = {
        label: registry.save(registry.select_head(model, label), tmp_path / f"{label}.safetensors")
        for label in model.heads
    }
    joined = registry.join(files).eval()
    with torch.inference_mode():
        assert equal(joined(images(2, 70, 90)), model(images(2, 70, 90)))
    path = registry.save(joined, tmp_path / "joined.safetensors")
    assert registry.load(path).description.heads.keys() == files.keys()
    # A detector normalizes its images, but its backbone alone does not.
    for bare in (joined.backbone, registry.load(path, features_only=True)):
        prepared = bare.description.preprocessing
        assert (prepared.inside, prepared.crop) == (False, 224)


def test_models_on_different_backbones_are_not_joined(registry: Registry, tmp_path: Path) -> None:
    model = build(registry, {"road": "lraspp", "scene": "classification"})
    first = registry.save(registry.select_head(model, "road"), tmp_path / "road.safetensors")
    with torch.no_grad():
        model.backbone.stages.C3[0].project.conv.weight[0] += 1
    second = registry.save(registry.select_head(model, "scene"), tmp_path / "scene.safetensors")
    with pytest.raises(FeaturetapError) as error:
        registry.join({"road": first, "scene": second})
    assert str(error.value) == (
        "the backbones of 'road' and 'scene' differ in 1 of 240 tensors: stages.C3.0.project.conv.weight; train the "
        "heads on one frozen backbone, such as with registry.add_head"
    )
    other = registry.save(registry.build("mobilenet_v2_050", num_classes=3), tmp_path / "v2.safetensors")
    with pytest.raises(FeaturetapError) as error:
        registry.join({"road": first, "scene": other})
    assert str(error.value).startswith(
        "the backbones of 'road' and 'scene' have different architectures: BackboneSpec("
    )
    with pytest.raises(FeaturetapError) as error:
        registry.join({"road": first, "all": registry.save(model, tmp_path / "several.safetensors")})
    assert str(error.value) == "'mobilenet_v3_small_050' is a model with several heads; pass a model with one head"


@pytest.mark.parametrize("head", ["classification", "fpn", *SEGMENTERS, "ssdlite", "retinanet"])
def test_an_added_head_learns_without_changing_the_first(registry: Registry, head: str) -> None:
    first = randomised(registry.build(SMALLEST, head="lraspp", num_classes=3)).float().eval()
    given = torch.stack(images(2, 64, 96))
    with torch.inference_mode():
        before = first(given)["out"]
    classes = {} if head == "fpn" else {"num_classes": 3}
    model = registry.add_head(first, "second", head, **classes, **SMALL.get(head, {}))
    assert list(model.heads) == ["lraspp", "second"]
    second = registry.select_head(model.train(), "second").train()
    optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
    if head in DETECTORS:
        loss = torch.stack(list(second(images(2, 70, 90), targets(2, 70, 90)).values())).sum()
    else:
        loss = sum(tensor.square().mean() for tensor in flat(second(given)))
    loss.backward()
    optimizer.step()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert all(name.startswith("heads.second.") for name in trained)
    with torch.inference_mode():
        assert torch.equal(registry.select_head(model.eval(), "lraspp")(given)["out"], before)


def test_a_head_is_added_to_a_backbone_and_to_several_heads(registry: Registry, tmp_path: Path) -> None:
    backbone = registry.build(SMALLEST, features_only=True)
    one = registry.add_head(backbone, "scene", "classification", num_classes=4, freeze=False)
    assert all(parameter.requires_grad for parameter in one.parameters())
    two = registry.add_head(one, "levels", "fpn", out_channels=32)
    assert list(two.heads) == ["scene", "levels"]
    assert two.heads["scene"] is one.heads["scene"]
    assert not any(parameter.requires_grad for parameter in two.heads["scene"].parameters())
    registry.freeze(two)
    assert all(parameter.requires_grad for parameter in two.parameters())
    assert two.train().heads["scene"].training
    again = registry.load(registry.save(two, tmp_path / "two.safetensors"))
    assert list(again.heads) == ["scene", "levels"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lraspp", "fpn"), "the model already has a head 'lraspp'; choose another name"),
        (("second", "nothing"), "no head named 'nothing'; known heads: "),
        (("train", "fpn"), "'train' cannot be the name of a head; "),
        (
            ("second", "fpn"),
            "'mobilenet_v3_small_050' was built without stages.C5.1.expand, which a head reads; build it with taps "
            "that include the last level",
        ),
    ],
)
def test_heads_that_cannot_be_added_are_refused(registry: Registry, arguments: tuple[str, str], message: str) -> None:
    model = registry.build(SMALLEST, head="lraspp", taps=("C3", "C5.first"))
    with pytest.raises(FeaturetapError) as error:
        registry.add_head(model, *arguments)
    assert str(error.value).startswith(message)


def test_several_heads_on_a_backbone_of_another_library(registry: Registry, tmp_path: Path) -> None:
    heads = {"scene": "classification", "road": "lraspp", "levels": "fpn"}
    options = {"scene": {"num_classes": 3}, "road": {"num_classes": 3}}
    model = randomised(registry.build("timm/resnet18", head=heads, **options)).float().eval()
    given = torch.stack(images(1, 64, 96))
    with torch.inference_mode():
        together = model(given)
        for label in heads:
            assert equal(registry.select_head(model, label)(given), together[label])
        again = registry.load(registry.save(model, tmp_path / "a.safetensors")).eval()
        assert equal(again(given), together)


def test_norms_of_the_callers_are_shared(registry: Registry) -> None:
    model = registry.build(
        SMALLEST, head=("classification", "fpn"), norm=lambda channels: nn.GroupNorm(1, channels)
    ).eval()
    given = torch.stack(images(1, 64, 96))
    with torch.inference_mode():
        assert equal(registry.select_head(model, "fpn")(given), model(given)["fpn"])


def test_published_weights_fill_the_backbone_and_the_classifier(registry: Registry, caplog: Any) -> None:
    model = registry.build("mobilenet_v2", head=("classification", "fpn"), pretrained=True).eval()
    alone = registry.build("mobilenet_v2", pretrained=True).eval()
    given = torch.stack(images(1, 64, 96))
    with torch.inference_mode():
        assert torch.equal(model(given)["classification"], alone(given))
    assert model.description.heads["classification"].classes == "imagenet1k"
    assert model.description.heads["fpn"].random_head
    assert "the head 'fpn' is randomly initialized" in caplog.text


def test_several_heads_are_copied_pickled_traced_and_exported(registry: Registry) -> None:
    heads = {"scene": "classification", "levels": "fpn"}
    model = build(registry, heads)
    given = torch.stack(images(1, 64, 96))
    with torch.inference_mode():
        expected = model(given)
        copies = [
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.fx.symbolic_trace(model),
            torch.export.export(model, (given,)).module(),
            torch.compile(model, backend="eager", fullgraph=True),
        ]
        for other in copies:
            assert equal(other(given), expected)
    compiled = copy.deepcopy(model)
    compiled.backbone = torch.compile(compiled.backbone)
    for wrapped in (torch.compile(model), compiled):
        alone = registry.select_head(wrapped, "scene")
        assert not any("_orig_mod" in name for name in alone.state_dict())


def test_transforms_are_those_of_the_head_that_asks_most(registry: Registry) -> None:
    for heads, images_of in (
        (("classification", "fpn"), (256, 224, False)),
        (("classification", "lraspp"), (520, None, False)),
        (("classification", "lraspp", "ssdlite"), (None, None, True)),
    ):
        prepared = registry.build(SMALLEST, head=heads).description.preprocessing
        assert (prepared.resize, prepared.crop, prepared.inside) == images_of


def test_models_without_heads_by_name_are_refused(registry: Registry) -> None:
    with pytest.raises(FeaturetapError) as error:
        registry.select_head(registry.build(SMALLEST), "classification")
    assert str(error.value) == (
        "'mobilenet_v3_small_050' does not have several heads; build it with several, or add one with registry.add_head"
    )


@pytest.mark.parametrize("heads", ["{}", "[]", '{"road": {}}', '{"road": 1}', '{"road": {"featuretap.heads": "{}"}}'])
def test_damaged_records_of_heads_are_refused(registry: Registry, tmp_path: Path, heads: str) -> None:
    path = registry.save(build(registry, {"road": "lraspp"}), tmp_path / "a.safetensors")
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "featuretap.heads": heads}
    save_file(load_file(path), path, metadata)
    with pytest.raises(WeightsError, match="is not a valid weights file: "):
        registry.load(path)
