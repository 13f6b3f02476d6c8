"""Every file of a data set is checked before training starts."""

import io
from pathlib import Path

import pytest
from PIL import Image
from support.data_sets import classes_of, picture

from featuretap.registry.errors import DataError, ImageError
from featuretap.support.image_files import SUFFIXES, find_images
from featuretap.support.images import FORMATS, read_image
from featuretap.workflows.datasets.data_set import DataSet, check_readable, image_problem, upright_size
from featuretap.workflows.datasets.formats import open_data


def birds(folder: Path) -> DataSet:
    for part in ("train", "val"):
        classes_of(folder / part, jay=10, tit=5)
    return open_data(str(folder), "classification")


def test_every_image_of_both_parts_is_reported(tmp_path: Path) -> None:
    done: list[int] = []
    check_readable(birds(tmp_path), done.append)
    assert done == [1] * 30


def test_bad_files_are_named_in_their_order(tmp_path: Path) -> None:
    data = birds(tmp_path)
    first, second = tmp_path / "train" / "tit" / "tit1.png", tmp_path / "val" / "jay" / "jay0.png"
    first.write_bytes(b"")
    second.write_text("no image")
    done: list[int] = []
    with pytest.raises(DataError) as error:
        check_readable(data, done.append)
    assert str(error.value) == (
        f"2 of 30 images cannot be used: {str(first)!r} is empty; {str(second)!r} is not an image that Pillow can read"
    )
    assert len(done) == 30


def test_no_more_than_ten_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The message is truncated, and a temporary folder has a long path, so use a relative one.
    monkeypatch.chdir(tmp_path)
    data = birds(Path())
    for path in tmp_path.rglob("jay*.png"):
        path.unlink()
    with pytest.raises(DataError) as error:
        check_readable(data, lambda done: None)
    assert str(error.value).startswith("20 of 30 images cannot be used: cannot read the image ")
    assert str(error.value).count("No such file or directory") == 10
    assert str(error.value).endswith("; and 10 more")


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.astronaut()[:160, :200])


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        # Pillow warns about broken tags before it fails.
        pytest.param(
            "TIFF", "RGB", {"compression": "tiff_lzw"}, marks=pytest.mark.filterwarnings("ignore::UserWarning")
        ),
        ("WEBP", "RGB", {}),
    ],
)
def test_the_check_passes_exactly_the_readable_files(
    tmp_path: Path, photograph: Image.Image, kind: str, mode: str, options: dict[str, object]
) -> None:
    whole = written(photograph.convert(mode), kind, **options)
    path = tmp_path / f"a.{kind.lower()}"
    refused = 0
    for length in [*range(0, len(whole), len(whole) // 40), *range(len(whole) - 12, len(whole) + 1)]:
        path.write_bytes(whole[:length])
        try:
            read_image(path)
            readable = ""
        except ImageError as error:
            readable = error.problem
        assert image_problem(str(path)) == readable
        refused += bool(readable)
    assert refused > 30
    assert readable == ""


def test_a_text_and_an_image_of_one_pixel_are_told_apart(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("a text")
    assert image_problem(str(text)) == f"{str(text)!r} is not an image that Pillow can read"
    assert image_problem(str(picture(tmp_path / "dot.png", (1, 1)))) == ""


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    assert image_problem(path) == f"cannot read the image {path!r}: No such file or directory"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("jpg", {}),
        ("png", {}),
        ("webp", {}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
        ("tif", {"save_all": True, "append_images": [Image.new("RGB", (20, 30))]}),
    ],
    ids=["jpg", "png", "webp", "tif", "tif-lzw", "tif-pages"],
)
def test_sizes_are_those_of_the_upright_image(
    tmp_path: Path, photograph: Image.Image, orientation: int, suffix: str, options: dict[str, object]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    photograph.save(path, exif=exif, **options)
    size = read_image(path).size
    assert size == ((160, 200) if orientation >= 5 else (200, 160))
    assert upright_size(str(path)) == size
    assert image_problem(str(path), size) == ""
    assert image_problem(str(path), size[::-1]) == (
        f"{str(path)!r} is {size[0]}×{size[1]}, but its annotations are for {size[1]}×{size[0]} (the image may "
        "have been rotated after annotation)"
    )


def test_images_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "A.JPG", "below/c.webp", ".hidden/d.png", ".e.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "text.txt").touch()
    (tmp_path / "f.png").mkdir()
    (tmp_path / "below" / "again").symlink_to(tmp_path)
    assert find_images(tmp_path) == [tmp_path / name for name in ("A.JPG", "b.png", "below/c.webp")]


def test_folders_list_whatever_is_read_by_its_usual_names() -> None:
    Image.init()
    usual = {suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "DIB", "MPO")}
    assert usual - SUFFIXES == {".pfm"}
    assert {".avif", ".j2k", ".jp2", ".jpx", ".mpo"} <= SUFFIXES
