"""The repository's checks: pre-commit hooks, the GitHub workflow and issue forms."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import ROOT
from support.package import PROJECT

HOOKS = ROOT / ".pre-commit-config.yaml"
WORKFLOW = ROOT / ".github" / "workflows" / "check.yml"
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def test_pre_commit_hooks_run_the_commands_of_make_lint_and_make_types(tmp_path: Path) -> None:
    # pre-commit stores a database in the home folder by default.
    surroundings = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "pre_commit", "validate-config", HOOKS]
    subprocess.run(command, check=True, capture_output=True, env=surroundings)
    hooks = [hook["entry"] for repository in yaml.safe_load(HOOKS.read_text())["repos"] for hook in repository["hooks"]]
    made = [line.replace("$(BIN)", ".venv/bin") for line in (ROOT / "Makefile").read_text().splitlines()]
    for entry in hooks:
        # The hooks run "ruff check" on committed files, where the Makefile passes ".".
        assert [line for line in made if line.startswith(f"\t{entry.partition(' --')[0]}")], entry
    assert len(hooks) == 5


def test_the_workflow_checks_every_supported_python() -> None:
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    pythons = job["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert f">={pythons[0]}" == PROJECT["project"]["requires-python"]
    assert job["env"]["PYTHON"] == "python${{ matrix.python }}"
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    assert (ROOT / command).stat().st_mode & 0o111


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_the_keys_that_github_requires(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    asked = [element for element in form["body"] if element["type"] != "markdown"]
    assert {element["type"] for element in asked} <= {"textarea", "input"}
    assert len({element["id"] for element in asked}) == len(asked)
    assert all(element["attributes"]["label"] for element in asked)
    assert any(element.get("validations", {}).get("required") for element in asked)


def test_the_bug_report_asks_what_is_installed() -> None:
    assert [path.stem for path in FORMS] == ["backbone", "bug", "feature"]
    text = FORMS[1].read_text()
    assert "`featuretap doctor`" in text
    assert "`featuretap plugins doctor NAME`" in text
