"""An image that fails in a data loader worker is reported in one line, as in the main process."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support import Completed
from support.training_runs import COLOURS, coloured_folder

from featuretap import registry
from featuretap.registry.errors import OptionError
from featuretap.specs.preprocessing import Preprocessing
from featuretap.support.image_files import list_images
from featuretap.support.workers import raise_errors
from featuretap.workflows.extraction.computing import Batch, Preparation
from featuretap.workflows.extraction.modules import _Reader, _with_tensor

Run = Callable[..., Completed]

SIZE = 32
STRIP = (70_000, 1)
PROBLEM = "of 70000×1 pixels is too elongated to be resized to a shorter side of"


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that can be read but are too elongated to be resized."""
    folder = coloured_folder(tmp_path_factory.mktemp("data") / "strips", 3)
    for path in folder.rglob("*.png"):
        Image.new("L", STRIP).save(path)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3)
    model.description = replace(model.description, classes=tuple(sorted(COLOURS)))
    return registry.save(model, tmp_path_factory.mktemp("weights") / "colours.safetensors")


@pytest.mark.parametrize("workers", [0, 1])
def test_training_reports_an_image_in_one_line(run: Run, tmp_path: Path, strips: Path, workers: int) -> None:
    settings = ("--backbone", "mobilenet_v1", "--option", "width=0.25", "--size", SIZE, "--batch-size", 3)
    ran = run("train", strips, *settings, "--crop-scale", 1, "--workers", workers, "--out", tmp_path / "run")
    assert ran.status == 2
    (line,) = [line for line in ran.err.splitlines() if line.startswith("featuretap: ")]
    assert line.startswith(f"featuretap: '{strips}/")
    assert f"cannot be prepared: the image {PROBLEM} {SIZE}; crop it" in line
    assert "DataLoader" not in ran.err


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_reports_an_image_in_one_line(run: Run, strips: Path, weights: Path, workers: int) -> None:
    ran = run("evaluate", strips, "--weights", weights, "--workers", workers)
    assert ran.status == 2
    (line,) = ran.err.splitlines()
    assert line.startswith(f"featuretap: '{strips}/")
    assert f"cannot be prepared: the image {PROBLEM} 256; crop it" in line


def test_extraction_reports_what_is_wrong_with_the_settings_in_one_line(
    run: Run, tmp_path: Path, strips: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "FEATURETAP_MAX_PIXELS must be a positive integer, got 'many'; use a number such as 200000000"
    monkeypatch.setenv("FEATURETAP_MAX_PIXELS", "many")
    ran = run("extract", strips, "--weights", weights, "--torch", "--out", tmp_path / "out")
    assert ran.err == f"featuretap: {message}\n"
    # Starting a worker takes many seconds, so only the pickling of its result is tested.
    reader = _Reader(Preparation(Preprocessing(), (224, 224)))
    returned = pickle.loads(pickle.dumps(_with_tensor(reader[Batch(0, list_images([strips]))])))
    with pytest.raises(OptionError) as error:
        next(raise_errors([returned]))
    assert str(error.value) == message
