"""Unusual but valid safetensors files are read exactly as the safetensors library reads them."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.weights_files import DATA, A, B, bits, entry, framed

from featuretap.registry.errors import WeightsError
from featuretap.weights.reading import Checkpoint, read_checkpoint

EVERY_TYPE = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
)


def assert_as_upstream(path: Path) -> Checkpoint:
    found, expected = read_checkpoint(path), safetensors.torch.load_file(path)
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found.tensors[name]) == bits(tensor)
    return found


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (3, 0), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", EVERY_TYPE, ids=str)
def test_every_type_and_shape_is_read_as_upstream_reads_it(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "file.safetensors"
    tensor = (torch.randn(shape) > 0 if dtype == torch.bool else (torch.randn(shape) * 9).abs()).to(dtype)
    safetensors.torch.save_file({"a": tensor, "other": torch.zeros(1)}, path)
    found = assert_as_upstream(path)
    assert found.tensors["a"].dtype == dtype
    assert bits(found.tensors["a"]) == bits(tensor)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": A, "b": B}, DATA),
        ({"b": B, "a": A}, DATA),
        (json.dumps({"a": A, "b": B}).encode() + b" " * 100, DATA),
        (json.dumps({"a": A, "b": B}, indent=4).encode() + b"\n\t\r ", DATA),
        ({"a": A, "b": B, "__metadata__": {}}, DATA),
        ({"a": A, "b": B, "__metadata__": {"": "", "größe": "π", "n": "\0"}}, DATA),
        ({"größe.重み": A, "😀": B}, DATA),
        (json.dumps({"größe.重み": A, "😀": B}, ensure_ascii=False).encode(), DATA),
        ({"\0": A, '"\\\n': B}, DATA),
        ({" ": A, "a" * 1_000: B}, DATA),
        ({"a": entry(shape=[1] * 40 + [2])}, DATA[:8]),
        ({"a": entry(shape=[0, 2**60], data_offsets=[0, 0])}, b""),
        ({"a": entry(shape=[0], data_offsets=[0, 0]), "b": entry(shape=[0], data_offsets=[0, 0])}, b""),
        ({"a": A, "b": B, "c": entry(shape=[0, 3], data_offsets=[8, 8])}, DATA),
        ({"a": entry(dtype="U8", shape=[1], data_offsets=[0, 1]), "b": {**B, "data_offsets": [1, 9]}}, DATA[:9]),
        ({"a": entry(dtype="BOOL", shape=[8])}, DATA[8:]),
        ({"a": A, "b": B, "format": {**B, "data_offsets": [16, 24]}}, DATA + DATA[:8]),
    ],
)
def test_odd_but_sound_files_are_read_as_upstream_reads_them(tmp_path: Path, header: object, data: bytes) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(framed(header, data))
    assert_as_upstream(path)


def test_headers_of_every_length_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    text = json.dumps({"a": A, "b": B}).encode()
    refused = []
    for spaces in range(700):
        path.write_bytes(framed(text + b" " * spaces))
        try:
            assert_as_upstream(path)
        except WeightsError as error:
            refused.append((len(text) + spaces, str(error).removeprefix(f"'{path}' ")))
    assert refused == []
