"""Folders with sharded checkpoints, or with a single torch.save file, as huggingface_hub writes them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import save_torch_state_dict
from support.layouts import relative_difference
from support.oracles import timm_model, with_statistics
from timm.models._hub import save_for_hf
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.weights.reading import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.arange(2), "b": torch.tensor(1.0)}
INDICES = {True: "model.safetensors.index.json", False: "pytorch_model.bin.index.json"}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return with_statistics(timm_model("mobilenetv3_small_100", num_classes=7))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three tensors in two shards."""
    save_torch_state_dict(STATE, tmp_path, max_shard_size=30)
    assert len(list(tmp_path.glob("model-0000?-of-00002.safetensors"))) == 2
    return tmp_path


@pytest.mark.parametrize("safetensors", [True, False])
def test_sharded_folders_are_read_as_one_file(
    registry: Registry, tmp_path: Path, network: nn.Module, safetensors: bool
) -> None:
    save_torch_state_dict(network.state_dict(), tmp_path, max_shard_size="2MB", safe_serialization=safetensors)
    index = tmp_path / INDICES[safetensors]
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 2
    assert relative_difference(registry.load(tmp_path), network) < 1e-6
    built = registry.build("mobilenet_v3_small", pretrained=index, num_classes=7)
    assert relative_difference(built, network) < 1e-6


def test_sharded_safetensors_are_read_without_pytorch(folder: Path) -> None:
    found = read_checkpoint(folder, framework="np")
    assert found.path == folder / INDICES[True]
    assert {name: array.tolist() for name, array in found.tensors.items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }


def test_a_session_runs_a_sharded_folder(registry: Registry, tmp_path: Path, network: nn.Module) -> None:
    save_torch_state_dict(network.state_dict(), tmp_path, max_shard_size="2MB")
    session, images = registry.session(tmp_path), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.float()(images)
    assert (torch.from_numpy(session(images.numpy())["logits"]) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("sharded", [False, True])
def test_pickles_in_a_folder_are_refused_without_pytorch_with_their_conversion(tmp_path: Path, sharded: bool) -> None:
    save_torch_state_dict(STATE, tmp_path, max_shard_size=30 if sharded else "1MB", safe_serialization=False)
    path = tmp_path / (INDICES[False] if sharded else "pytorch_model.bin")
    problem = "names .bin files" if sharded else "is a .bin file"
    with pytest.raises(WeightsError) as error:
        read_checkpoint(tmp_path, framework="np")
    assert str(error.value) == (
        f"'{path}' {problem}, which can only be read with PyTorch; convert it where PyTorch is installed: featuretap "
        "convert "
        f"{path} {tmp_path}/pytorch_model.safetensors"
    )


def test_a_folder_of_timms_with_a_pickle_is_read_with_its_configuration(
    registry: Registry, tmp_path: Path, network: nn.Module
) -> None:
    save_for_hf(network.float(), str(tmp_path), safe_serialization=False)
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = registry.load(tmp_path)
    assert loaded.description.preprocessing.mean == (0.5, 0.5, 0.5)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert relative_difference(loaded, theirs) < 1e-6


def test_the_first_known_file_of_a_folder_is_read(tmp_path: Path) -> None:
    save_torch_state_dict({"a": torch.tensor(4.0)}, tmp_path, safe_serialization=False)
    (tmp_path / "pytorch_model-1.bin").write_bytes((tmp_path / "pytorch_model.bin").read_bytes())
    weight_map = {"weight_map": {"a": "pytorch_model-1.bin"}}
    (tmp_path / INDICES[False]).write_text(json.dumps(weight_map))
    assert read_checkpoint(tmp_path).path.name == "pytorch_model.bin"
    (tmp_path / INDICES[True]).write_text(json.dumps(weight_map))
    assert read_checkpoint(tmp_path).path.name == INDICES[True]
    safetensors.torch.save_file({"a": torch.tensor(1.0)}, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path).path.name == "model.safetensors"
    for name in ("model.safetensors", INDICES[True], "pytorch_model.bin"):
        (tmp_path / name).unlink()
    assert read_checkpoint(tmp_path).path.name == INDICES[False]


AGAIN = "get the folder again from its source"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def mapped(**changes: Any) -> Callable[[dict[str, Any]], str]:
    """Return an edit of the index that assigns tensors to other files, or removes those assigned None."""

    def change(index: dict[str, Any]) -> str:
        shards = {**index["weight_map"], **changes}
        return json.dumps({"weight_map": {name: shard for name, shard in shards.items() if shard is not None}})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "[" * 100_000, "it is not JSON"),
        (lambda _: "\ufffd{", "it is not JSON"),
        (lambda _: "[]", "it has no 'weight_map' with tensor names"),
        (lambda _: "{}", "it has no 'weight_map' with tensor names"),
        (lambda _: '{"weight_map": {}}', "it has no 'weight_map' with tensor names"),
        (lambda _: '{"weight_map": ["a"]}', "it has no 'weight_map' with tensor names"),
        (lambda _: '{"weight_map": {"a": "x", "a": "y"}}', "'a' is repeated"),
        (lambda _: '{"metadata": {}, "weight_map": {}, "metadata": {}}', "'metadata' is repeated"),
        (lambda _: " " * 10_000_001, "it is longer than 10,000,000 bytes"),
        *(
            (mapped(b=shard), f"'b' is in {shard!r}, which is not the name of a weights file")
            for shard in (
                *("../model.safetensors", "/etc/passwd.safetensors", "a/b.safetensors", "..\\b.safetensors", ""),
                *("a\0.safetensors", "a\n.safetensors", "model.safetensors.index.json", "config.json", 3, ["a"]),
            )
        ),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, str) else "",
)
def test_malformed_indices_are_refused(
    registry: Registry, folder: Path, change: Callable[[dict[str, Any]], str], message: str
) -> None:
    index = folder / INDICES[True]
    index.write_text(change(json.loads(index.read_text())))
    with pytest.raises(WeightsError) as error:
        registry.load(folder)
    assert str(error.value) == f"'{index}' is not an index of weights files: {message}; {AGAIN}"


def test_an_index_that_does_not_fit_its_files_is_refused(registry: Registry, folder: Path) -> None:
    index = folder / INDICES[True]
    original = json.loads(index.read_text())
    where = original["weight_map"]
    assert (where["a.weight"], where["b"]) == (FIRST, SECOND)

    def refusal(change: Callable[[dict[str, Any]], str]) -> str:
        index.write_text(change(original))
        with pytest.raises(WeightsError) as error:
            registry.load(folder)
        return str(error.value)

    missing = "model-00003-of-00003.safetensors"
    assert refusal(mapped(b=missing)) == f"'{index}' lists the file {missing!r}, which is not in its folder; {AGAIN}"
    (folder / missing).mkdir()
    assert refusal(mapped(b=missing)) == f"'{index}' lists the file {missing!r}, which is not in its folder; {AGAIN}"
    assert refusal(mapped(c=SECOND)) == (
        f"'{folder}/{SECOND}' does not have 'c', which {index.name} lists for it; {AGAIN}"
    )
    assert refusal(mapped(b=None)) == (f"'{folder}/{SECOND}' has 'b', which {index.name} does not list for it; {AGAIN}")
    # One tensor in two files
    shutil.copy(folder / SECOND, folder / "model.more.safetensors")
    assert refusal(mapped(**{"a.bias": "model.more.safetensors", "b": SECOND})).endswith(AGAIN)


def test_a_malformed_file_of_several_is_named(registry: Registry, folder: Path) -> None:
    (folder / SECOND).write_bytes(b"")
    with pytest.raises(WeightsError, match=SECOND):
        registry.load(folder)


def test_a_json_file_that_is_no_index_is_refused(registry: Registry, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsError) as error:
        registry.load(folder / "config.json")
    assert str(error.value) == (
        f"'{folder}/config.json' is not an index of weights files: its name does not end in .index.json; pass a "
        "weights file"
    )


def test_inspect_lists_the_tensors_of_a_sharded_folder(folder: Path, run: Callable[..., Any]) -> None:
    assert json.loads(run("inspect", folder, "--json").out)["tensors"].keys() == STATE.keys()
