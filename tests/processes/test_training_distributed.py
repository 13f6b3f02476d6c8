"""Two processes under torchrun do what one does: each image once, the same judgement, and as good a model."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import TESTS
from support.training_runs import coloured_folder


def torchrun(processes: int, *module: object, fails: bool = False) -> str:
    """Run a module with its arguments in several processes; return standard output, or standard error if it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    ran = subprocess.run([*command, *map(str, module)], capture_output=True, text=True, env=environment, timeout=300)
    assert bool(ran.returncode) == fails, ran.stderr[-3000:]
    return ran.stderr if fails else ran.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 images of which 7 are judged by, so that two processes have unequal shares."""
    folder = coloured_folder(tmp_path_factory.mktemp("data") / "colours", 11)
    for number in range(4):
        shutil.copy(folder / "red" / f"{number}.png", folder / "red" / f"again {number}.png")
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, official_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """Number of processes → what each says after a run."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "backbone": "mobilenet_v2",
        "options": {},
        "weights": str(official_weights),
        "freeze": "C5",
        "lr": 0.01,
        "epochs": 2,
        "val_fraction": 0.21,
    }
    said = {}
    for processes in (1, 2):
        out = folder / f"with {processes}"
        torchrun(processes, "support.evaluate_in_processes", data, out, json.dumps(settings))
        said[processes] = [
            json.loads((folder / f"with {processes}-{rank}.json").read_text()) for rank in range(processes)
        ]
    return said


def test_each_image_is_judged_by_once_an_epoch(runs: dict[int, list[Any]]) -> None:
    (alone,) = runs[1]
    one, other = (said["seen"]["val"] for said in runs[2])
    # Two epochs of seven images.
    assert (len(one), len(other), len(alone["seen"]["val"])) == (8, 6, 14)
    assert sorted(one + other) == sorted(alone["seen"]["val"])
    assert not set(one) & set(other)


def test_no_image_is_learned_from_twice_in_an_epoch(runs: dict[int, list[Any]]) -> None:
    epochs = [[said["seen"]["train"][:12] for said in runs[2]], [said["seen"]["train"][12:24] for said in runs[2]]]
    (alone,) = runs[1]
    for number, (one, other) in enumerate(epochs):
        assert len({*one, *other}) == 24
        # The same images in every step as with one process, half of them in each.
        steps = [{*one[step : step + 4], *other[step : step + 4]} for step in range(0, 12, 4)]
        whole = alone["seen"]["train"][24 * number : 24 * (number + 1)]
        assert steps == [{*whole[step : step + 8]} for step in range(0, 24, 8)]


def test_every_process_gets_the_same_judgement_and_one_speaks(runs: dict[int, list[Any]]) -> None:
    first, second = runs[2]
    assert (first["scores"], first["counts"]) == (second["scores"], second["counts"])
    assert (first["leads"], second["leads"]) == (True, False)
    assert first["counts"] == runs[1][0]["counts"]


def test_two_processes_learn_what_one_does(runs: dict[int, list[Any]]) -> None:
    (alone,), (first, _) = runs[1], runs[2]
    assert alone["scores"]["accuracy"] == first["scores"]["accuracy"] == 1.0
    # The backbone is frozen, so that no batch norm tells the halves of a batch apart: only dropout and crops differ.
    assert first["scores"]["loss"] == pytest.approx(alone["scores"]["loss"], abs=0.1)


def test_the_command_line_prints_once_under_torchrun(data: Path, tmp_path: Path) -> None:
    arguments = ["--backbone", "mobilenet_v1", "--option", "width=0.25", "--size", 32, "--batch-size", 8, "--epochs", 2]
    out = torchrun(
        2,
        "featuretap.registry.command_line",
        "train",
        data,
        *arguments,
        "--workers",
        0,
        "--out",
        tmp_path / "run",
    )
    assert out.count("epoch 2/2") == out.count("best epoch") == 1
    weights = tmp_path / "run" / "best.safetensors"
    judged = torchrun(2, "featuretap.registry.command_line", "evaluate", data, "--weights", weights, "--json")
    alone = torchrun(1, "featuretap.registry.command_line", "evaluate", data, "--weights", weights, "--json")
    both, one = json.loads(judged), json.loads(alone)
    with (tmp_path / "run" / "history.csv").open() as file:
        losses = {row["accuracy"]: float(row["loss"]) for row in reversed([*csv.DictReader(file)])}
    # Whatever the processes had counted apart was put together before it was judged and written.
    assert one["scores"]["loss"] == pytest.approx(losses[max(losses)], rel=1e-5)
    assert both["per_class"] == one["per_class"]
    assert both["scores"]["accuracy"] == one["scores"]["accuracy"]
    assert both["scores"]["loss"] == pytest.approx(one["scores"]["loss"], rel=1e-5)


def test_what_one_process_finds_wrong_is_one_line_for_all(data: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("")
    command = ["featuretap.registry.command_line", "train"]
    more = ["--backbone", "mobilenet_v1", "--batch-size", 8, "--out", tmp_path / "taken"]
    for folder, message in (
        (data, f"'{tmp_path / 'taken'}' holds something else; choose another folder with out"),
        (tmp_path / "no", f"there is no folder '{tmp_path / 'no'}'; give the folder of a data set, or a name such as"),
    ):
        ran = torchrun(2, *command, folder, *more, fails=True)
        assert ran.count(f"featuretap: {message}") == 2, ran
        assert "gloo" not in ran
