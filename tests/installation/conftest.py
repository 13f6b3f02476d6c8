"""The release files, built as for a real release."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

import featuretap


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both release files, built as RELEASING.md describes from the files of a clone."""
    folder = tmp_path_factory.mktemp("release")
    ignored = (ROOT / ".gitignore").read_text().split()
    leave_out = shutil.ignore_patterns(".git", *(name.rstrip("/") for name in ignored))
    source = shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=leave_out)
    # Isolation would need a network. The wheel is built from the unpacked source distribution.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "dist"


@pytest.fixture(scope="session")
def wheel(released: Path) -> Path:
    return released / f"featuretap-{featuretap.__version__}-py3-none-any.whl"
