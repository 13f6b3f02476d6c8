"""Data sets are opened from the path or name that a user gives."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.data_sets import a_box, classes_of, coco, picture

from featuretap.registry.errors import DataError
from featuretap.workflows.datasets.data_set import Task
from featuretap.workflows.datasets.formats import open_data
from featuretap.workflows.datasets.named_sets import NAMED_SETS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(source: str, task: Task = "classification") -> str:
    with pytest.raises(DataError) as error:
        open_data(source, task)
    return str(error.value)


@pytest.mark.parametrize(
    ("source", "near"),
    [("CIFAR11", "CIFAR10"), ("digit", "digits"), ("Flower102", "Flowers102"), ("fashionmnst", "FashionMNIST")],
)
def test_a_misspelled_name_suggests_the_nearest(here: Path, source: str, near: str) -> None:
    assert refusal(source) == f"no folder or data set named {source!r}; did you mean {near!r}?"


@pytest.mark.parametrize("source", ["", "photographs"])
def test_an_unknown_name_lists_all_names(here: Path, source: str) -> None:
    names = ", ".join(row.name for row in NAMED_SETS.values())
    assert names.startswith("digits, Caltech101, Caltech256, CIFAR10, ")
    assert refusal(source) == f"no folder or data set named {source!r}; the named data sets are {names}"


@pytest.mark.parametrize(
    "source", ["./CIFAR10", "data/birds", "birds/", "/nowhere/birds", "~nobody-of-that-name/birds"]
)
def test_a_path_that_does_not_exist_is_refused(here: Path, source: str) -> None:
    assert refusal(source) == (f"no folder {source!r}; choose the folder of a data set, or a name such as 'digits'")


def test_a_file_is_refused(here: Path) -> None:
    (here / "birds.zip").touch()
    assert refusal("birds.zip") == (
        "'birds.zip' is a file; choose the folder of a data set, or a name such as 'digits'"
    )


@pytest.mark.parametrize("source", ["birds", "./birds", "birds/", "~/birds"])
def test_a_folder_is_opened(here: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    classes_of(here / "birds", jay=2, tit=2)
    assert open_data(source, "classification").classes == ("jay", "tit")


def test_the_current_folder_is_opened(here: Path) -> None:
    classes_of(here, jay=2, tit=2)
    assert open_data(".", "classification").classes == ("jay", "tit")


def test_a_built_in_data_set_wins_over_a_folder_of_its_name(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes_of(here / "digits", one=2, two=2)
    assert len(open_data("digits", "classification").classes) == 10
    assert caplog.messages == ["'digits' means the named data set; use './digits' for the folder"]
    assert open_data("./digits", "classification").classes == ("one", "two")


def test_a_data_set_for_another_task_is_refused(here: Path) -> None:
    message = "the data set 'CIFAR10' is for classification, but the model is for detection"
    assert refusal("cifar10", "detection") == message
    (here / "cifar10").mkdir()
    assert refusal("cifar10", "detection") == f"{message}; use './cifar10' for the folder"


def test_a_read_error_of_the_disk_is_an_error(here: Path) -> None:
    (here / "data.json").symlink_to("/proc/self/mem")
    assert refusal("./", "detection") == "cannot read '.': Input/output error"


def test_names_that_are_not_utf_8_are_escaped(here: Path) -> None:
    classes_of(here / "folders", **{"caf\udce9": 2, "tea": 2})
    data = open_data("folders", "classification")
    assert data.classes == ("caf\\udce9", "tea")
    assert [sample.check() for sample in data.train] == ["", ""]
    picture(here / "a.png")
    for part in ("train", "val"):
        coco(here / f"{part}.json", [a_box(1, 1, [0, 0, 4, 4])], ("a.png",), categories=[{"id": 7, "name": "\ud800"}])
    assert open_data(".", "detection", data_format="coco").classes == ("\\ud800",)


def test_opening_a_folder_needs_no_torch(here: Path) -> None:
    classes_of(here, jay=2, tit=2)
    code = (
        "import sys; import featuretap.workflows.datasets.data_set; "
        "from featuretap.workflows.datasets.formats import open_data; "
        "open_data('.', 'classification'); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False True\n"


def test_masks_are_read_where_they_are_asked_for(here: Path) -> None:
    outline = {"segmentation": [[0, 0, 4, 0, 4, 4]]}
    for part in ("train", "val"):
        coco(here / f"{part}.json", [a_box(1, 1, [0, 0, 4, 4], **outline)], ("a.png",))
    picture(here / "a.png")
    assert open_data(".", "detection").train[0].read()[1].masks is None
    assert open_data(".", "detection", masks=True).train[0].read()[1].masks is not None
