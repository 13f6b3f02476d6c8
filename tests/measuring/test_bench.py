"""`featuretap bench`: its table and charts, and errors that are raised before anything is measured."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.text import Text
from PIL import Image
from support import Completed
from torch import nn

from featuretap import registry
from featuretap.command_line.runtime_commands import LIBRARIES
from featuretap.support import extras
from featuretap.support.timing import Timing
from featuretap.workflows.measuring import comparing
from featuretap.workflows.measuring.comparing import Comparison, Machine, Measurement, Setting, set_torch_threads
from featuretap.workflows.measuring.picture import draw_comparison

Run = Callable[..., Completed]

SMALL = "mobilenet_v3_small"
MINIMALISTIC = "mobilenet_v3_small_minimalistic"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "measure_limit", lambda: 1.5e9)
    monkeypatch.setattr(comparing, "PAUSE", 0.001)


@pytest.fixture
def bench(run: Run) -> Run:
    return lambda *arguments: run("bench", *arguments, "--size", "32", "--rounds", 2)


@pytest.fixture
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def contenders_of(*arguments: Any, **options: Any) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(comparing, "build_baselines", contenders_of)


def test_bench_prints_one_line_per_contender(bench: Run) -> None:
    ran = bench(SMALL, "--against", "timm,torchvision", "--threads", 1)
    lines = [line.split() for line in ran.out.splitlines()]
    rows = [line for line in lines if line[:1] == [SMALL]]
    assert [row[1] for row in rows] == ["eager", "timm", "torchvision"]
    assert rows[0][5:9] == ["1.000", "1.000–1.000", "1.57", "M"]
    assert all(row[9] == "927,008" for row in rows)
    assert ran.out.startswith("1 image of 32×32 pixels\n")
    assert "Medians of 2 rounds; ratios to the first row of each table, within each round.\n" in ran.out
    assert "Limit: 1.50 G multiply-adds per second in matrix multiplication, with 1 thread.\n" in ran.out
    assert f"torch {torch.__version__.partition('+')[0]}" in ran.out
    assert (ran.status, ran.err) == (0, "")


def test_bench_prints_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, int]] = []

    def fake(model: nn.Module, runtime: str, *, threads: int) -> nn.Module:
        used.append((runtime, threads))
        return model

    monkeypatch.setattr(registry, "compile", fake)
    settings = ("--size", "32,32x48", "--batch", "1, 2", "--rounds", 2, "--threads", 1)
    with set_torch_threads(2):
        ran = run("bench", SMALL, "--runtime", "inductor,eager", "--option", "width=0.5", *settings, "--json")
        assert torch.get_num_threads() == 2
    facts = json.loads(ran.out)
    assert list(facts) == ["options", "machine", "rounds", "warm_up", "pause", "measurements", "left_out"]
    assert (facts["options"], facts["left_out"]) == ({"width": 0.5}, [])
    assert facts["machine"]["threads"] == 1
    assert used == [("inductor", 1)]
    found = facts["measurements"]
    assert [(m["size"], m["batch"], m["by"]) for m in found] == [
        (size, batch, by) for size in ([32, 32], [32, 48]) for batch in (1, 2) for by in ("inductor", "eager")
    ]
    assert all(len(m["seconds"]) == 2 for m in found)
    spec: Any = registry.spec(SMALL, features_only=True, width=0.5)
    assert (found[0]["parameters"], found[0]["macs"]) == (spec.parameters, spec.macs(32, 32))
    assert (ran.status, ran.err) == (0, "")


def test_a_network_that_a_library_lacks_is_left_out_and_reported(bench: Run) -> None:
    ran = bench(SMALL, MINIMALISTIC, "--against", "torchvision", "--json")
    sentence = f"torchvision has no counterpart of '{MINIMALISTIC}'; skipped"
    facts = json.loads(ran.out)
    assert [(m["name"], m["by"]) for m in facts["measurements"]] == [
        (SMALL, "eager"),
        (SMALL, "torchvision"),
        (MINIMALISTIC, "eager"),
    ]
    assert facts["left_out"] == [sentence]
    assert (ran.status, ran.err) == (0, f"featuretap: {sentence}\n")


def test_bench_draws_a_picture(bench: Run, tmp_path: Path) -> None:
    path = tmp_path / "speed.png"
    ran = bench(SMALL, "--picture", path)
    assert ran.out.endswith(f"picture: {path}\n")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    assert [file.name for file in tmp_path.iterdir()] == ["speed.png"]


@pytest.mark.usefixtures("nothing_is_made")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rounds", 0), "Invalid value for '--rounds': 0 is not in the range x>=1."),
        (("--threads", 0), "Invalid value for '--threads': 0 is not in the range 1<=x<=1024."),
        (("--batch", "1,0"), "Invalid value for '--batch': 0 is not in the range 1<=x<=65536."),
        (
            ("--size", "224,big"),
            "Invalid value for '--size': 'big' is not a size; write height x width in pixels, such as 320x256",
        ),
        (("--against", "keras"), "Invalid value for '--against': 'keras' is not one of 'timm', 'torchvision'."),
        (
            ("--runtime", ","),
            "Invalid value for '--runtime': ',' contains no values; write values separated by commas, such as "
            "eager,onnxruntime",
        ),
        (
            ("--picture", "speed.jpg"),
            "pictures are PNG files; the name of 'speed.jpg' must end in .png",
        ),
        (("--picture", "no/such.png"), "cannot write the picture 'no/such.png': No such file or directory"),
        (("--picture", "."), "Invalid value for '--picture': File '.' is a directory."),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_built(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("bench", SMALL, *arguments) == Completed(2, "", f"featuretap: {message}\n")


@pytest.mark.usefixtures("nothing_is_made")
def test_a_picture_needs_matplotlib(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    message = "featuretap bench --picture needs matplotlib; run pip install 'featuretap[bench]'"
    assert run("bench", SMALL, "--picture", "speed.png") == Completed(2, "", f"featuretap: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mobilenet_v3_smal",), "no backbone named 'mobilenet_v3_smal'; did you mean 'mobilenet_v3_small'?"),
        ((SMALL, "--runtime", "onxruntime"), "no runtime named 'onxruntime'; did you mean 'onnxruntime'?"),
        (
            (SMALL, "--runtime", "eagre"),
            "no runtime named 'eagre'; known runtimes: aot, fused, inductor, onnxruntime, openvino",
        ),
    ],
)
def test_unknown_names_are_errors(bench: Run, arguments: tuple[str, ...], message: str) -> None:
    assert bench(*arguments) == Completed(2, "", f"featuretap: {message}\n")


def test_the_command_knows_the_libraries_without_torch() -> None:
    assert list(LIBRARIES) == list(comparing.LIBRARIES)


def test_progress_is_shown_in_terminals(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ran = bench(SMALL)
    assert f"{SMALL}, eager" in ran.err
    assert "measuring" in ran.err
    assert "7/7" in ran.err


def made_up(names: list[str], settings: list[Setting], computed_by: tuple[str, ...] = ("eager", "timm")) -> Comparison:
    """Return a comparison on a machine that takes one nanosecond per multiply-add."""
    found = [
        Measurement(name, by, setting, 10**6 * number, 10**7 * number, Timing((0.5, 0.25), (1, 1)), 1e9)
        for setting in settings
        for number, name in enumerate(names, start=1)
        for by in computed_by
    ]
    return Comparison(Machine("a processor", 4, 2, {"torch": "2.9"}), 1e9, 2, found)


def test_a_comparison_as_json() -> None:
    facts = made_up(["a"], [Setting((32, 48), 4)], ("eager",)).as_json()
    assert facts["machine"] == {
        "processor": "a processor",
        "cores": 4,
        "threads": 2,
        "versions": {"torch": "2.9"},
        "multiply_adds_per_second": 1e9,
    }
    assert {name: facts[name] for name in ("rounds", "warm_up", "pause")} == {"rounds": 2, "warm_up": 5, "pause": 0.001}
    assert facts["measurements"] == [
        {
            "name": "a",
            "by": "eager",
            "size": [32, 48],
            "batch": 4,
            "parameters": 10**6,
            "macs": 10**7,
            "median": 0.375,
            "quartiles": [0.3125, 0.4375],
            "median_per_image": 0.09375,
            "ratio": 1,
            "ratio_quartiles": [1, 1],
            # Four images of 10⁷ multiply-adds each take at least 40 ms on this machine.
            "limit_share": pytest.approx(0.04 / 0.375),
            "seconds": [0.5, 0.25],
        }
    ]


@pytest.mark.parametrize("settings", [1, 2, 4])
def test_a_picture_has_a_bubble_for_each_contender(settings: int) -> None:
    names = ["mobilenet_v2", "mobilenet_v3_small", "plugin/$odd$ name"]
    figure = draw_comparison(made_up(names, [Setting((32, 48), batch + 1) for batch in range(settings)]))
    assert len(figure.axes) == settings
    for number, panel in enumerate(figure.axes, start=1):
        assert panel.get_title() == f"batch {number}, 32×48 pixels"
        groups = [drawn for drawn in panel.collections if isinstance(drawn, PathCollection)]
        assert [group.get_offsets().tolist() for group in groups] == [[[1e6, 375], [2e6, 375], [3e6, 375]]] * 2
        areas = groups[0].get_sizes()
        assert areas / areas[0] == pytest.approx([1, 2, 3])
        assert [text.get_text() for text in panel.texts] == ["1", "2", "3"]
    explained = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert explained == [
        ["eager", "timm"],
        ["10.00 M", "20.00 M", "30.00 M"],
        ["mobilenet_v2", "mobilenet_v3_small", r"plugin/\$odd\$ name"],
    ]
    assert [handle.get_marker() for handle in figure.legends[2].legend_handles] == ["$1$", "$2$", "$3$"]
    assert figure.get_suptitle() == "a processor, 2 threads"


def test_numbers_in_a_picture_do_not_cover_one_another() -> None:
    figure = draw_comparison(made_up([f"network_{number}" for number in range(12)], [Setting((32, 32), 1)]))
    figure.draw_without_rendering()
    (panel,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in panel.texts]
    assert len(boxes) == 12
    for box in boxes:
        assert not box.count_overlaps([other for other in boxes if other is not box])
        assert panel.bbox.contains(box.x0, box.y0)
        assert panel.bbox.contains(box.x1, box.y1)
