"""Image folders for classification."""

import pickle
import re
from pathlib import Path

import pytest
from PIL import Image
from support.data_sets import classes_of, labels_of, picture
from torchvision.datasets import ImageFolder

from featuretap.registry.errors import DataError, ImageError
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data


def opened(folder: Path, **options: float) -> DataSet:
    return open_data(str(folder), "classification", **options)


def names(data: DataSet) -> tuple[list[str], list[str]]:
    train, val = ([Path(sample.name).name for sample in part] for part in (data.train, data.val))
    return train, val


def together(data: DataSet) -> list[str]:
    train, val = names(data)
    return sorted([*train, *val])


def refusal(folder: Path) -> str:
    """Return the error message, with the folder replaced by DATA."""
    with pytest.raises(DataError) as error:
        opened(folder)
    return str(error.value).replace(str(folder), "DATA")


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "test"])
def test_parts_are_read_as_torchvision_reads_them(tmp_path: Path, val: str) -> None:
    classes_of(tmp_path / "train", cat=3, dog=2)
    classes_of(tmp_path / val, cat=1, dog=2)
    data = opened(tmp_path)
    for ours, folder in ((data.train, "train"), (data.val, val)):
        theirs = ImageFolder(tmp_path / folder)
        assert [(sample.name, sample.label) for sample in ours] == theirs.samples
        assert list(data.classes) == theirs.classes
    assert data.task == "classification"
    assert data.mirrors


def test_validating_on_a_test_set_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "test"):
        classes_of(tmp_path / part, cat=1, dog=1)
    opened(tmp_path)
    assert caplog.messages == [f"{str(tmp_path)!r} has no 'val'; using 'test' as the validation set"]


def test_a_test_set_beside_one_for_validation_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "val", "test"):
        classes_of(tmp_path / part, cat=1, dog=1)
    data = opened(tmp_path)
    assert Path(data.val[0].name).parts[-3] == "val"
    assert caplog.messages == []


@pytest.mark.parametrize("inside", [".", "train"])
def test_a_part_is_kept_for_validation_where_none_is_given(tmp_path: Path, inside: str) -> None:
    classes_of(tmp_path / inside, cat=10, dog=5)
    data = opened(tmp_path, val_fraction=0.2)
    train, val = names(data)
    assert (len(train), len(val)) == (12, 3)
    assert sorted(re.sub(r"\d.png", "", name) for name in val) == ["cat", "cat", "dog"]
    assert set(train) | set(val) == {path.name for path in tmp_path.rglob("*.png")}
    assert names(opened(tmp_path, val_fraction=0.2)) == (train, val)
    assert names(opened(tmp_path, val_fraction=0.2, seed=1)) != (train, val)


def test_where_the_folder_lies_does_not_change_the_choice(tmp_path: Path) -> None:
    assert names(opened(classes_of(tmp_path / "here", cat=9, dog=9))) == names(
        opened(classes_of(tmp_path / "there", cat=9, dog=9))
    )


def test_classes_are_sorted_as_text(tmp_path: Path) -> None:
    folder = classes_of(tmp_path, **{"10": 2, "9": 2, "Zebra": 2, "a cat": 2, "éléphant": 2})
    assert opened(folder).classes == ("10", "9", "Zebra", "a cat", "éléphant")
    assert list(opened(folder).classes) == ImageFolder(folder).classes


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert opened(classes_of(tmp_path, bus=2, train=2)).classes == ("bus", "train")


def test_images_in_folders_below_a_class_are_of_it(tmp_path: Path) -> None:
    folder = classes_of(tmp_path, cat=2, dog=2)
    picture(folder / "cat" / "old" / "deeper" / "c.png")
    assert "c.png" in together(opened(folder))


def test_endings_in_upper_case_and_links_count_and_hidden_files_do_not(tmp_path: Path) -> None:
    folder = classes_of(tmp_path / "data", cat=2, dog=2)
    picture(folder / "cat" / "LOUD.JPG")
    picture(folder / "cat" / ".ipynb_checkpoints" / "copy.png")
    picture(folder / "dog" / ".hidden.png")
    (folder / ".cache").mkdir()
    (folder / "cat" / "Thumbs.db").touch()
    (folder / "emu").symlink_to(classes_of(tmp_path / "elsewhere", emu=2) / "emu")
    (folder / "emu" / "round").symlink_to(folder / "emu")
    (folder / "dog" / "more").symlink_to(classes_of(tmp_path / "elsewhere", hound=1) / "hound")
    data = opened(folder)
    assert data.classes == ("cat", "dog", "emu")
    assert together(data) == sorted(
        ["LOUD.JPG", "cat0.png", "cat1.png", "dog0.png", "dog1.png", "emu0.png", "emu1.png", "hound0.png"]
    )


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found"])
def test_folders_of_the_system_are_neither_classes_nor_hold_images(tmp_path: Path, name: str) -> None:
    classes_of(tmp_path, cat=2, dog=2)
    for place in (tmp_path / name, tmp_path / "cat" / name, tmp_path / "dog" / "indoors" / name / "below"):
        picture(place / "thumbnail.png")
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog")
    assert "thumbnail.png" not in together(data)


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    folder = classes_of(tmp_path, cat=2, dog=2)
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = opened(folder)
    problems = [sample.check() for part in (data.train, data.val) for sample in part]
    path = str(folder / "cat" / "gone.png")
    assert [problem for problem in problems if problem] == [
        f"cannot read the image {path!r}: No such file or directory"
    ]


def test_images_come_upright_with_their_labels(tmp_path: Path) -> None:
    folder = classes_of(tmp_path / "train", cat=1, dog=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (12, 8), 200).save(folder / "dog" / "turned.jpg", exif=exif)
    classes_of(tmp_path / "val", cat=1)
    image, label = opened(tmp_path).train[2].read()
    assert (image.size, image.mode, label) == ((8, 12), "RGB", 1)


def test_validation_may_lack_a_class(tmp_path: Path) -> None:
    classes_of(tmp_path / "train", cat=1, dog=1)
    classes_of(tmp_path / "val", dog=1)
    data = opened(tmp_path)
    assert (data.classes, labels_of(data.val)) == (("cat", "dog"), [1])


def test_an_open_data_set_can_be_pickled(tmp_path: Path) -> None:
    data = opened(classes_of(tmp_path, cat=2, dog=2))
    assert pickle.loads(pickle.dumps(data)) == data


def test_an_image_that_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    folder = classes_of(tmp_path, cat=2, dog=2)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    data = opened(folder)
    with pytest.raises(ImageError):
        data.train[0].read()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "'DATA' contains no images; create a folder of images per class, such as 'DATA/cat'"


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert refusal(tmp_path) == (
        "'DATA' contains images but no class folders; create a folder of images per class, such as 'DATA/cat'"
    )


def test_class_folders_without_any_image_are_refused(tmp_path: Path) -> None:
    assert refusal(classes_of(tmp_path, cat=0, dog=0)) == (
        "'DATA' contains no images; supported suffixes are .apng, .avif, .avifs, .bmp, .dib, .gif, .j2c, .j2k, .jfif, "
        ".jp2, .jpc, .jpe, .jpeg, .jpf, .jpg, .jpx, .mpo, .pbm, .pgm, .png, .pnm, .ppm, .tif, .tiff, .webp"
    )


def test_one_class_is_refused(tmp_path: Path) -> None:
    assert refusal(classes_of(tmp_path, cat=3)) == "'DATA' has only the class 'cat'; classification needs at least two"


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_folder_without_images_is_named(tmp_path: Path, part: str) -> None:
    for other in ("train", "val"):
        classes_of(tmp_path / other, bee=1, cat=1, **({"dog": 0, "emu": 0} if other == part else {"dog": 1, "emu": 1}))
    assert refusal(tmp_path) == (
        f"'DATA/{part}' has class folders without images: 'dog', 'emu'; add images, or remove the folders"
    )


def test_a_validation_class_missing_from_training_is_named(tmp_path: Path) -> None:
    classes_of(tmp_path / "train", cat=1, dog=1)
    classes_of(tmp_path / "val", cat=1, emu=1)
    assert refusal(tmp_path) == (
        "'DATA/val' has classes that 'DATA/train' does not have: 'emu'; each validation class needs training images"
    )


@pytest.mark.parametrize(("count", "counted"), [(1, "1 image is"), (2, "2 images are")])
def test_images_beside_class_folders_are_refused(tmp_path: Path, count: int, counted: str) -> None:
    folder = classes_of(tmp_path, cat=2, dog=2)
    for number in range(count):
        picture(folder / f"loose{number}.png")
    assert refusal(folder) == (
        f"{counted} next to the class folders of 'DATA', such as 'loose0.png'; move each image into a class folder, or "
        "out of the data set"
    )


def test_several_folders_for_validation_are_refused(tmp_path: Path) -> None:
    for part in ("train", "val", "validation"):
        classes_of(tmp_path / part, cat=1, dog=1)
    assert refusal(tmp_path) == "'DATA' has 'val' and 'validation'; keep only the validation folder"


def test_data_without_training_images_is_refused(tmp_path: Path) -> None:
    classes_of(tmp_path / "val", cat=1, dog=1)
    assert refusal(tmp_path) == "'DATA' has 'val' but no 'train'; add the training images"


def test_a_single_image_of_every_class_cannot_be_divided(tmp_path: Path) -> None:
    assert refusal(classes_of(tmp_path, cat=1, dog=1)) == (
        "'DATA' has no class with two images, so none can be held out for validation; add images, or create folders "
        "'train' and 'val'"
    )


def test_folders_with_images_beside_the_parts_are_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes_of(tmp_path / "train", cat=2, dog=2)
    classes_of(tmp_path / "val", cat=1, dog=1)
    classes_of(tmp_path / "test", cat=1)
    (tmp_path / "notes").mkdir()
    assert opened(tmp_path).classes == ("cat", "dog")
    assert caplog.messages == []
    classes_of(tmp_path, bird=1)
    opened(tmp_path)
    classes_of(tmp_path, fish=3)
    assert opened(tmp_path).classes == ("cat", "dog")
    assert [message.replace(str(tmp_path), "DATA") for message in caplog.messages] == [
        "skipped 1 folder with images next to 'train' in 'DATA': 'bird'",
        "skipped 2 folders with images next to 'train' in 'DATA': 'bird', 'fish'",
    ]
