"""The conformance kit on backbones with one mistake each."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.wrong_networks import FACTORIES, TABLES

from featuretap.registry import Registry, conformance
from featuretap.registry.errors import SpecError
from featuretap.registry.hookspecs import hookimpl

Check = Callable[[str, Registry], None]


@pytest.fixture(scope="module")
def wrong() -> Registry:
    plugin = SimpleNamespace(__name__="wrong", featuretap_backbones=hookimpl(lambda: [*FACTORIES, *TABLES]))
    return Registry([plugin], discover=False)


def wider(name: str, registry: Registry) -> None:
    conformance.check_options(name, registry, conformance.SIZES[0], [{"width": 16}])


def table_options(name: str, registry: Registry) -> None:
    conformance.check_options(name, registry, conformance.SIZES[0], conformance.TABLE_VARIATIONS)


def on_trial(check: Callable[[conformance.BackboneTrial], None]) -> Check:
    return lambda name, registry: check(conformance.build_trial(name, registry))


CHECKS: Mapping[str, Check] = {
    "shapes": conformance.check_shapes,
    "counts": conformance.check_counts,
    "each map alone": conformance.check_each_map_alone,
    "determinism": on_trial(conformance.check_determinism),
    "batch": on_trial(conformance.check_batch),
    "gradients": on_trial(conformance.check_gradients),
    "keys": conformance.check_keys,
    "freezing": conformance.check_freezing,
    "wider": wider,
    "copies": on_trial(conformance.check_deep_copy),
    "scripts": on_trial(partial(conformance.check_exports, "scripted")),
    "exports": on_trial(partial(conformance.check_exports, "exported")),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_sound_backbone_passes(wrong: Registry, check: Check) -> None:
    check("Sound", wrong)


def check_copies(trial: conformance.Trial, registry: Registry, folder: Path) -> None:
    conformance.check_deep_copy(trial)
    conformance.check_file(trial, registry, folder)


def test_a_sound_backbone_is_the_same_in_a_file(wrong: Registry, tmp_path: Path) -> None:
    conformance.check_file(conformance.build_trial("Sound", wrong), wrong, tmp_path)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("Attends", "counts"),
        ("KeepsWhatIsNoTensor", "keys"),
        ("KeepsWhatIsNoTensor", "each map alone"),
        ("KeepsWhatIsNoTensor", "freezing"),
    ],
)
def test_a_check_ignores_the_subjects_of_the_other_checks(wrong: Registry, name: str, check: str) -> None:
    CHECKS[check](name, wrong)


def test_an_interruption_is_not_reported_as_a_failed_check() -> None:
    with pytest.raises(KeyboardInterrupt), conformance.explain_failure("'tinynet' fails"):
        raise KeyboardInterrupt


SPEC = "breaks its spec: "
AN_IMAGE = f"{SPEC}for a 97x161 image "
MAP = f"{SPEC}for 2 images C1 should be a map (2, channels, height, width), got "
FILES = "; their weights files would not be compatible"
NOT_FROZEN = "; a layer up to C1 is not frozen"


@pytest.mark.parametrize(
    ("name", "check", "message"),
    [
        ("OtherChannels", "shapes", AN_IMAGE + "C1 should be (8, 49, 81), got (16, 49, 81)"),
        ("RoundsDown", "shapes", AN_IMAGE + "C1 should be (8, 49, 81), got (8, 48, 80)"),
        ("OwnOrder", "shapes", SPEC + "it should return C5, C1, got C1, C5"),
        ("AlwaysBoth", "each map alone", SPEC + "it should return C5, got C5, C1"),
        ("ReturnsList", "shapes", SPEC + "it should return a dict from tap to map, got list"),
        ("ReturnsLists", "shapes", MAP + "list"),
        ("Pools", "shapes", MAP + "(2, 8)"),
        ("ForgetsTheBatch", "shapes", MAP + "(1, 8, 49, 81)"),
        ("Exits", "shapes", "fails on a 97x161 image (SystemExit: 0)"),
        ("Skips", "shapes", "fails on a 97x161 image (Skipped: nothing to see)"),
        ("ExitsWhenBuilt", "shapes", "cannot be built (SystemExit: 0)"),
        (
            "WritesIntoATap",
            "each map alone",
            "returns a different 'C1' when other taps are requested too; it is random, or a later layer writes into "
            "its input",
        ),
        (
            "DropsInEvaluation",
            "determinism",
            "returns a different 'C1' for the same image in a second call in evaluation mode",
        ),
        ("LooksAtNeighbours", "batch", "returns a different 'C1' for an image when the batch has other images"),
        ("LooksAtTheImageBefore", "batch", "returns a different 'C1' for an image when the batch has other images"),
        ("IdleParameter", "gradients", "gives idle no gradient from any tap; remove parameters that no tap needs"),
        ("DetachesAMap", "gradients", "gives the image no gradient from C1; a tensor in between is detached"),
        ("DetachesTheImage", "gradients", "gives the image no gradient from C1; a tensor in between is detached"),
        ("DetachesBetween", "gradients", "gives the image no gradient from C5; a tensor in between is detached"),
        ("InfiniteGradient", "gradients", "gives the image a gradient that is not finite"),
        (
            "RenamesWhenCut",
            "keys",
            "with taps=('C1',) has first.0.0.weight (8, 3, 3, 3), which is not in the backbone with every tap" + FILES,
        ),
        (
            "ReshapesWhenCut",
            "keys",
            "with taps=('C1',) has first.0.weight (8, 3, 5, 5), which is (8, 3, 3, 3) in the backbone with every tap"
            + FILES,
        ),
        (
            "RenamesWhenCut",
            "each map alone",
            "with taps=('C1',) has first.0.0.weight (8, 3, 3, 3), which is not in the backbone with every tap" + FILES,
        ),
        (
            "NormForATap",
            "keys",
            "with features_only has norm.weight (8,), which is not in the model with a head" + FILES,
        ),
        ("IgnoresWidth", "wider", "with width=16 " + AN_IMAGE + "C1 should be (16, 49, 81), got (8, 49, 81)"),
        ("TrainsWhatIsFrozen", "freezing", "with freeze='C1' still trains layers up to C1"),
        ("SharesItsParameters", "freezing", "with freeze='C1' freezes C5 too"),
        ("DropsWhatIsFrozen", "freezing", "with freeze='C1' returns a different 'C1' in training" + NOT_FROZEN),
        (
            "DriftsWhenItTrains",
            "freezing",
            "with freeze='C1' returns a different 'C1' after a pass in training" + NOT_FROZEN,
        ),
        (
            "NormThatNeverRests",
            "freezing",
            "with freeze_norm changes first.1.running_mean in training; a norm is not frozen",
        ),
        ("ScriptsToSomethingElse", "scripts", "returns a different 'C1' after it was scripted"),
        ("ExportsToSomethingElse", "exports", "returns a different 'C1' after it was exported"),
        ("Biased", "counts", SPEC + "it declares 2,600 parameters, but has 2,640"),
        ("Twice", "counts", SPEC + "it declares 1,663,128 multiply-adds for a 97x161 image, but has 3,326,256"),
    ],
)
def test_a_wrong_backbone_fails_with_its_mistake_in_the_message(
    wrong: Registry, name: str, check: str, message: str
) -> None:
    with pytest.raises(SpecError) as error:
        CHECKS[check](name, wrong)
    assert str(error.value) == f"{name!r} {message}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OwnNorm", "with norm=no_norm breaks its spec: it declares 2,520 parameters, but has 2,600"),
        (
            "AlwaysStrides",
            "with output_stride=16 breaks its spec: for a 97x161 image C5 should be (8, 7, 11), got (8, 4, 6)",
        ),
        ("Unwidened", "with width=0.5 cannot be built (AttributeError: 'Unwidened' object has no attribute 'widened')"),
    ],
)
def test_a_table_that_is_wrong_with_an_option_fails_with_that_option(wrong: Registry, name: str, message: str) -> None:
    conformance.check_shapes(name, wrong)
    conformance.check_counts(name, wrong)
    with pytest.raises(SpecError) as error:
        table_options(name, wrong)
    assert str(error.value) == f"{name!r} {message}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "HidesItsState",
            "returns a different 'C1' after it was loaded from a file; keep all state in the state_dict, or derive it "
            "from the options",
        ),
        (
            "CopiesAfresh",
            "returns a different 'C1' after it was copied; keep all state in the state_dict, or derive it from the "
            "options",
        ),
        ("HoldsALock", "cannot be copied (TypeError: cannot pickle '_thread.lock' object)"),
        (
            "KeepsWhatIsNoTensor",
            "cannot be written to a file and loaded (AttributeError: 'dict' object has no attribute 'shape')",
        ),
    ],
)
def test_a_backbone_that_changes_when_it_is_copied_fails(
    wrong: Registry, tmp_path: Path, name: str, message: str
) -> None:
    trial = conformance.build_trial(name, wrong)
    with pytest.raises(SpecError) as error:
        check_copies(trial, wrong, tmp_path)
    assert str(error.value) == f"{name!r} {message}"


@pytest.mark.parametrize(
    ("name", "check", "beginning"),
    [
        ("Fails", "shapes", "fails on a 97x161 image (ValueError: no idea at all at all"),
        (
            "OverwritesWhatGradientsNeed",
            "gradients",
            "has no gradient of C1 (RuntimeError: one of the variables needed",
        ),
        ("CannotBeScripted", "scripts", "cannot be scripted (RuntimeError: "),
        ("CannotBeExported", "exports", "cannot be exported (GuardOnDataDependentSymNode: "),
    ],
)
def test_foreign_errors_are_reported_in_one_short_line(wrong: Registry, name: str, check: str, beginning: str) -> None:
    with pytest.raises(SpecError) as error:
        CHECKS[check](name, wrong)
    said = str(error.value)
    assert said.startswith(f"{name!r} {beginning}")
    assert len(said) < 400
    assert "\n" not in said
    assert error.value.__cause__ is not None
