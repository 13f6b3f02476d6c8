"""Weights read as NumPy arrays have the same values as PyTorch's tensors, without importing PyTorch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.weights_files import entry, framed
from torch import Tensor

from featuretap.catalogue.pretrained import WeightsSource
from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.reading import read_checkpoint

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
)
"""Types that NumPy has too."""


def widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def assert_equal(arrays: dict[str, np.ndarray], tensors: dict[str, Tensor]) -> None:
    """Assert that arrays match tensors in dtype, shape and bits; bfloat16 tensors are compared as float32."""
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        expected = widened(tensor).numpy()
        assert (arrays[name].dtype, arrays[name].shape) == (expected.dtype, expected.shape), name
        assert arrays[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
def test_arrays_equal_tensors(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    path = tmp_path / "file.safetensors"
    tensor = (torch.randn(shape) > 0 if dtype == torch.bool else (torch.randn(shape) * 9).abs()).to(dtype)
    safetensors.torch.save_file({"a": tensor, "other": torch.zeros(1)}, path)
    arrays = read_checkpoint(path, framework="np").tensors
    assert_equal(arrays, {"a": tensor, "other": torch.zeros(1)})


def test_arrays_are_views_of_the_file_that_nothing_can_write_into(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    safetensors.torch.save_file({"a": torch.arange(3.0)}, path)
    array = read_checkpoint(path, framework="np").tensors["a"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 7
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(7).tobytes()
    with path.open("r+b") as file:
        file.write(content)
    assert array.tolist() == [0, 1, 7]


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_arrays_at_odd_addresses_are_aligned_in_memory(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "file.safetensors"
    size = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}[dtype]
    tensors = {
        "a": entry(dtype="U8", shape=[1], data_offsets=[0, 1]),
        "b": entry(dtype=dtype, shape=[3], data_offsets=[1, 1 + 3 * size]),
    }
    path.write_bytes(framed(tensors, bytes(range(1 + 3 * size))))
    arrays = read_checkpoint(path, framework="np").tensors
    assert arrays["b"].flags.aligned
    assert_equal(arrays, read_checkpoint(path).tensors)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_numbers_that_numpy_lacks_are_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(framed({"a": entry(dtype=dtype, shape=[16], data_offsets=[0, 16])}))
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path, framework="np")
    assert str(error.value) == (
        f"'{path}' has tensors of type {dtype}, which NumPy does not support; convert them with PyTorch: "
        "registry.save(registry.load(path).float(), path)"
    )


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
def test_a_pickle_is_refused_with_its_conversion(registry: Registry, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"my net{suffix}"
    problem = f"is a {suffix} file, which can only be read with PyTorch"
    with pytest.raises(WeightsError, match=r"No such file"):
        open_checkpoint(WeightsSource(path=path), registry, "np")
    torch.save(registry.build("mobilenet_v1_025").state_dict(), path)
    with pytest.raises(WeightsError) as error:
        open_checkpoint(WeightsSource(path=path), registry, "np")
    assert error.value.problem == f"'{path}' {problem}"
    target = tmp_path / "my net.safetensors"
    command = f"featuretap convert '{path}' '{target}'"
    assert str(error.value.hint) == f"convert it where PyTorch is installed: {command}"
    registry.convert(path, target)
    assert open_checkpoint(WeightsSource(path=target), registry, "np").record


def test_a_published_pickle_is_refused_with_a_command_that_saves_it(
    registry: Registry, run: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(tag: str) -> str:
        (entry,) = (entry for entry in registry.published_weights if entry.name == f"mobilenet_v2.{tag}")
        with pytest.raises(WeightsError) as error:
            open_checkpoint(WeightsSource(entry=entry), registry, "np")
        return str(error.value)

    command = "featuretap save mobilenet_v2 mobilenet_v2.imagenet1k_v1.safetensors"
    advice = (
        "which can only be read with PyTorch; save it as safetensors where PyTorch is installed, and use that file:"
    )
    assert refusal("imagenet1k_v1") == f"'mobilenet_v2.imagenet1k_v1' is a .pth file, {advice} {command}"
    assert refusal("imagenet1k_v2").endswith("mobilenet_v2.imagenet1k_v2.safetensors --weights imagenet1k_v2")
    monkeypatch.chdir(tmp_path)
    run(*command.split()[1:])
    saved = open_checkpoint(WeightsSource(path=Path(command.split()[-1])), registry, "np")
    assert saved.record
    assert saved.record.description.weights == "mobilenet_v2.imagenet1k_v1"
