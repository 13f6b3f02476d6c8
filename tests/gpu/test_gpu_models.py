"""Models on a GPU: saving and loading, fusing, compiling, process groups, predictions and extraction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from PIL import Image
from support.devices import HAS_GPU, module_device
from support.heads import build_head
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from featuretap.registry import Registry
from featuretap.registry.conformance import check_shapes, randomize_norms
from featuretap.registry.errors import OptionError
from featuretap.support.image_files import list_images
from featuretap.workflows.extraction import modules
from featuretap.workflows.extraction.computing import Batch
from featuretap.workflows.inference.modules import ModulePredictor
from featuretap.workflows.inference.predicting import predict_images

RUNTIMES = ["fused", "inductor"] if HAS_GPU else ["fused"]
"""The compiler for CPUs is tested with the runtimes."""


def small(registry: Registry, **options: Any) -> nn.Module:
    return randomize_norms(registry.build("mobilenet_v3_small", width=0.25, **options)).eval()


@pytest.fixture
def photograph() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 15, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((150, 120))


@pytest.mark.parametrize("head", [None, "classification", "lraspp", "ssdlite"])
def test_a_model_on_the_device_is_saved_as_the_same_bytes_and_loaded_on_the_cpu(
    registry: Registry, accelerator: torch.device, head: str | None, tmp_path: Path
) -> None:
    if head is None:
        model = small(registry, features_only=True)
    else:
        model = build_head(registry, "mobilenet_v3_small", head, width=0.25)
    expected = registry.save(model, tmp_path / "cpu.safetensors").read_bytes()
    path = registry.save(model.to(accelerator), tmp_path / "device.safetensors")
    assert path.read_bytes() == expected
    loaded = registry.load(path)
    assert module_device(loaded) == torch.device("cpu")
    assert module_device(loaded.to(accelerator)) == accelerator


@pytest.mark.parametrize("layout", ["timm", "torchvision"])
def test_other_layouts_are_written_from_the_device(
    registry: Registry, accelerator: torch.device, layout: str, tmp_path: Path
) -> None:
    model = registry.build("mobilenet_v3_small")
    paths = [
        registry.save(each, tmp_path / f"{place}.safetensors", layout=layout)
        for place, each in (("cpu", model), ("device", model.to(accelerator)))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_small"])
def test_a_model_is_fused_on_a_device_that_rounds(registry: Registry, accelerator: torch.device, name: str) -> None:
    """GPUs round float32 to ten bits, and folding changes how weights round. Fusing must accept the difference."""
    model = randomize_norms(registry.build(name, features_only=True, width=0.25)).to(accelerator)
    fused = registry.fuse(model)
    assert module_device(fused) == accelerator
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_model_is_compiled_on_the_device(registry: Registry, accelerator: torch.device, runtime: str) -> None:
    """`compile` compares the compiled model with the original before returning it."""
    model = small(registry, features_only=True).to(accelerator)
    compiled = registry.compile(model, runtime, size=(64, 96), batch=1)
    maps = compiled(torch.zeros(1, 3, 64, 96, device=accelerator))
    assert {feature.device for feature in maps.values()} == {accelerator}
    with pytest.raises(OptionError, match=r"was compiled for images of torch\.float32 on"):
        compiled(torch.zeros(1, 3, 64, 96))


def test_runtimes_for_the_cpu_refuse_a_model_on_the_device(registry: Registry, accelerator: torch.device) -> None:
    with pytest.raises(OptionError, match=r"runs on the CPU, but the model is on .*; use model.cpu\(\)"):
        registry.compile(small(registry, features_only=True).to(accelerator), "onnxruntime")


@pytest.mark.parametrize("head", ["classification", "lraspp", "ssdlite"])
def test_predictions_on_the_device_are_those_on_the_cpu(
    registry: Registry, accelerator: torch.device, photograph: Image.Image, head: str
) -> None:
    model = build_head(registry, "mobilenet_v3_small", head, width=0.25).eval()
    (expected,) = predict_images(model, [photograph], threshold=0.0)
    (found,) = predict_images(model.to(accelerator), [photograph], threshold=0.0)
    assert type(found) is type(expected)
    if head == "classification":
        assert [each.value for each in found.ranked] == pytest.approx([each.value for each in expected.ranked], 1e-3)
    elif head == "lraspp":
        assert (found.mask == expected.mask).mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head", ["classification", "lraspp", None])
def test_a_model_in_half_precision_predicts_in_it(
    registry: Registry, device: torch.device, photograph: Image.Image, head: str | None, dtype: torch.dtype
) -> None:
    options: dict[str, Any] = {"head": head, "num_classes": 3} if head else {"features_only": True}
    exact = ModulePredictor(small(registry, **options).to(device))
    image = exact.prepare(photograph)
    expected = exact(image)
    found = ModulePredictor(exact._model.to(dtype))(image)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        cosine = np.vdot(found[name], values) / np.linalg.norm(found[name]) / np.linalg.norm(values)
        assert cosine > 0.99


def test_features_are_extracted_on_the_device(device: torch.device, photograph: Image.Image, tmp_path: Path) -> None:
    photograph.save(tmp_path / "photograph.png")
    extractor = modules.open_module("mobilenet_v3_small", "none", taps=("C3", "C5"), size=(64, 96))
    torch.manual_seed(0)
    reference = Registry().build("mobilenet_v3_small", features_only=True, taps=("C3", "C5")).eval()
    batch = Batch(0, list_images([tmp_path / "photograph.png"]))
    (computed,) = extractor.compute([batch], extractor.preparation, True, 0)
    with torch.inference_mode():
        pixels = torch.from_numpy(extractor.preparation.read(batch).pixels)
        expected = {name: feature.mean((2, 3)).numpy() for name, feature in reference(pixels).items()}
    for name, values in expected.items():
        np.testing.assert_allclose(computed.features[name], values, atol=1e-2 * np.abs(values).max())


def test_the_generator_of_a_gpu_is_not_seeded_by_what_is_built_on_the_cpu(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seeded generator would not be restored, and could change a training run on the GPU."""

    def seeded(seed: int) -> None:
        raise AssertionError(f"the GPU was seeded with {seed}")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    with pytest.raises(AssertionError, match="seeded with 3"):
        torch.manual_seed(3)
    check_shapes("mobilenet_v3_small", registry, [(32, 32)])
    modules.open_module("mobilenet_v3_small", "none", taps=("C2",), size=None)


@pytest.fixture
def process_group(device: torch.device) -> Any:
    """A process group with only this process, using NCCL on a GPU and Gloo otherwise."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_is_trained_in_a_process_group(
    registry: Registry, device: torch.device, process_group: None, tmp_path: Path
) -> None:
    """Norms that average over processes are only supported on GPUs."""
    norm = {"norm": nn.SyncBatchNorm} if device.type == "cuda" else {}
    model = registry.build("mobilenet_v3_small", width=0.25, num_classes=3, **norm).to(device).train()
    wrapped = DistributedDataParallel(model, device_ids=[0] if device.type == "cuda" else None)
    before = model.backbone.stages.C1[0].norm.running_mean.clone()
    wrapped(torch.rand(4, 3, 64, 64, device=device)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(model.backbone.stages.C1[0].norm.running_mean, before)
    assert registry.load(registry.save(wrapped, tmp_path / "model.safetensors")).description.num_classes == 3
