"""The conformance kit as a plugin author uses it: pytest in a new process, on files with one class each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.distributions import IMPORTS, TABLE, table

from featuretap.registry.diagnosis import check_torch_free
from featuretap.registry.errors import SpecError

HEADED = """
@hookimpl
def featuretap_heads():
    return [HeadSpec("means", ("C2",), "headed:means", outputs="headed:outputs")]

def outputs(backbone, *, num_classes, height, width):
    return {"out": (backbone.taps["C2"].channels,)}

def means(backbone, *, num_classes):
    from torch import nn

    class Means(nn.Module):
        def forward(self, taps):
            return taps["C2"].mean((2, 3))

    return Means()
"""

FLOORS = """
@hookimpl
def featuretap_backbones():
    return [BackboneSpec("floors", taps={"C3": Tap(32, 8), "C4": Tap(8, 16)}, factory="floors:build")]

def build(spec, *, taps):
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 32, 8, 8)
            self.conv = nn.Conv2d(32, 8, 3, 2, 1) if "C4" in taps else None

        def forward(self, images):
            maps = {"C3": self.patches(images)}
            if self.conv is not None:
                maps["C4"] = self.conv(maps["C3"])
            return {address: maps[address] for address in taps}

    return Network()
"""

PLUGINS = {
    "tiny": table("tinynet"),
    "headed": IMPORTS + HEADED,
    "floors": IMPORTS + FLOORS,
    "choosy": IMPORTS
    + FLOORS.replace("floors", "choosy").replace(
        "            maps =", "            assert images.shape[2:] == (64, 64), 'not 64x64'\n            maps ="
    ),
    "shadows": table("mobilenet_v2"),
    "raises": "def deep():\n    return 1 / 0\n\n\ndeep()\n",
    "exits": "raise SystemExit(0)",
    "hook_raises": IMPORTS + "@hookimpl\ndef featuretap_backbones():\n    raise KeyError('deep')",
    "in_object": f"{IMPORTS}class Plugin:\n    __name__ = 'in_object'\n"
    + TABLE.format(name="objectnet").replace("\n", "\n    ").replace("backbones()", "backbones(self)")
    + "\n\nplugin = Plugin()\n",
    "torchy": "import torch\n" + table("torchynet"),
    "late": IMPORTS + "@hookimpl\ndef featuretap_backbones():\n    import torch\n    return []",
}
"""Module → its code."""

CLASS = """from featuretap.registry.testing import {kit}


class TestMine({kit}):
    {body}
"""
ISOLATED = """from featuretap.registry import Registry
from featuretap.registry.testing import isolated_registry


def test_nothing_is_discovered(isolated_registry):
    assert isolated_registry.list_plugins() == ["featuretap"]
    assert isolated_registry.list_backbones("*net") == []
    assert "here" in Registry().list_plugins()
"""


def file_of(plugin: str, kit: str = "BackboneConformance", more: str = "") -> str:
    return CLASS.format(kit=kit, body=f'plugin = "{plugin}"{more}')


FILES = {
    "tiny": file_of("tiny"),
    "headed": file_of("headed", "HeadConformance", '\n    scripts = False\n    options = {"means": {"width": 0.5}}'),
    "object": file_of("in_object:plugin"),
    "floors": file_of("floors", more="\n    scripts = False"),
    "choosy": file_of("choosy"),
    "sized": file_of("choosy", more="\n    scripts = False\n    sizes = ((64, 64),)"),
    "headless": file_of("headed", "HeadConformance"),
    "shadows": file_of("shadows", more='\n    backbones = ["mobilenet_v2"]'),
    "raises": file_of("raises"),
    "exits": file_of("exits"),
    "hook_raises": file_of("hook_raises"),
    "nowhere": file_of("nowhere"),
    "no_heads": file_of("tiny", "HeadConformance"),
    "unsaid": CLASS.format(kit="BackboneConformance", body="pass"),
    "isolated": ISOLATED,
}
"""What test files are called → their text."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of plugins that are not installed, their tests, and the metadata of one that is installed."""
    folder = tmp_path_factory.mktemp("theirs")
    for module, code in PLUGINS.items():
        (folder / f"{module}.py").write_text(code)
    for name, text in FILES.items():
        (folder / f"test_{name}.py").write_text(text)
    metadata = folder / "here-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: here\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[featuretap]\nhere = tiny\n")
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> str:
    """The output of pytest for all files, with warnings as errors."""
    flags = ["-W", "error", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-rA", "--color=no"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *flags], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1, ran.stdout
    return ran.stdout


def outcomes(said: str, name: str) -> dict[str, set[str]]:
    """Return outcome → tests with that outcome in one test file."""
    found: dict[str, set[str]] = {}
    for outcome, what in re.findall(rf"^(PASSED|FAILED|ERROR|SKIPPED) test_{name}\.py(\S*)", said, flags=re.MULTILINE):
        found.setdefault(outcome, set()).add(what.removeprefix("::TestMine").removeprefix("::"))
    return found


def report(said: str, heading: str) -> list[str]:
    """Return the lines that pytest prints for one failure."""
    (_, _, rest) = said.partition(f" {heading} __")
    lines = re.split(r"\n(?:_{3,}|={3,}) ", rest)[0].splitlines()[1:]
    return [line for line in lines if "^" not in line and "~" not in line]


BACKBONE_TESTS = {
    "test_maps_have_the_declared_shapes",
    "test_counts_are_the_declared_ones",
    "test_declarations_hold_with_other_options",
    "test_each_map_is_independent_of_other_taps",
    "test_evaluation_is_deterministic",
    "test_gradients_reach_every_parameter",
    "test_frozen_levels_do_not_change",
    "test_a_bare_backbone_has_a_subset_of_the_models_tensors",
    "test_copies_and_saved_files_are_equal",
    "test_it_scripts",
    "test_it_exports",
}
HEAD_TESTS = {
    "test_outputs_have_the_declared_shapes",
    "test_counts_are_the_declared_ones",
    "test_only_per_class_tensors_depend_on_the_classes",
    "test_evaluation_is_deterministic",
    "test_gradients_reach_every_parameter",
    "test_it_shares_a_backbone",
    "test_saved_files_are_equal",
    "test_it_scripts",
    "test_it_exports",
}
NODES = "test_nodes_compute_what_modules_do"
PLUGIN_TESTS = {"test_names_are_not_taken", "test_plugin_does_not_import_torch"}


@pytest.mark.parametrize(
    ("name", "tests"),
    [
        ("tiny", {f"{test}[tinynet]" for test in BACKBONE_TESTS}),
        ("object", {f"{test}[objectnet]" for test in BACKBONE_TESTS}),
        ("headed", {f"{test}[means-mobilenet_v3_small]" for test in HEAD_TESTS}),
    ],
)
def test_one_class_makes_a_test_of_each_promise_and_name(said: str, name: str, tests: set[str]) -> None:
    found = outcomes(said, name)
    # The test of nodes is skipped if onnx is not installed. tests/runtimes has it.
    assert {test for test in found.pop("PASSED") if not test.startswith(NODES)} == tests | PLUGIN_TESTS
    assert found == {}


def test_the_isolated_registry_discovers_nothing(said: str) -> None:
    assert outcomes(said, "isolated") == {"PASSED": {"test_nothing_is_discovered"}}


def test_a_false_declaration_fails_with_one_sentence(said: str) -> None:
    failed = outcomes(said, "floors")["FAILED"]
    assert failed == {"test_maps_have_the_declared_shapes[floors]"}
    assert (
        "SpecError: 'floors' breaks its spec: for a 97x161 image C3 should be (32, 13, 21), got (32, 12, 20)\n" in said
    )


@pytest.mark.parametrize(
    ("subject", "problem", "advice"),
    [
        ("'choosy'", "cannot be scripted (", "fix it, or set scripts = False in the test class"),
        (
            "'choosy'",
            "fails on a 97x161 image (",
            "fix it, or set the supported sizes in the test class, such as sizes = ((224, 224),)",
        ),
        (
            "head 'means' on 'mobilenet_v3_small'",
            "cannot be scripted (",
            "fix it, or set scripts = False in the test class",
        ),
    ],
)
def test_a_failure_names_the_attribute_that_changes_the_test(
    said: str, subject: str, problem: str, advice: str
) -> None:
    (line, *_) = [line for line in said.splitlines() if f"SpecError: {subject} {problem}" in line and "; " in line]
    assert line.endswith(f"; {advice}")


def test_a_network_that_takes_one_size_passes_at_that_size(said: str) -> None:
    assert outcomes(said, "sized").get("FAILED", set()) == set()
    assert "test_it_scripts[choosy]" in outcomes(said, "choosy")["FAILED"]


def test_a_built_in_name_fails_with_the_qualified_name(said: str) -> None:
    assert outcomes(said, "shadows")["FAILED"] == {"test_names_are_not_taken"}
    assert report(said, "TestMine.test_names_are_not_taken") == [
        "'shadows' provides the backbone 'mobilenet_v2', which is built in and cannot be replaced; use "
        "'shadows:mobilenet_v2' for the plugin's"
    ]


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("raises", "plugin 'raises' cannot be imported", "ZeroDivisionError: division by zero"),
        ("exits", "plugin 'exits' cannot be imported", "SystemExit: 0"),
        ("nowhere", "plugin 'nowhere' cannot be imported", "ModuleNotFoundError: No module named 'nowhere'"),
        (
            "hook_raises",
            "plugin 'hook_raises' of distribution 'hook-raises' failed: KeyError: 'deep'",
            "KeyError: 'deep'",
        ),
        (
            "no_heads",
            "plugin 'tiny' declares no heads; set heads to names of its namespace, or remove this test class",
            "",
        ),
        ("unsaid", 'TestMine does not name a plugin; set plugin = "package.module" in it', ""),
    ],
)
def test_a_plugin_that_cannot_be_tested_fails_without_the_source_lines_of_the_kit(
    said: str, name: str, first: str, last: str
) -> None:
    assert outcomes(said, name) == {"ERROR": {""}}
    lines = [line for line in report(said, f"ERROR collecting test_{name}.py") if line]
    assert (lines[0], lines[1:][-1:]) == (first, [last] if last else [])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        *(
            (
                module,
                f"{module!r} imports torch on import or in a hook, which slows down every start; refer to heavy code "
                "by an import string, 'package.module:function'",
            )
            for module in ("torchy", "late")
        ),
        ("raises", "'raises' cannot be imported in a new process (ZeroDivisionError: division by zero)"),
        ("exits", "'exits' cannot be imported in a new process (Python exits with status 0)"),
        ("nowhere", "'nowhere' cannot be imported in a new process (ModuleNotFoundError: No module named 'nowhere')"),
    ],
)
def test_a_plugin_that_imports_torch_or_cannot_be_imported_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, message: str
) -> None:
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(SpecError) as error:
        check_torch_free(module)
    assert str(error.value) == message
