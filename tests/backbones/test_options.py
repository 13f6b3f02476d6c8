"""Misspelled option names and invalid values raise errors that name the option and the solution."""

from typing import Any

import pytest

from featuretap.backbones.mobilenet_v3 import LARGE
from featuretap.command_line import phrase
from featuretap.registry import Registry
from featuretap.registry.errors import HeadError, OptionError, UnknownOptionError
from featuretap.specs.variants import reduced_tail, widened, with_output_stride

KNOWN = "width, reduced_tail, in_channels, output_stride, dilate_entry, padding, freeze, freeze_norm, norm"
COUNT = "it must be a positive integer up to 65536"
WIDTH = "it must be a positive number up to 100, such as 0.75"


def test_a_misspelled_option_is_refused_with_the_nearest_and_all_others(registry: Registry) -> None:
    with pytest.raises(UnknownOptionError) as error:
        registry.build("mobilenet_v3_large", features_only=True, reduced_tial=True)
    assert str(error.value) == (
        f"'mobilenet_v3_large' takes no option 'reduced_tial'; did you mean 'reduced_tail'? Options: {KNOWN}"
    )


def test_a_misspelled_option_of_a_model_names_the_heads_options_too(registry: Registry) -> None:
    with pytest.raises(UnknownOptionError) as error:
        registry.build("mobilenet_v3_large", droput=0.1)
    assert str(error.value) == (
        "'mobilenet_v3_large' with head 'classification' takes no option 'droput'; did you mean 'dropout'? "
        f"Options: {KNOWN}, dropout"
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("out_indices", "taps"),
        ("returned_layers", "taps"),
        ("in_chans", "in_channels"),
        ("weights", "pretrained"),
        ("width_mult", "width"),
    ],
)
def test_option_names_of_other_libraries_are_answered_with_ours(registry: Registry, theirs: str, ours: str) -> None:
    with pytest.raises(UnknownOptionError) as error:
        registry.build("mobilenet_v2", features_only=True, **{theirs: 1})
    assert (
        str(error.value) == f"'mobilenet_v2' takes no option {theirs!r}; featuretap calls it {ours!r}. Options: {KNOWN}"
    )


def test_no_option_is_suggested_that_the_backbone_lacks() -> None:
    with pytest.raises(UnknownOptionError, match=r"takes no option 'width_mult'\. Options: "):
        Registry(discover=False).spec("torchvision/resnet18", features_only=True, width_mult=1)


def test_an_option_unlike_any_other_is_answered_with_the_list_only(registry: Registry) -> None:
    with pytest.raises(UnknownOptionError, match=r"takes no option 'banana'\. Options: width, "):
        registry.spec("mobilenet_v1", banana=1)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("width", 0, WIDTH),
        ("width", -1, WIDTH),
        ("width", "x", WIDTH),
        ("width", float("nan"), WIDTH),
        ("width", float("inf"), WIDTH),
        ("width", True, WIDTH),
        ("width", None, WIDTH),
        ("in_channels", 0, COUNT),
        ("in_channels", -3, COUNT),
        ("in_channels", 1.0, COUNT),
        ("in_channels", True, COUNT),
        ("reduced_tail", 1, "it must be False, True or 'segmentation'"),
        ("reduced_tail", "detection", "it must be False, True or 'segmentation'"),
        ("output_stride", 4, "it must be 32, 16 or 8"),
        ("output_stride", "16", "it must be 32, 16 or 8"),
        ("dilate_entry", 1, "it must be True or False"),
        ("freeze", "C6", "it must be None or the last level to freeze: C1, C2, C3, C4, C5"),
        ("freeze", True, "it must be None or the last level to freeze: C1, C2, C3, C4, C5"),
        ("freeze_norm", 1, "it must be True or False"),
        ("norm", "batch", "it must be None or a function channels -> nn.Module"),
    ],
)
def test_invalid_values_are_refused_with_the_valid_ones(
    registry: Registry, option: str, value: Any, allowed: str
) -> None:
    for ask in (registry.spec, registry.build):
        with pytest.raises(OptionError) as error:
            ask("mobilenet_v3_large", features_only=True, **{option: value})
        assert str(error.value) == f"'mobilenet_v3_large' cannot take {option}={value!r}; {allowed}"


@pytest.mark.parametrize("value", [-1, 1.5, "10", True])
def test_an_invalid_number_of_classes_is_refused(registry: Registry, value: Any) -> None:
    with pytest.raises(OptionError) as error:
        registry.build("mobilenet_v2", num_classes=value)
    assert str(error.value) == (
        f"head 'classification' cannot take num_classes={value!r}; "
        "it must be a positive integer, or 0 for pooled features"
    )


@pytest.mark.parametrize("value", [1.0, -0.1, "x", True])
def test_an_invalid_dropout_is_refused(registry: Registry, value: Any) -> None:
    with pytest.raises(OptionError, match=r"head 'classification' cannot take dropout=.*; it must be a rate from 0"):
        registry.build("mobilenet_v2", dropout=value)


@pytest.mark.parametrize("asked", [{"head": "classification"}, {"num_classes": 10}])
def test_a_bare_backbone_takes_neither_head_nor_classes(registry: Registry, asked: dict[str, Any]) -> None:
    (word,) = asked
    with pytest.raises(HeadError) as error:
        registry.build("mobilenet_v2", features_only=True, **asked)
    assert str(error.value) == (
        f"features_only=True returns the bare backbone of 'mobilenet_v2', which has no {word}={asked[word]!r}; "
        "leave one of the two out"
    )


def test_a_classifier_reads_one_map(registry: Registry) -> None:
    with pytest.raises(HeadError) as error:
        registry.build("mobilenet_v2", taps=("C4", "C5"))
    assert str(error.value) == (
        "head 'classification' reads 1 tap, but taps has 2: C4, C5; give 1, or for feature maps pass features_only=True"
    )
    assert phrase(error.value).endswith("; give 1, or for feature maps pass --features-only")


def test_a_classifier_can_read_another_tap(registry: Registry) -> None:
    model = registry.build("mobilenet_v2", taps=("C4",), num_classes=7)
    assert model.head.logits.in_features == 96
    assert list(model.backbone.taps) == ["C4"]


def test_options_of_a_variant_can_be_overridden(registry: Registry) -> None:
    assert registry.spec("mobilenet_v2_140", width=1.0).parameters == registry.spec("mobilenet_v2").parameters


def test_a_resolved_spec_is_not_resolved_again(registry: Registry) -> None:
    spec = registry.spec("mobilenet_v2_140", features_only=True)
    assert registry.spec(spec, features_only=True).parameters == spec.parameters  # type: ignore[arg-type]


def test_dropout_defaults_to_the_rate_of_the_architecture(registry: Registry) -> None:
    rates = [registry.build(name).head.dropout.p for name in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large")]
    assert rates == [0.001, 0.2, 0.2]
    assert registry.build("mobilenet_v2", dropout=0.5).head.dropout.p == 0.5


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, -1), (5.0, 5), ("a", 5), (True, 5)])
def test_invalid_image_sizes_are_refused(registry: Registry, height: Any, width: Any) -> None:
    for spec in (registry.spec("mobilenet_v2"), registry.spec("mobilenet_v2", features_only=True)):
        for ask in (spec.macs, spec.tap_shapes):
            with pytest.raises(OptionError) as error:
                ask(height, width)
            assert str(error.value) == (
                f"height and width of an image must be positive integers, in pixels; got {height!r}×{width!r}"
            )


@pytest.mark.parametrize("value", [3, [], 1.5])
def test_pretrained_is_a_boolean_a_tag_or_a_path(registry: Registry, value: Any) -> None:
    with pytest.raises(OptionError) as error:
        registry.build("mobilenet_v2", pretrained=value)
    assert str(error.value) == (
        f"'mobilenet_v2' cannot take pretrained={value!r}; it must be True, False, a tag, or the path or address "
        f"of a file"
    )


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (
            lambda: widened(LARGE, -1),
            "'mobilenet_v3_large' cannot take width=-1; it must be a positive number up to 100, ",
        ),
        (
            lambda: with_output_stride(LARGE, 7),
            "'mobilenet_v3_large' cannot take output_stride=7; it must be 32, 16 or 8",
        ),
        (
            lambda: reduced_tail(LARGE, "detection"),
            "'mobilenet_v3_large' cannot take reduced_tail='detection'; it must be ",
        ),
    ],
)
def test_functions_from_spec_to_spec_check_their_arguments_themselves(vary: Any, message: str) -> None:
    with pytest.raises(OptionError) as error:
        vary()
    assert str(error.value).startswith(message)
