"""Files are written atomically, through symbolic links, and with the correct mode."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.full_disk import full_disk
from support.saved_models import assert_equal_bits, cut_backbone, error_of, everything_in, small_classifier

from featuretap.registry import Registry
from featuretap.registry.errors import OptionError

NOBODY = 65534
Write = Callable[[Path], Path]


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Run as an unprivileged user, because root may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A world-readable folder; pytest's temporary folders are private."""
    with umask(0o022), tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "target").mkdir()
        yield folder
        (folder / "target").chmod(0o755)


@pytest.fixture
def write(request: pytest.FixtureRequest, registry: Registry, public: Path) -> Write:
    """Return a function that writes a small model with `save`, or with `convert` in tests parametrized for both."""
    model = cut_backbone(registry)
    if getattr(request, "param", "save") == "save":
        return lambda path: registry.save(model, path)
    source = registry.save(model, public / "source.safetensors")
    return lambda path: registry.convert(source, path)


BY_BOTH = pytest.mark.parametrize("write", ["save", "convert"], indirect=True)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("old.safetensors", "old.safetensors"),
        ("new.safetensors", "new.safetensors"),
        ("old", "old/model.safetensors"),
        ("new", "new"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_and_stays_as_it_is(
    registry: Registry, public: Path, write: Write, name: str, refused: str
) -> None:
    folder = public / "target"
    registry.save(cut_backbone(registry), folder / "old.safetensors")
    registry.save(cut_backbone(registry), folder / "old")
    before = everything_in(folder)
    (folder / "old").chmod(0o555)
    folder.chmod(0o555)
    with as_nobody():
        message = error_of(lambda: write(folder / name))
    (folder / "old").chmod(0o755)
    assert message == f"cannot write '{folder}/{refused}': Permission denied"
    assert everything_in(folder) == before


@pytest.mark.parametrize(
    ("write", "name", "refused"),
    [
        ("save", "old.safetensors", "old.safetensors"),
        ("save", "new.safetensors", "new.safetensors"),
        ("save", "old", "old/model.safetensors"),
        ("save", "empty", "empty/model.safetensors"),
        ("convert", "old.safetensors", "old.safetensors"),
        ("convert", "old", "old/model.safetensors"),
    ],
    indirect=["write"],
)
def test_a_full_disk_leaves_the_old_files_and_nothing_else(
    registry: Registry, tmp_path: Path, write: Write, name: str, refused: str
) -> None:
    other = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    registry.save(other, tmp_path / "old.safetensors")
    registry.save(other, tmp_path / "old")
    (tmp_path / "empty").mkdir()
    before = everything_in(tmp_path)
    with full_disk(20_000):
        message = error_of(lambda: write(tmp_path / name))
    assert message == f"cannot write '{tmp_path}/{refused}': File too large"
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent/new.safetensors", "No such file or directory"),
        ("folder.safetensors", "it exists and is not a file"),
        ("file.txt/new.safetensors", "Not a directory"),
        ("file.txt/new", "Not a directory"),
        ("file", "File exists"),
    ],
)
def test_places_where_no_file_can_be_are_refused(tmp_path: Path, write: Write, name: str, reason: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file.txt").write_text("a file")
    (tmp_path / "file").write_text("a file")
    before = everything_in(tmp_path)
    assert error_of(lambda: write(tmp_path / name)) == f"cannot write '{tmp_path / name}': {reason}"
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("write", "name"),
    [
        *(("save", name) for name in ("file.pth", "file.pt", "file.bin", "file.onnx", "absent/file.safetensors.gz")),
        ("convert", "file.pth"),
    ],
    indirect=["write"],
)
def test_other_kinds_of_files_are_not_written(tmp_path: Path, write: Write, name: str) -> None:
    assert error_of(lambda: write(tmp_path / name), OptionError) == (
        f"cannot save to '{tmp_path / name}': {Path(name).suffix} files are not supported; use a name that ends in "
        ".safetensors, or a folder"
    )
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("stem", ["a" * 243, "é" * 121, "網" * 80], ids=["one byte", "two bytes", "three bytes"])
def test_any_name_that_the_file_system_takes_can_be_written(tmp_path: Path, write: Write, stem: str) -> None:
    path = tmp_path / f"{stem}.safetensors"
    assert write(path) == path
    assert list(tmp_path.iterdir()) == [path]


@BY_BOTH
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path, write: Write) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "file.safetensors"
    file.write_text("old")
    (tmp_path / "middle.safetensors").symlink_to(Path("elsewhere") / "file.safetensors")
    link = tmp_path / "link.safetensors"
    link.symlink_to("middle.safetensors")
    assert write(link) == link
    assert os.readlink(link) == "middle.safetensors"
    assert os.readlink(tmp_path / "middle.safetensors") == "elsewhere/file.safetensors"
    assert not file.is_symlink()
    assert link.read_bytes() == file.read_bytes() == write(tmp_path / "plain.safetensors").read_bytes()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["file.safetensors"]


def test_a_dangling_link_gets_the_file_that_it_leads_to(tmp_path: Path, write: Write) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "file.safetensors")
    write(link)
    assert link.is_symlink()
    assert sorted(everything_in(tmp_path)) == ["file.safetensors", "link.safetensors"]
    assert not (tmp_path / "file.safetensors").is_symlink()


def test_a_link_into_a_missing_folder_is_refused(tmp_path: Path, write: Write) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "absent" / "file.safetensors")
    assert error_of(lambda: write(link)) == f"cannot write '{link}': No such file or directory"
    assert os.readlink(link) == str(tmp_path / "absent" / "file.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["link.safetensors"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_files_have_the_mode_of_the_umask(tmp_path: Path, write: Write, mask: int, mode: int) -> None:
    with umask(mask):
        write(tmp_path / "file.safetensors")
        write(tmp_path / "folder")
    for name in ("file.safetensors", "folder/model.safetensors", "folder/config.json"):
        assert (tmp_path / name).stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_replaced_files_keep_their_mode(tmp_path: Path, write: Write, mode: int) -> None:
    path = tmp_path / "file.safetensors"
    path.write_text("old")
    path.chmod(mode)
    with umask(0o022):
        write(path)
    assert path.stat().st_mode & 0o7777 == mode
    assert path.stat().st_size > 3


def test_a_model_outlives_the_file_that_it_was_loaded_from(registry: Registry, tmp_path: Path) -> None:
    first, second = small_classifier(registry), small_classifier(registry)
    with torch.no_grad():
        second.head.logits.weight.add_(1)
    path = registry.save(first, tmp_path / "file.safetensors")
    model = registry.load(path).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        registry.save(second, path)
        assert_equal_bits(model, first)
        assert torch.equal(model(images), before)
    assert_equal_bits(registry.load(path), second)
    registry.save(model, path)
    assert_equal_bits(registry.load(path), first)
    path.unlink()
    assert_equal_bits(model, first)


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_file_can_be_converted_where_it_lies(registry: Registry, tmp_path: Path, layout: str, kind: str) -> None:
    model = cut_backbone(registry)
    path = tmp_path / ("folder" if kind == "folder" else "file.safetensors")
    file = registry.save(model, path)
    if kind == "link":
        path = tmp_path / "link.safetensors"
        path.symlink_to(file)
    expected = registry.convert(file, tmp_path / "elsewhere.safetensors", layout).read_bytes()
    registry.convert(path, path, layout)
    assert file.read_bytes() == expected
    assert not file.is_symlink()
    assert_equal_bits(registry.load(path), model)
