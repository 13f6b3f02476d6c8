"""The import contract of `make lint` holds, and fails on an import that violates the layers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.package import FOLDERS


@pytest.fixture
def copy_of_the_package(tmp_path: Path) -> Path:
    package = tmp_path / "featuretap"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return package


def lint_imports(package: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    return subprocess.run(
        command,
        cwd=package.parent,
        env={"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_packages_keep_the_contract(copy_of_the_package: Path) -> None:
    ran = lint_imports(copy_of_the_package)
    assert (ran.returncode, "3 kept, 0 broken" in ran.stdout) == (0, True), ran.stdout


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        (
            "specs/taps.py",
            "import featuretap.models.building",
            "featuretap.specs is not allowed to import featuretap.models",
        ),
        (
            "weights/files.py",
            "def late():\n    from featuretap.registry import Registry",
            "featuretap.weights is not allowed to import featuretap.registry",
        ),
        (
            "workflows/inference/drawing.py",
            "import featuretap.workflows.training.run",
            "featuretap.workflows.inference is not allowed to import featuretap.workflows.training",
        ),
        (
            "specs/taps.py",
            "import featuretap.specs.layers\nimport featuretap.specs.head",
            "No cycles are allowed in featuretap.specs",
        ),
    ],
    ids=["upward", "upward inside a function", "upward between workflows", "cycle"],
)
def test_an_import_against_the_layers_breaks_the_contract(
    copy_of_the_package: Path, module: str, line: str, problem: str
) -> None:
    with (copy_of_the_package / module).open("a") as file:
        file.write(f"\n\n{line}\n")
    ran = lint_imports(copy_of_the_package)
    assert (ran.returncode, problem in " ".join(ran.stdout.split())) == (1, True), ran.stdout
