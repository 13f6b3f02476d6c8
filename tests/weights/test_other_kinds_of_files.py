"""Files that are not weights files are refused with their actual type, whatever their extension."""

import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from support.saved_models import error_of
from support.weights_files import SOUND, torch_saved

from featuretap.catalogue.pretrained import CHECKPOINT_SUFFIXES
from featuretap.registry import Registry
from featuretap.registry.errors import ExportError
from featuretap.weights.reading import read_checkpoint

STATE = {"a": np.arange(3.0), "b": np.ones((2, 2))}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def saved(write: object, *arguments: object, **named: object) -> bytes:
    buffer = io.BytesIO()
    write(buffer, *arguments, **named)  # type: ignore[operator]
    return buffer.getvalue()


KINDS = {
    "empty": (b"", "empty; download or save it again"),
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14214848\n",
        "a git-lfs pointer instead of the file; run 'git lfs pull' in its repository",
    ),
    "html": (
        b"\n<!DOCTYPE html><html><body>404</body></html>",
        "a web page, such as the error page of a failed download; download it again",
    ),
    "npz": (
        saved(np.savez, **STATE),
        "an archive of NumPy arrays (numpy.savez); save it as safetensors: "
        "safetensors.numpy.save_file(dict(numpy.load(path)), 'weights.safetensors')",
    ),
    "npz, compressed": (
        saved(np.savez_compressed, **STATE),
        "an archive of NumPy arrays (numpy.savez); save it as safetensors: "
        "safetensors.numpy.save_file(dict(numpy.load(path)), 'weights.safetensors')",
    ),
    "npy": (
        saved(np.save, STATE["a"]),
        "a single array of numpy.save; save the tensors by name with safetensors.numpy.save_file",
    ),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(88), "an HDF5 file; export its tensors with safetensors first"),
}


@pytest.mark.parametrize("suffix", [*CHECKPOINT_SUFFIXES, ".npz", ".index.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_files_are_named_under_any_name(
    registry: Registry, tmp_path: Path, kind: str, suffix: str
) -> None:
    content, message = KINDS[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert error_of(lambda: registry.load(path)) == f"'{path}' is not a weights file: it is {message}"
    assert error_of(lambda: read_checkpoint(path, framework="np")) == f"'{path}' is not a weights file: it is {message}"


def test_the_advice_for_numpy_archives_works(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", **STATE)
    safetensors.numpy.save_file(dict(np.load(tmp_path / "weights.npz")), tmp_path / "weights.safetensors")
    tensors = read_checkpoint(tmp_path / "weights.safetensors").tensors
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: array.tolist() for name, array in STATE.items()
    }


def test_one_of_several_files_of_torch_that_is_a_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "part.bin").write_bytes(KINDS["git-lfs"][0])
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"a": "part.bin"}}')
    problem = f"'{tmp_path}/part.bin' is not a weights file: it is {KINDS['git-lfs'][1]}"
    assert error_of(lambda: read_checkpoint(tmp_path)) == problem


@pytest.mark.parametrize("kind", ["empty", "git-lfs", "html"])
def test_other_kinds_of_files_are_named_in_place_of_an_exported_model(
    registry: Registry, tmp_path: Path, kind: str
) -> None:
    content, message = KINDS[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for opens in (registry.session, registry.compile):
        assert error_of(lambda opens=opens: opens(path), ExportError) == (
            f"'{path}' is not an exported model: it is {message}"
        )


def write_shards(folder: Path) -> None:
    for name, shard in zip("ab", SHARDS, strict=True):
        safetensors.torch.save_file({name: torch.ones(2)}, folder / shard)


def index_of(*shards: str) -> str:
    return f'{{"weight_map": {{"a": "{shards[0]}", "b": "{shards[1]}"}}}}'


def test_a_folder_with_an_index_of_another_name_is_read(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "diffusion_model.safetensors.index.json").write_text(index_of(*SHARDS))
    assert read_checkpoint(tmp_path).shapes == {"a": (2,), "b": (2,)}


@pytest.mark.parametrize(
    ("shard", "content", "index"),
    [
        (SHARDS[1], SOUND, "model.safetensors.index.json"),
        ("pytorch_model-00001-of-00003.bin", torch_saved({"a": torch.ones(1)}), "pytorch_model.bin.index.json"),
    ],
    ids=["safetensors", "torch"],
)
def test_a_folder_without_the_index_of_its_files_names_it(
    registry: Registry, tmp_path: Path, shard: str, content: bytes, index: str
) -> None:
    (tmp_path / shard).write_bytes(content)
    assert error_of(lambda: registry.load(tmp_path)) == (
        f"the folder '{tmp_path}' contains shards of a checkpoint, such as {shard}, without their index; get "
        f"{index} from their source"
    )


def test_a_folder_with_several_indices_names_them(registry: Registry, tmp_path: Path) -> None:
    write_shards(tmp_path)
    for name in ("a.safetensors.index.json", "b.safetensors.index.json"):
        (tmp_path / name).write_text(index_of(*SHARDS))
    assert error_of(lambda: registry.load(tmp_path)) == (
        f"the folder '{tmp_path}' does not contain model.safetensors; pass one of its files: a.safetensors.index.json, "
        "b.safetensors.index.json"
    )
