"""Data sets are relabeled with the classes of a model, some of which they may lack."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from support.data_sets import a_box, classes_of, coco, mask, picture

from featuretap.registry.errors import DataError
from featuretap.workflows.datasets.data_set import with_classes
from featuretap.workflows.datasets.formats import open_data

CLASSES = ("emu", "dog", "cat")


def test_classes_of_images_and_objects_are_the_models(tmp_path: Path) -> None:
    classes_of(tmp_path / "folders", cat=2, dog=2)
    data = with_classes(open_data(str(tmp_path / "folders"), "classification"), CLASSES)
    assert data.classes == CLASSES
    for sample in (*data.train, *data.val):
        label = CLASSES.index(Path(sample.name).parent.name)
        assert (sample.label, sample.read()[1], sample.check()) == (label, label, "")


def test_classes_of_objects_are_the_models(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for part in ("train", "val"):
        objects = [a_box(1, 1, [0, 0, 2, 2], category=7), a_box(2, 1, [0, 0, 2, 2], category=3)]
        coco(tmp_path / f"{part}.json", objects, ("a.png",))
    sample = with_classes(open_data(str(tmp_path), "detection"), CLASSES).train[0]
    boxes = sample.read()[1]
    assert (boxes.labels.tolist(), boxes.labels.dtype, sample.label) == ([2, 1], np.int64, None)


def test_classes_of_pixels_are_the_models_and_ignored_ones_stay(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.jpg", (4, 2))
        mask(tmp_path / "masks" / f"{name}.png", [[0, 1, 255, 0]] * 2)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = with_classes(open_data(str(tmp_path), "segmentation"), CLASSES)
    found = pickle.loads(pickle.dumps(data)).train[0].read()[1]
    assert (found.tolist(), found.dtype) == ([[2, 1, 255, 2]] * 2, np.uint8)


def test_data_in_the_models_classes_stays_as_it_is(tmp_path: Path) -> None:
    data = open_data(str(classes_of(tmp_path, cat=2, dog=2)), "classification")
    assert with_classes(data, ("cat", "dog")) is data


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_only_data_that_need_not_be_complete_may_have_one_class_and_empty_ones(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    for part in parts:
        classes_of(tmp_path / part, cat=4, dog=0)
    with pytest.raises(DataError, match="class folders without images: 'dog'"):
        open_data(str(tmp_path), "classification")
    assert open_data(str(tmp_path), "classification", known=("cat", "dog", "emu")).classes == ("cat",)


def test_training_images_may_lack_a_class_of_the_validation_images(tmp_path: Path) -> None:
    classes_of(tmp_path / "train", dog=2)
    classes_of(tmp_path / "val", cat=2)
    data = open_data(str(tmp_path), "classification", known=("cat", "dog", "emu"))
    assert (data.classes, data.val[0].label) == (("cat", "dog"), 0)
