"""Valid weights files whose tensors do not match the model they describe."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.weights_files import STEM, with_metadata, with_tensors

from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit the address space to 4 GiB above current usage."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("classes", [10**9, 2**31 - 1])
def test_a_classifier_larger_than_memory_is_refused(
    registry: Registry, classifier_files: dict[str, bytes], tmp_path: Path, classes: int
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_metadata(classifier_files["featuretap"], num_classes=str(classes)))
    with pytest.raises(WeightsError):
        registry.load(path)


@pytest.mark.parametrize("shape", [(), (0,), (16, 0, 3, 3), (0, 0, 0, 0), (16, 3, 3), (8, 3, 3, 3)], ids=str)
def test_a_stem_of_another_shape_is_refused(
    registry: Registry, stem_file: bytes, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(stem_file, {STEM: torch.zeros(shape)}))
    with pytest.raises(WeightsError, match=r"^weights do not fit 'mobilenet_v2_050': "):
        registry.load(path)
    with pytest.raises(WeightsError, match=r"^weights do not fit 'mobilenet_v2_050': "):
        registry.build("mobilenet_v2_050", features_only=True, taps=("C1",), pretrained=path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32, torch.bool], ids=str)
def test_a_stem_of_an_odd_dtype_is_refused_or_adapted_to_other_channels(
    registry: Registry, stem_file: bytes, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(stem_file, {STEM: torch.zeros(16, 3, 3, 3).to(dtype)}))
    for channels in (1, 4):
        try:
            loaded = registry.load(path, in_channels=channels)
        except WeightsError:
            continue
        assert loaded.state_dict()[STEM].is_floating_point()
        assert loaded.state_dict()[STEM].shape == (16, channels, 3, 3)


ODD_TENSORS = pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("featuretap", "head.logits.weight"),
        ("featuretap", "head.logits.bias"),
        ("featuretap", "head.hidden.weight"),
        ("featuretap", "stages.C5.0.project.norm.weight"),
        ("timm", "conv_head.weight"),
        ("timm", "classifier.weight"),
        ("timm", "blocks.4.0.bn3.weight"),
    ],
)

ODD_SHAPES = pytest.mark.parametrize("shape", [(), (1,)], ids=str)


@ODD_SHAPES
@ODD_TENSORS
def test_a_tensor_of_another_shape_is_not_loaded(
    registry: Registry,
    classifier_files: dict[str, bytes],
    tmp_path: Path,
    layout: str,
    name: str,
    shape: tuple[int, ...],
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(classifier_files[layout], {name: torch.zeros(shape)}))
    with pytest.raises(WeightsError):
        registry.load(path)


@ODD_SHAPES
@ODD_TENSORS
def test_a_tensor_of_another_shape_is_not_halved(
    registry: Registry,
    classifier_files: dict[str, bytes],
    tmp_path: Path,
    layout: str,
    name: str,
    shape: tuple[int, ...],
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(classifier_files[layout], {name: torch.zeros(shape)}))
    with pytest.raises(WeightsError):
        registry.load(path, reduced_tail=True)


@ODD_SHAPES
@ODD_TENSORS
def test_a_tensor_of_another_shape_is_not_converted(
    registry: Registry,
    classifier_files: dict[str, bytes],
    tmp_path: Path,
    layout: str,
    name: str,
    shape: tuple[int, ...],
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(with_tensors(classifier_files[layout], {name: torch.zeros(shape)}))
    with pytest.raises(WeightsError):
        registry.convert(path, tmp_path / "converted.safetensors", "timm" if layout == "featuretap" else "featuretap")
    assert not (tmp_path / "converted.safetensors").exists()
