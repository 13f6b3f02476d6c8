"""torch.save's pickles: state dicts are read and no code is executed."""

import os
import pickle
import random
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.weights_files import NO_WEIGHTS, NOT_SAFE, RUNS_CODE, SOUND, refusal, torch_saved
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.weights.reading import read_checkpoint


class Malicious:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize(
    "write",
    [
        torch_saved,
        lambda content: torch_saved(content, legacy=True),
        lambda content: torch_saved({"a": torch.zeros(1), "b": content}),
        *[lambda content, protocol=protocol: pickle.dumps(content, protocol) for protocol in range(6)],
    ],
    ids=["zip", "legacy", "in a state dict", *(f"protocol {protocol}" for protocol in range(6))],
)
def test_code_in_a_file_is_not_run(
    registry: Registry, tmp_path: Path, write: Callable[[object], bytes], suffix: str
) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(write(Malicious(tmp_path / "ran")))
    said = refusal(registry, path)
    assert not (tmp_path / "ran").exists()
    if suffix == ".safetensors":
        assert said.startswith(NO_WEIGHTS.format(""))
    else:
        assert said in (NOT_SAFE, RUNS_CODE.format("posix.mkdir"))
    # Python's unpickler does run the code.
    pickle.loads(pickle.dumps(Malicious(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


NOT_A_STATE_DICT = (
    "does not contain a state dict: {}; save a dictionary of tensors, directly or under one of state_dict_ema, "
    "model_ema, "
    "state_dict, model, model_state_dict, net, weights, module"
)
NO_STATE_DICT = "contains {} instead of a state dict; save model.state_dict() instead of the model"


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: torch.zeros(1)}, NOT_A_STATE_DICT.format("0 is not a tensor name")),
        ({"a": torch.zeros(1), None: torch.zeros(1)}, NOT_A_STATE_DICT.format("None is not a tensor name")),
        (
            {"generator": {"a": torch.zeros(1)}, "epoch": 3},
            NOT_A_STATE_DICT.format("'generator' is dict, not a tensor"),
        ),
        (
            {"model": {"a": torch.zeros(1), "epoch": 3}},
            NOT_A_STATE_DICT.format("'epoch' is int, not a tensor").replace("dict:", "dict under 'model':"),
        ),
        ({"model": {}, "epoch": 3}, NOT_A_STATE_DICT.format("'model' is dict, not a tensor")),
        (
            {"model": Namespace(a=torch.zeros(1))},
            NOT_A_STATE_DICT.format("'model' is an object, not a tensor"),
        ),
        ({"a": torch.zeros(1), "epoch": 3}, NOT_A_STATE_DICT.format("'epoch' is int, not a tensor")),
        ({"a": [torch.zeros(1)]}, NOT_A_STATE_DICT.format("'a' is list, not a tensor")),
        (
            {"a": torch.eye(2).to_sparse()},
            NOT_A_STATE_DICT.format(
                "'a' is a tensor of torch.float32 in the layout torch.sparse_coo, which layers do not support"
            ),
        ),
        (
            {"a": torch.zeros(2, dtype=torch.complex64)},
            NOT_A_STATE_DICT.format(
                "'a' is a tensor of torch.complex64 in the layout torch.strided, which layers do not support"
            ),
        ),
        (
            {"a": torch.zeros(2, device="meta")},
            NOT_A_STATE_DICT.format("'a' is a tensor without values (device 'meta')"),
        ),
        ({}, NO_STATE_DICT.format("dict")),
        ([torch.zeros(1)], NO_STATE_DICT.format("list")),
        (torch.zeros(1), NO_STATE_DICT.format("Tensor")),
        (None, NO_STATE_DICT.format("NoneType")),
        (nn.Linear(2, 2), RUNS_CODE.format("torch.nn.modules.linear.Linear")),
        ({"a": torch.zeros(1), "b": getattr}, RUNS_CODE.format("builtins.getattr")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_pickles_of_anything_but_a_state_dict_are_refused(
    registry: Registry, tmp_path: Path, content: object, message: str, legacy: bool
) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(torch_saved(content, legacy=legacy))
    assert refusal(registry, path) == message


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"\x80",
        b"PK\x03\x04",
        SOUND,
        pickle.dumps({"a": 1})[:-1],
        b"." * 99,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_files_that_are_not_pickles_are_refused(registry: Registry, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    assert refusal(registry, path) == NOT_SAFE


# A PyTorch warning raised as an error would count as a refusal.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_flipped_byte_in_a_pickle_is_refused_or_harmless(tmp_path: Path, legacy: bool) -> None:
    chance = random.Random(0)
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3), "c": torch.tensor(1, dtype=torch.float16)}
    content = torch_saved(state, legacy=legacy)
    path = tmp_path / "file.pth"
    read_whole = 0
    for _ in range(200):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= chance.randrange(1, 256)
        path.write_bytes(flipped)
        try:
            tensors = read_checkpoint(path).tensors
        except WeightsError:
            continue
        read_whole += 1
        for tensor in tensors.values():
            tensor.clone()
    assert 0 < read_whole < 200


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_is_cut_off_is_refused(tmp_path: Path, legacy: bool) -> None:
    content = torch_saved({"a": torch.arange(6.0)}, legacy=legacy)
    path = tmp_path / "file.pth"
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(WeightsError):
            read_checkpoint(path)
