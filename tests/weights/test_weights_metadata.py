"""Metadata of weights files: which fields may vary, and which errors are refused."""

import json
from pathlib import Path

import pytest
from support.weights_files import (
    BIAS,
    STEM,
    refusal,
    with_metadata,
)

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError

DEEP = 15_000
LACKS = "is not a valid weights file: its metadata does not have featuretap.{}"
SHOULD_BE = "is not a valid weights file: its metadata has featuretap.{}={!r}, which should be {}"
NOT_BUILT = "describes a model that cannot be built here: {}"
PREPARED = {"crop": 224, "interpolation": "bilinear", "mean": [0.4] * 3, "resize": 256, "std": [0.2] * 3}

IS = {
    "options": "options by name",
    "taps": "a list of tap addresses",
    "norm_eps": "a table of small numbers",
    "preprocessing": "a table",
    "by_name": "true or false",
    "num_classes": "a number of classes",
}


def prepared(**changes: object) -> str:
    return json.dumps({**PREPARED, **changes})


def load_refusal(registry: Registry, path: Path) -> str:
    with pytest.raises(WeightsError) as error:
        registry.load(path)
    return str(error.value).replace(str(path), "FILE").removeprefix("'FILE' ")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"version": None},
        {"version": "99.0"},
        {"invented_later": "anything"},
        {"weights": "somebody.elses"},
        {"options": '{"width": 0.5, "freeze": "C1"}'},
        {"name": "featuretap:mobilenet_v2_050"},
    ],
    ids=str,
)
def test_metadata_that_may_differ_is_accepted(
    registry: Registry, stem_file: bytes, tmp_path: Path, changes: dict[str, str | None]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(stem_file, **changes))
    assert tuple(registry.load(path).taps) == ("C1",)


@pytest.mark.parametrize(
    "key", ["name", "layout", "options", "taps", "norm_eps", "preprocessing", "by_name", "classes"]
)
def test_metadata_without_a_key_names_the_key(registry: Registry, stem_file: bytes, tmp_path: Path, key: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(stem_file, **{key: None}))
    assert refusal(registry, path) == LACKS.format(key)


@pytest.mark.parametrize("key", IS)
@pytest.mark.parametrize(
    "value",
    [
        *("", "{", "[1", "NaN", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1} 2', "null", "1.5", "[1]", '"text"', "C1"),
        *("[" * DEEP, '{"a":' * DEEP, "9" * 10_000),
    ],
    ids=lambda value: value[:20],
)
def test_metadata_of_the_wrong_json_type_is_quoted_in_the_error(
    registry: Registry, stem_file: bytes, tmp_path: Path, key: str, value: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(stem_file, **{key: value}))
    assert refusal(registry, path) == SHOULD_BE.format(key, value[:60], IS[key])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            (
                {"schema": schema},
                f"was written by featuretap 0.0.9 with schema {schema!r}, but featuretap VERSION reads schema '1'; "
                "update featuretap",
            )
            for schema in (None, "2", "01", "", "1 ")
        ],
        ({"name": ""}, SHOULD_BE.format("name", "", "a name")),
        ({"layout": ""}, SHOULD_BE.format("layout", "", "the name of a layout")),
        ({"head": ""}, SHOULD_BE.format("head", "", "the name of a head")),
        ({"weights": ""}, SHOULD_BE.format("weights", "", "the name of published weights")),
        ({"taps": "[]"}, SHOULD_BE.format("taps", "[]", IS["taps"])),
        ({"taps": '["C1", 2]'}, SHOULD_BE.format("taps", '["C1", 2]', IS["taps"])),
        ({"norm_eps": '{"backbone": 1e4}'}, SHOULD_BE.format("norm_eps", '{"backbone": 1e4}', IS["norm_eps"])),
        ({"norm_eps": '{"backbone": -1.0}'}, SHOULD_BE.format("norm_eps", '{"backbone": -1.0}', IS["norm_eps"])),
        ({"norm_eps": '{"backbone": 1e999}'}, SHOULD_BE.format("norm_eps", '{"backbone": 1e999}', IS["norm_eps"])),
        ({"norm_eps": '{"backbone": true}'}, SHOULD_BE.format("norm_eps", '{"backbone": true}', IS["norm_eps"])),
        (
            {"norm_eps": '{"backbone": 1' + "0" * 400 + "}"},
            SHOULD_BE.format("norm_eps", '{"backbone": 1' + "0" * 46, IS["norm_eps"]),
        ),
        *[
            (
                {"head": "classification", "num_classes": value},
                SHOULD_BE.format("num_classes", value, IS["num_classes"]),
            )
            for value in ("-1", "1000000000000", "true", "1e3", "2147483648")
        ],
        *[
            (changes, "is not a valid weights file: it has a head without a number of classes, or the reverse")
            for changes in ({"head": "classification"}, {"num_classes": "4"})
        ],
        (
            {"preprocessing": prepared(crop=0)},
            "is not a valid weights file: preprocessing has crop=0; it must be None or a number of pixels",
        ),
        (
            {"preprocessing": prepared(resize=224.5)},
            "is not a valid weights file: preprocessing has resize=224.5; it must be None or a number of pixels",
        ),
        (
            {"preprocessing": prepared(crop=True)},
            "is not a valid weights file: preprocessing has crop=True; it must be None or a number of pixels",
        ),
        (
            {"preprocessing": prepared(mean=[])},
            "is not a valid weights file: preprocessing has mean=(); it must be a number for each channel",
        ),
        (
            {"preprocessing": prepared(std=[0.2, 0, 0.2])},
            "is not a valid weights file: "
            "preprocessing has std=(0.2, 0, 0.2); it must be a positive number for each channel",
        ),
        (
            {"preprocessing": prepared(std=[0.2])},
            "is not a valid weights file: preprocessing has 3 values in mean and 1 in std; give one for each channel",
        ),
        (
            {"preprocessing": prepared(interpolation="nearest")},
            "is not a valid weights file: "
            "preprocessing has interpolation='nearest'; it must be 'bilinear' or 'bicubic'",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_invalid_metadata_values_are_refused(
    registry: Registry, stem_file: bytes, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    import featuretap

    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(stem_file, **{"version": "0.0.9", **changes}))
    assert refusal(registry, path) == message.replace("VERSION", featuretap.__version__)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [10**400] * 3},
        {"std": [10**400] * 3},
        {"mean": 1},
        {"mean": None},
        {"mean": "abc"},
        {"std": [[1], [1], [1]]},
        {"interpolation": []},
        {"unheard_of": 1},
        {"self": 1},
    ],
    ids=lambda value: str(value)[:30],
)
def test_unusable_preprocessing_is_refused(
    registry: Registry, stem_file: bytes, tmp_path: Path, changes: dict[str, object]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(stem_file, preprocessing=prepared(**changes)))
    assert refusal(registry, path).startswith("is not a valid weights file: ")


WIDTH = "'mobilenet_v2_050' cannot take width={}; it must be a positive number up to 100, such as 0.75"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "yolo_v99"},
            NOT_BUILT.format("no backbone named 'yolo_v99'; see registry.list_backbones()"),
        ),
        ({"name": "mobilenet_v2_05"}, NOT_BUILT.format("no backbone named 'mobilenet_v2_05'; did you mean ")),
        ({"name": "other:mobilenet_v2"}, NOT_BUILT.format("no backbone named 'other:mobilenet_v2'; did you mean ")),
        ({"options": '{"banana": 1}'}, NOT_BUILT.format("'mobilenet_v2_050' takes no option 'banana'. Options: ")),
        (
            {"options": '{"pretrained": true}'},
            "is not a valid weights file: its metadata has featuretap.options='{\"pretrained\": true}', which "
            "should be options by name",
        ),
        ({"options": '{"width": 1e308}'}, NOT_BUILT.format(WIDTH.format("1e+308"))),
        ({"options": '{"width": 1e999}'}, NOT_BUILT.format(WIDTH.format("inf"))),
        ({"options": '{"width": -1}'}, NOT_BUILT.format(WIDTH.format("-1"))),
        ({"options": '{"width": "1"}'}, NOT_BUILT.format(WIDTH.format("'1'"))),
        ({"options": '{"width": [1]}'}, NOT_BUILT.format(WIDTH.format("[1]"))),
        (
            {"options": '{"freeze": {}}'},
            NOT_BUILT.format(
                "'mobilenet_v2_050' cannot take freeze={}; it must be None or the last level to freeze: C1, C2, "
                "C3, C4, C5"
            ),
        ),
        (
            {"options": '{"in_channels": 1000000}'},
            NOT_BUILT.format(
                "'mobilenet_v2_050' cannot take in_channels=1000000; it must be a positive integer up to 65536"
            ),
        ),
        (
            {"options": '{"norm": "os.system"}'},
            "was saved with norm=os.system, which is code that files do not store; pass it again: "
            "registry.load(path, norm=lambda channels: os.system(...))",
        ),
        ({"taps": '["C9"]'}, NOT_BUILT.format("'mobilenet_v2_050' has no tap 'C9'. Available taps: C1, ")),
        ({"taps": '[""]'}, NOT_BUILT.format("'mobilenet_v2_050' has no tap ''. Available taps: C1, ")),
        (
            {"taps": '["C1", "C1"]'},
            NOT_BUILT.format("taps of 'mobilenet_v2_050' repeats C1; name each tap once"),
        ),
        (
            {"head": "mask", "num_classes": "4"},
            NOT_BUILT.format("no head named 'mask'; did you mean 'mask_rcnn'?"),
        ),
        (
            {"layout": "keras"},
            "weights do not fit 'mobilenet_v2_050': 'mobilenet_v2_050' does not support the layout 'keras'; it "
            "supports featuretap, torchvision, timm",
        ),
        (
            {"layout": "timm"},
            f"weights do not fit 'mobilenet_v2_050': FILE has {STEM}, {BIAS}, stages.C1.0.norm.num_batches_tracked "
            "and 15 more, which the model does not have",
        ),
        (
            {"name": "mobilenet_v2"},
            f"weights do not fit 'mobilenet_v2': {STEM} is (16, 3, 3, 3) in the file, (32, 3, 3, 3) in the model",
        ),
        (
            {"taps": '["C2"]'},
            "weights do not fit 'mobilenet_v2_050': FILE does not have stages.C2.0.expand.conv.weight",
        ),
        (
            {"options": '{"width": 2}'},
            f"weights do not fit 'mobilenet_v2_050' with width=2: {STEM} is (16, 3, 3, 3) in the file, (64, 3, 3, 3) "
            "in the model",
        ),
        (
            {"by_name": "false"},
            "was saved from a BackboneSpec 'mobilenet_v2_050' without a name in the registry; pass it: "
            "registry.load(path, name=spec)",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_description_that_cannot_be_built_is_refused_with_the_reason(
    registry: Registry, stem_file: bytes, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(stem_file, **changes))
    # Some messages end with a list of all available names.
    assert load_refusal(registry, path).startswith(message)


@pytest.mark.parametrize("option", ["name", "self", "features_only", "head", "num_classes", "taps"])
def test_options_in_a_file_that_are_arguments_of_build_are_refused(
    registry: Registry, stem_file: bytes, tmp_path: Path, option: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(stem_file, options=json.dumps({option: 1})))
    with pytest.raises(WeightsError):
        registry.load(path)
