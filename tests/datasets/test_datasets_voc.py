"""Data sets with annotations in Pascal VOC format."""

from pathlib import Path

import numpy as np
import pytest
from support.data_sets import picture, voc

from featuretap.registry.errors import DataError
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data

CAT, DOG = ("cat", (1, 1, 5, 5)), ("dog", (2, 3, 12, 8))


def opened(folder: Path) -> DataSet:
    return open_data(str(folder), "detection", val_fraction=0.5)


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        opened(folder)
    return str(error.value).replace(str(folder), "DATA")


def names(data: DataSet) -> list[list[str]]:
    return [[Path(sample.name).name for sample in part] for part in (data.train, data.val)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in VOC's structure, with one training image, one validation image and one in neither list."""
    for name, thing in (("2007_1", CAT), ("2007_2", DOG), ("2007_3", CAT)):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        voc(tmp_path / "Annotations" / f"{name}.xml", thing)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2\r\n\n")
    return tmp_path


def test_lists_choose_the_training_and_validation_images(folder: Path) -> None:
    data = opened(folder)
    assert names(data) == [["2007_1.jpg"], ["2007_2.jpg"]]
    assert (data.task, data.classes) == ("detection", ("cat", "dog"))


def test_corners_count_from_one_and_are_inside_the_box(folder: Path) -> None:
    data = opened(folder)
    boxes = [data.train[0].read()[1], data.val[0].read()[1]]
    assert [found.boxes.tolist() for found in boxes] == [[[0, 0, 5, 5]], [[1, 2, 12, 8]]]
    assert [found.labels.tolist() for found in boxes] == [[0], [1]]
    assert boxes[0].boxes.dtype == np.float32


def test_without_lists_a_part_is_kept_for_validation(folder: Path) -> None:
    for name in ("train", "val"):
        (folder / "ImageSets" / "Main" / f"{name}.txt").unlink()
    train, val = names(opened(folder))
    assert sorted([*train, *val]) == ["2007_1.jpg", "2007_2.jpg", "2007_3.jpg"]
    assert len(val) == 1


def test_with_a_training_list_only_a_part_of_it_is_kept_for_validation(folder: Path) -> None:
    (folder / "ImageSets" / "Main" / "val.txt").unlink()
    (folder / "ImageSets" / "Main" / "train.txt").write_text("2007_1\n2007_3\n")
    train, val = names(opened(folder))
    assert sorted([*train, *val]) == ["2007_1.jpg", "2007_3.jpg"]


@pytest.mark.parametrize("parts", [["."], ["train", "valid"]])
def test_annotations_may_lie_beside_the_images(tmp_path: Path, parts: list[str]) -> None:
    for part in parts:
        for name in ("a b", "ü"):
            picture(tmp_path / part / f"{name}.PNG")
            voc(tmp_path / part / f"{name}.xml", CAT)
    data = opened(tmp_path)
    assert [len(data.train), len(data.val)] == ([1, 1] if parts == ["."] else [2, 2])


@pytest.mark.parametrize(("difficult", "ignored"), [("1", True), ("0", False), ("", False)])
def test_difficult_objects_are_ignored(folder: Path, difficult: str, ignored: bool) -> None:
    voc(folder / "Annotations" / "2007_1.xml", CAT, extra=f"<difficult>{difficult}</difficult>")
    assert opened(folder).train[0].read()[1].ignored.tolist() == [ignored]


def test_fractions_and_a_pixel_beyond_the_image_are_taken(folder: Path) -> None:
    voc(folder / "Annotations" / "2007_1.xml", ("cat", (0, 1.5, 13, "7.25")))
    assert opened(folder).train[0].read()[1].boxes.tolist() == [[0, 0.5, 12, 7.25]]


@pytest.mark.parametrize("size", ["0 0", "x y"])
def test_a_size_that_was_left_out_is_the_images(folder: Path, size: str) -> None:
    voc(folder / "Annotations" / "2007_1.xml", CAT, size=size)
    assert opened(folder).train[0].read()[1].boxes.tolist() == [[0, 0, 5, 5]]


def test_an_image_without_objects_stays(folder: Path) -> None:
    voc(folder / "Annotations" / "2007_3.xml")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("2007_1\n2007_3\n")
    assert opened(folder).train[1].read()[1].boxes.shape == (0, 4)


def test_an_image_of_another_size_than_annotated_is_noticed(folder: Path) -> None:
    voc(folder / "Annotations" / "2007_1.xml", CAT, size="12 9")
    path = str(folder / "JPEGImages" / "2007_1.jpg")
    assert opened(folder).train[0].check() == f"{path!r} is 12×8, but its annotations are for 12×9"


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'2007_1.xml' is not a VOC file: no element found: line 1, column 0"),
        ("<a>", "'2007_1.xml' is not a VOC file: no element found: line 1, column 3"),
        ("<html></html>", "'2007_1.xml' is not a VOC file: its root element is 'html', not 'annotation'"),
        (BOMB, "'2007_1.xml' is not a VOC file: it declares a document type, which annotations do not need"),
        (
            "<annotation><object><name>cat</name></object></annotation>",
            "object 1 of '2007_1.xml' has no 'bndbox' of four numbers",
        ),
        ("<annotation><object></object></annotation>", "object 1 of '2007_1.xml' has no name"),
    ],
)
def test_a_file_that_is_not_voc_is_named(folder: Path, text: str, problem: str) -> None:
    (folder / "Annotations" / "2007_1.xml").write_text(text)
    assert refusal(folder) == f"1 problem in 'DATA': {problem}"


def test_an_entity_bomb_in_another_encoding_is_noticed(folder: Path) -> None:
    (folder / "Annotations" / "2007_1.xml").write_bytes(BOMB.encode("utf-16"))
    assert "it declares a document type" in refusal(folder)


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ((5, 1, 2, 8), "has a box of negative size"),
        ((5, 1, "nan", 8), "has no 'bndbox' of four numbers"),
        ((5, 1, "", 8), "has no 'bndbox' of four numbers"),
    ],
)
def test_an_impossible_box_is_named(folder: Path, box: tuple[object, object, object, object], problem: str) -> None:
    voc(folder / "Annotations" / "2007_2.xml", DOG, ("dog", box))
    assert refusal(folder) == f"1 problem in 'DATA': object 2 of '2007_2.xml' {problem}"


def test_boxes_without_area_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = voc(folder / "Annotations" / "2007_2.xml", DOG, ("dog", (5, 1, 4, 8)))
    assert len(opened(folder).val[0].read()[1].boxes) == 1
    assert caplog.messages == [
        f"skipped 1 object without width or height in {str(path.parent)!r}: object 2 of '2007_2.xml'"
    ]


def test_a_tenth_of_the_boxes_may_reach_beyond_and_is_clipped(folder: Path) -> None:
    voc(folder / "Annotations" / "2007_2.xml", ("dog", (1, 1, 14, 8)), *[DOG] * 9)
    assert opened(folder).val[0].read()[1].boxes.tolist()[0] == [0, 0, 12, 8]
    voc(folder / "Annotations" / "2007_2.xml", ("dog", (1, 1, 14, 8)), *[DOG] * 8)
    assert refusal(folder) == (
        "1 of 9 boxes in 'DATA/Annotations' extend beyond their images, more than 10%: object 1 of '2007_2.xml' has a "
        "box from 0, 0, 14, 8 in an image of 12×8; check that boxes are xmin, ymin, xmax, ymax in pixels of these "
        "images"
    )


def test_normalised_boxes_are_refused(folder: Path) -> None:
    voc(folder / "Annotations" / "2007_2.xml", ("dog", (0.1, 0.2, 0.5, 0.75)))
    assert refusal(folder) == (
        "all boxes in 'DATA/Annotations' are between 0 and 1, as if normalized; convert them to xmin, ymin, xmax, "
        "ymax in pixels"
    )


def test_a_size_may_be_of_whole_floats(folder: Path) -> None:
    voc(folder / "Annotations" / "2007_1.xml", CAT, size="12.0 9.0")
    assert opened(folder).train[0].check().endswith("is 12×8, but its annotations are for 12×9")


PARTS = [
    ("train", "val"),
    ("train", "val", "trainval", "test"),
    ("trainval", "test"),
    ("train", "test"),
    ("train", "trainval", "test"),
    ("trainval", "val", "test"),
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("place", ["Main", "Segmentation", "."])
def test_lists_are_chosen_by_their_names(
    folder: Path, parts: tuple[str, ...], place: str, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (folder / "ImageSets" / "Main").iterdir():
        path.unlink()
    (folder / "ImageSets" / place).mkdir(exist_ok=True)
    listed = {"train": "2007_1", "val": "2007_2", "trainval": "2007_1\n2007_2", "test": "2007_3"}
    for part in parts:
        (folder / "ImageSets" / place / f"{part}.txt").write_text(listed[part])
    train, val = names(opened(folder))
    if "val" in parts and "train" in parts:
        assert (train, val) == (["2007_1.jpg"], ["2007_2.jpg"])
        assert caplog.messages == []
    else:
        assert train == ["2007_1.jpg", *["2007_2.jpg"] * ("trainval" in parts)]
        assert val == ["2007_3.jpg"]
        where = str(folder / "ImageSets" / place)
        assert caplog.messages == [f"{where!r} has no 'val.txt'; using 'test.txt' as the validation set"]


@pytest.mark.parametrize("parts", [("val",), ("test",), ("trainval", "val"), ("test", "val")])
def test_lists_without_training_images_are_refused(folder: Path, parts: tuple[str, ...]) -> None:
    lists = folder / "ImageSets" / "Main"
    for path in lists.iterdir():
        path.unlink()
    for part in parts:
        (lists / f"{part}.txt").write_text("2007_1\n")
    found = " and ".join(f"'{part}.txt'" for part in parts)
    assert refusal(folder) == (f"'DATA/ImageSets/Main' has {found} but no 'train.txt'; add the list of training images")


def test_images_and_annotations_without_a_counterpart_are_named(folder: Path) -> None:
    (folder / "ImageSets" / "Main" / "train.txt").write_text("2007_1\n2007_3\n2007_9\n")
    (folder / "JPEGImages" / "2007_3.jpg").unlink()
    (folder / "Annotations" / "2007_1.xml").unlink()
    assert refusal(folder) == (
        "4 problems in 'DATA': '2007_1' has no annotations in 'Annotations'; '2007_3' has no image in 'JPEGImages'; "
        "'2007_9' has no annotations in 'Annotations'; '2007_9' has no image in 'JPEGImages'"
    )


def test_an_image_beside_annotated_ones_needs_annotations_too(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    voc(tmp_path / "a.xml", CAT)
    assert refusal(tmp_path) == f"1 problem in 'DATA': 'b' has no annotations in {tmp_path.name!r}"


def test_two_images_of_one_name_are_refused(folder: Path) -> None:
    picture(folder / "JPEGImages" / "2007_1.png")
    assert refusal(folder) == "1 problem in 'DATA': '2007_1.jpg' and '2007_1.png' have the same name"


def test_a_list_without_names_or_with_one_twice_is_refused(folder: Path) -> None:
    path = folder / "ImageSets" / "Main" / "val.txt"
    path.write_text("\n")
    assert refusal(folder) == "'DATA/ImageSets/Main/val.txt' contains no image names"
    path.write_text("2007_2\n2007_2\n")
    assert refusal(folder) == "'DATA/ImageSets/Main/val.txt' contains '2007_2' twice"
    path.write_bytes("für\n".encode("latin-1"))
    assert refusal(folder).startswith("'DATA/ImageSets/Main/val.txt' is not UTF-8 text: 'utf-8' codec can't decode")


def test_annotations_without_objects_are_refused(folder: Path) -> None:
    voc(folder / "Annotations" / "2007_2.xml")
    assert refusal(folder) == "the annotations in 'DATA/Annotations' contain no objects"


def test_masks_are_refused_for_voc_boxes(folder: Path) -> None:
    with pytest.raises(DataError) as error:
        open_data(str(folder), "detection", masks=True)
    assert str(error.value) == (
        f"{str(folder)!r} is in Pascal VOC format, which has boxes only; masks need annotations in COCO or YOLO format"
    )
