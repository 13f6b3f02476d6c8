"""`make test` leaves out the groups of tests and lists them; `make test-all` runs everything and skips nothing."""

import shlex
import subprocess
from pathlib import Path

import pytest
from support import ROOT, TESTS, groups
from support.package import PROJECT

pytest_plugins = ["pytester"]

DECLARED = [marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
FOLDERS = sorted(path.name for path in TESTS.iterdir() if list(path.glob("test_*.py")))


def arguments_of(target: str) -> list[str]:
    """Return the arguments that a make target passes to pytest."""
    printed = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in printed.splitlines() if "-m pytest" in line]
    return shlex.split(line.partition("-m pytest")[2])


def test_every_group_is_a_folder_with_tests() -> None:
    assert sorted(set(DECLARED) & set(FOLDERS)) == DECLARED


def test_make_test_all_selects_every_test_and_allows_no_skip() -> None:
    *distribution, last = arguments_of("test-all")
    assert last == "--no-skips"
    assert {argument for argument in distribution if argument.startswith("-")} == {
        "--numprocesses",
        "--dist",
        "--no-loadscope-reorder",
    }
    options = PROJECT["tool"]["pytest"]["ini_options"]
    assert (options["testpaths"], options["addopts"]) == (
        ["tests"],
        ["--confcutdir=tests", "--strict-markers", "--strict-config", "-ra"],
    )


def test_make_test_leaves_out_the_groups_and_nothing_else() -> None:
    assert [*arguments_of("test-all"), "--quick"] == arguments_of("test")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with a quick test and a group of two tests, one of which skips itself."""
    monkeypatch.setattr(groups, "TESTS", pytester.path)
    pytester.makeini("[pytest]\nmarkers =\n    slow: tests of snails; needs patience\n    other: no folder")
    pytester.makeconftest("from support.groups import *")
    for name, text in {
        "quick/test_quick.py": "def test_quick(): pass",
        "slow/test_slow.py": "import pytest\ndef test_slow(): pass\ndef test_skips(): pytest.skip('no snail')",
    }.items():
        path = Path(pytester.path, name)
        path.parent.mkdir()
        path.write_text(text)
    return pytester


def test_a_quick_run_imports_no_file_of_a_group_and_names_the_groups(project: pytest.Pytester) -> None:
    Path(project.path, "slow/test_slow.py").write_text("import not_installed")
    result = project.runpytest_inprocess("--quick")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*groups that were not run*",
            "slow: tests of snails; needs patience",
            "make test-all runs everything; make test-GROUP runs one of them",
        ]
    )
    result.stdout.no_fnmatch_line("other:*")


def test_a_full_run_begins_with_the_groups_and_marks_their_tests(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("-v", "-p", "no:randomly")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["slow/test_slow.py::test_slow*", "quick/test_quick.py::test_quick*"])
    result.stdout.no_fnmatch_line("*groups that were not run*")
    project.runpytest_inprocess("-m", "slow").assert_outcomes(passed=1, skipped=1, deselected=1)


def test_a_skipped_test_fails_where_no_skips_are_allowed(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("--no-skips")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["skipped, which --no-skips does not allow: Skipped: no snail"])


def test_a_skipped_file_fails_where_no_skips_are_allowed(project: pytest.Pytester) -> None:
    path = Path(project.path, "slow/test_slow.py")
    path.write_text("import pytest\npytest.importorskip('not_installed')\ndef test_slow(): pass")
    project.runpytest_inprocess().assert_outcomes(passed=1, skipped=1)
    result = project.runpytest_inprocess("--no-skips")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["skipped, which --no-skips does not allow: *could not import 'not_installed'*"])
