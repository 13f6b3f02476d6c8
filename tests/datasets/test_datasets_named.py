"""Named data sets that are read with torchvision."""

import bz2
import functools
import gzip
import hashlib
import http.server
import inspect
import pickle
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from support.data_sets import classes_of, labels_of, picture
from torchvision import datasets

from featuretap.registry.errors import DataError, ImageError
from featuretap.workflows.datasets.data_set import DataSet
from featuretap.workflows.datasets.formats import open_data
from featuretap.workflows.datasets.named import FILES, Digits
from featuretap.workflows.datasets.named_sets import NAMED_SETS, NamedSet


def opened(name: str, place: Path, **options: float) -> DataSet:
    return open_data(name, "classification", download_to=place, **options)


def refusal(name: str, place: Path) -> str:
    with pytest.raises(DataError) as error:
        opened(name, place)
    return str(error.value).replace(str(place), "HERE")


def idx(values: NDArray[np.uint8]) -> bytes:
    """Return an array encoded in MNIST's IDX format."""
    return struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def mnist_files(prefix: tuple[str, str] = ("train", "t10k"), top: int = 9) -> dict[str, bytes]:
    """Return MNIST's four files, made from scikit-learn's digits: 30 training and 20 validation images."""
    digits = load_digits()
    images = np.kron(np.round(digits.images[:50] / 16 * 255), np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    labels = np.minimum(digits.target[:50], top).astype(np.uint8)
    files = {}
    for name, part in zip(prefix, (slice(30), slice(30, 50)), strict=True):
        files[f"{name}-images-idx3-ubyte"] = idx(images[part])
        files[f"{name}-labels-idx1-ubyte"] = idx(labels[part])
    return files


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    data = opened("digits", tmp_path, val_fraction=0.2)
    theirs = load_digits()
    assert (len(data.train), len(data.val), data.classes) == (1438, 359, tuple("0123456789"))
    assert not data.mirrors
    for part in (data.train, data.val):
        for index in (0, 1, len(part) - 1):
            image, label = part[index].read()
            name, number = part[index].name.split()
            assert (name, image.mode, image.size) == ("digits", "L", (8, 8))
            assert np.array_equal(np.asarray(image), np.round(theirs.images[int(number)] * 255 / 16))
            assert (label, part[index].label) == (theirs.target[int(number)],) * 2
    assert np.bincount(labels_of(data.val)).tolist() == [round(n * 0.2) for n in np.bincount(theirs.target)]


def test_mnist_is_read_from_its_files_and_in_any_case(tmp_path: Path) -> None:
    put(tmp_path / "MNIST" / "raw", mnist_files())
    data = opened("mnist", tmp_path)
    for ours, train, title in ((data.train, True, "MNIST train 7"), (data.val, False, "MNIST val 7")):
        theirs = datasets.MNIST(tmp_path, train)
        assert labels_of(ours) == theirs.targets.tolist()
        assert (ours[7].read()[0].mode, ours[7].name) == ("L", title)
        assert np.array_equal(np.asarray(ours[7].read()[0]), np.asarray(theirs[7][0]))
    assert data.classes[3] == "3 - three"
    assert not data.mirrors


def test_emnist_images_are_upright(tmp_path: Path) -> None:
    put(tmp_path / "EMNIST" / "raw", mnist_files(("emnist-balanced-train", "emnist-balanced-test")))
    theirs = datasets.EMNIST(tmp_path, "balanced")
    data = opened("EMNIST", tmp_path)
    assert np.array_equal(np.asarray(data.train[0].read()[0]), np.asarray(theirs[0][0]).T)
    assert len(data.classes) == 47


def test_qmnist_labels_are_reduced_to_the_class(tmp_path: Path) -> None:
    put(tmp_path / "QMNIST" / "raw", mnist_files(("qmnist-train", "qmnist-test")))
    for part, count in (("train", 30), ("test", 20)):
        labels = (np.arange(count * 8) % 10).reshape(count, 8).astype(">i4")
        content = struct.pack(">BBBBii", 0, 0, 12, 2, count, 8) + labels.tobytes()
        put(tmp_path / "QMNIST" / "raw", {f"qmnist-{part}-labels-idx2-int": content})
    data = opened("QMNIST", tmp_path)
    assert labels_of(data.train)[:3] == [0, 8, 6]


def test_usps_is_read_from_its_files(tmp_path: Path) -> None:
    line = " ".join(f"{place}:{-1 if place % 2 else 1}" for place in range(1, 257))
    for name in ("usps.bz2", "usps.t.bz2"):
        (tmp_path / name).write_bytes(bz2.compress(f"3 {line}\n10 {line}\n".encode()))
    data = opened("USPS", tmp_path)
    assert (labels_of(data.train), data.train[0].read()[0].size, data.classes[2]) == ([2, 9], (16, 16), "2")


def test_gtsrb_has_numbers_for_names(tmp_path: Path) -> None:
    put_gtsrb(tmp_path)
    data = opened("GTSRB", tmp_path)
    assert (labels_of(data.train), labels_of(data.val)) == (list(range(43)), [42])
    assert (data.classes[42], data.mirrors) == ("42", False)


def test_imagenettes_classes_are_called_by_their_first_name(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("n01440764", "n02102040"):
            picture(tmp_path / "imagenette2" / part / name / "0.jpeg")
    data = opened("imagenette", tmp_path)
    assert (data.classes, labels_of(data.val)) == (("tench", "English springer"), [0, 1])
    assert data.mirrors


def test_a_set_without_parts_is_divided(tmp_path: Path) -> None:
    classes_of(tmp_path / "eurosat" / "2750", Forest=5, River=10)
    data = opened("EuroSAT", tmp_path, val_fraction=0.2)
    assert (data.classes, len(data.train)) == (("Forest", "River"), 12)
    assert sorted(labels_of(data.val)) == [0, 1, 1]
    assert data.val[0].name.split()[0] == "EuroSAT"
    assert data.train[0].read()[0].size == (12, 8)


def test_caltechs_categories_are_classes(tmp_path: Path) -> None:
    place = tmp_path / "caltech101" / "101_ObjectCategories"
    (place / "BACKGROUND_Google").mkdir(parents=True)
    for name in ("ant", "bonsai"):
        for number in (1, 2):
            picture(place / name / f"image_{number:04}.jpg")
    data = opened("caltech101", tmp_path)
    assert (data.classes, labels_of(data.train), data.val[1].read()[1]) == (("ant", "bonsai"), [0, 1], 1)


def put_caltech101(place: Path) -> None:
    (place / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google").mkdir(parents=True)
    for name, number, value in (("ant", 1, 9), ("ant", 2, 99), ("bonsai", 1, 199)):
        picture(place / "caltech101" / "101_ObjectCategories" / name / f"image_{number:04}.jpg", value=value)


def put_caltech256(place: Path) -> None:
    for name, number in (("001.ak47", 1), ("001.ak47", 2), ("002.flag", 1)):
        path = place / "caltech256" / "256_ObjectCategories" / name / f"{name[:3]}_{number:04}.jpg"
        picture(path, value=number * 60 + int(name[:3]) * 20)


def put_gtsrb(place: Path) -> None:
    for number in range(43):
        picture(place / "gtsrb" / "GTSRB" / "Training" / f"{number:05}" / "0.ppm", value=number)
    picture(place / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00000.ppm")
    (place / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;42\n")


def put_pets(place: Path) -> None:
    root = place / "oxford-iiit-pet"
    (root / "annotations").mkdir(parents=True)
    for part, names in (("trainval", ("Bengal_1", "pug_1")), ("test", ("pug_2",))):
        lines = [f"{name} {1 if name[0] == 'B' else 2} 1 1\n" for name in names]
        (root / "annotations" / f"{part}.txt").write_text("".join(lines))
        for value, name in enumerate(names):
            picture(root / "images" / f"{name}.jpg", value=value * 99)


OPENED_BY_PATH = {
    "Caltech101": put_caltech101,
    "Caltech256": put_caltech256,
    "GTSRB": put_gtsrb,
    "OxfordIIITPet": put_pets,
}


def test_whatever_torchvision_opens_by_itself_is_opened_by_its_path() -> None:
    kinds = [getattr(datasets, row.name) for row in NAMED_SETS.values() if row.name != "digits"]
    opening = {
        kind.__name__
        for kind in kinds
        if "Image.open(" in inspect.getsource(kind) and "loader" not in inspect.signature(kind).parameters
    }
    assert opening == set(FILES) == set(OPENED_BY_PATH)


@pytest.mark.parametrize("name", OPENED_BY_PATH)
def test_images_opened_by_path_are_torchvisions_and_no_programs(tmp_path: Path, name: str) -> None:
    OPENED_BY_PATH[name](tmp_path)
    samples = opened(name, tmp_path).train
    for sample in samples:
        theirs, label = sample.source[sample.number]  # type: ignore[attr-defined]
        image, ours = sample.read()
        assert (image.mode, image.tobytes(), ours) == ("RGB", theirs.tobytes(), label)
    for path in tmp_path.rglob("*.[jp]p[gm]"):
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    problem = samples[0].check()
    assert problem.startswith(f"{samples[0].name} cannot be read: ")
    assert "is a PostScript program, which is not supported" in problem


def test_the_order_on_the_disk_does_not_matter(tmp_path: Path) -> None:
    def read(order: int) -> list[str]:
        place = tmp_path / str(order)
        names = [f"sun_{number:02}.jpg" for number in range(30)]
        for name in names[::order]:
            picture(place / "SUN397" / "a" / "abbey" / name)
            picture(place / "SUN397" / "b" / "bar" / name)
        (place / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/b/bar\n")
        part = opened("SUN397", place).val
        numbers = [int(sample.name.split()[-1]) for sample in part]
        return [str(part[0].source._image_files[number].relative_to(place)) for number in numbers]

    assert read(1) == read(-1)
    assert len(read(1)) == 12


@pytest.mark.parametrize("row", NAMED_SETS.values(), ids=lambda row: row.name)
def test_every_set_takes_the_arguments_of_its_parts(row: NamedSet) -> None:
    kind = Digits if row.name == "digits" else getattr(datasets, row.name)
    taken = inspect.signature(kind).parameters
    swallowed = [parameter for parameter in taken.values() if parameter.kind is parameter.VAR_KEYWORD]
    if swallowed:  # passed on to MNIST
        taken = {**taken, **inspect.signature(kind.__mro__[1]).parameters}
    for arguments in (row.train, row.val or {}):
        assert {*arguments, "root", "download"} <= set(taken)


@pytest.mark.parametrize("row", [row for row in NAMED_SETS.values() if row.name != "digits"], ids=lambda row: row.name)
def test_every_set_that_is_not_here_says_where_its_files_belong(row: NamedSet, tmp_path: Path) -> None:
    message = refusal(row.name, tmp_path)
    assert message.startswith(f"cannot read the data set {row.name!r} in 'HERE': ")
    place = f"HERE/{row.place}".rstrip("/")
    assert message.endswith(
        f"; FEATURETAP_OFFLINE forbids downloads, so put its files into {place!r}, or use a folder of images"
    )
    assert "download=True" not in message
    assert "\n" not in message


def test_damaged_files_that_may_not_be_downloaded_are_an_error(tmp_path: Path) -> None:
    put(tmp_path / "cifar-10-batches-py", {"data_batch_1": b"?", "batches.meta": b"?"})
    assert refusal("CIFAR10", tmp_path) == (
        "cannot read the data set 'CIFAR10' in 'HERE': Dataset not found or corrupted; FEATURETAP_OFFLINE forbids "
        "downloads, so put its files into 'HERE/cifar-10-batches-py', or use a folder of images"
    )


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURETAP_OFFLINE", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    assert refusal("MNIST", tmp_path) == (
        "cannot download the data set 'MNIST': Error downloading train-images-idx3-ubyte.gz: Tried "
        f"http://127.0.0.1:{port}/, got: <urlopen error [Errno 111] Connection refused>; put its files into "
        "'HERE/MNIST/raw', or use a folder of images"
    )


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that serves as MNIST's download mirror."""
    folder = tmp_path / "mirror"
    put(folder, {f"{name}.gz": gzip.compress(content) for name, content in mnist_files().items()})

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        resources = [
            (path.name, hashlib.md5(path.read_bytes()).hexdigest())
            for path in (folder / f"{name}.gz" for name in mnist_files())
        ]
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        monkeypatch.setenv("FEATURETAP_OFFLINE", "0")
        yield folder
        server.shutdown()


def test_a_missing_data_set_is_downloaded_once(mirror: Path, tmp_path: Path) -> None:
    place = tmp_path / "new" / "place"
    assert len(opened("MNIST", place).train) == 30
    for path in mirror.iterdir():
        path.unlink()
    assert len(opened("MNIST", place).val) == 20


def test_downloads_go_into_the_users_cache(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_data("MNIST", "classification")
    assert (tmp_path / "cache" / "featuretap" / "datasets" / "MNIST" / "raw").is_dir()


def test_labels_that_are_no_class_are_named(tmp_path: Path) -> None:
    files = mnist_files()
    files["t10k-labels-idx1-ubyte"] = files["t10k-labels-idx1-ubyte"][:-1] + b"\x0b"
    put(tmp_path / "MNIST" / "raw", files)
    assert (
        refusal("MNIST", tmp_path)
        == "MNIST val 19 has the class 11, but the 10 classes of 'MNIST' are numbered from 0 to 9"
    )


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    classes_of(tmp_path / "eurosat" / "2750", Forest=2, River=2)
    data = opened("EuroSAT", tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    message = data.train[0].check()
    assert message.startswith(f"{data.train[0].name} cannot be read: ")
    with pytest.raises(ImageError) as error:
        data.train[0].read()
    assert str(error.value) == message


def test_an_open_data_set_can_be_pickled(tmp_path: Path) -> None:
    put(tmp_path / "MNIST" / "raw", mnist_files())
    for name in ("digits", "MNIST"):
        data = opened(name, tmp_path)
        image, label = pickle.loads(pickle.dumps(data)).train[3].read()
        assert (image.tobytes(), label) == (data.train[3].read()[0].tobytes(), data.train[3].read()[1])
        assert isinstance(image, Image.Image)
