"""Annotations may name images inside the data set or inside an allowed folder; other paths are refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Completed
from support.data_sets import a_box, coco, mask, picture, voc, yolo_labels

from featuretap.command_line import phrase
from featuretap.registry.errors import DataError
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data

ADVICE = "outside the data set; to allow the folder that contains them, use images_root="
BOX = "0 0.5 0.5 0.5 0.25"
NAMES = "names: [cat, dog]\n"
OBJECTS = [a_box(1, 1, [0, 0, 2, 2]), a_box(2, 2, [0, 0, 2, 2])]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set "data" with one image, next to a folder with a private image."""
    monkeypatch.chdir(tmp_path)
    picture(Path("data/images/a.png"))
    picture(Path("private/images/b.png"))
    return Path("data")


def opened(**options: Any) -> DataSet:
    return open_data("data", "detection", val_fraction=0.5, **options)


def refusal(**options: Any) -> str:
    with pytest.raises(DataError) as error:
        opened(**options)
    assert len(str(error.value)) <= 1000
    return str(error.value)


def names_of(data: DataSet) -> set[str]:
    return {sample.name for sample in (*data.train, *data.val)}


@pytest.mark.parametrize(
    "name",
    [
        "../../private/images/b.png",
        "../x/../../private/images/b.png",
        "..\\..\\private\\images\\b.png",
        "link/../b.png",
    ],
)
def test_coco_files_name_no_image_above_the_data_set(folder: Path, name: str) -> None:
    # The system resolves "link/.." to the parent of the link's target.
    Path("private/images/below").mkdir()
    (folder / "link").symlink_to(Path("private/images/below").absolute())
    coco(folder / "data.json", OBJECTS, ("a.png", name))
    where = "'data/data.json'"
    missing = f"1 problem in {where}: the image {name!r} is missing (looked in "
    assert refusal().startswith(missing if name.startswith("link") else f"{where} names {name!r}, {ADVICE}")


def test_coco_files_name_no_absolute_path(folder: Path) -> None:
    name = str(Path("private/images/b.png").absolute())
    coco(folder / "data.json", OBJECTS, ("a.png", name))
    message = f"'data/data.json' names {name!r}, {ADVICE}"
    assert refusal() == message
    assert names_of(opened(images_root=Path("private"))) == {"data/images/a.png", name}
    with pytest.raises(DataError) as error:
        opened()
    assert phrase(error.value) == message.replace("images_root=", "--images-root")


def test_coco_files_may_name_images_of_the_data_set_in_any_way(folder: Path) -> None:
    picture(folder / "b.png")
    coco(folder / "data.json", OBJECTS, (str((folder / "images" / "a.png").absolute()), "images/../b.png"))
    assert {Path(name).name for name in names_of(opened())} == {"a.png", "b.png"}


def test_images_are_looked_for_in_the_further_folder_too(folder: Path) -> None:
    coco(folder / "data.json", OBJECTS, ("a.png", "b.png"))
    assert "the image 'b.png' is missing" in refusal()
    assert names_of(opened(images_root=Path("private/images"))) == {"data/images/a.png", "private/images/b.png"}


def test_links_out_of_the_data_set_are_followed(folder: Path) -> None:
    (folder / "images" / "b.png").symlink_to(Path("private/images/b.png").absolute())
    coco(folder / "data.json", OBJECTS)
    assert names_of(opened()) == {"data/images/a.png", "data/images/b.png"}


@pytest.mark.parametrize(
    "name",
    ["a\0b.png", "a\n\x1b[31m.png", "below\\b.png", "C:\\b.png", "folder.png", "pipe.png", ""],
    ids=["nul", "control", "backslash", "drive", "folder", "pipe", "empty"],
)
def test_names_that_are_no_file_are_missing(folder: Path, name: str) -> None:
    (folder / "images" / "folder.png").mkdir()
    os.mkfifo(folder / "images" / "pipe.png")
    coco(folder / "data.json", OBJECTS, ("a.png", name))
    message = refusal()
    assert message.startswith(f"1 problem in 'data/data.json': the image {name!r} is missing (looked in ")
    assert "\n" not in message


def test_a_name_longer_than_any_file_s_is_refused_in_one_line(folder: Path) -> None:
    coco(folder / "data.json", OBJECTS, ("a.png", "a" * 5000))
    message = refusal()
    assert message.startswith("cannot read 'data/data")
    assert message.endswith("File name too long")


def test_a_pipe_is_no_file_of_annotations(folder: Path) -> None:
    os.mkfifo(folder / "data.json")
    assert refusal().startswith("'data' has no JSON file")


def labelled(path: str) -> None:
    picture(Path(path))
    yolo_labels(Path(path.replace("images", "labels")).with_suffix(".txt"), BOX)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: ../private/images", "'data/../private/images'"),
        ("path: ../private\ntrain: images", "'data/../private/images'"),
        ("train: {absolute}", "'{absolute}'"),
        ("train: [images, ../private/images]", "'data/../private/images'"),
        ("train: images\nval: ../private/images", "'data/../private/images'"),
    ],
)
def test_yolo_files_name_no_folder_outside_the_data_set(folder: Path, text: str, named: str) -> None:
    absolute = str(Path("private/images").absolute())
    for name in ("data/images/a.png", "data/images/c.png", "private/images/b.png"):
        labelled(name)
    (folder / "data.yaml").write_text(f"{text.format(absolute=absolute)}\n{NAMES}")
    if "path:" in text:
        (folder / "images").rename(folder / "pictures")
    assert refusal() == f"'data/data.yaml' names {named.format(absolute=absolute)}, {ADVICE}"
    labelled("private/images/d.png")
    assert any("private" in name for name in names_of(opened(images_root=Path("private"))))


@pytest.mark.parametrize("line", ["../private/images/b.png", "{absolute}"])
def test_yolos_lists_name_no_image_outside_the_data_set(folder: Path, line: str) -> None:
    line = line.format(absolute=Path("private/images/b.png").absolute())
    labelled("data/images/a.png")
    labelled("private/images/b.png")
    (folder / "train.txt").write_text(f"images/a.png\n{line}\n")
    (folder / "data.yaml").write_text(f"train: train.txt\n{NAMES}")
    assert refusal() == f"'data/train.txt' names {line!r}, {ADVICE}"
    assert len(names_of(opened(images_root=Path("private")))) == 2


def test_roboflows_folders_are_those_beside_the_file_even_if_others_exist(folder: Path) -> None:
    for name in ("train/images/x.png", "data/train/images/a.png", "data/valid/images/b.png"):
        labelled(name)
    (folder / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\n{NAMES}")
    assert names_of(opened()) == {"data/train/images/a.png", "data/valid/images/b.png"}


def test_vocs_lists_and_files_open_nothing_outside_their_folders(folder: Path) -> None:
    picture(folder / "JPEGImages" / "a.jpg")
    voc(
        folder / "Annotations" / "a.xml", ("cat", (1, 1, 5, 5)), extra="<filename>../../private/images/b.png</filename>"
    )
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in ("train", "val"):
        (lists / f"{name}.txt").write_text("a\n")
    assert names_of(opened()) == {"data/JPEGImages/a.jpg"}
    (lists / "val.txt").write_text("../../private/images/b\n")
    name = "'../../private/images/b'"
    assert refusal() == (
        f"2 problems in 'data': {name} has no annotations in 'Annotations'; {name} has no image in 'JPEGImages'"
    )


def test_vocs_lists_of_masks_open_nothing_outside_their_folders(folder: Path) -> None:
    picture(folder / "JPEGImages" / "a.jpg", (2, 1))
    mask(folder / "SegmentationClass" / "a.png", [[0, 1]])
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("../../private/images/b\n")
    with pytest.raises(DataError, match=r"2 problems in 'data': the image '../../private/images/b' has no mask in "):
        open_data("data", "segmentation")


def test_the_command_line_names_the_further_folder(folder: Path, run: Callable[..., Completed]) -> None:
    coco(folder / "data.json", OBJECTS, ("a.png", "../private/images/b.png"))
    train = ["train", "data", "--backbone", "mobilenet_v1_025"]
    done = run(*train)
    assert done.status == 2
    assert done.err.replace(str(folder.absolute()), "DATA") == (
        "featuretap: 'DATA/data.json' names '../private/images/b.png', outside the data set; to allow the folder "
        "that contains them, use --images-root\n"
    )
    # The tap is refused only after the data set has been opened.
    done = run(*train, "--images-root", "private", "--taps", "C9")
    assert "outside the data set" not in done.err


LARGE = [{"id": 1, "file_name": "a.png", "width": 1_000_000, "height": 1_000_000}]


def test_images_beyond_the_limit_are_refused_before_their_masks_are_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outline = {"segmentation": {"size": [1_000_000, 1_000_000], "counts": [10**12]}}
    path = coco(folder / "data.json", [a_box(1, 1, [0, 0, 2, 2], **outline)], images=LARGE)  # type: ignore[arg-type]
    assert refusal(masks=True) == (
        f"1 problem in {str(path)!r}: image 1, 'a.png', has 1000000×1000000 pixels, more than "
        "FEATURETAP_MAX_PIXELS=89478485"
    )
    monkeypatch.setenv("FEATURETAP_MAX_PIXELS", "95")
    coco(folder / "data.json", OBJECTS[:1], ("a.png",))
    assert "'a.png', has 12×8 pixels, more than FEATURETAP_MAX_PIXELS=95" in refusal()


@pytest.mark.parametrize(
    ("outline", "problem"),
    [
        ({"counts": [90, 5], "size": [8, 12]}, "has run lengths of 95 pixels in an image of 12×8"),
        ({"counts": "j25", "size": [8, 12]}, "has run lengths of 95 pixels in an image of 12×8"),
        ({"counts": "", "size": [8, 12]}, "has run lengths of 0 pixels in an image of 12×8"),
        ([[0, 0, 1e6, 1e6, 5, 5]], "has a polygon that extends far beyond its image of 12×8"),
        ([[0, 0, -13, 4, 5, 5]], "has a polygon that extends far beyond its image of 12×8"),
        ([[0, 0, 12, 8] * 200_000], "has an outline of 4800000 pixels, more than 4194304"),
    ],
    ids=["short counts", "short text", "empty text", "far", "left", "long"],
)
def test_masks_that_would_fill_the_memory_are_named(folder: Path, outline: Any, problem: str) -> None:
    coco(folder / "data.json", [a_box(9, 1, [0, 0, 2, 2], segmentation=outline)], ("a.png",))
    assert refusal(masks=True) == f"1 problem in 'data/data.json': annotation 9 of 'a.png' {problem}"


def test_outlines_are_validated_without_decoding_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from faster_coco_eval.core import mask as api

    monkeypatch.setattr(api, "decode", lambda _: pytest.fail("decoded"))
    outline = {"segmentation": {"size": [8, 12], "counts": [90, 6]}}
    coco(folder / "data.json", [a_box(n, n, [0, 0, 2, 2], **outline) for n in (1, 2)])  # type: ignore[arg-type]
    picture(folder / "b.png")
    assert len(names_of(opened(masks=True))) == 2


def test_yolos_polygons_are_limited_as_well(folder: Path) -> None:
    picture(folder / "images" / "a.png", (2000, 2000))
    yolo_labels(folder / "labels" / "a.txt", "0 " + "0 0 1 1 " * 2000)
    assert refusal(masks=True) == (
        "1 problem in 'data': object 1 of 'a.png' has an outline of 8000000 pixels, more than 4194304"
    )
