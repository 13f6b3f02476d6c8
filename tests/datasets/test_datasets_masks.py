"""Folders of images and masks for segmentation."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data_sets import mask, picture

from featuretap.registry.errors import DataError
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data

VALUES = [[0, 1, 2, 255], [2, 2, 0, 0]]


def opened(folder: Path, val_fraction: float = 0.5) -> DataSet:
    return open_data(str(folder), "segmentation", val_fraction=val_fraction)


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        opened(folder)
    return str(error.value).replace(str(folder), "DATA")


def pair(images: Path, masks: Path, name: str, values: object = VALUES, mode: str = "L") -> None:
    picture(images / f"{name}.jpg", (4, 2))
    mask(masks / f"{name}.png", values, mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images and their three-class masks, not split into parts."""
    for name in ("a", "b"):
        pair(tmp_path / "images", tmp_path / "masks", name)
    return tmp_path


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images/{}", "masks/{}"), ("{}/images", "{}/masks")],
)
@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_parts_are_found(tmp_path: Path, images: str, masks: str, val: str) -> None:
    pair(tmp_path / images.format("train"), tmp_path / masks.format("train"), "town/a b")
    pair(tmp_path / images.format(val), tmp_path / masks.format(val), "ü")
    data = opened(tmp_path)
    assert [data.train[0].name, data.val[0].name] == [
        str(tmp_path / images.format("train") / "town" / "a b.jpg"),
        str(tmp_path / images.format(val) / "ü.jpg"),
    ]
    assert (data.task, data.train[0].label) == ("segmentation", None)


def test_without_parts_one_is_kept_for_validation(folder: Path) -> None:
    data = opened(folder)
    assert {data.train[0].name, data.val[0].name} == {str(folder / "images" / f"{name}.jpg") for name in "ab"}
    assert [len(data.train), len(data.val)] == [1, 1]


@pytest.mark.parametrize("lists", [("train", "val"), ("train",), ()])
def test_voc_folders_are_read(tmp_path: Path, lists: tuple[str, ...]) -> None:
    for name in ("one", "two", "three"):
        pair(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", name, mode="P")
    picture(tmp_path / "JPEGImages" / "without.jpg")
    named = tmp_path / "ImageSets" / "Segmentation"
    named.mkdir(parents=True)
    for part in lists:
        (named / f"{part}.txt").write_text("one\nthree\n" if part == "train" else "two\n")
    data = opened(tmp_path)
    found = [{Path(sample.name).stem for sample in part} for part in (data.train, data.val)]
    if lists == ("train", "val"):
        assert found == [{"one", "three"}, {"two"}]
    else:
        assert set.union(*found) == {"one", "three", *(["two"] if not lists else [])}


@pytest.mark.parametrize("place", ["Segmentation", "."])
def test_vocs_test_list_is_used_for_validation(tmp_path: Path, place: str) -> None:
    for name in ("one", "two", "three"):
        pair(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", name, mode="P")
    lists = tmp_path / "ImageSets" / place
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("one\nthree\n")
    (lists / "test.txt").write_text("two\n")
    data = opened(tmp_path)
    assert [{Path(sample.name).stem for sample in part} for part in (data.train, data.val)] == [
        {"one", "three"},
        {"two"},
    ]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_values_are_classes_whatever_the_palette(folder: Path, mode: str) -> None:
    for name in ("a", "b"):
        mask(folder / "masks" / f"{name}.png", VALUES, mode)
    image, found = opened(folder).train[0].read()
    with Image.open(folder / "masks" / "a.png") as written:
        assert written.mode == mode
    assert (image.size, image.mode, found.dtype, found.tolist()) == ((4, 2), "RGB", np.uint8, VALUES)
    assert found.flags.writeable


def test_a_mask_of_one_bit_has_two_classes(folder: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(np.array([[0, 1, 1, 0]] * 2, np.bool_)).save(folder / "masks" / f"{name}.png")
    data = opened(folder)
    assert (data.classes, data.train[0].read()[1].tolist()) == (("class 0", "class 1"), [[0, 1, 1, 0]] * 2)


def test_names_are_the_lines_of_a_file(folder: Path) -> None:
    (folder / "classes.txt").write_bytes("background\r\na cat \r\nKäfer\r\n\r\n".encode("utf-8-sig"))
    assert opened(folder).classes == ("background", "a cat", "Käfer")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has fewer than two classes; list all of them, the background first"),
        ("background\n", "has fewer than two classes; list all of them, the background first"),
        ("a\nb\na\n", "has the class 'a' twice; give each class a unique name"),
        ("\na\nb\n", "has an empty line in place of a class; give each class a unique name"),
        ("a\n\nb\n", "has an empty line in place of a class; give each class a unique name"),
        ("\n".join(map(str, range(256))), "has 256 classes; at most 255 are possible"),
    ],
)
def test_names_that_cannot_be_used_are_refused(folder: Path, text: str, problem: str) -> None:
    (folder / "classes.txt").write_text(text)
    assert refusal(folder) == f"'DATA/classes.txt' {problem}"


def test_names_in_another_encoding_are_refused(folder: Path) -> None:
    (folder / "classes.txt").write_bytes("a\nKäfer\n".encode("latin-1"))
    assert refusal(folder).startswith("'DATA/classes.txt' is not UTF-8 text: 'utf-8' codec can't decode byte 0xe4")


def test_masks_that_cannot_be_read_are_refused(folder: Path) -> None:
    whole = (folder / "masks" / "a.png").read_bytes()
    (folder / "masks" / "a.png").write_bytes(whole[:50])
    (folder / "masks" / "b.png").write_bytes(b"")
    assert refusal(folder).startswith("2 problems in 'DATA': the mask 'DATA/masks/a.png' is damaged: ")
    assert refusal(folder).endswith("; the mask 'DATA/masks/b.png' is empty")


@pytest.mark.parametrize(
    ("image", "mask_name"),
    [
        ("0", "0_mask"),
        ("town/1", "town/1-seg"),
        ("a b", "mask_a b"),
        ("x_sat", "x_mask"),
        ("1_leftImg8bit", "1_gtFine_labelIds"),
    ],
)
def test_names_may_say_that_a_file_is_a_mask(tmp_path: Path, image: str, mask_name: str) -> None:
    for name in (image, "7"):
        picture(tmp_path / "images" / f"{name}.jpg", (4, 2))
    mask(tmp_path / "masks" / f"{mask_name}.png", VALUES)
    mask(tmp_path / "masks" / "7_mask.png", VALUES)
    data = opened(tmp_path)
    for sample in (data.train[0], data.val[0]):
        assert sample.read()[1].tolist() == VALUES
    assert {Path(sample.name).stem for sample in (data.train[0], data.val[0])} == {Path(image).name, "7"}


@pytest.mark.parametrize("parts", [[""], ["train", "valid"]])
def test_masks_may_lie_beside_the_images(tmp_path: Path, parts: list[str]) -> None:
    for part in parts:
        for name in ("0", "1"):
            picture(tmp_path / part / f"{name}.jpg", (4, 2))
            mask(tmp_path / part / f"{name}_mask.png", VALUES)
    data = opened(tmp_path)
    assert (len(data.train), len(data.val)) == ((1, 1) if parts == [""] else (2, 2))
    assert data.train[0].name.endswith(".jpg")
    assert data.train[0].read()[1].tolist() == VALUES


def test_roboflows_table_lies_in_the_training_part(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        picture(tmp_path / part / "1.jpg", (4, 2))
        mask(tmp_path / part / "1_mask.png", VALUES)
        (tmp_path / part / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    assert opened(tmp_path).classes == ("background", "cat", "dog")


def test_two_masks_for_one_image_are_named(folder: Path) -> None:
    picture(folder / "images" / "c.jpg", (4, 2))
    for name in ("c_mask", "c_label"):
        mask(folder / "masks" / f"{name}.png", VALUES)
    assert refusal(folder).startswith("3 problems in 'DATA': the image 'c' has no mask in 'DATA/masks'; the mask ")


def test_images_and_masks_without_a_counterpart_are_named(folder: Path) -> None:
    picture(folder / "images" / "c.jpg")
    mask(folder / "masks" / "d.png", VALUES)
    assert refusal(folder) == (
        "2 problems in 'DATA': the image 'c' has no mask in 'DATA/masks'; the mask 'd' has no image in 'DATA/images'"
    )


def test_two_images_of_one_name_are_refused(folder: Path) -> None:
    picture(folder / "images" / "a.png")
    assert refusal(folder) == "1 problem in 'DATA': 'a.jpg' and 'a.png' in 'DATA/images' have the same name"


def test_other_folders_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    assert refusal(tmp_path) == (
        "'DATA' has no folders 'images' and 'masks'; put images into 'images' and PNG masks with the same names into "
        "'masks', or use Pascal VOC folders"
    )


def test_a_part_without_masks_is_refused(tmp_path: Path) -> None:
    pair(tmp_path / "images" / "train", tmp_path / "masks" / "train", "a")
    picture(tmp_path / "images" / "val" / "a.jpg")
    assert refusal(tmp_path) == "no folder 'DATA/masks/val'; each image needs a mask with the same name"


def test_an_empty_folder_of_images_is_refused(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    assert refusal(tmp_path) == "'DATA/images' contains no images"


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        (
            "masks/a.png",
            [[0, 3, 255, 0]] * 2,
            "has the value 3, but the 3 classes have the values 0 to 2, and ignored pixels the value 255",
        ),
        ("masks/a.png", [[0, 1, 2]] * 2, "is 3×2, but its image is 4×2"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(folder: Path, name: str, values: object, problem: str) -> None:
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    data = opened(folder)
    part = next(part for part in (data.train, data.val) if Path(part[0].name).stem == "a")
    assert part[0].check() == ""
    path = mask(folder / name, values)
    assert part[0].check() == f"the mask {str(path)!r} {problem}"
    with pytest.raises(DataError) as error:
        part[0].read()
    assert str(error.value) == f"the mask {str(path)!r} {problem}"


def test_a_bad_image_or_mask_is_noticed_by_the_check(folder: Path) -> None:
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    data = opened(folder)
    path = next(folder.glob(f"masks/{Path(data.train[0].name).stem}.png"))
    path.write_bytes(b"")
    assert data.train[0].check() == f"the mask {str(path)!r} is empty"
    Path(data.train[0].name).write_bytes(b"")
    assert data.train[0].check() == f"{data.train[0].name!r} is empty"


def test_an_open_data_set_can_be_pickled(folder: Path) -> None:
    data = opened(folder)
    assert pickle.loads(pickle.dumps(data)) == data
