"""The meaning of mask values and colors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.data_sets import mask, picture

from featuretap.registry.errors import DataError
from featuretap.workflows.datasets.formats import open_data

RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)
ADVICE = (
    "list the classes in 'classes.txt', one per line, each with its value or color first: '0 background', '255 road', "
    "or '128 64 128 road'"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images of 4×2 pixels and no masks yet."""
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.jpg", (4, 2))
    (tmp_path / "masks").mkdir()
    return tmp_path


def write(folder: Path, *images: Image.Image, suffix: str = "png") -> None:
    """Write the masks of both images; a single mask is used for both."""
    for name, image in zip("ab", images * 2, strict=False):
        image.save(folder / "masks" / f"{name}.{suffix}")


def values(rows: Any, kind: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(rows, kind))


def painted(*row: tuple[int, ...]) -> Image.Image:
    return values([row] * 2)


def palette(indices: list[int], *colours: tuple[int, int, int]) -> Image.Image:
    image = values([indices] * 2)
    image.putpalette([value for colour in colours for value in colour])
    return image


def read(folder: Path) -> tuple[tuple[str, ...], list[Any]]:
    """Check both masks, and return the classes and the first row of each mask."""
    data = open_data(str(folder), "segmentation", val_fraction=0.5)
    samples = sorted([*data.train, *data.val], key=lambda sample: sample.name)
    assert [sample.check() for sample in samples] == ["", ""]
    return data.classes, [sample.read()[1][0].tolist() for sample in samples]


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        open_data(str(folder), "segmentation", val_fraction=0.5)
    return str(error.value).replace(str(folder), "DATA")


BLACK_AND_WHITE = {
    "L": values([[0, 255, 255, 0]] * 2),
    "RGB": values([[0, 255, 255, 0]] * 2).convert("RGB"),
    "RGBA": values([[0, 255, 255, 0]] * 2).convert("RGBA"),
    "LA": values([[0, 255, 255, 0]] * 2).convert("LA"),
    "16 bits": values([[0, 65535, 65535, 0]] * 2, np.uint16),
    "32 bits": values([[0, 255, 255, 0]] * 2, np.int32),
    "floats": values([[0, 1, 1, 0]] * 2, np.float32),
    "1": values([[0, 1, 1, 0]] * 2, np.bool_),
}


@pytest.mark.parametrize("kind", BLACK_AND_WHITE)
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_masks_of_black_and_white_have_two_classes(folder: Path, kind: str, suffix: str) -> None:
    image = BLACK_AND_WHITE[kind]
    if (suffix == "bmp" and image.mode not in ("L", "RGB", "RGBA", "1")) or (suffix == "png" and image.mode in "FI"):
        suffix = "tif"
    write(folder, image, suffix=suffix)
    assert read(folder) == (("class 0", "class 1"), [[0, 1, 1, 0]] * 2)


def test_how_masks_of_black_and_white_are_read_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, BLACK_AND_WHITE["L"])
    read(folder)
    assert caplog.messages == [f"{str(folder)!r}: reading masks with the values 0, 255 as two classes"]


def test_black_and_white_are_the_two_classes_that_a_file_names(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, BLACK_AND_WHITE["L"])
    (folder / "classes.txt").write_text("background\ncat\n")
    assert read(folder) == (("background", "cat"), [[0, 1, 1, 0]] * 2)
    assert caplog.messages == [f"{str(folder)!r}: reading the mask values 0, 255 as 'background', 'cat'"]


@pytest.mark.parametrize(
    ("rows", "classes", "read_as"),
    [
        ([0, 100, 200, 0], ("class 0", "class 100", "class 200"), [0, 1, 2, 0]),
        ([0, 1, 3, 255], ("class 0", "class 1", "class 3"), [0, 1, 2, 255]),
        ([0, 15, 15, 255], ("class 0", "class 15"), [0, 1, 1, 255]),
        ([0, 1000, 26000, 65535], ("class 0", "class 1000", "class 26000"), [0, 1, 2, 255]),
        ([1, 2, 3, 3], ("class 1", "class 2", "class 3"), [0, 1, 2, 2]),
    ],
)
def test_classes_are_the_values_that_occur(
    folder: Path, rows: list[int], classes: tuple[str, ...], read_as: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, values([rows] * 2, np.uint16))
    assert read(folder) == (classes, [read_as] * 2)
    listed = ", ".join(name.removeprefix("class ") for name in classes)
    assert caplog.messages == [f"{str(folder)!r}: reading {len(classes)} values as classes: {listed}"]


def test_values_without_gaps_need_no_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, values([[0, 1, 2, 255]] * 2), values([[3, 3, 0, 0]] * 2))
    assert read(folder) == (tuple(f"class {number}" for number in range(4)), [[0, 1, 2, 255], [3, 3, 0, 0]])
    assert caplog.messages == []


def test_spread_values_are_the_classes_that_a_file_names(folder: Path) -> None:
    write(folder, values([[0, 100, 200, 255]] * 2))
    (folder / "classes.txt").write_text("background\ncat\ndog\nemu\n")
    assert read(folder) == (("background", "cat", "dog", "emu"), [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([0, 128, 255, 0], "have the values 0, 128, 255, of which 255 may be a class or mean ignored; " + ADVICE),
        ([0, 0, 0, 0], "contain only the value 0; segmentation needs at least two classes, including the background"),
        (
            [255, 255, 255, 255],
            "contain only the value 255; segmentation needs at least two classes, including the background",
        ),
        (
            [7, 7, 255, 255],
            "contain only the value 7, 255; segmentation needs at least two classes, including the background",
        ),
    ],
)
def test_ambiguous_values_are_refused(folder: Path, rows: list[int], problem: str) -> None:
    write(folder, values([rows] * 2))
    assert refusal(folder) == f"the masks in 'DATA' {problem}"


def test_soft_edges_are_refused(folder: Path) -> None:
    picture(folder / "images" / "c.jpg", (256, 2))
    write(folder, BLACK_AND_WHITE["L"])
    mask(folder / "masks" / "c.png", [list(range(256))] * 2)
    assert "and 236 more, of which 255 may be a class or mean ignored; list the classes in 'classes.txt'" in refusal(
        folder
    )


def test_more_values_than_classes_fit_are_refused(folder: Path) -> None:
    picture(folder / "images" / "c.jpg", (300, 2))
    write(folder, BLACK_AND_WHITE["L"])
    values([range(1000, 1300)] * 2, np.uint16).save(folder / "masks" / "c.png")
    assert refusal(folder) == (
        "the masks in 'DATA' have 301 values, but at most 255 classes are possible (masks with antialiased edges or "
        f"numbered objects have too many values); {ADVICE}"
    )


def test_values_that_the_named_classes_do_not_have_are_refused(folder: Path) -> None:
    write(folder, BLACK_AND_WHITE["L"])
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    assert refusal(folder) == f"the masks in 'DATA' have the values 0, 255, but there are 3 classes; {ADVICE}"


def test_colours_that_occur_are_classes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder, painted(BLACK, RED, GREEN, BLACK), painted(RED, (224, 224, 192), RED, RED))
    assert read(folder) == (("#000000", "#00ff00", "#ff0000"), [[0, 2, 1, 0], [2, 255, 2, 2]])
    assert caplog.messages == [f"{str(folder)!r}: reading the colors #000000, #00ff00, #e0e0c0, #ff0000 as 3 classes"]


def test_a_grey_mask_among_coloured_ones_is_read_as_its_colours(folder: Path) -> None:
    write(folder, painted(BLACK, RED, BLACK, RED), values([[0, 0, 255, 0]] * 2))
    assert read(folder) == (("#000000", "#ff0000", "#ffffff"), [[0, 1, 0, 1], [0, 0, 2, 0]])


def test_palettes_that_agree_do_not_matter_and_others_count_as_colours(folder: Path) -> None:
    write(folder, palette([0, 1, 1, 0], RED, GREEN), palette([0, 1, 1, 2], RED, GREEN, BLACK))
    assert read(folder) == (("class 0", "class 1", "class 2"), [[0, 1, 1, 0], [0, 1, 1, 2]])
    write(folder, palette([0, 1, 1, 0], BLACK, GREEN), palette([0, 1, 1, 2], RED, GREEN, BLACK))
    assert read(folder) == (("#000000", "#00ff00", "#ff0000"), [[0, 1, 1, 0], [2, 1, 1, 0]])


TABLES = {
    "classes.txt": "0 0 0 background\n255,0,0: a car\n0 255 0\ttree\n",
    "label_colors.txt": "0 0 0\tbackground\n255 0 0\t\ta car\n0 255 0\ttree\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\na car:255,0,0::\ntree:0,255,0::\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\na car,255,0,0\ntree,0,255,0\n",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_table_says_which_colour_is_which_class(folder: Path, name: str, mode: str) -> None:
    (folder / name).write_text(TABLES[name])
    write(folder, painted(BLACK, RED, BLACK, RED).convert(mode), painted(GREEN, GREEN, GREEN, RED).convert(mode))
    assert read(folder) == (("background", "a car", "tree"), [[0, 1, 0, 1], [2, 2, 2, 1]])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "0 background\n128 cat\n255 dog\n"),
        ("_classes.csv", "Pixel Value, Class\n0, background\n128, cat\n255, dog\n"),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_table_says_which_value_is_which_class(folder: Path, name: str, text: str, mode: str) -> None:
    (folder / name).write_text(text)
    write(folder, values([[0, 128, 255, 0]] * 2).convert(mode))
    assert read(folder) == (("background", "cat", "dog"), [[0, 1, 2, 0]] * 2)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("labelmap.txt", "a\nb\n", f"is not a table of classes with colors or values; {ADVICE}"),
        ("classes.txt", "0 a\n0 b\n", "has the value 0 twice; give each class a different value"),
        ("classes.txt", "0 0 9 a\n0 0 9 b\n", "has the color #000009 twice; give each class a different color"),
        ("classes.txt", "0 0 0 a\n0 0 256 b\n", f"has a color above the maximum of 255; {ADVICE}"),
        ("classes.txt", "0 a\n65536 b\n", f"has a value above the maximum of 65535; {ADVICE}"),
    ],
)
def test_an_impossible_table_is_refused(folder: Path, name: str, text: str, problem: str) -> None:
    write(folder, BLACK_AND_WHITE["L"])
    (folder / name).write_text(text)
    assert refusal(folder) == f"'DATA/{name}' {problem}"


def test_coloured_masks_need_a_table_where_classes_are_named(folder: Path) -> None:
    write(folder, painted(BLACK, RED, GREEN, BLACK))
    (folder / "classes.txt").write_text("background\ncar\ntree\n")
    assert refusal(folder) == f"the masks in 'DATA' have the colors #000000, #00ff00, #ff0000; {ADVICE}"


@pytest.mark.parametrize(
    ("text", "other", "problem"),
    [
        ("0 0 0 a\n255 0 0 b\n", painted(BLACK, GREEN, RED, RED), "has the color #00ff00, which has no class"),
        ("0 a\n7 b\n", values([[0, 7, 9, 0]] * 2), "has the value 9, which has no class"),
        ("0 a\n7 b\n", painted(BLACK, RED, RED, RED), "has colors, but other masks have values"),
    ],
)
def test_what_the_table_lacks_is_named_by_the_check(folder: Path, text: str, other: Image.Image, problem: str) -> None:
    (folder / "classes.txt").write_text(text)
    write(folder, other)
    sample = open_data(str(folder), "segmentation", val_fraction=0.5).train[0]
    mask_path = str(folder / "masks" / f"{Path(sample.name).stem}.png")
    assert sample.check() == f"the mask {mask_path!r} {problem}"
    with pytest.raises(DataError) as error:
        sample.read()
    assert str(error.value) == sample.check()


@pytest.mark.parametrize(
    ("image", "suffix", "problem"),
    [
        (values([[0, 1, 1, 0]] * 2), "jpg", "has lossy compression, which alters values; save masks as PNG"),
        (
            Image.new("CMYK", (4, 2)),
            "tif",
            "has mode 'CMYK'; save masks with a value or an RGB color per pixel",
        ),
        (values([[0, 0.5, 1, 0]] * 2, np.float32), "tif", "has values that are not integers from 0 to 65535"),
        (values([[0, -1, 1, 0]] * 2, np.int32), "tif", "has values that are not integers from 0 to 65535"),
        (
            painted((0, 0, 0, 255), (0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 0)),
            "png",
            "has pixels of equal color and different transparency; save it without transparency",
        ),
    ],
)
def test_masks_that_mean_nothing_certain_are_refused(
    folder: Path, image: Image.Image, suffix: str, problem: str
) -> None:
    write(folder, image, suffix=suffix)
    assert refusal(folder) == (
        f"2 problems in 'DATA': the mask 'DATA/masks/a.{suffix}' {problem}; the mask 'DATA/masks/b.{suffix}' {problem}"
    )


NAMED = ("background", "cat")
NUMBERED = ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("classes", "row", "read_as"),
    [
        (("class 0", "class 1"), [0, 0, 0, 0], [0, 0, 0, 0]),
        (("class 0", "class 1"), [255, 255, 255, 255], [1, 1, 1, 1]),
        (("class 0", "class 1"), [0, 255, 255, 0], [0, 1, 1, 0]),
        (("class 0", "class 1"), [1, 1, 1, 1], [1, 1, 1, 1]),
        (("class 0", "class 1"), [0, 1, 255, 0], [0, 1, 255, 0]),
        (NAMED, [0, 0, 0, 0], [0, 0, 0, 0]),
        (NAMED, [1, 1, 1, 1], [1, 1, 1, 1]),
        (NAMED, [255, 255, 255, 255], [1, 1, 1, 1]),
        (NAMED, [0, 255, 0, 0], [0, 1, 0, 0]),
        (NAMED, [0, 100, 0, 0], [0, 1, 0, 0]),
        (NUMBERED, [2, 2, 2, 2], [2, 2, 2, 2]),
        (NUMBERED, [0, 2, 255, 0], [0, 2, 255, 0]),
        (("class 0", "class 100", "class 200"), [100, 100, 100, 200], [1, 1, 1, 2]),
        (("a", "b", "c"), [2, 2, 255, 2], [2, 2, 255, 2]),
        (("cat", "dog", "emu"), [0, 100, 200, 0], [0, 1, 2, 0]),
    ],
)
def test_masks_that_lack_values_are_read_by_the_classes_of_a_model(
    folder: Path, classes: tuple[str, ...], row: list[int], read_as: list[int]
) -> None:
    write(folder, values([row] * 2))
    data = open_data(str(folder), "segmentation", known=classes)
    assert data.classes == classes
    assert data.train[0].read()[1].tolist() == [read_as] * 2


def test_colours_are_those_of_a_models_classes(folder: Path) -> None:
    write(folder, painted(GREEN, GREEN, GREEN, GREEN))
    data = open_data(str(folder), "segmentation", known=("#000000", "#00ff00", "#ff0000"))
    assert data.train[0].read()[1].tolist() == [[1] * 4] * 2


@pytest.mark.parametrize(
    ("classes", "row", "problem"),
    [
        (NUMBERED, [255] * 4, f"contain only the value 255, which is ignored; {ADVICE}"),
        (
            ("class 0", "class 100"),
            [0, 1, 0, 0],
            f"have the values 0, 1, but the model has the classes 'class 0', 'class 100'; {ADVICE}",
        ),
        (
            ("class 0", "class 100"),
            [0, 255, 7, 0],
            f"have the values 0, 7, 255, but the model has the classes 'class 0', 'class 100'; {ADVICE}",
        ),
        (NAMED, [0, 3, 4, 0], f"have the values 0, 3, 4, but there are 2 classes; {ADVICE}"),
    ],
)
def test_masks_of_other_values_than_a_models_are_refused(
    folder: Path, classes: tuple[str, ...], row: list[int], problem: str
) -> None:
    write(folder, values([row] * 2))
    with pytest.raises(DataError) as error:
        open_data(str(folder), "segmentation", known=classes)
    assert str(error.value) == f"the masks in {str(folder)!r} {problem}"
