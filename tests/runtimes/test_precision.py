"""Models in bfloat16 are compared with float32, and refused where the processor or runtime lacks support."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.oracles import with_statistics
from support.runtime_plugins import runtime_plugin
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import ExportError, OptionError
from featuretap.registry.specs import HS, RE, SE, BackboneSpec, Bneck, Conv, RuntimeSpec
from featuretap.runtimes import fusing
from featuretap.runtimes.agreement import random_images
from featuretap.runtimes.exportable import Exportable
from featuretap.specs.description import Description
from featuretap.support import processor

TINY = BackboneSpec("tiny", stages=((Conv(3, 8, HS),), (Bneck(3, 16, 12, RE, SE), Conv(1, 20, RE))))
LEVELS = BackboneSpec("levels", stages=tuple((Conv(3, width, RE),) for width in (8, 8, 16, 16, 24)))
X86 = "processor\t: 0\nmodel name\t: Imaginary Xeon\nflags\t\t: fpu sse avx2 avx512f{}\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50\nFeatures\t: fp asimd{}\n"

Cpuinfo = Callable[[str], None]


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cpuinfo:
    """Simulate another processor by replacing /proc/cpuinfo."""

    def write(text: str) -> None:
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")

    return write


@pytest.fixture
def units(cpuinfo: Cpuinfo) -> None:
    cpuinfo(X86.format(" avx512_bf16"))


@pytest.fixture
def tiny(registry: Registry) -> nn.Module:
    return with_statistics(registry.build(TINY, features_only=True))


@torch.no_grad()
def relative_error(found: dict[str, torch.Tensor], model: nn.Module, images: torch.Tensor) -> dict[str, float]:
    expected = model(images)
    return {name: float((found[name] - values).norm() / values.norm()) for name, values in expected.items()}


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("runtime", ["openvino", "fused", "inductor"])
def test_outputs_in_bf16_are_close_and_their_agreement_is_in_the_description(
    registry: Registry, tiny: nn.Module, runtime: str
) -> None:
    compiled = registry.compile(tiny, runtime, precision="bf16")
    images = torch.randn(2, 3, 64, 96)
    found = compiled(images)
    assert {name: (values.dtype, values.shape) for name, values in found.items()} == {
        "C1": (torch.float32, (2, 8, 32, 48)),
        "C2": (torch.float32, (2, 20, 16, 24)),
    }
    agreement = compiled.description.agreement
    assert list(agreement) == ["C1", "C2"]
    for name, error in relative_error(found, tiny, images).items():
        assert agreement[name].cosine > 0.999
        # A runtime that ignored the precision would agree to 1e-6.
        assert error == pytest.approx(agreement[name].error, rel=0.5)
    assert max(near.error for near in agreement.values()) < 0.05
    assert tiny.description.agreement == {}
    assert next(tiny.parameters()).dtype == torch.float32


@pytest.mark.usefixtures("units")
def test_the_same_class_is_counted_for_classifiers(registry: Registry) -> None:
    model = with_statistics(registry.build(LEVELS, num_classes=5))
    compiled = registry.compile(model, "fused", size=(32, 32), batch=2, precision="bf16")
    (near,) = compiled.description.agreement.values()
    assert list(compiled.description.agreement) == ["logits"]
    assert near.top1 is not None
    assert 0 <= near.top1 <= 1


@pytest.mark.usefixtures("units")
def test_a_detector_in_bf16_is_compared_before_it_selects_boxes(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", head="ssdlite", width=0.25, num_classes=3).eval()
    compiled = registry.compile(model, "openvino", batch=1, precision="bf16")
    agreement = compiled.description.agreement
    assert list(agreement) == ["cls_logits", "bbox_regression"]
    assert min(near.cosine for near in agreement.values()) > 0.99
    assert list(compiled(torch.rand(1, 3, 64, 64))[0]) == ["boxes", "scores", "labels"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "fused"])
def test_float32_needs_no_agreement(registry: Registry, tiny: nn.Module, cpuinfo: Cpuinfo, runtime: str) -> None:
    cpuinfo(X86.format(""))
    compiled = registry.compile(tiny, runtime)
    assert compiled.description.agreement == {}
    assert max(relative_error(compiled(torch.ones(1, 3, 32, 32)), tiny, torch.ones(1, 3, 32, 32)).values()) < 1e-4


@pytest.mark.parametrize("runtime", ["openvino", "fused", "inductor", "auto"])
def test_a_processor_without_units_is_named(
    registry: Registry, tiny: nn.Module, cpuinfo: Cpuinfo, runtime: str
) -> None:
    cpuinfo(X86.format(""))
    with pytest.raises(OptionError) as error:
        registry.compile(tiny, runtime, precision="bf16")
    assert str(error.value) == (
        "precision='bf16' needs a processor with bfloat16 support, but /proc/cpuinfo lists none of avx512_bf16, "
        "amx_bf16, bf16 for Imaginary Xeon; use precision='float32'"
    )


@pytest.mark.parametrize(
    ("text", "units"),
    [
        (X86.format(" avx512_bf16 amx_bf16 amx_tile"), ("avx512_bf16", "amx_bf16")),
        (X86.format(" amx_bf16"), ("amx_bf16",)),
        (X86.format(" avx512_bf16x"), ()),
        (ARM.format(" bf16 i8mm"), ("bf16",)),
        (ARM.format(""), ()),
        ("", ()),
    ],
)
def test_units_are_read_from_the_flags_of_the_processor(cpuinfo: Cpuinfo, text: str, units: tuple[str, ...]) -> None:
    cpuinfo(text)
    assert processor.bf16_units() == units


def test_systems_that_list_no_flags_have_no_known_units(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    assert processor.bf16_units() == ()
    assert processor.processor_name()


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize(
    ("runtime", "precision", "message"),
    [
        (
            "onnxruntime",
            "bf16",
            "the runtime 'onnxruntime' only supports float32; use 'fused' or 'inductor' or 'openvino' for "
            "precision='bf16'",
        ),
        (
            "aot",
            "bf16",
            "the runtime 'aot' only supports float32; use 'fused' or 'inductor' or 'openvino' for precision='bf16'",
        ),
        ("openvino", "bfloat16", "precision must be 'float32' or 'bf16'; got 'bfloat16'"),
        ("openvino", None, "precision must be 'float32' or 'bf16'; got None"),
    ],
)
def test_precisions_that_a_runtime_does_not_have_are_refused(
    registry: Registry, tiny: nn.Module, runtime: str, precision: Any, message: str
) -> None:
    with pytest.raises(OptionError) as error:
        registry.compile(tiny, runtime, precision=precision)
    assert str(error.value) == message


@pytest.mark.usefixtures("units")
def test_models_that_are_not_in_float32_are_refused(registry: Registry, tiny: nn.Module) -> None:
    with pytest.raises(OptionError) as error:
        registry.compile(tiny.bfloat16(), "fused", precision="bf16")
    assert str(error.value) == (
        "precision='bf16' needs a model in float32, but the model is torch.bfloat16; use model.float(), or "
        "precision='float32'"
    )


@pytest.mark.parametrize("supported", [True, False])
def test_gpus_without_units_are_refused(monkeypatch: pytest.MonkeyPatch, cpuinfo: Cpuinfo, supported: bool) -> None:
    cpuinfo(X86.format(""))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Imaginary GPU")
    images: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    signature: Any = None
    model = Exportable(nn.Identity(), signature, Description("any", ("C1",)), images, precision="bf16")
    if supported:
        model.check_precision()
        return
    with pytest.raises(
        OptionError, match=r"^precision='bf16' needs a GPU .* which Imaginary GPU does not have; use prec"
    ):
        model.check_precision()


def unrelated(exportable: Any, *, threads: int | None) -> Callable[[torch.Tensor], Any]:
    return lambda images: [torch.randn_like(feature) for feature in exportable.module(images)]


def not_finite(exportable: Any, *, threads: int | None) -> Callable[[torch.Tensor], Any]:
    return lambda images: [feature / 0 for feature in exportable.module(images)]


def smaller(exportable: Any, *, threads: int | None) -> Callable[[torch.Tensor], Any]:
    return lambda images: [feature[..., 1:] for feature in exportable.module(images)]


def in_bfloat16(exportable: Any, *, threads: int | None) -> Callable[[torch.Tensor], Any]:
    return lambda images: [feature.bfloat16() for feature in exportable.module(images)]


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "unrelated",
            r"'tiny' loses too much accuracy in bf16: the cosine similarity of its 'C1' to float32 is .*, below",
        ),
        (
            "not_finite",
            r"'tiny' loses too much accuracy in bf16: the cosine similarity of its 'C1' to float32 is nan, b",
        ),
        ("smaller", r"'tiny': for images .* its output 'C1' is \(1, 8, 113, 80\), not \(1, 8, 113, 81\)"),
        ("in_bfloat16", r"'tiny': for images .* its output 'C1' is torch.bfloat16, not torch.float32"),
    ],
)
def test_outputs_that_have_little_in_common_are_refused(tiny: nn.Module, function: str, message: str) -> None:
    spec = RuntimeSpec("engine", f"{__name__}:{function}", precisions=("float32", "bf16"))
    registry = Registry(plugins=[runtime_plugin("engines", spec)], discover=False)
    with pytest.raises(ExportError, match=message):
        registry.compile(tiny, "engine", precision="bf16")


@pytest.mark.usefixtures("units")
def test_rounding_does_not_hide_a_wrongly_folded_norm(
    registry: Registry, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = fusing._fold

    def fold_imprecisely(pair: fusing.Pair) -> None:
        fold(pair)
        pair.layer.weight.data *= 1.002

    monkeypatch.setattr(fusing, "_fold", fold_imprecisely)
    with pytest.raises(ExportError, match=r"'tiny': for images .* its output 'C1' differs from the model's"):
        registry.compile(tiny, "fused", precision="bf16")


@pytest.mark.usefixtures("units")
def test_rounding_does_not_hide_a_graph_of_another_model(
    registry: Registry, tiny: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.stages.C1[0].conv.register_forward_hook(lambda module, images, output: output * 1.002)
    compiled = registry.compile(tiny, "openvino", size=(32, 32), precision="bf16")
    assert "tracing the model, which was changed after it was built" in caplog.text
    assert compiled.description.agreement["C2"].cosine > 0.99


@pytest.fixture
def saved(registry: Registry, tmp_path: Path) -> Path:
    model = with_statistics(registry.build("mobilenet_v3_small", width=0.25, num_classes=5))
    return registry.save(model, tmp_path / "model.safetensors")


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("exported", [False, True])
def test_a_session_in_bf16_is_compared_with_itself_in_float32(
    registry: Registry, saved: Path, tmp_path: Path, exported: bool
) -> None:
    path = registry.export(registry.load(saved), tmp_path / "model.onnx") if exported else saved
    exact = registry.session(path, runtime="openvino")
    session = registry.session(path, runtime="openvino", precision="bf16")
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    expected, found = exact(images)["logits"], session(images)["logits"]
    assert found.dtype == np.float32
    assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.1
    assert list(session.description.agreement) == ["logits"]
    assert session.description.agreement["logits"].cosine > 0.99
    assert exact.description.agreement == {}


@pytest.mark.parametrize(
    ("flags", "arguments", "message"),
    [
        (
            "",
            {"runtime": "openvino"},
            "needs a processor with bfloat16 support, but .* for Imaginary Xeon; use",
        ),
        (" amx_bf16", {}, "the runtime 'onnxruntime' only supports float32; use 'fused' or"),
        (
            " amx_bf16",
            {"runtime": "fused"},
            "the runtime 'fused' needs PyTorch; use 'onnxruntime' or 'openvino' for a session",
        ),
        (
            " amx_bf16",
            {"runtime": "openvino", "precision": "int8"},
            "precision must be 'float32' or 'bf16'; got 'int8'",
        ),
    ],
)
def test_sessions_that_have_no_bf16_are_refused(
    registry: Registry, saved: Path, cpuinfo: Cpuinfo, flags: str, arguments: dict[str, Any], message: str
) -> None:
    cpuinfo(X86.format(flags))
    with pytest.raises(OptionError, match=message):
        registry.session(saved, **{"precision": "bf16", **arguments})


@pytest.mark.usefixtures("units")
def test_detections_in_bf16_are_no_session(registry: Registry, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v3_small", head="ssdlite", width=0.25, num_classes=3)
    path = registry.save(model, tmp_path / "detector.safetensors")
    with pytest.raises(OptionError, match=r"^a session cannot compare detections in precision='bf16' with float32, "):
        registry.session(path, runtime="openvino", precision="bf16")


@pytest.mark.usefixtures("units")
def test_an_exported_file_is_compiled_in_float32(registry: Registry, saved: Path, tmp_path: Path) -> None:
    path = registry.export(registry.load(saved), tmp_path / "model.onnx")
    with pytest.raises(OptionError) as error:
        registry.compile(path, "openvino", precision="bf16")
    assert str(error.value) == (
        "precision='bf16' cannot be applied to an exported file; pass the model, or open the file with registry.session"
    )


def test_random_images_have_smooth_areas_and_are_always_the_same() -> None:
    images = random_images((2, 3, 97, 161))
    assert (images.shape, images.dtype) == ((2, 3, 97, 161), np.float32)
    assert np.array_equal(images, random_images((2, 3, 97, 161)))
    # Neighboring pixels differ only at the borders of the 16-pixel fields.
    assert np.diff(images, axis=3).astype(bool).mean() == pytest.approx(10 / 160)
    assert images.std() == pytest.approx(1, abs=0.2)
