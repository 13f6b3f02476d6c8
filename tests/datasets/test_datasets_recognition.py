"""Recognition of a folder's format, and the choice between several possible formats."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from support.data_sets import a_box, classes_of, coco, mask, picture, voc, yolo_labels

from featuretap.registry.errors import DataError, OptionError
from featuretap.workflows.datasets.formats import describe, open_data, recognize_task
from featuretap.workflows.datasets.recognition import DEFAULT_HEADS, choose_reading
from featuretap.workflows.training.configuration import make_configuration
from featuretap.workflows.training.models import resolve_model

Write = Callable[[Path], None]

OUTLINE = {"segmentation": [[0, 0, 4, 0, 4, 4]]}
BOXES = [a_box(1, 1, [0, 0, 4, 4]), a_box(2, 2, [0, 0, 4, 4], category=3)]
OUTLINED = [each | OUTLINE for each in BOXES]


def class_folders(folder: Path) -> None:
    classes_of(folder, jay=3, tit=3)


def parts_of_class_folders(folder: Path) -> None:
    classes_of(folder / "train", jay=3, tit=3)
    classes_of(folder / "val", jay=1, tit=1)


def coco_2017(folder: Path, annotations: Any = BOXES) -> None:
    for part in ("train", "val"):
        coco(folder / f"annotations/instances_{part}2017.json", annotations)
        for name in ("a.png", "b.png"):
            picture(folder / f"{part}2017" / name)


def roboflow(folder: Path) -> None:
    for part in ("train", "valid", "test"):
        coco(folder / part / "_annotations.coco.json", OUTLINED)
        for name in ("a.png", "b.png"):
            picture(folder / part / name)


def voc_folders(folder: Path) -> None:
    for number in range(4):
        voc(folder / f"Annotations/{number}.xml", ("cat", (1, 1, 5, 5)))
        picture(folder / f"JPEGImages/{number}.png")


def voc_masks(folder: Path) -> None:
    for number in range(4):
        picture(folder / f"JPEGImages/{number}.png", (4, 2))
        mask(folder / f"SegmentationClass/{number}.png", [[0, 1, 1, 0], [0, 0, 1, 2]])


def masks(folder: Path) -> None:
    for number in range(4):
        picture(folder / f"images/{number}.png", (4, 2))
        mask(folder / f"masks/{number}.png", [[0, 1, 1, 0], [0, 0, 1, 2]])


def masks_beside_images(folder: Path) -> None:
    for number in range(4):
        picture(folder / f"train/{number}.jpg", (4, 2))
        mask(folder / f"train/{number}_mask.png", [[0, 1, 1, 0], [0, 0, 1, 2]])


def labels_beside_images(folder: Path) -> None:
    for number in range(4):
        picture(folder / f"{number}.jpg")
        yolo_labels(folder / f"{number}.txt", "0 0.5 0.5 0.5 0.5", "1 0.2 0.2 0.1 0.1")


def yolo(folder: Path) -> None:
    for part in ("train", "val"):
        picture(folder / f"images/{part}/a.png")
        yolo_labels(folder / f"labels/{part}/a.txt", "0 0.5 0.5 0.5 0.5", "1 0.2 0.2 0.8 0.2 0.8 0.8")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")


@pytest.mark.parametrize(
    ("write", "line", "head"),
    [
        (class_folders, "class folders: 4 training and 2 validation images, 2 classes", "classification"),
        (parts_of_class_folders, "class folders: 6 training and 2 validation images, 2 classes", "classification"),
        (coco_2017, "COCO: 2 training and 2 validation images, 2 classes, boxes", "ssdlite"),
        (roboflow, "COCO: 2 training and 2 validation images, 2 classes, boxes and masks", "ssdlite"),
        (voc_folders, "Pascal VOC: 3 training and 1 validation images, 1 class, boxes", "ssdlite"),
        (voc_masks, "Pascal VOC: 3 training and 1 validation images, 3 classes, masks", "lraspp"),
        (masks, "images and masks: 3 training and 1 validation images, 3 classes", "lraspp"),
        (
            masks_beside_images,
            "images and masks: 3 training and 1 validation images, 3 classes",
            "lraspp",
        ),
        (labels_beside_images, "YOLO: 3 training and 1 validation images, 2 classes, boxes", "ssdlite"),
        (yolo, "YOLO: 1 training and 1 validation images, 2 classes, boxes and masks", "ssdlite"),
    ],
)
def test_a_folder_is_recognised_and_gets_the_head_of_its_task(
    tmp_path: Path, write: Write, line: str, head: str
) -> None:
    write(tmp_path)
    task = recognize_task(str(tmp_path), None)
    assert describe(open_data(str(tmp_path), task)) == line
    configuration, spec = resolve_model(make_configuration({"data": str(tmp_path), "backbone": "mobilenet_v2"}))
    assert (configuration.head, spec.head.name) == (head, head)


def test_a_named_set_is_described_by_its_name() -> None:
    assert recognize_task("digits", None) == "classification"
    assert describe(open_data("digits", "classification")) == (
        "digits: 1438 training and 359 validation images, 10 classes"
    )


def test_files_of_editors_do_not_make_a_format(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for name, content in {
        ".idea/workspace.xml": "<annotation/>",
        "notes.xml": "<project/>",
        "package.json": '{"images": []}',
        "environment.yaml": "names: [a, b]",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    assert recognize_task(str(tmp_path), None) == "classification"


WRITERS = {
    class_folders: ("class folders", "classes", "classification"),
    parts_of_class_folders: ("class folders", "classes", "classification"),
    coco_2017: ("COCO (boxes)", "coco", "detection"),
    roboflow: ("COCO (boxes and masks)", "coco", "detection"),
    voc_folders: ("Pascal VOC (boxes)", "voc", "detection"),
    voc_masks: ("Pascal VOC (masks)", "voc", "segmentation"),
    masks: ("images and masks", "masks", "segmentation"),
    masks_beside_images: ("images and masks", "masks", "segmentation"),
    yolo: ("YOLO (boxes)", "yolo", "detection"),
    labels_beside_images: ("YOLO (boxes)", "yolo", "detection"),
}
"""What writes a folder → how it is described, its format and its task."""

PAIRS = [(one, other) for one, other in combinations(WRITERS, 2) if WRITERS[one] != WRITERS[other]]
PAIRS.remove((coco_2017, roboflow))
NAMES_OF_PAIRS = [f"{one.__name__} and {other.__name__}" for one, other in PAIRS]
TANGLED = (
    (class_folders, labels_beside_images),
    (parts_of_class_folders, roboflow),
    (parts_of_class_folders, masks_beside_images),
    (roboflow, masks_beside_images),
    (masks, yolo),
)
"""Pairs with images of one among those of the other."""


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=NAMES_OF_PAIRS)
def test_two_ways_to_read_a_folder_are_refused(tmp_path: Path, one: Write, other: Write) -> None:
    one(tmp_path)
    other(tmp_path)
    with pytest.raises(DataError) as error:
        recognize_task(str(tmp_path), None)
    message, choices = str(error.value).split("; choose with ")
    begin, _, readings = message.partition(" can be read as ")
    assert begin == repr(str(tmp_path))
    assert set(readings.split(" or as ")) == {WRITERS[one][0], WRITERS[other][0]}
    by_format = {f"format={WRITERS[each][1]!r}" for each in (one, other)}
    by_head = {f"head={DEFAULT_HEADS[WRITERS[each][2]]!r}" for each in (one, other)}
    assert set(choices.split(" or ")) == (by_head if len(by_head) == 2 else by_format)


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=NAMES_OF_PAIRS)
def test_the_other_format_changes_nothing_about_the_one_that_is_chosen(
    tmp_path: Path, one: Write, other: Write
) -> None:
    one(tmp_path / "both")
    other(tmp_path / "both")
    for write in (one, other):
        write(tmp_path / write.__name__)
        _, data_format, task = WRITERS[write]
        alone = open_data(str(tmp_path / write.__name__), task)
        try:
            data = open_data(str(tmp_path / "both"), task, data_format=data_format)
        except DataError:
            assert (one, other) in TANGLED
        else:
            assert describe(data) == describe(alone)
            assert data.classes == alone.classes


def test_three_ways_are_told_apart_by_their_formats(tmp_path: Path) -> None:
    coco_2017(tmp_path)
    yolo(tmp_path)
    class_folders(tmp_path)
    with pytest.raises(DataError) as error:
        recognize_task(str(tmp_path), None)
    assert str(error.value).endswith("; choose with format='coco' or format='yolo' or format='classes'")


@pytest.mark.parametrize(
    ("task", "data_format", "label"),
    [("segmentation", None, "Pascal VOC"), ("detection", "voc", "Pascal VOC"), ("detection", "yolo", "YOLO")],
)
def test_a_head_or_a_format_chooses(tmp_path: Path, task: Any, data_format: str | None, label: str) -> None:
    voc_folders(tmp_path)
    voc_masks(tmp_path)
    yolo(tmp_path)
    reading = choose_reading(tmp_path, task, data_format)
    assert reading is not None
    assert (reading.task, reading.label) == (task, label)


def test_a_format_chooses_the_head(tmp_path: Path) -> None:
    masks(tmp_path)
    coco_2017(tmp_path)
    settings = {"data": str(tmp_path), "backbone": "mobilenet_v2", "format": "masks"}
    assert resolve_model(make_configuration(settings))[1].head.name == "lraspp"


def test_a_format_that_is_not_there_is_reported_by_its_reader(tmp_path: Path) -> None:
    class_folders(tmp_path)
    with pytest.raises(
        DataError, match=r"has neither folders 'images' and 'labels' nor a 'data\.yaml'; add one of these"
    ):
        open_data(str(tmp_path), "detection", data_format="yolo")


@pytest.mark.parametrize(
    ("write", "task", "holds", "advice"),
    [
        (masks, "classification", "images and masks", "segmentation, such as 'lraspp'"),
        (coco_2017, "classification", "COCO (boxes)", "detection, such as 'ssdlite'"),
        (yolo, "segmentation", "YOLO (boxes)", "detection, such as 'ssdlite'"),
        (class_folders, "detection", "class folders", "classification, such as 'classification'"),
    ],
)
def test_data_for_another_task_is_refused(tmp_path: Path, write: Write, task: Any, holds: str, advice: str) -> None:
    write(tmp_path)
    with pytest.raises(DataError) as error:
        open_data(str(tmp_path), task)
    assert str(error.value) == (
        f"{str(tmp_path)!r} contains {holds}, but the model is for {task}; choose a head for {advice}"
    )


def test_a_folder_without_any_format_is_read_as_class_folders(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="contains images but no class folders; create a folder of images per class"):
        open_data(str(tmp_path), recognize_task(str(tmp_path), None))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(OptionError) as error:
        make_configuration({"data": "digits", "backbone": "mobilenet_v2", "format": "darknet"})
    assert str(error.value) == (
        "training cannot take format='darknet'; it must be 'classes', 'coco', 'masks', 'voc' or 'yolo'"
    )


@pytest.mark.parametrize("place", [".", "train"])
def test_folders_of_masks_are_recognised_in_any_case(tmp_path: Path, place: str) -> None:
    for number in range(2):
        picture(tmp_path / place / "Images" / f"{number}.jpg")
        mask(tmp_path / place / "MASKS" / f"{number}_mask.PNG", [[0, 1] * 6] * 8)
    assert recognize_task(str(tmp_path), None) == "segmentation"
    data = open_data(str(tmp_path), "segmentation")
    assert len(data.train[0].read()[1]) == 8


def test_folders_of_an_unknown_format_are_no_classes_unless_chosen(tmp_path: Path) -> None:
    for name in ("Images", "labels"):
        for number in range(3):
            picture(tmp_path / name / f"{number}.png")
    with pytest.raises(DataError) as error:
        open_data(str(tmp_path), "classification")
    assert str(error.value) == (
        f"{str(tmp_path)!r} has the folders 'Images' and 'labels', which match no known format and are unlikely to be "
        "classes; for segmentation, name them 'images' and 'masks'; to use them as classes, set format='classes'"
    )
    assert open_data(str(tmp_path), "classification", data_format="classes").classes == ("Images", "labels")
