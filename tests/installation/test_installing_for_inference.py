"""An installation from requirements-inference.txt: its size and features. These tests need a package index."""

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image
from skimage import data
from support import ROOT

from featuretap.registry import Registry

REQUIREMENTS = ROOT / "requirements-inference.txt"
LARGEST = 250_000_000
"""Bytes on the disk that its site-packages may take, without pip."""
NEEDS = "needs PyTorch, which is not installed; run pip install featuretap"


def requirements() -> list[Requirement]:
    lines = REQUIREMENTS.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a virtual environment, created as described in docs/how-to/raspberry-pi.md."""
    folder = tmp_path_factory.mktemp("inference") / "environment"
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check", "install"]
    for packages in (["-r", REQUIREMENTS], ["--no-deps", "--no-index", wheel]):
        installed = subprocess.run([*pip, "--quiet", *packages], capture_output=True, text=True, check=False)
        assert installed.returncode == 0, installed.stderr
    return folder


@pytest.fixture(scope="module")
def board(environment: Path, official_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photograph of a cat, and weights converted on a machine with PyTorch."""
    folder = tmp_path_factory.mktemp("board")
    Image.fromarray(data.chelsea()).save(folder / "cat.png")
    Registry(discover=False).convert(official_weights, folder / "cat.safetensors")
    (folder / "old.pth").symlink_to(official_weights)
    return folder


def run(environment: Path, folder: Path, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [environment / "bin" / program, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def python(environment: Path, folder: Path, code: str) -> Any:
    """Run Python code in the environment, and return the JSON that it prints."""
    ran = run(environment, folder, "python", "-W", "error", "-c", code)
    assert (ran.returncode, ran.stderr) == (0, "")
    return json.loads(ran.stdout)


def test_requirements_have_the_versions_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*project["dependencies"], *project["optional-dependencies"]["onnxruntime"]}
    assert {str(requirement) for requirement in requirements()} <= known


def test_it_is_small_and_without_pytorch(environment: Path) -> None:
    (site,) = environment.glob("lib/python*/site-packages")
    used = sum(path.lstat().st_blocks * 512 for path in [site, *site.rglob("*")])
    assert 100_000_000 < used <= LARGEST
    absent = ("huggingface_hub", "timm", "torch", "torchvision", "rich")
    assert [name for name in absent if (site / name).exists()] == []


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("list mobilenet_v2*", "mobilenet_v2_140"),
        ("list --heads", "ssdlite"),
        ("show mobilenet_v3_large --size 320x256", "C4.expansion"),
        ("inspect cat.safetensors", "mobilenet_v2.imagenet1k_v1"),
        ("plugins", "a namespace"),
        ("predict cat.png --weights cat.safetensors", "Egyptian cat         0.717"),
        ("taps cat.png --weights cat.safetensors --taps C3,C5", "picture: cat-taps.png"),
        ("extract cat.png --weights cat.safetensors --pool --out features", "features: 1 images, 0 unreadable"),
        ("export cat.safetensors cat.onnx", "saved: cat.onnx"),
        ("new-plugin featuretap-tinynet", "next: pip install"),
    ],
)
def test_a_command_works_without_pytorch(environment: Path, board: Path, words: str, printed: str) -> None:
    ran = run(environment, board, "featuretap", *words.split())
    assert (ran.returncode, ran.stderr) == (0, "")
    assert printed in ran.stdout


def test_a_session_classifies_the_cat(environment: Path, board: Path) -> None:
    code = """
import json, sys, numpy
from featuretap import registry
session = registry.session("cat.safetensors", threads=1)
(logits,) = session(session.prepare("cat.png"))["logits"]
shares = numpy.exp(logits - logits.max())
shares /= shares.sum()
print(json.dumps([session.classes[shares.argmax()], round(float(shares.max()), 3), "torch" in sys.modules]))
"""
    assert python(environment, board, code) == ["Egyptian cat", 0.717, False]


def test_a_prediction_from_a_file_imports_nothing_for_networks_and_progress_bars(
    environment: Path, board: Path
) -> None:
    words = "-X importtime -m featuretap.command_line predict cat.png --weights cat.safetensors"
    ran = run(environment, board, "python", *words.split())
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert {"http.client", "urllib.request", "rich", "torch"} & imported == set()
    assert {"featuretap.runtimes.sessions", "onnxruntime"} <= imported


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bench mobilenet_v2", f"featuretap bench {NEEDS}"),
        ("save mobilenet_v2 x.safetensors", f"featuretap save {NEEDS}"),
        ("convert old.pth x.safetensors", f"converting weights {NEEDS}"),
        ("plugins doctor timm", f"featuretap plugins doctor {NEEDS}"),
        ("show mobilenet_v2 --head retinanet", f"building or counting this model {NEEDS}"),
        ("show timm/resnet18", f"'timm/resnet18' {NEEDS}"),
        ("inspect old.pth", f"featuretap inspect {NEEDS}"),
        ("train digits", "featuretap train needs torch, accelerate, "),
        ("evaluate digits --weights old.pth", "featuretap evaluate needs torch, accelerate, "),
        ("quantize cat.safetensors x.onnx --images .", NEEDS),
        ("export cat.safetensors x.pt2", NEEDS),
        ("predict cat.png --weights old.pth", "convert it where PyTorch is installed: featuretap convert old.pth "),
        ("predict cat.png --weights cat.safetensors --torch", "which is not installed"),
    ],
)
def test_a_command_that_needs_pytorch_says_so_in_a_line(
    environment: Path, board: Path, words: str, message: str
) -> None:
    ran = run(environment, board, "featuretap", *words.split())
    assert ran.returncode == 2
    assert ran.stderr.startswith("featuretap: ")
    assert ran.stderr.count("\n") == 1
    assert message in ran.stderr


def test_the_doctor_finds_no_problems(environment: Path, board: Path) -> None:
    ran = run(environment, board, "featuretap", "doctor")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith("No problems found.\n")
    assert "  torch:            not installed (pip install torch)\n" in ran.stdout
    assert "  eager:       not measured, because PyTorch is not installed\n" in ran.stdout


def test_building_a_model_raises_an_error_of_ours(environment: Path, board: Path) -> None:
    code = """
import json
from featuretap import registry
from featuretap.registry.errors import MissingExtraError
try:
    registry.build("mobilenet_v2")
except MissingExtraError as error:
    print(json.dumps(str(error)))
"""
    assert python(environment, board, code) == f"building or counting this model {NEEDS}"
