"""Files replaced or overwritten during reading: the bytes that are verified are the bytes that are used."""

import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import save_torch_state_dict
from support.saved_models import assert_equal_bits, error_of, fill_randomly
from support.tensorflow_files import graph, write_checkpoint
from support.tensorflow_models import tiny_variables

from featuretap.registry import Registry
from featuretap.weights.open_file import OpenFile
from featuretap.weights.reading import read_checkpoint

NAME = "mobilenet_v1_025"
CHANGED = "was changed while it was read; load it again after the writing has finished"
STEM = "MobilenetV1/Conv2d_0/weights"


def state(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((50,), value), "b": torch.full((50,), value)}


def variables(value: float) -> dict[str, Any]:
    tiny = tiny_variables()
    return {**tiny, STEM: np.full_like(tiny[STEM], value)}


def write_safetensors(folder: Path, value: float) -> Path:
    safetensors.torch.save_file(state(value), folder / "file.safetensors")
    return folder / "file.safetensors"


def write_torch(folder: Path, value: float, *, legacy: bool = False) -> Path:
    torch.save(state(value), folder / "file.pth", _use_new_zipfile_serialization=not legacy)
    return folder / "file.pth"


def write_paddle(folder: Path, value: float) -> Path:
    arrays = {name: tensor.numpy() for name, tensor in state(value).items()}
    (folder / "file.pdparams").write_bytes(pickle.dumps(arrays, protocol=4))
    return folder / "file.pdparams"


def write_shards(folder: Path, value: float, *, safe: bool = True) -> Path:
    save_torch_state_dict(state(value), folder, max_shard_size=250, safe_serialization=safe)
    return next(folder.glob("*.index.json"))


def write_graph(folder: Path, value: float) -> Path:
    (folder / "file.pb").write_bytes(graph(variables(value)))
    return folder / "file.pb"


def write_tensorflow_checkpoint(folder: Path, value: float) -> Path:
    return write_checkpoint(folder / "file.ckpt", variables(value), shards=2)


WRITERS: dict[str, Callable[[Path, float], Path]] = {
    "safetensors": write_safetensors,
    "torch": write_torch,
    "torch, old format": lambda folder, value: write_torch(folder, value, legacy=True),
    "paddle": write_paddle,
    "shards": write_shards,
    "shards of torch": lambda folder, value: write_shards(folder, value, safe=False),
    "tensorflow graph": write_graph,
    "tensorflow checkpoint": write_tensorflow_checkpoint,
}


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Write two files of the same format and size with different values."""
    paths = []
    for folder, value in ((tmp_path / "first", 1.0), (tmp_path / "second", 2.0)):
        folder.mkdir()
        paths.append(WRITERS[request.param](folder, value))
        for file in folder.iterdir():
            # File system clocks tick every few milliseconds; with an old time, a later write always changes it.
            os.utime(file, (10**9, 10**9))
    return paths[0], paths[1]


class Opened:
    """Counts the files that are opened, with an audit hook. Audit hooks cannot be removed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.is_counting = False
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_counting and event == "open" and isinstance(arguments[0], str):
            self.counts[arguments[0]] += 1


@pytest.fixture(scope="module")
def audited() -> Opened:
    return Opened()


@pytest.fixture
def opened(audited: Opened) -> Iterator[Counter[str]]:
    audited.counts.clear()
    audited.is_counting = True
    yield audited.counts
    audited.is_counting = False


def test_every_file_of_a_checkpoint_is_opened_once(written: tuple[Path, Path], opened: Counter[str]) -> None:
    path, _ = written
    checkpoint = read_checkpoint(path)
    checkpoint.digest()
    checkpoint.file.check_unchanged()
    assert {name: count for name, count in opened.items() if Path(name).parent == path.parent} == {
        str(file): 1 for file in path.parent.iterdir()
    }


def after_opening(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]) -> None:
    """Change each file immediately after it is opened."""
    opening = OpenFile.__init__

    def changed(self: OpenFile, path: Path) -> None:
        opening(self, path)
        change(path)

    monkeypatch.setattr(OpenFile, "__init__", changed)


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(
    written: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = written
    expected, content = read_checkpoint(path), path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in expected.tensors.items()}
    after_opening(monkeypatch, lambda file: (other.parent / file.name).replace(file))
    found = read_checkpoint(path)
    assert found.digest() == sha256(content).hexdigest()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.tensors.items())
    found.file.check_unchanged()


def test_a_file_that_is_overwritten_while_it_is_read_is_refused(written: tuple[Path, Path]) -> None:
    path, _ = written
    for file in path.parent.iterdir():
        checkpoint = read_checkpoint(path)
        checkpoint.file.check_unchanged()
        with file.open("r+b") as writer:
            first = writer.read(1)
            writer.seek(0)
            writer.write(first)
        assert error_of(checkpoint.file.check_unchanged) == f"'{file}' {CHANGED}"


@pytest.fixture(scope="module")
def models(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path, Path]:
    """A small model with its file, and the file of the same model with different values."""
    folder, paths, built = tmp_path_factory.mktemp("models"), [], []
    for name in ("first", "second"):
        built.append(fill_randomly(registry.build(NAME, num_classes=3)))
        paths.append(registry.save(built[-1], folder / f"{name}.safetensors"))
    return built[0], *paths


def published(path: Path) -> str:
    """Return a catalogue entry for a model published as a file."""
    return (
        f'[weights."{NAME}.mine"]\nurl = "{path.as_uri()}"\nsha256 = "{sha256(path.read_bytes()).hexdigest()}"\n'
        'layout = "featuretap"\nnorm_eps = 1e-3\n'
    )


POINTS = {
    "opened": (OpenFile, "__init__"),
    "read": ("featuretap.weights.opening", "read_open_file"),
    "described": ("featuretap.weights.reading", "read_record"),
    "mapped": (OpenFile, "mapped"),
    "built": ("featuretap.models.building", "_create_modules"),
    "fitted": ("featuretap.models.building", "fit_checkpoint"),
    "copied": ("featuretap.models.building", "_fill"),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("overwritten", [False, True], ids=["replaced", "overwritten"])
def test_published_weights_that_change_are_used_as_they_were_checked_or_refused(
    configured: Callable[[str], Registry],
    models: tuple[torch.nn.Module, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    overwritten: bool,
) -> None:
    model, first, second = models
    path, other = tmp_path / "cached.safetensors", tmp_path / "other.safetensors"
    path.write_bytes(first.read_bytes())
    other.write_bytes(second.read_bytes())
    os.utime(path, (10**9, 10**9))
    registry = configured(published(path))
    owner, name = POINTS[point]
    owner = sys.modules[owner] if isinstance(owner, str) else owner
    function = getattr(owner, name)

    def change_behind(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if overwritten:
            path.write_bytes(second.read_bytes())
        elif other.exists():
            other.replace(path)
        return result

    monkeypatch.setattr(owner, name, change_behind)

    def build() -> Any:
        return registry.build(NAME, pretrained="mine", num_classes=3)

    if overwritten:
        assert error_of(build).endswith(
            (CHANGED, "expected " + sha256(first.read_bytes()).hexdigest()[:8] + "; replace it")
        )
    else:
        assert_equal_bits(build(), model)


def test_a_session_and_a_conversion_refuse_a_file_that_is_overwritten(
    registry: Registry, models: tuple[torch.nn.Module, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, second = models
    path, target = tmp_path / "file.safetensors", tmp_path / "target.safetensors"

    def overwrite(file: Path) -> None:
        file.write_bytes(second.read_bytes())

    after_opening(monkeypatch, overwrite)
    for use in (lambda: registry.session(path), lambda: registry.convert(path, target), lambda: registry.load(path)):
        path.write_bytes(first.read_bytes())
        os.utime(path, (10**9, 10**9))
        assert error_of(use) == f"'{path}' {CHANGED}"
    assert not target.exists()
