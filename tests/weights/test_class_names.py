"""Class names are stored in weights files, in featuretap's layout and in timm's."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import Completed
from torch import nn

from featuretap import specs
from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.specs.class_names import LABEL_SETS, class_names, name_of
from featuretap.specs.description import Description
from featuretap.support.text import one_line

Run = Callable[..., Completed]

ODD = ("cat, tabby", 'the "dog"', "žirafa 🦒", "[x]", "", "a\nb", "\\")


def named(registry: Registry, classes: Any, count: int | None = None, **options: Any) -> nn.Module:
    """Return a small model with class names."""
    count = len(classes) if count is None else count
    model = registry.build("mobilenet_v3_small", num_classes=count, width=0.25, **options)
    model.description = replace(model.description, classes=classes)
    return model


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def rewritten(path: Path, **changes: str) -> Path:
    save_file(load_file(path), path, {**metadata(path), **{f"featuretap.{key}": text for key, text in changes.items()}})
    return path


def names_of(classes: Any, count: int | None) -> tuple[str, ...]:
    return class_names(Description("any", ("C5",), num_classes=count, classes=classes))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(WeightsError) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (ODD, {}),
        (("background", "cat"), {"head": "ssdlite", "size": 64}),
        (("cat",), {"head": "retinanet", "out_channels": 16}),
        (("sky", "road", "car"), {"head": "lraspp"}),
        (tuple(f"class number {number}" for number in range(5000)), {}),
    ],
    ids=["odd names", "a background", "no background", "segmentation", "thousands"],
)
def test_class_names_are_restored_as_they_were_saved(
    registry: Registry, tmp_path: Path, classes: tuple[str, ...], options: dict[str, Any]
) -> None:
    path = registry.save(named(registry, classes, **options), tmp_path / "file.safetensors")
    assert json.loads(metadata(path)["featuretap.classes"]) == list(classes)
    loaded = registry.load(path)
    assert loaded.description.classes == classes
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert registry.convert(path, tmp_path / "converted.safetensors", "featuretap").read_bytes() == path.read_bytes()


def test_the_name_of_a_label_set_is_written_as_before(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(named(registry, "my pets", 3), tmp_path / "file.safetensors")
    assert metadata(path)["featuretap.classes"] == "my pets"
    assert registry.load(path).description.classes == "my pets"


@pytest.mark.parametrize(
    ("classes", "count", "message"),
    [
        (("cat", "dog"), 3, "cannot save a model of 3 classes with names for 2; name each class"),
        (("cat", 7), 2, "cannot save a model with classes ('cat', 7); use strings"),
        (
            "[pets",
            2,
            "cannot save a model with the label set '[pets': the name of a label set cannot begin with '['; pass the "
            "names of the classes as a tuple, or use another name",
        ),
    ],
)
def test_invalid_class_names_are_not_saved(
    registry: Registry, tmp_path: Path, classes: Any, count: int, message: str
) -> None:
    model = named(registry, classes, count)
    assert refusal(lambda: registry.save(model, tmp_path / "file.safetensors")) == message
    assert not list(tmp_path.iterdir())


def test_a_bare_backbone_names_no_classes(registry: Registry, tmp_path: Path) -> None:
    backbone = registry.build("mobilenet_v3_small", features_only=True, width=0.25)
    backbone.description = replace(backbone.description, classes=("cat",))
    message = "cannot save a model of no classes with names for 1; name each class"
    assert refusal(lambda: registry.save(backbone, tmp_path / "file.safetensors")) == message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('["cat"]', "it has 2 classes, but names for 1"),
        ("[]", "it has 2 classes, but names for 0"),
        *(
            (
                text,
                f"its metadata has featuretap.classes={text!r}, which should be the name of a label set, or a list of "
                "names",
            )
            for text in ("[cat", '["cat", 7]', '["cat", NaN]', '[["cat"]]')
        ),
    ],
)
def test_a_file_with_other_names_than_classes_is_refused(
    registry: Registry, tmp_path: Path, text: str, problem: str
) -> None:
    path = registry.save(named(registry, ("cat", "dog")), tmp_path / "file.safetensors")
    rewritten(path, classes=text)
    assert refusal(lambda: registry.load(path)) == f"'{path}' is not a valid weights file: {problem}"


def test_another_number_of_classes_or_another_head_forgets_the_names(registry: Registry, tmp_path: Path) -> None:
    path = registry.save(named(registry, ("cat", "dog")), tmp_path / "file.safetensors")
    assert registry.load(path, num_classes=2).description.classes == ("cat", "dog")
    for other in ({"num_classes": 3}, {"num_classes": 0}, {"features_only": True}, {"head": "fpn"}):
        model = registry.load(path, **other)
        assert model.description.classes == ""
        registry.save(model, tmp_path / "other.safetensors")


def test_class_names_are_exchanged_with_timm(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small", num_classes=len(ODD))
    model.description = replace(model.description, classes=ODD)
    registry.save(model, tmp_path / "timm", layout="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert theirs.pretrained_cfg["label_names"] == list(ODD)
    # A folder exactly as timm writes it, without featuretap's metadata.
    file = tmp_path / "timm" / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt"})
    assert registry.load(tmp_path / "timm").description.classes == ODD
    converted = registry.convert(tmp_path / "timm", tmp_path / "ours.safetensors", "featuretap")
    assert registry.load(converted).description.classes == ODD
    assert registry.build("mobilenet_v3_small", pretrained=str(file), num_classes=7).description.classes == ODD
    assert registry.build("mobilenet_v3_small", pretrained=str(file), num_classes=9).description.classes == ""


@pytest.mark.parametrize(
    ("place", "names", "expected"),
    [
        ("config", ["cat", "dog"], ("cat", "dog")),
        ("pretrained_cfg", ["cat", "dog"], ("cat", "dog")),
        ("config", ["cat"], ""),
        ("config", [1, 2], ""),
        ("config", {"0": "cat", "1": "dog"}, ""),
    ],
    ids=str,
)
def test_class_names_in_timms_folders_are_used_where_they_fit(
    registry: Registry, tmp_path: Path, place: str, names: Any, expected: Any
) -> None:
    registry.save(registry.build("mobilenet_v3_small", num_classes=2), tmp_path, layout="timm")
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    save_file(load_file(file), file)
    said = json.loads(config.read_text())
    (said if place == "config" else said[place])["label_names"] = names
    config.write_text(json.dumps(said))
    assert registry.load(tmp_path).description.classes == expected
    built = registry.build("mobilenet_v3_small", num_classes=2, pretrained=str(tmp_path))
    assert built.description.classes == expected


def test_inspect_names_the_first_classes(run: Run, registry: Registry, tmp_path: Path) -> None:
    few = registry.save(named(registry, ("cat", "a\nb", "dog\x1b[31m")), tmp_path / "few.safetensors")
    assert "  head          classification, 3 classes: cat, a b, dog [31m\n" in run("inspect", few).out
    classes = ("background", *"abcdef")
    many = registry.save(named(registry, classes, head="ssdlite", size=64), tmp_path / "many.safetensors")
    assert "  head          ssdlite, 7 classes: background, a, b, c, d and 2 more\n" in run("inspect", many).out
    assert json.loads(run("inspect", many, "--json").out)["classes"] == list(classes)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("imagenet1k", torchvision.models.MobileNet_V2_Weights.DEFAULT),
        ("coco", torchvision.models.detection.SSDLite320_MobileNet_V3_Large_Weights.DEFAULT),
        ("voc", torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT),
    ],
)
def test_label_sets_have_torchvisions_names(name: str, weights: Any) -> None:
    categories = weights.meta["categories"]
    assert names_of(name, len(categories)) == tuple(categories)


def test_every_label_set_in_the_package_can_be_named() -> None:
    folder = Path(specs.class_names.__file__).parent / "label_sets"
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.txt" for name in LABEL_SETS]


def test_classes_that_no_label_set_names_are_numbered() -> None:
    numbered = ("class 0", "class 1", "class 2")
    for label_set in ("imagenet1k", "unheard-of", "", "../label_sets/voc"):
        assert names_of(label_set, 3) == numbered
    assert names_of("../label_sets/voc", 21)[0] == "class 0"
    assert names_of(("cat", ""), 2) == ("cat", "class 1")
    assert names_of("imagenet1k", None) == ()


def test_classes_without_a_name_are_numbered() -> None:
    assert [name_of(label, ("cat", "")) for label in (-1, 0, 1, 2)] == ["class -1", "cat", "class 1", "class 2"]


def test_names_fit_a_line() -> None:
    assert one_line("a\tb\n\x1b[2Jžirafa\ud800  🦒") == "a b [2Jžirafa 🦒"
