"""Models and options that cannot be saved are refused with an error that names them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.saved_models import assert_equal_bits, cut_backbone, error_of, everything_in, small_classifier
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError, WeightsError
from featuretap.registry.specs import BackboneSpec, Tap


def with_other_logits(model: nn.Module) -> str:
    model.head.logits = nn.Linear(256, 5)
    return "head.logits.weight is (5, 256), not (7, 256)"


def with_larger_convolution(model: nn.Module) -> str:
    model.backbone.stages.C1[0].conv = nn.Conv2d(3, 8, 5, 2, 2, bias=False)
    return "stages.C1.0.conv.weight is (8, 3, 5, 5), not (8, 3, 3, 3)"


def without_a_stage(model: nn.Module) -> str:
    del model.backbone.stages.C5
    return "stages.C5.0.depthwise.conv.weight is missing"


@pytest.mark.parametrize("change", [with_other_logits, with_larger_convolution, without_a_stage])
def test_changed_models_are_refused(registry: Registry, tmp_path: Path, change: Callable[[nn.Module], str]) -> None:
    model = small_classifier(registry)
    problem = change(model)
    assert error_of(lambda: registry.save(model, tmp_path / "file.safetensors")) == (
        f"cannot save 'mobilenet_v1_025', which was changed after it was built: {problem}; build a model with "
        "this change (such as num_classes=), and copy the state dict into it"
    )
    assert everything_in(tmp_path) == {}


def with_biased_convolution(model: nn.Module) -> str:
    model.backbone.stages.C1[0].conv = nn.Conv2d(3, 8, 3, 2, 1)
    return "stages.C1.0.conv"


def with_group_norm(model: nn.Module) -> str:
    model.backbone.stages.C1[0].norm = nn.GroupNorm(2, 8)
    return "stages.C1.0.norm"


def with_another_layer(model: nn.Module) -> str:
    model.backbone.extra = nn.Linear(2, 2)
    return "extra"


def with_another_head(model: nn.Module) -> str:
    model.head = nn.Linear(2, 2)
    return "head"


def without_head(model: nn.Module) -> str:
    model.head = nn.Identity()
    return "head"


def without_logits(model: nn.Module) -> str:
    model.head.logits = nn.Identity()
    return "head.logits"


def with_unbiased_logits(model: nn.Module) -> str:
    model.head.logits = nn.Linear(256, 7, bias=False)
    return "head.logits"


def with_wider_logits(model: nn.Module) -> str:
    model.head.logits = nn.Linear(512, 7)
    return "head.logits"


@pytest.mark.parametrize(
    "change",
    [
        with_biased_convolution,
        with_group_norm,
        with_another_layer,
        with_another_head,
        without_head,
        without_logits,
        with_unbiased_logits,
        with_wider_logits,
    ],
)
def test_models_with_replaced_modules_are_refused(
    registry: Registry, tmp_path: Path, change: Callable[[nn.Module], str]
) -> None:
    model = small_classifier(registry)
    name = change(model)
    message = error_of(lambda: registry.save(model, tmp_path / "file.safetensors"))
    assert message.startswith("cannot save 'mobilenet_v1_025', which was changed after it was built: ")
    assert name in message
    assert everything_in(tmp_path) == {}


def test_unknown_layouts_are_refused(tmp_path: Path, registry: Registry) -> None:
    assert error_of(lambda: registry.save(cut_backbone(registry), tmp_path / "folder", layout="keras")) == (
        "cannot save 'mobilenet_v2_050' in the layout 'keras': 'mobilenet_v2_050' does not support the layout 'keras'; "
        "it supports featuretap, torchvision, timm, tensorflow"
    )
    assert everything_in(tmp_path) == {}


PAINTED = BackboneSpec("painted", taps={"C1": Tap(4, 2)}, factory=f"{__name__}:painted", options={"colour": None})


def painted(spec: BackboneSpec, *, taps: tuple[str, ...], colour: object, **options: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))


@pytest.mark.parametrize("colour", [{1}, 1j, b"red", float("nan"), float("inf"), Path("red"), {"a": [{2}]}], ids=repr)
def test_options_that_no_file_can_hold_are_refused(registry: Registry, tmp_path: Path, colour: object) -> None:
    model = registry.build(PAINTED, features_only=True, colour=colour)
    for name in ("file.safetensors", "folder"):
        assert error_of(lambda name=name: registry.save(model, tmp_path / name)) == (
            f"cannot save a model with options {{'colour': {colour!r}}}: a weights file stores only numbers and text; "
            "build the model with such values"
        )
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("colour", [None, True, 3, 0.1, "réd", [1, "a"], {"a": {"b": [None]}}], ids=repr)
def test_options_of_plain_values_are_restored(registry: Registry, tmp_path: Path, colour: object) -> None:
    model = registry.build(PAINTED, features_only=True, colour=colour)
    loaded = registry.load(registry.save(model, tmp_path / "file.safetensors"), name=PAINTED)
    assert loaded.description.options == {"colour": colour}
    assert_equal_bits(loaded, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.to("meta"), "cannot save tensors without values (on the meta device); convert the model"),
        (lambda model: model.to(torch.complex64), "cannot save tensors of torch.complex64; convert the model to a"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_tensors_that_no_file_can_hold_are_not_saved(
    registry: Registry, tmp_path: Path, change: Callable[[nn.Module], nn.Module], message: str
) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    description = model.description
    changed = change(model)
    changed.description = description
    with pytest.raises(WeightsError) as error:
        registry.save(changed, tmp_path / "file.safetensors")
    assert message in str(error.value)


def test_a_description_without_its_backbone_is_refused(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    model.description = replace(model.description, spec=None)
    with pytest.raises(OptionError) as error:
        registry.save(model, tmp_path / "file.safetensors")
    assert str(error.value) == (
        "the model's description has no spec; change descriptions with dataclasses.replace only"
    )
