"""A spec with invalid fields raises an error when it is created, so that only the plugin with the mistake fails."""

from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest

from featuretap.registry import specs
from featuretap.registry.errors import CatalogueError, SpecError
from featuretap.registry.hookspecs import WeightsEntry
from featuretap.registry.specs import RE, BackboneSpec, Conv, Convolution, HeadSpec, Option, RuntimeSpec, Tap

CLASSES = [value for value in vars(specs).values() if is_dataclass(value)]
STAGES = ((Conv(3, 8, RE),),)
DECLARED: dict[str, Any] = {"taps": {"C5": Tap(8, 32)}, "factory": "a:b"}
OPTIONS = "option name (an identifier that is not an argument of build) to default"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {**DECLARED, "taps": {5: Tap(8, 32)}},
            "taps={5: Tap(channels=8, stride=32, rounding='ceil')}; it must be a ",
        ),
        ({**DECLARED, "taps": {"C5": 5}}, "taps={'C5': 5}; it must be a mapping from address to Tap"),
        ({**DECLARED, "taps": ["C5"]}, "taps=['C5']; it must be a mapping from address to Tap"),
        ({**DECLARED, "more_taps": ["C4"]}, "more_taps=['C4']; it must be a mapping from address to Tap"),
        ({**DECLARED, "factory": 5}, "factory=5; it must be an import string, 'package.module:attribute', or empty"),
        ({**DECLARED, "factory": print}, "factory=<built-in function print>; it must be an import string, "),
        ({**DECLARED, "describe": "build"}, "describe='build'; it must be an import string, "),
        ({**DECLARED, "options": {5: 1}}, f"options={{5: 1}}; it must be a mapping from {OPTIONS}"),
        ({**DECLARED, "options": {"taps": 1}}, f"options={{'taps': 1}}; it must be a mapping from {OPTIONS}"),
        ({"stages": STAGES, "in_channels": "3"}, "in_channels='3'; it must be a positive integer"),
        ({"stages": STAGES, "output_stride": 7}, "output_stride=7; it must be 32, 16 or 8"),
        ({"stages": STAGES, "dilate_entry": 1}, "dilate_entry=1; it must be True or False"),
        ({"stages": STAGES, "norm": "bn"}, "norm='bn'; it must be None or a function channels -> nn.Module"),
        ({"stages": STAGES, "width": "w"}, "width='w'; it must be a positive number"),
        ({"stages": STAGES, "classifier": 5}, "classifier=5; it must be a Classifier"),
        ({"stages": STAGES, "norm_eps": "x"}, "norm_eps='x'; it must be a number from 0 to 1"),
        (
            {"stages": STAGES, "layouts": ["timm"]},
            "layouts=['timm']; it must be a mapping from name to import string",
        ),
        ({"stages": STAGES, "tags": "abc"}, "tags='abc'; it must be a tuple of strings"),
        ({"stages": STAGES, "description": None}, "description=None; it must be a string"),
    ],
)
def test_a_backbone_spec_names_the_invalid_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        BackboneSpec("b", **fields)
    assert str(error.value).startswith(f"backbone 'b' has {message}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"reads": "C5"},
            "reads='C5'; it must be a tuple of tap addresses, such as ('C5',), or of tuples of alterna",
        ),
        ({"reads": (5,)}, "reads=(5,); it must be a tuple of tap addresses"),
        ({"reads": ((),)}, "reads=((),); it must be a tuple of tap addresses"),
        ({"factory": 5}, "factory=5; it must be an import string, 'package.module:attribute', or empty"),
        ({"num_classes": "ten"}, "num_classes='ten'; it must be None or a positive integer"),
        ({"images": "sideways"}, "images='sideways'; it must be 'cropped', 'whole' or 'raw'"),
        ({"options": {"num_classes": 3}}, f"options={{'num_classes': 3}}; it must be a mapping from {OPTIONS}"),
        ({"per_class": "logits."}, "per_class='logits.'; it must be a tuple of strings"),
        ({"optional_reads": {"a": "C3"}}, "optional_reads={'a': 'C3'}; it must be a mapping from option to tap addr"),
        ({"min_classes": -1}, "min_classes=-1; it must be a non-negative integer"),
        ({"consecutive": None}, "consecutive=None; it must be True or False"),
    ],
)
def test_a_head_spec_names_the_invalid_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        HeadSpec("h", **{"reads": ("C5",), "factory": "a:b", **fields})
    assert str(error.value).startswith(f"head 'h' has {message}")


@pytest.mark.parametrize("fields", [{"kernel": 0}, {"out_channels": 8.5}, {"activation": "swish"}, {"groups": -1}])
def test_an_invalid_convolution_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as error:
        Convolution(**{"name": "conv", "in_channels": 3, "out_channels": 8, **fields})
    ((name, value),) = fields.items()
    assert f"{name}={value!r}" in str(error.value)
    assert str(error.value).endswith(
        "sizes must be positive integers, and activation one of None, 'relu', 'relu6', 'hard_swish'"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": 5}, "options must be a mapping from option name to value; got 5"),
        ({"classes": 7}, "classes must be a string; got 7"),
        ({"head": ""}, "head must be a name; got ''"),
        ({"preprocessing": "no"}, "preprocessing must be a Preprocessing; got 'no'"),
        ({"accuracy": "y"}, "accuracy must be a number or None; got 'y'"),
    ],
)
def test_a_weights_entry_names_the_invalid_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogueError) as error:
        WeightsEntry("mobilenet_v2.x", "https://x.org/x.pth", "0" * 8, "timm", 1e-5, **fields)
    assert str(error.value) == f"weights 'mobilenet_v2.x': {message}"


def test_a_runtime_needs_a_valid_name() -> None:
    with pytest.raises(SpecError, match="runtime name 5 is invalid; use a string without spaces or colons"):
        RuntimeSpec(5, "a:b")  # type: ignore[arg-type]
    for name in ("auto", "eager"):
        with pytest.raises(SpecError, match=f"^runtime '{name}' has a reserved name; choose another one$"):
            RuntimeSpec(name, "a:b")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modules": "tensorrt"}, "modules='tensorrt'; it must be a tuple of strings"),
        ({"opens": (".engine",)}, "opens=('.engine',); it must be a mapping from name to import string"),
        (
            {"precisions": ("bf16",)},
            "precisions=('bf16',); it must be a tuple of 'float32' and others of 'float32', 'bf16'",
        ),
        (
            {"precisions": ("float32", 16)},
            "precisions=('float32', 16); it must be a tuple of 'float32' and others of",
        ),
        ({"quick": 1}, "quick=1; it must be True or False"),
    ],
)
def test_a_runtime_spec_names_the_invalid_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        RuntimeSpec("engine", "a:b", **fields)
    assert str(error.value).startswith(f"runtime 'engine' has {message}")


def test_valid_fields_are_accepted() -> None:
    option = Option(1, lambda value: value > 0, "a positive number")
    assert BackboneSpec("b", **DECLARED, options={"depth": option}).options == {"depth": option}
    assert HeadSpec("h", (("C4.expansion", "C4"), "C5"), "a:b", options={"depth": option}).options == {"depth": 1}


@pytest.mark.parametrize("kind", CLASSES, ids=[kind.__name__ for kind in CLASSES])
def test_specs_cannot_be_changed(kind: type[Any]) -> None:
    """Code that uses a shared spec must not change the meaning of its name."""
    name = fields(kind)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(object.__new__(kind), name, "changed")


def test_every_kind_of_spec_is_found() -> None:
    assert {"BackboneSpec", "HeadSpec", "Bneck", "BatchNorm", "Tap"} <= {kind.__name__ for kind in CLASSES}
