"""Without PyTorch, commands that require it report so in one line. Inference is tested in tests/installation."""

import os
import subprocess
import sys

import pytest

from featuretap.support.errors import MissingExtraError
from featuretap.support.extras import explain_missing_torch

BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('huggingface_hub', 'timm', 'torch', 'torchvision')))\n"
"""What cannot be imported behind this line is missing, as after `pip install -r requirements-inference.txt`."""
COMMAND = f"{BLOCKED}from featuretap.command_line import main; main()"
CALL = f"""{BLOCKED}
from featuretap import registry
from featuretap.registry.errors import FeaturetapError
try:
    eval(sys.argv[1])
except FeaturetapError as error:
    print(type(error).__name__, error, sep=": ")
"""
BUILDING = "building or counting this model"
NEXT = "needs PyTorch, which is not installed; run pip install featuretap"


def python(code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


@pytest.mark.parametrize(
    ("words", "feature"),
    [
        ("bench mobilenet_v2", "featuretap bench"),
        ("save mobilenet_v2 x.safetensors", "featuretap save"),
        ("convert a.safetensors b.safetensors", "converting weights"),
        ("plugins doctor timm", "featuretap plugins doctor"),
        ("show mobilenet_v2 --head retinanet", BUILDING),
        ("show timm/resnet18", "'timm/resnet18'"),
        ("list torchvision/*", "'torchvision/*'"),
    ],
)
def test_a_command_that_needs_pytorch_says_so_in_a_line(words: str, feature: str) -> None:
    ran = python(COMMAND, *words.split())
    assert (ran.returncode, ran.stderr) == (2, f"featuretap: {feature} {NEXT}\n")


@pytest.mark.parametrize(
    ("call", "feature"),
    [
        ("build('mobilenet_v2')", BUILDING),
        ("load('model.safetensors')", BUILDING),
        ("convert('a.safetensors', 'b.safetensors')", "converting weights"),
        ("compile('model.onnx')", "registry.compile"),
        ("spec('mobilenet_v2', head='ssdlite').parameters", BUILDING),
        ("spec('torchvision/resnet18')", "'torchvision/resnet18'"),
    ],
)
def test_a_function_that_needs_pytorch_raises_an_error_of_ours(call: str, feature: str) -> None:
    ran = python(CALL, f"registry.{call}")
    assert (ran.stdout, ran.stderr) == (f"MissingExtraError: {feature} {NEXT}\n", "")


def test_training_names_pytorch_among_what_it_needs() -> None:
    ran = python(COMMAND, "train", "digits")
    assert (ran.returncode, ran.stderr) == (
        2,
        "featuretap: featuretap train needs torch; run pip install 'featuretap[train]'\n",
    )


@pytest.mark.parametrize("words", ["list", "plugins"])
def test_namespaces_of_other_libraries_are_not_reported_as_broken(words: str) -> None:
    ran = python(COMMAND, words)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "failed" not in ran.stdout


def test_weights_on_the_hugging_face_hub_are_to_be_downloaded_elsewhere_without_its_library() -> None:
    ran = python(CALL, "registry.session('mobilenet_v1')", FEATURETAP_OFFLINE="")
    assert ran.stderr == ""
    assert "huggingface_hub" in ran.stdout
    assert "run 'hf download timm/mobilenetv1_100.ra4_e3600_r224_in1k model.safetensors' with network" in ran.stdout


def test_another_missing_module_stays_an_error_of_python() -> None:
    with pytest.raises(ModuleNotFoundError), explain_missing_torch("this"):
        raise ModuleNotFoundError(name="left_pad")


def test_a_single_missing_package_is_named() -> None:
    message = "^this needs timm, which is not installed; run pip install featuretap$"
    with pytest.raises(MissingExtraError, match=message), explain_missing_torch("this"):
        raise ModuleNotFoundError(name="timm")
