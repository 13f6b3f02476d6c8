"""Measuring: arithmetic on simulated times, and a check that compared models compute the same maps. No real timing."""

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from featuretap import registry
from featuretap.registry.errors import OptionError, UnknownRuntimeError
from featuretap.support.timing import Timing, time_interleaved
from featuretap.weights.layouts import MismatchError
from featuretap.workflows.measuring import comparing
from featuretap.workflows.measuring.comparing import (
    Setting,
    build_counterpart,
    build_own,
    compare,
    measure_limit,
    set_torch_threads,
    this_machine,
)

Lasting = Callable[[str, list[float]], Callable[[], None]]


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch, events: list[str]) -> Lasting:
    """Make contenders that advance a fake clock by predefined durations."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: events.append(f"sleep {seconds}"))

    def lasting(name: str, seconds: list[float]) -> Callable[[], None]:
        remaining = iter(seconds)

        def run() -> None:
            events.append(name)
            now[0] += next(remaining)

        return run

    return lasting


def test_ratios_are_to_the_first_contender_of_the_same_round(lasting: Lasting) -> None:
    runs = {"a": lasting("a", [9, 2, 4, 8]), "b": lasting("b", [9, 1, 4, 16])}
    timings = time_interleaved(runs, rounds=3, warm_up=1)
    assert timings["a"] == Timing((2, 4, 8), (1, 1, 1))
    assert timings["b"] == Timing((1, 4, 16), (0.5, 1, 2))


def test_another_clock_may_be_read(lasting: Lasting) -> None:
    read = iter([10, 11, 20, 23])
    timings = time_interleaved({"a": lasting("a", [5, 5])}, rounds=2, warm_up=0, clock=lambda: next(read))
    assert timings["a"].seconds == (1, 3)


def test_a_pause_ends_with_a_call_that_is_not_timed(lasting: Lasting, events: list[str]) -> None:
    runs = {"a": lasting("a", [9, 100, 1]), "b": lasting("b", [9, 100, 2])}
    timings = time_interleaved(runs, rounds=1, warm_up=1, pause=0.05, done=lambda: events.append("done"))
    assert (timings["a"].seconds, timings["b"].seconds) == ((1,), (2,))
    warm_up, timed = ["a", "done", "b", "done"], ["sleep 0.05", "a", "a", "done", "sleep 0.05", "b", "b", "done"]
    assert events == warm_up + timed


def test_medians_and_quartiles() -> None:
    timing = Timing((4, 1, 3, 2, 5), (0.5, 0.25, 1, 0.75, 0))
    assert (timing.median, timing.quartiles) == (3, (2, 4))
    assert (timing.ratio, timing.ratio_quartiles) == (0.5, (0.25, 0.75))
    assert Timing((2,), (1,)).quartiles == (2, 2)


def test_quartiles_of_two_rounds_lie_between_them() -> None:
    assert Timing((1, 2), (1, 1)).quartiles == (1.25, 1.75)


def test_the_fastest_product_of_matrices_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 1.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert measure_limit(repeats=2) == 1024**3 / 0.5


def test_a_machine_names_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "openvino":
            raise PackageNotFoundError(name)
        return f"{name}'s"

    monkeypatch.setattr(comparing, "version", version)
    with set_torch_threads(1):
        here = this_machine()
    assert list(here.versions) == ["featuretap", "python", "torch", "torchvision", "timm", "onnxruntime"]
    assert here.versions["timm"] == "timm's"
    assert (here.threads, here.cores > 0, bool(here.processor)) == (1, True, True)


def test_the_number_of_threads_of_torch_is_restored() -> None:
    before = torch.get_num_threads()
    with set_torch_threads(before + 1) as used:
        assert (used, torch.get_num_threads()) == (before + 1, before + 1)
    assert torch.get_num_threads() == before
    with set_torch_threads(None) as used:
        assert used == before


@pytest.mark.parametrize(
    ("name", "library", "taps"),
    [
        ("mobilenet_v3_small", "timm", None),
        ("mobilenet_v3_small", "timm", ("C2", "C3")),
        ("mobilenet_v3_small", "torchvision", None),
        ("mobilenet_v2", "timm", None),
        ("mobilenet_v2", "timm", ("C4", "C5")),
        ("mobilenet_v2", "torchvision", ("C1", "C5")),
    ],
)
def test_a_counterpart_computes_the_same_maps(
    tmp_path: Path, name: str, library: str, taps: tuple[str, ...] | None
) -> None:
    model = registry.build(name).eval()
    path = registry.save(model, tmp_path / "theirs.safetensors", library)
    ours = registry.load(path, features_only=True, taps=taps).eval()
    found = build_counterpart(name, library, {"taps": taps})
    assert isinstance(found.run, nn.Module)
    network = getattr(found.run, "network", found.run)
    assert not network.load_state_dict(load_file(path), strict=False).missing_keys
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected, maps = ours(images), found.run(images)
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert len(maps) == len(expected) == len(taps or range(5))
    for one, other in zip(expected.values(), maps, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_a_counterpart_has_the_options_of_the_backbone() -> None:
    options = {"in_channels": 1, "output_stride": 16}
    found = build_counterpart("mobilenet_v3_small", "timm", options)
    maps: Any = found.run(torch.randn(2, 1, 64, 64))
    assert maps[-1].shape == (2, 576, 4, 4)


@pytest.mark.parametrize(
    ("name", "library", "asked", "message"),
    [
        (
            "mobilenet_v3_small_minimalistic",
            "timm",
            {},
            "timm has no counterpart of 'mobilenet_v3_small_minimalistic'; skipped",
        ),
        (
            "mobilenet_v3_small",
            "torchvision",
            {"width": 0.5},
            "torchvision has no counterpart of 'mobilenet_v3_small' with width=0.5; skipped",
        ),
        (
            "mobilenet_v3_small",
            "timm",
            {"taps": ("C3", "C4.expansion")},
            "timm's mobilenetv3_small_100 does not return C3, C4.expansion of 'mobilenet_v3_small'; skipped",
        ),
    ],
)
def test_a_missing_counterpart_is_an_error_that_names_it(
    name: str, library: str, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(MismatchError) as misfit:
        build_counterpart(name, library, asked)
    assert str(misfit.value) == message


def test_maps_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(layout: object, spec: object) -> nn.Module:
        return registry.build("mobilenet_v2", features_only=True)

    monkeypatch.setitem(comparing.LIBRARIES, "timm", other)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match=r"^timm's mobilenetv3_small_100 does not return C1, C2, C3, C4, C5 of "):
        build_counterpart("mobilenet_v3_small", "timm")


def test_an_unknown_library_is_an_error() -> None:
    with pytest.raises(OptionError) as error:
        build_counterpart("mobilenet_v2", "torchvison")
    assert str(error.value) == (
        "cannot compare with the library 'torchvison'; available libraries: timm, torchvision; did you mean "
        "'torchvision'?"
    )


def test_contenders_are_every_network_in_every_runtime_and_library(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int | None] = []

    def fake(model: nn.Module, runtime: str, *, threads: int | None) -> nn.Module:
        compiled.append(threads)
        return model

    monkeypatch.setattr(registry, "compile", fake)
    begun: list[str] = []
    names = ["mobilenet_v3_small", "mobilenet_v3_small_minimalistic"]
    made, left_out = comparing.build_baselines(
        [*names, names[0]],
        ["inductor", "eager"],
        ["torchvision"],
        arguments={"taps": ("C1",)},
        threads=3,
        begin=begun.append,
    )
    small, minimalistic = names
    assert [(contender.name, contender.by) for contender in made] == [
        (small, "inductor"),
        (small, "eager"),
        (small, "torchvision"),
        (minimalistic, "inductor"),
        (minimalistic, "eager"),
    ]
    assert [contender.parameters for contender in made] == [m.spec.parameters for m in made]
    assert compiled == [3, 3]
    assert begun[:3] == [f"{small}, inductor", f"{small}, eager", f"{small}, torchvision"]
    assert left_out == [f"torchvision has no counterpart of '{minimalistic}'; skipped"]


def test_the_runtime_that_auto_chooses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(model: nn.Module, runtime: str, *, threads: int | None) -> nn.Module:
        asked.append(runtime)
        model.runtime = "openvino"  # type: ignore[assignment]
        return model

    monkeypatch.setattr(registry, "compile", fake)
    made, _ = comparing.build_baselines(["mobilenet_v3_small"], ["eager", "auto", "fused"])
    assert asked == ["auto", "fused"]
    assert [contender.by for contender in made] == ["eager", "auto: openvino", "fused"]


def test_an_unknown_runtime_is_an_error_before_anything_is_built() -> None:
    begun: list[str] = []
    with pytest.raises(UnknownRuntimeError, match="'onxruntime'"):
        comparing.build_baselines(["mobilenet_v3_small"], ["eager", "onxruntime"], begin=begun.append)
    assert begun == []


def test_all_contenders_are_given_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "measure_limit", iter([2e9, 1e9]).__next__)
    monkeypatch.setattr(comparing, "PAUSE", 0.0)
    small = build_own("mobilenet_v3_small", arguments={"taps": ("C1",)})
    given: list[torch.Tensor] = []
    spies = [comparing.Baseline("a", by, given.append, small.spec, 1) for by in ("one", "other")]
    done: list[None] = []
    settings = [Setting((32, 48), 2), Setting((16, 16), 1)]
    comparison = compare(spies, settings, rounds=2, done=lambda: done.append(None))
    assert [tuple(images.shape) for images in given] == [(2, 3, 32, 48)] * 14 + [(1, 3, 16, 16)] * 14
    assert all(images is given[0] for images in given[:14])
    assert given[0].is_inference()
    assert len(done) == 28
    assert comparison.limit == 2e9
    assert list(comparison.by_setting) == settings
    assert [m.macs for m in comparison.measurements] == [small.spec.macs(32, 48)] * 2 + [small.spec.macs(16, 16)] * 2
