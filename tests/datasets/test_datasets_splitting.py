"""The validation split is the same on every machine and contains every class."""

import subprocess
import sys
import unicodedata
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featuretap.registry.errors import DataError
from featuretap.workflows.datasets.splits import rarest, split

NAMES = [f"{number}.jpg" for number in range(100)]


# No deadlines: a busy machine may be slow at times.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None)
@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=60).filter(lambda groups: max(Counter(groups).values()) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_every_group_of_two_or_more_is_in_both_parts_and_every_image_in_one(
    groups: list[int], share: float, seed: int
) -> None:
    train, val = split(NAMES[: len(groups)], groups, share, seed)
    assert sorted([*train, *val]) == list(range(len(groups)))
    assert train == sorted(train)
    for group, count in Counter(groups).items():
        kept = sum(groups[index] == group for index in val)
        assert kept == (0 if count == 1 else min(max(round(share * count), 1), count - 1))


def test_the_choice_follows_from_names_and_seed_and_not_from_the_order() -> None:
    _, val = split(NAMES, [0] * 100, 0.2, 0)
    _, reversed_val = split(NAMES[::-1], [0] * 100, 0.2, 0)
    assert {NAMES[index] for index in val} == {NAMES[::-1][index] for index in reversed_val}


def test_another_seed_chooses_others() -> None:
    assert split(NAMES, [0] * 100, 0.2, 0) != split(NAMES, [0] * 100, 0.2, 1)


def test_the_choice_is_spread_over_the_names() -> None:
    _, val = split(NAMES, [0] * 100, 0.2, 0)
    assert len({index // 20 for index in val}) == 5


def test_adding_an_image_moves_at_most_one_other() -> None:
    _, before = split(NAMES[:99], [0] * 99, 0.2, 0)
    _, after = split(NAMES, [0] * 100, 0.2, 0)
    assert len(set(before) - set(after)) <= 1


def test_the_choice_is_the_same_in_another_process() -> None:
    code = "from featuretap.workflows.datasets.splits import split; print(split(list('abcdefghij'), [0] * 10, 0.3, 5))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{split(list('abcdefghij'), [0] * 10, 0.3, 5)}\n"}


def test_accents_may_be_written_in_either_normal_form() -> None:
    composed = [f"é{number}" for number in range(20)]
    decomposed = [unicodedata.normalize("NFD", name) for name in composed]
    assert composed != decomposed
    assert split(composed, [0] * 20, 0.3, 0) == split(decomposed, [0] * 20, 0.3, 0)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_a_part_empty_is_refused(share: float) -> None:
    with pytest.raises(DataError) as error:
        split(["a", "b"], [0, 0], share, 0)
    assert str(error.value) == f"val_fraction must be between 0 and 1, such as 0.2; got {share}"


@pytest.mark.parametrize("groups", [[], [0], [0, 1, 2]])
def test_of_a_set_that_cannot_be_divided_nothing_is_held_out(groups: list[int]) -> None:
    assert split(NAMES[: len(groups)], groups, 0.5, 0) == (list(range(len(groups))), [])


def test_images_of_several_classes_are_grouped_by_the_rarest() -> None:
    classes = [{"cat"}, {"cat", "dog"}, {"cat", "dog", "emu"}, set()]
    assert rarest(classes) == ["cat", "dog", "emu", ""]
