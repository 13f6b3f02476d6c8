"""Messages fit a screen, whatever text plugins and users supply."""

import pytest

from featuretap.registry import Registry
from featuretap.registry.errors import FeaturetapError, Hint
from featuretap.support.errors import LONGEST


@pytest.mark.parametrize("hint", [None, Hint("give", "pretrained=")])
def test_a_long_problem_keeps_its_beginning_its_end_and_its_hint(hint: Hint | None) -> None:
    error = FeaturetapError(f"cannot read {'x' * 5000}; its end", hint=hint)
    assert len(str(error)) == LONGEST
    assert str(error).startswith("cannot read xxx")
    assert " … xxx" in str(error)
    assert str(error).endswith("x; its end; give pretrained=" if hint else "x; its end")


@pytest.mark.parametrize("length", [10, 500, 5000])
def test_a_long_hint_is_shortened_too(length: int) -> None:
    error = FeaturetapError("x" * length, hint=Hint("run", f"convert {'y' * 5000}.pth"))
    assert len(str(error)) <= LONGEST
    assert str(error).startswith("xxx")
    assert "; run convert yyy" in str(error)
    assert str(error).endswith("yyy.pth")


def test_a_problem_that_fits_is_not_changed() -> None:
    assert str(FeaturetapError("x" * LONGEST)) == "x" * LONGEST


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained": {"weight": list(range(100_000))}},
        {"taps": ["C9" * 10_000]},
        {"head": "f" * 10_000},
        {"width": "1" * 10_000},
        {"o" * 10_000: 1},
    ],
    ids=lambda arguments: next(iter(arguments))[:10],
)
def test_no_argument_makes_a_message_longer_than_a_screen(registry: Registry, arguments: dict[str, object]) -> None:
    with pytest.raises(FeaturetapError) as error:
        registry.build("mobilenet_v2", **arguments)
    assert len(str(error.value)) <= LONGEST


def test_specs_are_shown_on_a_few_lines(registry: Registry) -> None:
    assert repr(registry.spec("mobilenet_v3_large", features_only=True, taps=("C3", "C5"), width=0.75)) == (
        "BackboneSpec('mobilenet_v3_large', taps=('C3', 'C5'), width=0.75)"
    )
    assert repr(registry.spec("mobilenet_v2", head="fpn", output_stride=16)) == (
        "ModelSpec(BackboneSpec('mobilenet_v2', taps=('C2', 'C3', 'C4', 'C5'), output_stride=16), HeadSpec('fpn'))"
    )
    assert repr(registry.spec("mobilenet_v1", num_classes=3)) == (
        "ModelSpec(BackboneSpec('mobilenet_v1', taps=('C5',)), HeadSpec('classification'), num_classes=3)"
    )
