"""A run folder written by an earlier version can be read, evaluated and resumed.

`tests/support/write_committed_files.py` wrote the folder and recorded the output of the commands.
"""

import csv
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Completed

from featuretap import registry

Run = Callable[..., Completed]

DATA = Path(__file__).parent / "data"
PICTURES = DATA / "pictures"
VALUES = json.loads((DATA / "values.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the committed run that a test can resume."""
    return Path(shutil.copytree(DATA / "run", tmp_path / "run"))


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_committed_weights_are_evaluated_to_the_recorded_scores(run: Run) -> None:
    ran = run("evaluate", PICTURES, "--part", "all", "--weights", DATA / "run" / "best.safetensors", "--json")
    assert ran.status == 0, ran.err
    evaluated = json.loads(ran.out)
    assert evaluated["scores"] == pytest.approx(VALUES["evaluated"]["scores"], rel=1e-4)
    rows = [(row["class"], row["images"], row["accuracy"]) for row in evaluated["per_class"]]
    assert rows == [("blue", 3, 0.0), ("green", 3, pytest.approx(2 / 3)), ("red", 3, 0.0)]


def test_the_committed_weights_predict_the_recorded_probabilities(run: Run) -> None:
    ran = run("predict", PICTURES / "red" / "0.png", "--weights", DATA / "run" / "last.safetensors", "--json")
    assert ran.status == 0, ran.err
    predictions = json.loads(ran.out)[0]["predictions"]
    assert [each["class"] for each in predictions] == ["green", "blue", "red"]
    for each, expected in zip(predictions, VALUES["predicted"], strict=True):
        assert each["probability"] == pytest.approx(expected["probability"], rel=1e-4)


@pytest.mark.parametrize("name", ["best", "last"])
def test_the_committed_weights_have_the_class_names_of_the_data(name: str) -> None:
    description = registry.load(DATA / "run" / f"{name}.safetensors").description
    assert (description.name, description.classes) == ("mobilenet_v1", ("blue", "green", "red"))
    assert description.options == {"width": 0.05, "reduced_tail": True}


def test_the_committed_run_continues_with_more_epochs(run: Run, folder: Path) -> None:
    ran = run("train", PICTURES, "--resume", folder, "--epochs", 3)
    assert ran.status == 0, ran.err
    before, after = history(DATA / "run"), history(folder)
    assert after[:2] == before
    third = {name: float(after[2][name]) for name in VALUES["third epoch"]}
    assert third == pytest.approx(VALUES["third epoch"], rel=1e-2)


def test_the_continued_run_keeps_its_settings(run: Run, folder: Path) -> None:
    before = tomllib.loads((DATA / "run" / "configuration.toml").read_text())
    assert run("train", PICTURES, "--resume", folder, "--epochs", 3).status == 0
    after = tomllib.loads((folder / "configuration.toml").read_text())
    changed = {"data": str(PICTURES), "out": str(folder), "epochs": 3}
    assert {name: after[name] for name in before} == {**before, **changed}


def test_the_committed_run_is_complete_without_more_epochs(run: Run, folder: Path) -> None:
    ran = run("train", PICTURES, "--resume", folder)
    assert ran.status == 0, ran.err
    assert history(folder) == history(DATA / "run")


def test_the_committed_run_resumes_only_with_its_own_settings(run: Run, folder: Path) -> None:
    ran = run("train", PICTURES, "--resume", folder, "--lr", 0.5)
    assert ran.status != 0
    assert "0.01" in ran.err
    assert "0.5" in ran.err


@pytest.mark.parametrize("settings", ["settings.toml", "run/configuration.toml"])
def test_a_committed_settings_file_configures_a_new_run(run: Run, tmp_path: Path, settings: str) -> None:
    weights = Path(__file__).parent.parent / "weights" / "data" / "classifier.safetensors"
    ran = run("train", PICTURES, "--config", DATA / settings, "--weights", weights, "--out", tmp_path / "new")
    assert ran.status == 0, ran.err
    measured = {name: [float(row[name]) for row in history(tmp_path / "new")] for name in ("train_loss", "loss", "lr")}
    for name, values in measured.items():
        assert values == pytest.approx([float(row[name]) for row in history(DATA / "run")], rel=1e-2), name
