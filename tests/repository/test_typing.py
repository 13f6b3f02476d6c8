"""The public API in a user's type checker."""

import re
import subprocess
import sys
from pathlib import Path

from support import ROOT

from featuretap import registry

SURFACE = ROOT / "tests" / "support" / "typing" / "public_surface.py"

WRONG = {
    "registry.build('mobilenet_v2', num_classes='ten')": "arg-type",
    "registry.list_backbone()": "attr-defined",
    "registry.spec('mobilenet_v2')  # type: ignore[arg-type]": "unused-ignore",
    "_: str = registry.list_heads()": "assignment",
}
"""A line → the kind of error that it is to a type checker."""


def type_checked(path: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy on a file with the package's strict settings."""
    # mypy cannot follow the import hook of an editable installation. mypy_path in pyproject.toml locates the package.
    return subprocess.run([sys.executable, "-m", "mypy", path], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_public_surface_has_the_declared_types() -> None:
    checked = type_checked(SURFACE)
    assert checked.returncode == 0, checked.stdout


def test_type_errors_in_the_code_of_users_are_found(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("\n".join(["from featuretap import registry", *WRONG]))
    checked = type_checked(path)
    found = re.findall(r"wrong\.py:(\d+): error: .*\[([\w-]+)\]", checked.stdout)
    assert found == [(str(line), kind) for line, kind in enumerate(WRONG.values(), start=2)], checked.stdout


def test_every_function_of_the_registry_is_type_checked() -> None:
    text = SURFACE.read_text()
    functions = set(registry.__all__) - {"Registry", "default"}
    assert {name for name in functions if f"registry.{name}(" not in text} == set()
