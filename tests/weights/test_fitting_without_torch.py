"""Checkpoints loaded with NumPy have the same tensors and descriptions as the models that PyTorch builds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.package import heavy_modules_after
from support.weights_files import entry, framed
from test_committed_weights import DATA, DESCRIPTIONS, committed
from torch import nn

from featuretap.catalogue.pretrained import WeightsSource
from featuretap.catalogue.request import resolve_request
from featuretap.models.built import Built
from featuretap.registry import Registry
from featuretap.registry.errors import WeightsError
from featuretap.weights.expected_tensors import COUNTER
from featuretap.weights.fitting import FittedWeights, fit_checkpoint
from featuretap.weights.folding import eps_of
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.requests import resolve_checkpoint

LRASPP = {"taps": ("C3.first", "C5"), "dilate_entry": True, "pooling": "global", "gate": "sigmoid", "gate_bias": False}
"""Options of torchvision's segmenter."""

ARGUMENTS = ("features_only", "taps", "head", "num_classes")


def fit(registry: Registry, path: Path, **options: Any) -> FittedWeights:
    """Fit a checkpoint as `registry.load` does."""
    checkpoint = open_checkpoint(WeightsSource(path=path), registry, "np")
    name = options.pop("name", None)
    arguments = {key: options.pop(key) for key in ARGUMENTS if key in options}
    request = resolve_checkpoint(checkpoint, registry, name, arguments, options)
    return fit_checkpoint(request, checkpoint, registry)


def fit_pretrained(registry: Registry, name: str, path: Path, **options: Any) -> FittedWeights:
    """Fit a checkpoint as `registry.build` does."""
    request = resolve_request(registry, name, pretrained=path, **options)
    assert request.weights
    return fit_checkpoint(request, open_checkpoint(request.weights, registry, "np"), registry)


def native(values: Mapping[str, Any], model: Built) -> dict[str, Any]:
    prefix = "backbone." if model.description.head else ""
    return {name.removeprefix(prefix): value for name, value in values.items()}


def assert_equal(fitted: FittedWeights, model: Built) -> None:
    """Assert that a model and the fitted weights have equal tensors (bit by bit), epsilons and descriptions."""
    state = native(model.state_dict(), model)
    assert fitted.tensors.keys() <= state.keys()
    missing = state.keys() - fitted.tensors.keys()
    assert all(name.startswith(fitted.head.skipped) or name.endswith(COUNTER) for name in missing)
    for name, array in fitted.tensors.items():
        # NumPy has no bfloat16. `build` always returns float32 models, regardless of the dtype in the file.
        tensor = state[name].float() if state[name].dtype == torch.bfloat16 else state[name]
        wide = array.astype(np.float32) if array.dtype == np.float16 and tensor.dtype == torch.float32 else array
        expected = tensor.numpy()
        assert (wide.dtype, wide.shape) == (expected.dtype, expected.shape), name
        assert wide.tobytes() == expected.tobytes(), name
    for path, eps in native(eps_of(model), model).items():
        if path.startswith(fitted.head.skipped):
            continue
        part = "head" if model.description.head and path.startswith("head.") else "backbone"
        assert fitted.norm_eps.get(path, fitted.norm_eps.get(part)) == eps, path
    options = {name: value for name, value in model.description.options.items() if name != "norm"}
    assert fitted.description == replace(model.description, options=options)


def without_record(path: Path, target: Path) -> Path:
    """Write only the tensors of a file, without metadata, as other libraries do."""
    safetensors.torch.save_file(safetensors.torch.load_file(path), target)
    return target


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_committed_file_gives_the_tensors_of_the_model(registry: Registry, tmp_path: Path, name: str) -> None:
    path = committed(name, tmp_path)
    assert_equal(fit(registry, path), registry.load(path))


@pytest.fixture(scope="module")
def files(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Map each layout to the file of a five-class classifier whose channels and statistics vary."""
    model = registry.build("mobilenet_v3_small", num_classes=5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    folder = tmp_path_factory.mktemp("files")
    layouts = ("featuretap", "torchvision", "timm")
    return {layout: registry.save(model, folder / f"{layout}.safetensors", layout) for layout in layouts}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"features_only": True, "taps": ("C4.expansion", "C2")},
        {"in_channels": 1},
        {"in_channels": 4},
        {"reduced_tail": True},
        {"reduced_tail": True, "features_only": True, "in_channels": 1, "output_stride": 16},
        {"num_classes": 3},
        {"num_classes": 0},
        {"head": "fpn"},
        {"head": "ssdlite"},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["featuretap", "torchvision", "timm"])
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "identified"])
def test_a_file_gives_the_tensors_of_the_model(
    registry: Registry, files: dict[str, Path], tmp_path: Path, layout: str, recorded: bool, options: dict[str, Any]
) -> None:
    path = files[layout] if recorded else without_record(files[layout], tmp_path / "other.safetensors")
    assert_equal(fit(registry, path, **options), registry.load(path, **options))
    if "head" not in options:
        model = registry.build("mobilenet_v3_small", pretrained=path, **options)
        assert_equal(fit_pretrained(registry, "mobilenet_v3_small", path, **options), model)


@pytest.mark.parametrize("options", [{}, {"in_channels": 1}, {"in_channels": 4}, {"reduced_tail": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_tensors_of_other_types_keep_theirs(
    registry: Registry, files: dict[str, Path], tmp_path: Path, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    path = registry.save(registry.load(files["featuretap"]).to(dtype), tmp_path / "file.safetensors")
    fitted = fit(registry, path, **options)
    assert fitted.tensors["stages.C1.0.conv.weight"].dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert_equal(fitted, registry.load(path, **options))


@pytest.mark.parametrize("options", [{}, {"reduced_tail": True}], ids=str)
def test_bfloat16_becomes_float32(
    registry: Registry, files: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    path = registry.save(registry.load(files["featuretap"]).to(torch.bfloat16), tmp_path / "file.safetensors")
    fitted = fit(registry, path, **options)
    assert fitted.tensors["stages.C1.0.conv.weight"].dtype == np.float32
    assert_equal(fitted, registry.load(path, **options))


def test_batch_norms_of_other_classes_are_batch_norms(
    registry: Registry, files: dict[str, Path], tmp_path: Path
) -> None:
    options = {"features_only": True, "name": "mobilenet_v3_small"}
    for norm in (nn.SyncBatchNorm, lambda channels: nn.BatchNorm2d(channels, momentum=0.5)):
        path = registry.save(registry.load(files["timm"], **options, norm=norm), tmp_path / "file.safetensors")
        assert_equal(fit(registry, path), registry.load(path, norm=norm))


def test_a_norm_that_is_no_batch_norm_is_refused(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v1_025", features_only=True, norm=lambda channels: nn.GroupNorm(4, channels))
    path = registry.save(model, tmp_path / "file.safetensors")
    with pytest.raises(WeightsError) as error:
        fit(registry, path)
    assert str(error.value) == (
        f"'{path}' was saved with norm=a function that makes GroupNorm, which is not a batch norm and needs PyTorch; "
        "load it with registry.load"
    )
    with pytest.raises(WeightsError, match=r"has modules that can only be built with PyTorch; use registry.build$"):
        fit(registry, path, norm=nn.InstanceNorm2d)


def test_a_backbone_of_a_factory_is_refused(registry: Registry, files: dict[str, Path]) -> None:
    with pytest.raises(WeightsError) as error:
        fit_pretrained(registry, "timm/resnet18", files["timm"], features_only=True)
    assert str(error.value) == "'timm/resnet18' has modules that can only be built with PyTorch; use registry.build"


@pytest.mark.parametrize(
    ("file", "options", "warning"),
    [
        (
            "classifier",
            {"num_classes": 7},
            "; head.logits is randomly initialized (the file has 3 classes, the model 7)",
        ),
        ("classifier", {"head": "lraspp"}, "has a head 'classification'; the head 'lraspp' is randomly initialized"),
        ("frozen-norms", {"head": "lraspp", "taps": ("C2", "C3")}, "has no head; the head 'lraspp' is randomly"),
        ("lraspp", {"num_classes": 7}, "randomly initialized (the file has 2 classes, the model 7)"),
        ("lraspp", {"head": "deeplab_v3"}, "has a head 'lraspp'; the head 'deeplab_v3' is randomly initialized"),
        ("ssdlite", {"num_classes": 7}, "randomly initialized (the file has 3 classes, the model 7)"),
    ],
)
def test_a_head_that_the_file_does_not_fill_is_planned_as_pytorch_plans_it(
    registry: Registry, notes: pytest.LogCaptureFixture, file: str, options: dict[str, Any], warning: str
) -> None:
    path = DATA / f"{file}.safetensors"
    fitted = fit(registry, path, **options)
    assert notes.messages == []
    assert fitted.head.is_random
    assert fitted.description.random_head
    assert fitted.head.warning.startswith(f"loaded the backbone from {path}")
    assert warning in fitted.head.warning
    assert_equal(fitted, registry.load(path, **options))
    assert notes.messages[0].endswith(f": {fitted.head.warning}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"stages.C1.0.conv.weight": None}, "does not have stages.C1.0.conv.weight"),
        ({"stages.C1.0.norm.bias": torch.zeros(3)}, "stages.C1.0.norm.bias is (3,) in the file, (16,) in the model"),
        ({"stages.C1.0.norm.extra": torch.zeros(3)}, "has stages.C1.0.norm.extra, which the model does not have"),
    ],
    ids=["missing", "of another shape", "unexpected"],
)
def test_misfits_are_refused_as_pytorch_refuses_them(
    registry: Registry, files: dict[str, Path], tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    tensors = {**safetensors.torch.load_file(files["featuretap"]), **change}
    path = tmp_path / "file.safetensors"
    safetensors.torch.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(WeightsError) as error:
        fit(registry, path, name="mobilenet_v3_small")
    with pytest.raises(WeightsError) as expected:
        registry.load(path, name="mobilenet_v3_small")
    assert str(error.value) == str(expected.value)
    assert problem in str(error.value)


def test_whole_numbers_in_place_of_weights_are_refused(
    registry: Registry, files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    tensors = safetensors.torch.load_file(files["featuretap"])
    safetensors.torch.save_file({**tensors, "stages.C1.0.norm.bias": torch.zeros(16, dtype=torch.int8)}, path)
    with pytest.raises(WeightsError, match=r"stages.C1.0.norm.bias is int8 in the file, float32 in the model"):
        fit(registry, path, name="mobilenet_v3_small")


def test_a_file_that_only_pytorch_recognises_is_refused_with_its_conversion(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_large", head="lraspp", **LRASPP)
    path = registry.save(model, tmp_path / "file.safetensors", "torchvision")
    advice = f"convert it where PyTorch is installed: featuretap convert {path} {tmp_path}/file-converted.safetensors"
    for options in ({}, {"features_only": True}):
        with pytest.raises(WeightsError) as error:
            fit(registry, path, **options)
        assert str(error.value) == (
            f"'{path}' has the head 'lraspp' in the layout 'torchvision', which needs PyTorch; {advice}"
        )
    other = without_record(path, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"does not describe its model, .*; convert it where PyTorch is"):
        fit(registry, other)
    converted = registry.convert(path, tmp_path / "file-converted.safetensors")
    assert_equal(fit(registry, converted), registry.load(converted))


WITHOUT_TORCH = """
from pathlib import Path
from featuretap.catalogue.pretrained import WeightsSource
from featuretap.catalogue.request import resolve_request
from featuretap.registry import Registry
from featuretap.weights.fitting import fit_checkpoint
from featuretap.weights.opening import open_checkpoint
from featuretap.weights.requests import resolve_checkpoint

registry = Registry(discover=False)
checkpoint = open_checkpoint(WeightsSource(path=Path({path!r})), registry, {framework!r})
fitted = fit_checkpoint({request}, checkpoint, registry)
assert fitted.tensors["stages.C1.0.conv.weight"].ndim == 4
"""
RECORDED = "resolve_checkpoint(checkpoint, registry)"
NAMED = "resolve_request(registry, 'mobilenet_v3_small', {})"


@pytest.mark.parametrize(
    ("file", "request_"),
    [
        ("classifier", RECORDED),
        ("frozen-norms", RECORDED),
        ("ssdlite", RECORDED),
        ("lraspp", "resolve_checkpoint(checkpoint, registry, None, {'num_classes': 3})"),
        ("torchvision-classifier", RECORDED),
        ("timm-classifier", "resolve_checkpoint(checkpoint, registry, None, {}, {'reduced_tail': True})"),
        ("timm-classifier", NAMED.format("num_classes=3, in_channels=1")),
        ("timm-folder", NAMED.format("features_only=True, taps=('C2',)")),
        ("other", RECORDED),
    ],
)
def test_fitting_imports_no_torch(tmp_path: Path, file: str, request_: str) -> None:
    if file == "other":
        path = without_record(committed("timm-classifier", tmp_path), tmp_path / "other.safetensors")
    else:
        path = committed(file, tmp_path)
    heavy = heavy_modules_after(WITHOUT_TORCH.format(path=str(path), framework="np", request=request_))
    assert heavy == ["numpy"]


@pytest.mark.parametrize("request_", [RECORDED, NAMED.format("head='lraspp'")])
def test_refusing_a_file_imports_no_torch(tmp_path: Path, request_: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(framed({"a": entry()}, bytes(8)))
    code = WITHOUT_TORCH.format(path=str(path), framework="np", request=request_)
    program = f"from featuretap.registry.errors import WeightsError\ntry:\n    exec({code!r})\n    raise SystemExit(1)"
    assert heavy_modules_after(f"{program}\nexcept WeightsError: pass") == ["numpy"]


def test_the_proof_that_no_torch_is_imported_can_fail() -> None:
    code = WITHOUT_TORCH.format(path=str(DATA / "classifier.safetensors"), framework="pt", request=RECORDED)
    assert "torch" in heavy_modules_after(code)
