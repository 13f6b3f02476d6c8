"""`runtime="auto"` selects the faster of two runtimes and skips runtimes that fail."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.oracles import with_statistics
from support.runtime_plugins import runtime_plugin
from torch import nn

from featuretap.registry import Registry
from featuretap.registry.errors import ExportError, MissingExtraError, OptionError, WeightsError
from featuretap.registry.specs import RE, BackboneSpec, Conv, RuntimeSpec
from featuretap.runtimes import choosing

TINY = BackboneSpec("tiny", stages=((Conv(3, 8, RE),), (Conv(3, 12, RE),)))

Run = Callable[[torch.Tensor], Any]


@pytest.fixture
def tiny(registry: Registry) -> nn.Module:
    return with_statistics(registry.build(TINY, features_only=True))


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "SECONDS", 0.2)


shapes: list[tuple[int, ...]] = []


def taking(exportable: Any, seconds: float) -> Run:
    @torch.no_grad()
    def run(images: torch.Tensor) -> Any:
        shapes.append(tuple(images.shape))
        time.sleep(seconds)
        return exportable.module(images)

    return run


def fast(exportable: Any, *, threads: int | None) -> Run:
    return taking(exportable, 0.0)


def slow(exportable: Any, *, threads: int | None) -> Run:
    return taking(exportable, 0.2)


def failing(exportable: Any, *, threads: int | None) -> Run:
    raise ZeroDivisionError("no engine")


def wrong(exportable: Any, *, threads: int | None) -> Run:
    return lambda images: [2 * feature for feature in exportable.module(images)]


def failing_for_one_size(exportable: Any, *, threads: int | None) -> Run:
    def run(images: torch.Tensor) -> Any:
        if images.shape[2:] == (224, 224):
            raise MemoryError("too large")
        return exportable.module(images)

    return run


def runtime(function: str, **fields: Any) -> RuntimeSpec:
    return RuntimeSpec(function.replace("_", "-"), f"{__name__}:{function}", **{"quick": True, **fields})


def registry_of(*runtimes: RuntimeSpec, builtins: bool = False) -> Registry:
    return Registry(plugins=[runtime_plugin("engines", *runtimes)], discover=False, builtins=builtins)


def test_the_fastest_runtime_is_taken_and_logged(tiny: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="featuretap"):
        compiled = registry_of(runtime("slow"), runtime("fast")).compile(tiny, "auto")
    assert compiled.runtime == "fast"
    assert list(compiled.timings) == ["fast", "slow"]
    assert all(choosing.FEWEST_ROUNDS <= len(timing.seconds) <= 20 for timing in compiled.timings.values())
    line = caplog.messages[-1]
    times = choosing.format_timings(compiled.timings)
    assert line == f"'tiny': fastest runtime is 'fast': {times}"
    assert repr(compiled) == f"CompiledModel('tiny', runtime='fast', outputs=('C1', 'C2'), fastest of: {times})"
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        expected = tiny(images)
    assert all(torch.allclose(found, expected[name]) for name, found in compiled(images).items())


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [({}, (1, 3, 224, 224)), ({"size": (64, 96)}, (1, 3, 64, 96)), ({"size": (32, 32), "batch": 4}, (4, 3, 32, 32))],
)
def test_calls_are_timed_for_the_images_that_the_model_is_for(
    tiny: nn.Module, arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    shapes.clear()
    registry_of(runtime("fast")).compile(tiny, "auto", **arguments)
    assert set(shapes[-choosing.FEWEST_ROUNDS :]) == {shape}


def test_only_runtimes_that_compile_quickly_are_tried(tiny: nn.Module) -> None:
    compiled = registry_of(runtime("fast", quick=False), runtime("slow")).compile(tiny, "auto")
    assert list(compiled.timings) == ["slow"]


def test_runtimes_that_fail_are_skipped_with_the_reason(tiny: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    broken = [runtime(name) for name in ("failing", "wrong", "failing_for_one_size")]
    absent = runtime("fast", modules=("absent_engine",), requires="absent-engine")
    with caplog.at_level(logging.INFO, logger="featuretap"):
        compiled = registry_of(*broken, absent, runtime("slow")).compile(tiny, "auto")
    assert compiled.runtime == "slow"
    skipped = [
        (record.levelname, record.message.removeprefix("'tiny': skipped the runtime ").partition(": "))
        for record in caplog.records
        if "skipped the runtime" in record.message
    ][:4]
    assert [(level, name, reason[:45]) for level, (name, _, reason) in skipped] == [
        ("WARNING", "'failing'", "runtime 'failing': 'test_choosing_a_runtime:f"),
        ("WARNING", "'failing-for-one-size'", "MemoryError: too large"),
        ("INFO", "'fast'", "the runtime 'fast' needs absent_engine; run p"),
        ("WARNING", "'wrong'", "cannot compile or export 'tiny': for images ("),
    ]


def test_an_error_names_all_reasons_where_no_runtime_is_left(tiny: nn.Module) -> None:
    absent = runtime("fast", modules=("absent_engine",), requires="absent-engine")
    with pytest.raises(ExportError) as error:
        registry_of(runtime("failing"), absent).compile(tiny, "auto")
    assert str(error.value) == (
        f"runtime='auto' found no runtime for 'tiny': runtime 'failing': '{__name__}:failing' raised "
        "ZeroDivisionError: no engine; the runtime 'fast' needs absent_engine; run pip install 'absent-engine'"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, r"^threads must be 1 or more"),
        ({"size": 224}, r"^size must be \(height, width\)"),
        ({"precision": "int8"}, r"^precision must be"),
    ],
)
def test_bad_arguments_are_refused_before_any_runtime_is_tried(
    tiny: nn.Module, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        registry_of(runtime("failing")).compile(tiny, "auto", **arguments)


def test_the_built_in_runtimes_that_compile_quickly_are_tried(registry: Registry, tiny: nn.Module) -> None:
    compiled = registry.compile(tiny, "auto", size=(32, 32))
    assert set(compiled.timings) == {"onnxruntime", "openvino", "fused"}
    assert compiled.runtime == next(iter(compiled.timings))


def test_a_detector_is_for_the_runtimes_that_take_one(registry: Registry) -> None:
    model = registry.build("mobilenet_v3_small", head="ssdlite", width=0.25, num_classes=3)
    compiled = registry.compile(model, "auto", size=(64, 64), batch=1)
    assert set(compiled.timings) == {"onnxruntime", "openvino"}


def test_exported_files_are_opened_by_the_fastest_runtime(registry: Registry, tiny: nn.Module, tmp_path: Path) -> None:
    path = registry.export(tiny, tmp_path / "model.onnx", size=(32, 32))
    for opened in (registry.compile(path, "auto"), registry.session(path, runtime="auto")):
        assert set(opened.timings) == {"onnxruntime", "openvino"}
        assert opened.runtime == next(iter(opened.timings))
        assert repr(opened).endswith(f", fastest of: {choosing.format_timings(opened.timings)})")
    xml = registry.export(tiny, tmp_path / "model.xml", size=(32, 32))
    assert list(registry.compile(xml, "auto").timings) == list(registry.session(xml, runtime="auto").timings)
    with pytest.raises(ExportError) as error:
        registry.compile("model.pt2", "auto")
    assert str(error.value) == (
        "runtime='auto' found no runtime for 'model.pt2': no runtime that compiles quickly opens such files; name one"
    )


@pytest.fixture
def saved(registry: Registry, tmp_path: Path) -> Path:
    model = with_statistics(registry.build("mobilenet_v3_small", width=0.25, num_classes=5))
    return registry.save(model, tmp_path / "model.safetensors")


def test_sessions_are_opened_by_the_fastest_runtime(registry: Registry, saved: Path) -> None:
    session = registry.session(saved, runtime="auto", batch=1)
    assert set(session.timings) == {"onnxruntime", "openvino"}
    assert session.runtime == next(iter(session.timings))


def test_errors_of_weights_are_not_those_of_runtimes(registry: Registry, saved: Path) -> None:
    with pytest.raises(WeightsError, match="the file has 5 classes, the model 7"):
        registry.session(saved, runtime="auto", num_classes=7)


def test_a_session_needs_what_writes_graphs(registry: Registry, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featuretap.support.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        registry.session(saved, runtime="auto")
    assert str(error.value) == "runtime='auto' needs onnx; run pip install 'featuretap[onnxruntime]'"
