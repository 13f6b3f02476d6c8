"""Saved files: identical bytes for equal models, all dtypes, and sorted headers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.numpy
import torch
from support import oracles
from support.saved_models import assert_equal_bits, bits, cut_backbone, everything_in, full_backbone, small_classifier
from torch import nn

from featuretap.registry import Registry


def test_saving_a_folder_gives_a_file_and_a_config_that_load(registry: Registry, tmp_path: Path) -> None:
    model = small_classifier(registry)
    assert registry.save(model, tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "model.safetensors"
    assert sorted(everything_in(tmp_path / "new" / "folder")) == ["config.json", "model.safetensors"]
    assert_equal_bits(registry.load(tmp_path / "new" / "folder"), model)


SAVE_IN_ALL_LAYOUTS = """
import sys
from pathlib import Path
import torch
from featuretap.registry import Registry

torch.manual_seed(0)
registry, folder = Registry(discover=False), Path(sys.argv[1])
model = registry.build("mobilenet_v2_050", num_classes=5, dropout=0.1)
for layout in ("featuretap", "torchvision", "timm"):
    registry.save(model, folder / f"{layout}.safetensors", layout)
    registry.save(model, folder / layout, layout)
"""


def test_equal_models_give_equal_bytes_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "here")])
    exec(SAVE_IN_ALL_LAYOUTS, {})
    # A different hash seed changes the order of sets, and of the metadata that safetensors writes.
    environment = {**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    command = [sys.executable, "-c", SAVE_IN_ALL_LAYOUTS, tmp_path / "there"]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    files = everything_in(tmp_path / "here")
    assert len([name for name, content in files.items() if content]) == 9
    assert files == everything_in(tmp_path / "there")
    for content in files.values():
        assert str(tmp_path).encode() not in (content or b"")
        assert tmp_path.name.encode() not in (content or b"")


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
@pytest.mark.parametrize("name", ["mobilenet_v2_050", "mobilenet_v3_small"])
def test_saving_what_was_loaded_gives_the_same_bytes(
    registry: Registry, tmp_path: Path, name: str, layout: str
) -> None:
    model = oracles.randomised(registry.build(name, num_classes=3)).float()
    path = registry.save(model, tmp_path / "first.safetensors", layout)
    loaded = registry.load(path)
    again = registry.save(loaded, tmp_path / "second.safetensors", layout)
    assert again.read_bytes() == path.read_bytes()
    assert registry.convert(path, tmp_path / "third.safetensors", layout).read_bytes() == path.read_bytes()
    assert tmp_path.name.encode() not in again.read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_do_not_contain_the_path_of_their_source(registry: Registry, tmp_path: Path, suffix: str) -> None:
    model, source = full_backbone(registry), tmp_path / f"source{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), source)
    else:
        registry.save(model, source)
    expected = registry.save(model, tmp_path / "expected.safetensors").read_bytes()
    loaded = registry.build("mobilenet_v1_025", features_only=True, pretrained=source)
    assert loaded.description.weights == source
    assert registry.save(loaded, tmp_path / "again.safetensors").read_bytes() == expected
    assert registry.save(registry.load(source), tmp_path / "again.safetensors").read_bytes() == expected
    assert registry.convert(source, tmp_path / "again.safetensors").read_bytes() == expected
    assert tmp_path.name.encode() not in expected


def mixed(model: nn.Module) -> nn.Module:
    model.bfloat16()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    return model


def expanded(model: nn.Module) -> nn.Module:
    """Make tensors share storage, both within a tensor and between two names."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.full((1,), 0.5).expand(module.num_features)
            module.bias = module.weight
    return model


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "float16": nn.Module.half,
    "bfloat16": nn.Module.bfloat16,
    "float64": nn.Module.double,
    "mixed": mixed,
    "expanded": expanded,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("build", [cut_backbone, small_classifier])
def test_every_dtype_and_memory_format_is_restored_bit_for_bit(
    registry: Registry, tmp_path: Path, build: Callable[[Registry], nn.Module], change: str
) -> None:
    model = CHANGES[change](build(registry))
    path = registry.save(model, tmp_path / "file.safetensors")
    loaded = registry.load(path)
    assert_equal_bits(loaded, model)
    assert all(tensor.is_contiguous() for tensor in loaded.state_dict().values())
    converted = registry.convert(path, tmp_path / "converted.safetensors")
    assert converted.read_bytes() == path.read_bytes()
    if build is cut_backbone:
        assert_equal_bits(registry.load(registry.convert(path, converted, "timm")), model)


def test_channels_last_changes_no_byte(registry: Registry, tmp_path: Path) -> None:
    model = small_classifier(registry)
    expected = registry.save(model, tmp_path / "file.safetensors").read_bytes()
    model.to(memory_format=torch.channels_last)
    assert registry.save(model, tmp_path / "file.safetensors").read_bytes() == expected
    # Saving does not modify the model.
    assert model.backbone.stages.C1[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_build_keeps_single_precision(registry: Registry, tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_classifier(registry).to(dtype)
    path = registry.save(model, tmp_path / "file.safetensors")
    assert_equal_bits(registry.build("mobilenet_v1_025", num_classes=7, pretrained=path), model.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_plain_numpy_reads_the_same_values(registry: Registry, tmp_path: Path, dtype: torch.dtype) -> None:
    model = cut_backbone(registry).to(dtype)
    read = safetensors.numpy.load_file(registry.save(model, tmp_path / "file.safetensors"))
    assert bits({name: torch.from_numpy(array) for name, array in sorted(read.items())}) == bits(
        dict(sorted(model.state_dict().items()))
    )


@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
@pytest.mark.parametrize("change", [None, "mixed", "channels_last"])
def test_headers_are_sorted_and_tensors_aligned(
    registry: Registry, tmp_path: Path, layout: str, change: str | None
) -> None:
    model = cut_backbone(registry)
    if change:
        CHANGES[change](model)
    content = registry.save(model, tmp_path / "file.safetensors", layout).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 64 == 0
    header = json.loads(content[8 : 8 + length])
    assert list(header) == sorted(header)
    metadata = header.pop("__metadata__")
    assert list(metadata) == sorted(metadata)
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        begin, stop = entry["data_offsets"]
        assert begin == end
        assert begin % {"F32": 4, "I64": 8, "BF16": 2}[entry["dtype"]] == 0
        end = stop
    assert 8 + length + end == len(content)
