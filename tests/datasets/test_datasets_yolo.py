"""Data sets in YOLO format."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.data_sets import picture, yolo_labels

from featuretap.registry.errors import DataError
from featuretap.workflows.datasets import boxed_images
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data, recognize_task

BOX = "0 0.5 0.5 0.5 0.25"
NAMES = "names: [cat, dog]\n"


def opened(source: Path, **options: Any) -> DataSet:
    return open_data(str(source), "detection", **options)


def refusal(source: Path, **options: Any) -> str:
    """Return the error message, with the folder replaced by DATA."""
    with pytest.raises(DataError) as error:
        opened(source, **options)
    return str(error.value).replace(str(source if source.is_dir() else source.parent), "DATA")


def labelled(folder: Path, image: str, *lines: str) -> None:
    """Write an image of 12×8 pixels and its labels."""
    picture(folder / image)
    yolo_labels((folder / image.replace("images", "labels")).with_suffix(".txt"), *lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one training and one validation image."""
    labelled(tmp_path, "images/train/a.png", BOX, "1 0.25 0.25 0.5 0.5")
    labelled(tmp_path, "images/val/b.png", BOX)
    return tmp_path


def yaml(folder: Path, text: str) -> Path:
    path = folder / "data.yaml"
    path.write_text(text)
    return path


def test_boxes_are_centers_and_sizes_as_fractions_of_the_image(folder: Path) -> None:
    yaml(folder, f"train: images/train\nval: images/val\nnc: 2\n{NAMES}")
    data = opened(folder)
    assert data.classes == ("cat", "dog")
    boxes = data.train[0].read()[1]
    assert boxes.boxes.tolist() == [[3, 3, 9, 5], [0, 0, 6, 4]]
    assert boxes.labels.tolist() == [0, 1]
    assert [Path(sample.name).name for sample in (*data.train, *data.val)] == ["a.png", "b.png"]


def test_boxes_are_fractions_of_the_upright_image(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(folder / "images/train/a.jpg", exif=exif)
    (folder / "images/train/a.png").unlink()
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    image, boxes = opened(folder).train[0].read()
    assert image.size == (8, 12)
    assert boxes.boxes[0].tolist() == [2, 4.5, 6, 7.5]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("names: {0: cat, 1: dog}", ("cat", "dog")),
        ("names: {1: dog, 0: cat}", ("cat", "dog")),
        ("names:\n- cat\n- 7", ("cat", "7")),
        ("names: {'0': cat, '1': no}", ("cat", "False")),
    ],
)
def test_names_are_a_list_or_a_table(folder: Path, text: str, classes: tuple[str, ...]) -> None:
    yaml(folder, f"train: images/train\nval: images/val\n{text}\n")
    assert opened(folder).classes == classes


@pytest.mark.parametrize(
    "text",
    [
        "train: images/train\nval: images/val",
        "path: .\ntrain: images/train\nval: images/val",
        "path: images\ntrain: train\nval: val",
        "path: {folder}\ntrain: images/train\nval: [images/val]",
        "path: ../datasets/elsewhere\ntrain: images/train\nval: images/val",
        "train: ../images/train\nval: ../images/val",
        "train: {folder}/images/train\nval: {folder}/images/val",
        "train: train.txt\nval: images/val",
    ],
)
def test_parts_are_relative_to_path_or_to_the_file(folder: Path, text: str) -> None:
    (folder / "train.txt").write_text("./images/train/a.png\n")
    path = yaml(folder, f"{text.format(folder=folder)}\n{NAMES}")
    for source in (folder, path):
        data = opened(source)
        assert (len(data.train), len(data.val)) == (1, 1)


def test_test_images_validate_where_nothing_else_does(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    yaml(folder, f"train: images/train\ntest: images/val\n{NAMES}")
    assert Path(opened(folder).val[0].name).name == "b.png"
    assert caplog.messages == [f"{str(folder / 'data.yaml')!r} has no 'val'; using 'test' as the validation set"]


def test_validation_on_the_training_images_is_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    labelled(folder, "images/train/c.png", BOX, "1 0.5 0.5 0.5 0.5")
    path = yaml(folder, f"train: images/train\nval: images/train\n{NAMES}")
    data = opened(folder)
    assert {sample.name for sample in data.train}.isdisjoint(sample.name for sample in data.val)
    assert caplog.messages == [f"{str(path)!r} validates on the training images; holding out some of them instead"]


def test_an_image_in_both_parts_is_refused(folder: Path) -> None:
    yaml(folder, f"train: [images/train, images/val]\nval: images/val\n{NAMES}")
    assert refusal(folder) == (
        "'DATA/data.yaml' has the image 'DATA/images/val/b.png' in both 'train' and 'val'; remove it from one of them"
    )


@pytest.mark.parametrize(
    "images", [("images/train", "images/val"), ("train/images", "valid/images"), ("images", "images/more")]
)
def test_folders_without_a_yaml_file_are_read(tmp_path: Path, images: tuple[str, str]) -> None:
    for number, place in enumerate(images):
        labelled(tmp_path, f"{place}/{number}.png", BOX, "2 0.5 0.5 1 1")
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog", "owl")
    assert (len(data.train), len(data.val)) == (1, 1)


@pytest.mark.parametrize("names", ["classes.txt", "obj.names"])
@pytest.mark.parametrize(
    ("first", "second", "split"),
    [
        ("train/a.png", "valid/b.png", True),
        ("train/a.png", "val/b.png", True),
        ("obj_train_data/a.png", "obj_valid_data/b.png", True),
        ("obj_train_data/a.png", "obj_train_data/b.png", False),
        ("images/a.png", "images/b.png", False),
        ("a.png", "b.png", False),
    ],
)
def test_labels_may_lie_beside_the_images(tmp_path: Path, names: str, first: str, second: str, split: bool) -> None:
    for name in (first, second):
        picture(tmp_path / name)
        yolo_labels((tmp_path / name).with_suffix(".txt"), BOX, "1 0.5 0.5 1 1")
    (tmp_path / (Path(first).parent if names == "classes.txt" and split else "") / names).write_text("cat\n\ndog\n")
    assert recognize_task(str(tmp_path), None) == "detection"
    data = opened(tmp_path)
    assert data.label == "YOLO"
    assert data.classes == ("cat", "dog")
    assert [[len(sample.read()[1].boxes) for sample in part] for part in (data.train, data.val)] == [[2], [2]]
    if split:
        assert Path(data.val[0].name) == tmp_path / second


@pytest.mark.parametrize("text", ["a cat on a mat", "", "3 4 5", "0 0.5 0.5 0.5 0.5 cat"])
def test_other_text_beside_images_is_no_label(tmp_path: Path, text: str) -> None:
    for name in ("cat/a", "cat/b", "dog/c", "dog/d", "train/cat/a", "train/dog/c"):
        picture(tmp_path / f"{name}.png")
        yolo_labels(tmp_path / f"{name}.txt", text)
    assert recognize_task(str(tmp_path), None) == "classification"


def test_a_quadrilateral_is_a_polygon_even_at_the_borders(folder: Path) -> None:
    """Its corners could also be read as a box followed by key points with integer coordinates."""
    labelled(folder, "images/train/a.png", "0 0 0 1 0 1 1 0 1 0 0", "1 0.5 0.5 0.6 0.4 0.7 0.5 0.6 0.6")
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    boxes = opened(folder).train[0].read()[1].boxes
    assert boxes == pytest.approx(np.array([[0, 0, 12, 8], [6, 3.2, 8.4, 4.8]]), abs=1e-5)


def test_boxes_beyond_the_image_are_clipped_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"0 0.5 {0.3 + number / 100} 0.5 0.25" for number in range(9)]
    labelled(folder, "images/train/a.png", "0 0.95 0.5 0.3 0.5", *lines)
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    with caplog.at_level(logging.WARNING):
        boxes = opened(folder).train[0].read()[1].boxes
    assert boxes[0] == pytest.approx([9.6, 2, 12, 6], abs=1e-5)
    assert caplog.messages[0].startswith(f"clipped 1 of 11 boxes in {str(folder)!r} that extend beyond their images: ")


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    for number in range(2):
        labelled(tmp_path, f"images/{number}.png", BOX, "2 0.5 0.5 1 1")
    assert opened(tmp_path).classes == ("class 0", "class 1", "class 2")


def test_images_without_labels_are_images_without_objects(folder: Path) -> None:
    picture(folder / "images/train/empty.png")
    labelled(folder, "images/train/blank.png", "")
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    found = {Path(sample.name).stem: len(sample.read()[1].boxes) for sample in opened(folder).train}
    assert found == {"a": 2, "empty": 0, "blank": 0}


def test_polygons_become_masks_or_their_bounds(folder: Path) -> None:
    triangle = "1 0 0 0.5 0 0.5 0.5"
    for image in ("images/train/a.png", "images/val/b.png"):
        labelled(folder, image, triangle, "0 0.5 0.5 1 0.5 1 1 0.5 1")
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    data = opened(folder)
    assert data.targets == "boxes and masks"
    assert data.train[0].read()[1].boxes.tolist() == [[0, 0, 6, 4], [6, 4, 12, 8]]
    masks = opened(folder, masks=True).train[0].read()[1].masks
    assert masks is not None
    square = np.zeros((8, 12), np.uint8)
    square[4:, 6:] = 1
    assert (masks[1] == square).all()
    assert 8 <= masks[0].sum() <= 16


def test_masks_are_bounded_by_objects_and_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxed_images, "DEFAULT_PIXELS", 95)
    monkeypatch.setenv("FEATURETAP_MAX_PIXELS", "96")
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    polygons = [f"0 0.1 0.1 0.9 0.1 0.9 0.{number}" for number in range(20, 33)]
    labelled(folder, "images/val/b.png", polygons[0])
    labelled(folder, "images/train/a.png", *polygons[:12])
    assert len(opened(folder, masks=True).train[0].read()[1].masks) == 12
    labelled(folder, "images/train/a.png", *polygons)
    assert refusal(folder, masks=True) == (
        "1 problem in 'DATA': 'DATA/images/train/a.png' of 12×8 pixels has 13 objects, whose masks exceed 12 times "
        "FEATURETAP_MAX_PIXELS=96; cut the images into tiles, shrink them, or increase the limit"
    )
    assert len(opened(folder).train[0].read()[1].boxes) == 13
    monkeypatch.setenv("FEATURETAP_MAX_PIXELS", "104")
    assert len(opened(folder, masks=True).train[0].read()[1].masks) == 13


def test_key_points_of_poses_are_left_out(folder: Path) -> None:
    labelled(folder, "images/train/a.png", f"{BOX} 0.1 0.1 2 0.2 0.2 2")
    yaml(folder, f"train: images/train\nval: images/val\nkpt_shape: [2, 3]\n{NAMES}")
    assert opened(folder).train[0].read()[1].boxes.tolist() == [[3, 3, 9, 5]]


FLAT_POSES = ("0 0.6 0.3 0.1 0.2 0.58 0.25 0.62 0.35 0.6 0.3", "0 0.2 0.7 0.1 0.1 0.18 0.68 0 0 0.22 0.72")


def test_key_points_without_a_visibility_are_no_polygons(folder: Path) -> None:
    labelled(folder, "images/train/a.png", *FLAT_POSES)
    labelled(folder, "images/val/b.png", FLAT_POSES[0])
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    assert refusal(folder) == (
        "the label files of 'DATA' have 3 points after each box and inside it; if this is a pose data set, add "
        "'kpt_shape' to 'data.yaml'"
    )
    yaml(folder, f"train: images/train\nval: images/val\nkpt_shape: [3, 2]\n{NAMES}")
    assert opened(folder).train[0].read()[1].boxes[0] == pytest.approx([6.6, 1.6, 7.8, 3.2])


def turned_square(x: float, y: float, half: float, degrees: float) -> str:
    """Return the label of a rotated square, given as four corners."""
    angles = [math.radians(degrees + 90 * corner) for corner in range(4)]
    return "0 " + " ".join(f"{x + half * math.cos(angle):.6f} {y + half * math.sin(angle):.6f}" for angle in angles)


@pytest.mark.parametrize("half", [0.004, 0.1, 0.25])
@pytest.mark.parametrize("x", [0.5, 0.72])
@pytest.mark.parametrize("degrees", [0, 10, 200])
def test_rotated_boxes_of_any_size_are_no_poses(folder: Path, x: float, half: float, degrees: float) -> None:
    for y, path in ((0.3, "images/train/a.png"), (0.7, "images/val/b.png")):
        labelled(folder, path, turned_square(x, y, half, degrees))
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    assert len(opened(folder).train[0].read()[1].boxes) == 1


def test_a_line_that_is_there_twice_is_one_object(folder: Path) -> None:
    labelled(folder, "images/train/a.png", BOX, BOX)
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    assert len(opened(folder).train[0].read()[1].boxes) == 1


def test_boxes_without_area_are_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    labelled(folder, "images/train/a.png", BOX, "1 0.5 0.5 0 0.5")
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    with caplog.at_level(logging.WARNING):
        assert len(opened(folder).train[0].read()[1].boxes) == 1
    assert caplog.messages == [f"skipped 1 object without width or height in {str(folder)!r}: object 2 of 'a.png'"]


POSE = "keypoints after its box; if this is a pose data set, add 'kpt_shape' to 'data.yaml'"
NOT_A_ROW = "is not a class and a box of four numbers, or a polygon"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5 0.5", f"{NOT_A_ROW}: '0 0.5 0.5 0.5'"),
        ("cat 0.5 0.5 0.5 0.5", f"{NOT_A_ROW}: 'cat 0.5 0.5 0.5 0.5'"),
        ("-1 0.5 0.5 0.5 0.5", f"{NOT_A_ROW}: '-1 0.5 0.5 0.5 0.5'"),
        ("0.5 0.5 0.5 0.5 0.5", f"{NOT_A_ROW}: '0.5 0.5 0.5 0.5 0.5'"),
        (
            "0 0.5 0.5 0.5 0.5 0.9",
            "has five numbers after the class, like a prediction with a score; use ground truth labels",
        ),
        ("0 0.5 0.5 0.5 0.5 0.4 0.4 0.6", f"{NOT_A_ROW}: '0 0.5 0.5 0.5 0.5 0.4 0.4 0.6'"),
        (f"{BOX} 0.4 0.4 2", f"has {POSE}"),
        (f"{BOX} 0.4 0.4 2 0.6 0.5 1 0 0 0 0.5 0.5 2", f"has {POSE}"),
        ("0 6 4 6 2", "has the coordinate 6; coordinates are fractions of the image's width and height, from 0 to 1"),
        (
            "0 nan 0.5 0.5 0.5",
            "has the coordinate nan; coordinates are fractions of the image's width and height, from 0 to 1",
        ),
    ],
)
def test_lines_that_are_no_objects_are_refused(folder: Path, line: str, problem: str) -> None:
    labelled(folder, "images/train/a.png", line)
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    assert refusal(folder) == f"1 problem in 'DATA': line 1 of 'DATA/labels/train/a.txt' {problem}"


def test_boxes_beyond_the_image_are_refused_where_they_are_many(folder: Path) -> None:
    for image in ("images/train/a.png", "images/val/b.png"):
        labelled(folder, image, "0 0 0 1 0 1 1")
    labelled(folder, "images/train/a.png", "0 1.2 0.5 0.2 0.2")
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    assert refusal(folder) == (
        "1 of 2 boxes in 'DATA' extend beyond their images, more than 10%: object 1 of 'a.png' has a box from 13.2, "
        "3.2, 15.6, 4.8 in an image of 12×8; check that boxes are fractions of the width and height of these images"
    )


@pytest.mark.parametrize(
    ("line", "options", "problem"),
    [
        ("0 0.5 0.5 -0.2 0.2", {}, "has a box of negative size"),
        (BOX, {"masks": True}, "is a box, but masks need polygons"),
    ],
)
def test_objects_that_do_not_fit_are_refused(folder: Path, line: str, options: Any, problem: str) -> None:
    for image in ("images/train/a.png", "images/val/b.png"):
        labelled(folder, image, "0 0 0 1 0 1 1")
    labelled(folder, "images/train/a.png", line)
    yaml(folder, f"train: images/train\nval: images/val\n{NAMES}")
    assert refusal(folder, **options) == f"1 problem in 'DATA': object 1 of 'a.png' {problem}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: images/train\nnames: [cat]\n",
            "the label files of 'DATA' contain class 1, but only class 0 has a name; add the missing names",
        ),
        (
            "train: images/train\nnames: {0: cat, 2: dog}\n",
            "'DATA/data.yaml' must number its 2 names from 0 to 1",
        ),
        (
            "train: images/train\nnames: [cat, cat]\n",
            "'DATA/data.yaml' has the class 'cat' twice; give each class a unique name",
        ),
        (
            "train: images/train\nnames: 2\n",
            "'DATA/data.yaml' has no list 'names'; add the names of all classes, in the order of their ids",
        ),
        (
            f"train:\nval: images/val\n{NAMES}",
            "'DATA/data.yaml' has no training images; set 'train' to a folder or a list of image files",
        ),
        (
            f"train: images/nowhere\n{NAMES}",
            "'DATA/data.yaml' names 'images/nowhere', which does not exist (looked for 'DATA/images/nowhere')",
        ),
        (f"train: labels\n{NAMES}", "'DATA/labels' (named in 'DATA/data.yaml') contains no images"),
        (f"train: train.txt\n{NAMES}", "1 problem in 'DATA/train.txt': the image 'DATA/gone.png' is missing"),
    ],
)
def test_yaml_files_that_cannot_be_used_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / "train.txt").write_text("gone.png\n")
    yaml(folder, text)
    assert refusal(folder) == message


def test_a_file_that_is_no_yaml_is_refused(folder: Path) -> None:
    path = yaml(folder, "train: [\nnames: cat\n")
    assert refusal(path).startswith("'DATA/data.yaml' is not valid YAML: while parsing a flow ")


def test_several_yaml_files_are_refused_unless_one_is_given(folder: Path) -> None:
    text = f"train: images/train\nval: images/val\n{NAMES}"
    yaml(folder, text)
    (folder / "other.yml").write_text(text)
    assert refusal(folder) == (
        "'DATA' has 'data.yaml' and 'other.yml'; choose one of these files instead of the folder"
    )
    assert len(opened(folder / "other.yml").train) == 1


def test_labels_without_any_object_are_refused(tmp_path: Path) -> None:
    labelled(tmp_path, "images/a.png")
    assert refusal(tmp_path) == "the label files of 'DATA' contain no objects; put label files into 'labels'"
