"""The examples work as documented, offline and from any folder."""

import ast
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT
from support.distributions import Environment

EXAMPLES = ROOT / "examples"
DISTRIBUTIONS = sorted(EXAMPLES.glob("featuretap-*"))

Printed = Callable[[str], list[str]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Printed:
    """Run an example as a script from another folder, and return the lines that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def printed(name: str) -> list[str]:
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().out.splitlines()

    return printed


def test_a_pretrained_model_knows_a_cat(printed: Printed) -> None:
    lines = printed("pretrained_cat.py")
    assert len(lines) == 5
    assert lines[:2] == ["Egyptian cat   0.717", "tiger cat      0.147"]


def test_torchvisions_detector_learns_from_our_features(printed: Printed) -> None:
    *shapes, classification, boxes, found = printed("features_for_a_detector.py")
    assert shapes == [f"P{level}: 256 channels at stride {2**level}" for level in range(3, 8)]
    for line, name in ((classification, "classification"), (boxes, "bbox_regression")):
        before, after = re.fullmatch(rf"{name}: (\d\.\d+), (\d\.\d+) after one step", line).groups()  # type: ignore[union-attr]
        assert float(after) < float(before)
    assert ast.literal_eval(found) == {"boxes": (5, 4), "scores": (5,), "labels": (5,)}


def test_a_table_in_one_file_is_a_backbone(printed: Printed) -> None:
    assert printed("third_party_plugin.py") == [
        "['tinynet']",
        "256,592 parameters, 27,413,120 multiply-adds",
        "C3 (1, 40, 13, 21)",
        "C5.bottleneck (1, 96, 7, 11)",
        "the loaded detector finds the same boxes: True",
    ]


def test_a_reduced_tail_keeps_what_is_before_it(printed: Printed) -> None:
    assert printed("reduced_tail.py") == [
        "C1 to C5 full    2,223,872 parameters   611,212,800 multiply-adds",
        "C1 to C5 reduced 1,043,392 parameters   493,948,800 multiply-adds",
        "ssdlite  full    3,355,833 parameters   695,425,984 multiply-adds",
        "ssdlite  reduced 1,901,433 parameters   551,025,984 multiply-adds",
        "C1: 16 channels, reduced to 16: equal",
        "C2: 24 channels, reduced to 24: equal",
        "C3: 32 channels, reduced to 32: equal",
        "C4: 96 channels, reduced to 96: equal",
        "C5: 1280 channels, reduced to 640: needs fine-tuning",
    ]


def test_an_onnx_file_gives_the_taps_that_the_model_gives(printed: Printed) -> None:
    stated, *maps = printed("onnx_in_three_lines.py")
    assert stated == "mobilenet_v3_small ['C2', 'C3', 'C3.expansion']"
    shapes = {"C2": "(2, 16, 25, 41)", "C3": "(2, 24, 13, 21)", "C3.expansion": "(2, 96, 13, 21)"}
    for line, (name, shape) in zip(maps, shapes.items(), strict=True):
        found = re.fullmatch(rf"{name} {re.escape(shape)}: maximum difference (\S+) of the largest value", line)
        assert found
        assert 0 <= float(found[1]) < 1e-4


def test_the_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text()
    there = {path.name for path in EXAMPLES.glob("*.py")}
    assert set(re.findall(r"python examples/(\S+\.py)`|\[(demo\.py)\]", index)) == {
        (name, "") if name != "demo.py" else ("", name) for name in there
    }


@pytest.fixture(scope="module", params=DISTRIBUTIONS, ids=lambda path: path.name)
def distribution(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, distribution: Path) -> Environment:
    folder = tmp_path_factory.mktemp("example")
    # Install a copy, because building writes files into the folder.
    environment = Environment(folder / "environment")
    environment.install([Path(shutil.copytree(distribution, folder / "source"))])
    return environment


def test_there_are_two_example_distributions() -> None:
    assert [path.name for path in DISTRIBUTIONS] == ["featuretap-efficientnet-lite", "featuretap-mobilenet-v4"]


def test_an_example_distribution_passes_its_own_tests_where_it_is_installed(
    environment: Environment, distribution: Path, tmp_path: Path
) -> None:
    tests = shutil.copytree(distribution / "tests", tmp_path / "tests")
    ran = environment.run("-m", "pytest", "-q", "-W", "error", tests)
    assert ran.returncode == 0, ran.stdout
    assert " passed" in ran.stdout
    assert " skipped" not in ran.stdout
