"""Data sets with annotations in COCO format."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO
from faster_coco_eval.core import mask as mask_api
from support.data_sets import a_box, coco, picture

from featuretap.registry.errors import DataError
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data

NO_OUTLINE = "has no 'segmentation' with polygons or run lengths, which masks need"
WELL = [a_box(11, 1, [1, 2, 3, 4]), a_box(12, 2, [0, 0, 12, 8], category=3)]


def opened(folder: Path, **options: Any) -> DataSet:
    return open_data(str(folder), "detection", **options)


def refusal(folder: Path, **options: Any) -> str:
    """Return the error message, with the folder replaced by DATA."""
    with pytest.raises(DataError) as error:
        opened(folder, **options)
    return str(error.value).replace(str(folder), "DATA")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images of 12×8 pixels and no annotations yet."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    return tmp_path


def two_parts(folder: Path, train: str, train_images: str, val: str, val_images: str) -> Path:
    coco(folder / train, WELL)
    coco(folder / val, [a_box(13, 1, [5, 5, 1, 1])], ("c.png",))
    for name in ("a.png", "b.png"):
        picture(folder / train_images / name)
    picture(folder / val_images / "c.png")
    return folder


@pytest.mark.parametrize(
    ("train", "train_images", "val", "val_images"),
    [
        ("annotations/instances_train2017.json", "train2017", "annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_train.json", "train", "annotations/instances_val.json", "val"),
        ("annotations/instances_train.json", "images/train", "annotations/instances_val.json", "images/val"),
        ("annotations/instances_train2017.json", "images", "annotations/instances_val2017.json", "images"),
        ("annotations/train.json", "train", "annotations/valid.json", "valid"),
        ("train.json", "images", "val.json", "images"),
        ("train/_annotations.coco.json", "train", "valid/_annotations.coco.json", "valid"),
        ("train/_annotations.coco.json", "train", "test/_annotations.coco.json", "test"),
    ],
)
def test_parts_are_found_where_tools_write_them(
    tmp_path: Path, train: str, train_images: str, val: str, val_images: str
) -> None:
    data = opened(two_parts(tmp_path, train, train_images, val, val_images))
    assert [data.train[index].name for index in range(2)] == [
        str(tmp_path / train_images / n) for n in ("a.png", "b.png")
    ]
    assert [sample.name for sample in data.val] == [str(tmp_path / val_images / "c.png")]
    assert (data.task, data.classes, data.train[0].label) == ("detection", ("dog", "cat"), None)


def test_cocos_other_annotations_are_passed_over(tmp_path: Path) -> None:
    two_parts(
        tmp_path, "annotations/instances_train2017.json", "images", "annotations/instances_val2017.json", "images"
    )
    for name in ("captions_train2017", "person_keypoints_train2017", "captions_val2017"):
        (tmp_path / "annotations" / f"{name}.json").write_text("{}")
    assert len(opened(tmp_path).train) == 2


def test_boxes_and_labels_are_those_that_the_coco_api_reads(folder: Path) -> None:
    annotations = [
        a_box(1, 1, [1, 2, 3, 4]),
        a_box(2, 2, [0.5, 0.25, 4, 2.5], category=3, iscrowd=1),
        a_box(3, 1, [8, 1, 4, 7], category=3),
    ]
    coco(folder / "annotations" / "instances_val.json", annotations)
    theirs = COCO(str(coco(folder / "annotations" / "instances_train.json", annotations)))
    data = opened(folder)
    for index, number in enumerate(theirs.getImgIds()):
        image, boxes = data.train[index].read()
        found = theirs.loadAnns(theirs.getAnnIds(imgIds=[number]))
        assert data.train[index].name == str(folder / theirs.imgs[number]["file_name"])
        assert (image.size, image.mode) == ((12, 8), "RGB")
        assert boxes.boxes.tolist() == [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in found)]
        assert [data.classes[label] for label in boxes.labels] == [
            theirs.cats[entry["category_id"]]["name"] for entry in found
        ]
        assert boxes.ignored.tolist() == [entry["iscrowd"] == 1 for entry in found]
        assert (boxes.boxes.dtype, boxes.labels.dtype, boxes.ignored.dtype) == (np.float32, np.int64, np.bool_)
        assert boxes.masks is None


@pytest.mark.parametrize(
    ("place", "images"),
    [
        ("data.json", "."),
        ("data.json", "images"),
        ("annotations/instances_default.json", "."),
        ("annotations/instances_default.json", "images/default"),
    ],
)
def test_a_part_of_one_files_images_is_kept_for_validation(tmp_path: Path, place: str, images: str) -> None:
    names = tuple(f"{number}.png" for number in range(10))
    coco(tmp_path / place, [a_box(n, n, [0, 0, 2, 2], category=3 if n < 3 else 7) for n in range(1, 11)], names)
    for name in names:
        picture(tmp_path / images / name)
    data = opened(tmp_path, val_fraction=0.3)
    train, val = ({sample.name for sample in part} for part in (data.train, data.val))
    assert (len(train), len(val)) == (7, 3)
    assert {Path(name).name for name in train | val} == set(names)
    assert sorted({label for index in range(3) for label in data.val[index].read()[1].labels.tolist()}) == [0, 1]


def test_images_are_in_the_order_of_their_ids(folder: Path) -> None:
    images = [{"id": 3 - n, "file_name": name, "width": 12, "height": 8} for n, name in enumerate(("a.png", "b.png"))]
    for part in ("train", "val"):
        coco(folder / f"{part}.json", [a_box(1, 3, [0, 0, 2, 2])], images=images)
    data = opened(folder)
    assert [Path(data.train[index].name).name for index in range(2)] == ["b.png", "a.png"]


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".ipynb_checkpoints"])
def test_folders_of_the_system_are_no_parts(folder: Path, name: str) -> None:
    objects = [a_box(number, number, [0, 0, 2, 2]) for number in (1, 2)]
    coco(folder / "data.json", objects)
    coco(folder / name / "_annotations.coco.json", objects)
    assert len(opened(folder).train) == 1


def test_images_without_objects_stay(folder: Path) -> None:
    picture(folder / "c.png")
    coco(folder / "train.json", WELL[:1], ("a.png", "b.png", "c.png"))
    coco(folder / "val.json", WELL)
    _, boxes = opened(folder).train[2].read()
    assert (boxes.boxes.shape, boxes.labels.shape, boxes.ignored.shape) == ((0, 4), (0,), (0,))


def test_a_box_may_reach_one_pixel_beyond_the_image_and_is_clipped(folder: Path) -> None:
    coco(folder / "train.json", [a_box(1, 1, [-1, -0.5, 14, 9.5]), a_box(2, 2, [11.5, 7, 0.75, 1])])
    coco(folder / "val.json", WELL)
    data = opened(folder)
    assert data.train[0].read()[1].boxes.tolist() == [[0, 0, 12, 8]]
    assert data.train[1].read()[1].boxes.tolist() == [[11.5, 7, 12, 8]]


@pytest.mark.parametrize(
    "box",
    [[3, 3, 2, 0], [3, 3, 0, 2], [3, 3, 2, 1e-12], [3, 3, 1e-12, 2], [12.25, 0, 0.5, 8], [11.999999999, 0, 0.5, 8]],
)
def test_an_object_without_area_is_left_out_and_named(
    folder: Path, box: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    coco(folder / "train.json", [*WELL, a_box(5, 1, box)])
    coco(folder / "val.json", WELL)
    assert len(opened(folder).train[0].read()[1].boxes) == 1
    path = str(folder / "train.json")
    assert caplog.messages == [f"skipped 1 object without width or height in {path!r}: annotation 5 of 'a.png'"]


@pytest.mark.parametrize(
    ("box", "corners", "clipped"),
    [
        ([0, 0, 13.5, 8], "0, 0, 13.5, 8", [[0, 0, 12, 8]]),
        ([-2, 0, 5, 9.5], "-2, 0, 3, 9.5", [[0, 0, 3, 8]]),
        ([20, 20, 2, 2], "20, 20, 22, 22", []),
    ],
)
def test_a_tenth_of_the_boxes_may_reach_beyond_and_is_clipped(
    folder: Path, box: list[float], corners: str, clipped: list[list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    others = [a_box(number, 2, [0, 0, 12, 8]) for number in range(1, 10)]
    coco(folder / "val.json", WELL)
    path = str(coco(folder / "train.json", [a_box(10, 1, box), *others]))
    assert opened(folder).train[0].read()[1].boxes.tolist() == clipped
    where = f"annotation 10 of 'a.png' has a box from {corners} in an image of 12×8"
    assert caplog.messages == [f"clipped 1 of 10 boxes in {path!r} that extend beyond their images: {where}"]
    coco(folder / "train.json", [a_box(10, 1, box), *others[1:]])
    assert refusal(folder) == (
        f"1 of 9 boxes in 'DATA/train.json' extend beyond their images, more than 10%: {where}; check that boxes are "
        "x, y, width, height in pixels of these images"
    )


def test_normalised_boxes_are_refused(folder: Path) -> None:
    coco(folder / "data.json", [a_box(1, 1, [0.1, 0.2, 0.3, 0.4]), a_box(2, 2, [0, 0, 1, 1])])
    assert refusal(folder) == (
        "all boxes in 'DATA/data.json' are between 0 and 1, as if normalized; convert them to x, y, width, height in "
        "pixels"
    )


def test_numbers_may_be_whole_floats(folder: Path) -> None:
    images = [{"id": float(n), "file_name": name, "width": 12.0, "height": 8.0} for n, name in enumerate("ab", 1)]
    for image in images:
        image["file_name"] = f"{image['file_name']}.png"
    outline = {"segmentation": {"size": [8.0, 12.0], "counts": [90, 6]}}
    for part in ("train", "val"):
        coco(folder / f"{part}.json", [a_box(1, 1, [0, 0, 2, 2], category=7.0, **outline)], images=images)  # type: ignore[arg-type]
    sample = opened(folder, masks=True).train[0]
    assert sample.check() == ""
    assert sample.read()[1].masks.sum() == 6


ROBOFLOW = [
    {"id": 0, "name": "pets", "supercategory": "none"},
    {"id": 1, "name": "cat", "supercategory": "pets"},
    {"id": 2, "name": "pets", "supercategory": "pets"},
]


def test_a_root_that_no_object_is_of_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val"):
        coco(folder / f"{part}.json", [a_box(1, 1, [0, 0, 2, 2], category=2)], categories=ROBOFLOW)
    data = opened(folder)
    assert (data.classes, data.train[0].read()[1].labels.tolist()) == (("cat", "pets"), [1])
    path = str(folder / "train.json")
    assert caplog.messages[0] == f"skipped the supercategory 'pets' of {path!r}, which has no objects"


def test_categories_of_one_name_are_merged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects = [a_box(n, 1, [0, 0, 2, 2], category=n) for n in range(3)]
    for part in ("train", "val"):
        coco(folder / f"{part}.json", objects, categories=ROBOFLOW)
    data = opened(folder)
    assert (data.classes, data.train[0].read()[1].labels.tolist()) == (("pets", "cat"), [0, 1, 0])
    path = str(folder / "train.json")
    assert caplog.messages[0] == f"merged 2 categories named 'pets' in {path!r}"


def test_a_category_may_be_its_own_supercategory(folder: Path) -> None:
    people = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 7, "name": "cat", "supercategory": "pet"}]
    for part in ("train", "val"):
        coco(folder / f"{part}.json", [a_box(1, 1, [0, 0, 2, 2])], categories=people)
    assert opened(folder).classes == ("person", "cat")


@pytest.mark.parametrize("place", ["annotations/instances_{}.json", "instances_{}2017.json", "{}.json"])
def test_test_annotations_are_used_for_validation(tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    two_parts(tmp_path, place.format("train"), "images", place.format("test"), "images")
    assert [Path(sample.name).name for sample in opened(tmp_path).val] == ["c.png"]
    name = Path(place.format("test")).name
    assert caplog.messages == [f"{str(tmp_path)!r} has no annotations for 'val'; using {name!r} as the validation set"]


def test_validation_may_number_and_lack_categories_as_it_likes(folder: Path) -> None:
    coco(folder / "train.json", WELL)
    coco(folder / "val.json", [a_box(1, 1, [0, 0, 2, 2], category=1)], categories=[{"id": 1, "name": "cat"}])
    data = opened(folder)
    assert [data.classes[label] for label in data.val[0].read()[1].labels] == ["cat"]


def test_an_open_data_set_can_be_pickled(folder: Path) -> None:
    outline = {"segmentation": [[0, 0, 4, 0, 4, 4]]}
    coco(folder / "train.json", [{**entry, **outline} for entry in WELL])
    coco(folder / "val.json", [{**entry, **outline} for entry in WELL])
    data = pickle.loads(pickle.dumps(opened(folder, masks=True)))
    assert data.train[1].read()[1].masks.shape == (1, 8, 12)


@pytest.mark.parametrize(
    ("annotation", "problem"),
    [
        (a_box(9, 1, [3, 3, -2, 2]), "of 'a.png' has a box of negative size"),
        (a_box(9, 1, [3, 3, 2, -2]), "of 'a.png' has a box of negative size"),
        (a_box(9, 1, [3, 3, 2]), "of 'a.png' has no 'bbox' of four numbers"),
        (a_box(9, 1, [3, 3, 2, "2"]), "of 'a.png' has no 'bbox' of four numbers"),
        (a_box(9, 1, [3, 3, 2, float("nan")]), "of 'a.png' has no 'bbox' of four numbers"),
        (a_box(9, 1, [3, 3, 2, 10**400]), "of 'a.png' has no 'bbox' of four numbers"),
        (a_box(9, 1, [3, 3, 2, 2], category=4), "of 'a.png' has category_id 4, which does not exist"),
        (a_box(9, 1, [3, 3, 2, 2], category=[]), "of 'a.png' has category_id [], which is not an integer"),
        (a_box(9, 77, [3, 3, 2, 2]), "has image_id 77, which does not exist"),
        ({"id": 9}, "has image_id None, which is not an integer"),
    ],
)
def test_an_impossible_annotation_is_named(folder: Path, annotation: dict[str, Any], problem: str) -> None:
    coco(folder / "data.json", [*WELL, annotation])
    assert refusal(folder) == f"1 problem in 'DATA/data.json': annotation 9 {problem}"


def test_an_annotation_of_another_kind_is_named(folder: Path) -> None:
    coco(folder / "data.json", [*WELL, 9])
    assert refusal(folder) == "1 problem in 'DATA/data.json': annotation 9 is not a JSON object"


def test_all_problems_are_counted_and_the_first_are_named(folder: Path) -> None:
    coco(folder / "data.json", [a_box(number, 1, [0, 0, -1, 1]) for number in range(7)])
    named = "; ".join(f"annotation {number} of 'a.png' has a box of negative size" for number in range(5))
    assert refusal(folder) == f"7 problems in 'DATA/data.json': {named}; and 2 more"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"categories": [{"id": 7, "name": "cat"}, {"id": 7, "name": "dog"}]}, "category 7 occurs twice"),
        (
            {"categories": [{"id": "7", "name": "cat"}]},
            "category {'id': '7', 'name': 'cat'} has id '7', which is not an integer",
        ),
        ({"images": ["a.png"]}, "image 'a.png' is not a JSON object"),
        (
            {"images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 0}]},
            "image 1, 'a.png', has no valid width and height",
        ),
        (
            {"images": [{"id": 1, "file_name": name, "width": 12, "height": 8} for name in ("a.png", "b.png")]},
            "image 1 occurs twice",
        ),
        (
            {"images": [{"id": number, "file_name": "a.png", "width": 12, "height": 8} for number in (1, 2)]},
            "several images have the file 'DATA/a.png'",
        ),
        (
            {"images": [{"id": 1, "file_name": "z.png", "width": 12, "height": 8}]},
            "the image 'z.png' is missing (looked in 'DATA/data' or 'DATA/train' or 'DATA/images/data' or "
            "'DATA/images/train' or 'DATA/images' or 'DATA')",
        ),
    ],
)
def test_impossible_categories_and_images_are_named(folder: Path, changes: dict[str, Any], problem: str) -> None:
    coco(folder / "data.json", WELL, **changes)
    assert refusal(folder) == f"1 problem in 'DATA/data.json': {problem}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "is not a COCO detection file: it has no list 'images'"),
        ('{"images": [{}]}', "is not a COCO detection file: it has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "has an empty list 'images'"),
        ('{"images": [{}], "annotations": [], "categories": [{}]}', "has an empty list 'annotations'"),
        ('{"images": [{}], "annotations": [{}], "categories": []}', "has an empty list 'categories'"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(folder: Path, text: str, problem: str) -> None:
    (folder / "data.json").write_text(text)
    assert refusal(folder) == f"'DATA/data.json' {problem}"


def test_a_file_nested_without_end_is_refused(folder: Path) -> None:
    (folder / "data.json").write_text("[" * 100_000)
    assert refusal(folder).startswith("'DATA/data.json' is not JSON: maximum recursion depth exceeded")


def test_a_file_of_objects_without_size_only_is_refused(folder: Path) -> None:
    coco(folder / "data.json", [a_box(1, 1, [0, 0, 0, 2])])
    assert (
        refusal(folder) == "'DATA/data.json' has no annotations of objects; training and evaluation need at least one"
    )


def test_a_validation_category_missing_from_training_is_named(folder: Path) -> None:
    coco(folder / "train.json", WELL)
    coco(folder / "val.json", [a_box(1, 1, [0, 0, 2, 2], category=1)], categories=[{"id": 1, "name": "emu"}])
    assert refusal(folder) == (
        "'DATA/val.json' has categories that 'DATA/train.json' does not have: 'emu'; each validation class "
        "needs training images"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [],
            "'DATA' has no JSON file; detection needs one annotation file in COCO format, or "
            "'annotations/instances_train.json' and 'annotations/instances_val.json', or Pascal VOC folders",
        ),
        (
            ["x.json", "y.json"],
            "'DATA' has the JSON files 'x.json', 'y.json'; detection needs one annotation file in COCO format, or "
            "'annotations/instances_train.json' and 'annotations/instances_val.json', or Pascal VOC folders",
        ),
        (
            ["instances_train2014.json", "instances_train2017.json"],
            "'DATA' has 'instances_train2014.json' and 'instances_train2017.json'; keep only the file for 'train'",
        ),
        (["val.json"], "'DATA' has 'val.json' but no annotations of training images; add 'instances_train.json'"),
    ],
)
def test_the_wrong_number_of_files_is_refused(folder: Path, files: list[str], message: str) -> None:
    for name in files:
        coco(folder / name, WELL)
    assert refusal(folder) == message


@pytest.mark.parametrize(
    ("size", "turned"), [((11, 8), ""), ((8, 12), " (the image may have been rotated after annotation)")]
)
def test_an_image_of_another_size_than_annotated_is_noticed(folder: Path, size: tuple[int, int], turned: str) -> None:
    picture(folder / "b.png", size)
    coco(folder / "train.json", WELL)
    coco(folder / "val.json", WELL)
    data = opened(folder)
    message = f"{str(folder / 'b.png')!r} is {size[0]}×{size[1]}, but its annotations are for 12×8{turned}"
    assert [data.train[0].check(), data.train[1].check()] == ["", message]
    with pytest.raises(DataError) as error:
        data.train[1].read()
    assert str(error.value) == message


def test_masks_of_polygons_and_run_lengths_are_the_areas_that_they_mean(folder: Path) -> None:
    area = np.zeros((8, 12), np.uint8)
    area[2:5, 3:9] = 1
    lengths = mask_api.encode(np.asfortranarray(area))
    # COCO's run lengths are in column-major order and start with the background.
    changes = np.flatnonzero(np.diff(area.T.ravel(), append=1 - area[-1, -1]))
    plain = np.diff(changes, prepend=-1).tolist()
    segmentations = [
        [[3, 2, 9, 2, 9, 5, 3, 5]],
        [[3, 2, 6, 2, 6, 5, 3, 5], [6, 2, 9, 2, 9, 5, 6, 5]],
        {"size": [8, 12], "counts": lengths["counts"].decode()},
        {"size": [8, 12], "counts": plain},
    ]
    entries = [a_box(n, 1, [3, 2, 6, 3], segmentation=s) for n, s in enumerate(segmentations, 1)]
    coco(folder / "train.json", entries)
    coco(folder / "val.json", entries)
    _, boxes = opened(folder, masks=True).train[0].read()
    assert boxes.masks is not None
    assert (boxes.masks.dtype, boxes.masks.shape) == (np.uint8, (4, 8, 12))
    for found in boxes.masks:
        assert np.array_equal(found, area)
    _, nothing = opened(folder, masks=True).train[1].read()
    assert nothing.masks is not None
    assert nothing.masks.shape == (0, 8, 12)


@pytest.mark.parametrize(
    ("outline", "problem"),
    [
        ({}, NO_OUTLINE),
        ({"segmentation": []}, NO_OUTLINE),
        ({"segmentation": [[1, 2, 3, 4]]}, NO_OUTLINE),
        (
            {"segmentation": {"counts": [96], "size": [12, 8]}},
            "has a mask of size [12, 8] (height, width) in an image of 12×8",
        ),
        *(
            ({"segmentation": {"counts": counts, "size": [8, 12]}}, NO_OUTLINE)
            for counts in (3, [1.5], [-1, 97], ["1"], [10**30], [True])
        ),
        (
            {"segmentation": {"counts": [90, 10], "size": [8, 12]}},
            "has invalid run lengths: RLE counts exceed the mask dimensions.",
        ),
        (
            {"segmentation": {"counts": "o", "size": [8, 12]}},
            "has invalid run lengths: RLE string is malformed: early end.",
        ),
    ],
)
def test_a_missing_or_impossible_mask_is_named(folder: Path, outline: dict[str, Any], problem: str) -> None:
    coco(folder / "data.json", [a_box(4, 1, [0, 0, 2, 2], **outline)])
    assert refusal(folder, masks=True) == f"1 problem in 'DATA/data.json': annotation 4 of 'a.png' {problem}"


def test_segmentations_are_not_checked_when_masks_are_not_asked_for(folder: Path) -> None:
    coco(folder / "train.json", [a_box(4, 1, [0, 0, 2, 2], segmentation="?")])
    coco(folder / "val.json", WELL)
    assert opened(folder).train[0].read()[1].masks is None


def test_a_file_written_with_a_byte_order_mark_is_read(folder: Path) -> None:
    coco(folder / "val.json", WELL[:1], categories=[{"id": 7, "name": "Käfer"}])
    path = coco(folder / "train.json", WELL[:1], categories=[{"id": 7, "name": "Käfer"}])
    path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode("utf-8-sig"))
    assert opened(folder).classes == ("Käfer",)


def test_names_of_windows_are_paths_inside_the_data_set(tmp_path: Path) -> None:
    names = ("photos\\a.png", "photos\\b.png")
    for name in ("a.png", "b.png"):
        picture(tmp_path / "images" / "photos" / name)
    objects = [a_box(number, number, [1, 2, 3, 4]) for number in (1, 2)]
    coco(tmp_path / "result.json", objects, names)
    data = opened(tmp_path)
    assert sorted(Path(sample.name).name for sample in (*data.train, *data.val)) == ["a.png", "b.png"]
    picture(tmp_path.parent / "outside.png")
    coco(tmp_path / "result.json", objects, ("..\\outside.png", names[1]))
    assert "outside the data set" in refusal(tmp_path)
