"""NaN and infinity in weights files are refused on request."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.weights_files import BIAS, MEAN, STEM, VAR

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError

DIVERGED = "the training diverged, or the file is damaged"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_nan_and_infinity_are_refused_on_request(
    registry: Registry, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",)).to(dtype)
    model.state_dict()[VAR][3] = value
    path = registry.save(model, tmp_path / "file.safetensors")
    assert registry.load(path).state_dict()[VAR][3].allclose(torch.tensor(value, dtype=dtype), equal_nan=True)
    with pytest.raises(WeightsError) as error:
        registry.load(path, finite=True)
    assert str(error.value) == f"'{path}' contains NaN or infinity in {VAR}; {DIVERGED}"


def test_the_first_three_tensors_that_are_not_finite_are_named(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",))
    for name in (STEM, BIAS, MEAN, VAR):
        model.state_dict()[name].view(-1)[-1] = float("nan")
    path = registry.save(model, tmp_path / "file.safetensors")
    registry.load(path)
    with pytest.raises(WeightsError) as error:
        registry.load(path, finite=True)
    assert str(error.value) == f"'{path}' contains NaN or infinity in {STEM}, {BIAS}, {MEAN} and 1 more; {DIVERGED}"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_nan_in_somebody_elses_file_is_refused_on_request(registry: Registry, tmp_path: Path, suffix: str) -> None:
    state = registry.build("mobilenet_v2_050", features_only=True).state_dict()
    state[STEM][0, 0, 0, 0] = float("nan")
    path = (tmp_path / "file").with_suffix(suffix)
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(state, path)
    registry.load(path)
    with pytest.raises(WeightsError) as error:
        registry.load(path, finite=True)
    assert str(error.value) == f"'{path}' contains NaN or infinity in {STEM}; {DIVERGED}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_largest_numbers_of_a_type_are_finite(registry: Registry, tmp_path: Path, dtype: torch.dtype) -> None:
    model = registry.build("mobilenet_v2_050", features_only=True, taps=("C1",)).to(dtype)
    model.state_dict()[BIAS].fill_(torch.finfo(dtype).max)
    path = registry.save(model, tmp_path / "file.safetensors")
    assert torch.equal(registry.load(path, finite=True).state_dict()[BIAS], model.state_dict()[BIAS])
