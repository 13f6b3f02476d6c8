"""The release files: the source distribution and wheel are built, and the installed wheel is used."""

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support import ROOT

import featuretap
from featuretap.registry import Registry
from featuretap.specs.class_names import LABEL_SETS

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
VERSION = featuretap.__version__
INFO = f"featuretap-{VERSION}.dist-info"


@pytest.fixture(scope="module")
def in_wheel(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def in_source(released: Path) -> set[str]:
    with tarfile.open(released / f"featuretap-{VERSION}.tar.gz") as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return email.message_from_bytes(zipfile.ZipFile(wheel).read(f"{INFO}/METADATA"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which finds PyTorch and other packages in the current one."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", wheel], check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A plain path does not process .pth files in that folder, so an editable featuretap there is not found.
    (site / "ours.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder


def ran(environment: Path, program: str, *arguments: str) -> str:
    """Run a program of the environment outside the checkout, and return its output."""
    command = [environment / "bin" / program, *arguments]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=environment, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_release_is_two_files(released: Path) -> None:
    assert {path.name for path in released.iterdir()} == {
        f"featuretap-{VERSION}.tar.gz",
        f"featuretap-{VERSION}-py3-none-any.whl",
    }


def test_the_wheel_holds_every_module_of_the_packages_and_their_data_files(in_wheel: set[str]) -> None:
    modules = {
        f"featuretap/{path.relative_to(ROOT).as_posix()}"
        for package in PYPROJECT["tool"]["setuptools"]["packages"]
        for path in ROOT.joinpath(*package.split(".")[1:]).glob("*.py")
    }
    assert {name for name in in_wheel if not name.startswith(INFO)} == modules | {
        "featuretap/registry.toml",
        "featuretap/py.typed",
        *(f"featuretap/specs/label_sets/{name}.txt" for name in LABEL_SETS),
    }


@pytest.mark.parametrize("name", ["tests", "examples", "benchmarks", "docs", "mkdocs.yml", "Makefile", ".github"])
def test_the_wheel_leaves_out_what_users_do_not_import(name: str, in_wheel: set[str]) -> None:
    assert [path for path in in_wheel if name in path.split("/")] == []


@pytest.mark.parametrize("name", ["tests", "docs", "examples", "benchmarks"])
def test_the_source_distribution_holds_whole_folders(name: str, released: Path, in_source: set[str]) -> None:
    source = released.parent / "source"
    files = {path.relative_to(source).as_posix() for path in (source / name).rglob("*") if path.is_file()}
    assert {path for path in in_source if path.startswith(f"{name}/")} == files


@pytest.mark.parametrize(
    "name",
    [
        "Makefile",
        "requirements-inference.txt",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "RELEASING.md",
        "LICENSE",
        "pyproject.toml",
    ],
)
def test_the_source_distribution_holds_the_files_beside_them(name: str, in_source: set[str]) -> None:
    assert name in in_source


def test_twine_accepts_both_files(released: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *released.iterdir()]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("PASSED") == 2


def test_the_metadata_are_those_of_pyproject(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("featuretap", VERSION)
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == PROJECT["license"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    extras = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    wanted = [f"{line}; extra == '{extra}'" if extra else line for extra, lines in extras.items() for line in lines]
    required = metadata.get_all("Requires-Dist", [])
    assert {str(Requirement(line)) for line in required} == {str(Requirement(line)) for line in wanted}


def test_the_long_description_is_the_readme(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True) == (ROOT / "README.md").read_bytes()


def test_the_changes_begin_with_this_version() -> None:
    (first, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first == VERSION


def test_entry_points_are_the_command_and_our_plugins(wheel: Path) -> None:
    text = zipfile.ZipFile(wheel).read(f"{INFO}/entry_points.txt").decode()
    wanted = {"console_scripts": PROJECT["scripts"], "featuretap": PROJECT["entry-points"]["featuretap"]}
    sections = re.findall(r"\[(\w+)\]\n((?:.+\n)+)", text)
    assert {name: dict(line.split(" = ") for line in lines.splitlines()) for name, lines in sections} == wanted


def test_the_installed_command_prints_its_version(environment: Path) -> None:
    assert VERSION in ran(environment, "featuretap", "--version")


def test_the_installed_command_lists_every_backbone_of_the_checkout(environment: Path) -> None:
    listed = ran(environment, "featuretap", "list")
    for name in Registry(discover=False).list_backbones():
        assert name in listed


def test_the_installed_package_builds(environment: Path) -> None:
    code = (
        "import json, torch, featuretap; from featuretap import registry; "
        "maps = registry.build('mobilenet_v3_small', features_only=True)(torch.zeros(1, 3, 64, 64)); "
        "print(json.dumps([featuretap.__file__, {name: list(map.shape) for name, map in maps.items()}]))"
    )
    path, shapes = json.loads(ran(environment, "python", "-W", "error", "-c", code))
    assert Path(path).is_relative_to(environment)
    assert shapes["C5"] == [1, 576, 2, 2]
