"""Two processes under torchrun work like one: each image is read once, and metrics and model are equally good."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import TESTS, Completed
from support.training_runs import coloured_folder


def torchrun(processes: int, *module: object, fails: bool = False) -> str:
    """Run a module with arguments in several processes. Return standard output, or standard error if `fails` is set."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    ran = subprocess.run(
        [*command, *map(str, module)], capture_output=True, text=True, env=environment, cwd=TESTS, timeout=300
    )
    assert bool(ran.returncode) == fails, ran.stderr[-3000:]
    return ran.stderr if fails else ran.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 images, 7 of which are for validation, so that two processes get shares of different sizes."""
    folder = coloured_folder(tmp_path_factory.mktemp("data") / "colours", 11)
    for number in range(4):
        shutil.copy(folder / "red" / f"{number}.png", folder / "red" / f"again {number}.png")
    return folder


class Told(NamedTuple):
    """Results of several processes: what each read in training, and what all printed for each command."""

    processes: list[Any]
    printed: dict[str, Completed]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that two processes train. The commands of both groups of processes use it."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture(scope="module")
def two(data: Path, official_weights: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    usual = ("--backbone", "mobilenet_v1", "--option", "width=0.25", "--size", 32, "--batch-size", 8, "--epochs", 2)
    commands = {
        "train": ("train", data, *usual, "--workers", 0, "--out", trained),
        "evaluate": ("evaluate", data, "--weights", trained / "best.safetensors", "--json"),
        "missing": ("train", data.parent / "no", "--backbone", "mobilenet_v1", "--batch-size", 8),
    }
    return told(2, data, official_weights, tmp_path_factory.mktemp("two"), commands)


@pytest.fixture(scope="module")
def one(two: Told, data: Path, official_weights: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    commands = {"evaluate": ("evaluate", data, "--weights", trained / "best.safetensors", "--json")}
    return told(1, data, official_weights, tmp_path_factory.mktemp("one"), commands)


def told(processes: int, data: Path, weights: Path, folder: Path, commands: Mapping[str, Sequence[object]]) -> Told:
    """Train and run commands in several processes, and return their results."""
    settings = {
        "backbone": "mobilenet_v2",
        "options": {},
        "weights": str(weights),
        "freeze": "C5",
        "lr": 0.01,
        "epochs": 2,
        "val_fraction": 0.21,
    }
    lines = {name: [*map(str, command)] for name, command in commands.items()}
    torchrun(processes, "support.evaluate_in_processes", data, folder, json.dumps((settings, lines)))
    printed = {}
    for name in ("seen", *commands):
        (status,) = {json.loads(path.read_text())[name] for path in folder.glob("statuses-*.json")}
        streams = [sorted(folder.glob(f"{name}-*.{stream}")) for stream in ("out", "err")]
        printed[name] = Completed(status, *("".join(path.read_text() for path in paths) for paths in streams))
    assert printed["seen"].status == 0, printed["seen"].err
    each = [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(processes)]
    return Told(each, printed)


def test_each_image_is_evaluated_once_an_epoch(one: Told, two: Told) -> None:
    (alone,) = (said["seen"]["val"] for said in one.processes)
    first, second = (said["seen"]["val"] for said in two.processes)
    # Two epochs of seven images.
    assert (len(first), len(second), len(alone)) == (8, 6, 14)
    assert sorted(first + second) == sorted(alone)
    assert not set(first) & set(second)


def test_each_training_image_is_read_at_most_once_an_epoch(one: Told, two: Told) -> None:
    (alone,) = (said["seen"]["train"] for said in one.processes)
    for number in range(2):
        first, second = (said["seen"]["train"][12 * number : 12 * (number + 1)] for said in two.processes)
        assert len({*first, *second}) == 24
        # Each step has the same images as with one process, half of them in each process.
        steps = [{*first[step : step + 4], *second[step : step + 4]} for step in range(0, 12, 4)]
        whole = alone[24 * number : 24 * (number + 1)]
        assert steps == [{*whole[step : step + 8]} for step in range(0, 24, 8)]


def test_every_process_gets_the_same_metrics_and_one_leads(one: Told, two: Told) -> None:
    first, second = two.processes
    assert (first["scores"], first["counts"]) == (second["scores"], second["counts"])
    assert (first["leads"], second["leads"]) == (True, False)
    assert first["counts"] == one.processes[0]["counts"]


def test_two_processes_learn_what_one_does(one: Told, two: Told) -> None:
    (alone,), (first, _) = one.processes, two.processes
    assert alone["scores"]["accuracy"] == first["scores"]["accuracy"] == 1.0
    # The frozen backbone's batch norms do not depend on how batches are split. Only dropout and random crops differ.
    assert first["scores"]["loss"] == pytest.approx(alone["scores"]["loss"], abs=0.1)


def test_training_prints_once_under_torchrun(two: Told) -> None:
    ran = two.printed["train"]
    assert ran.status == 0, ran.err
    assert ran.out.count("epoch 2/2") == ran.out.count("best epoch") == 1


def test_evaluation_in_two_processes_prints_once_the_metrics_of_one(one: Told, two: Told, trained: Path) -> None:
    judged, alone = two.printed["evaluate"], one.printed["evaluate"]
    assert (judged.status, alone.status) == (0, 0), judged.err + alone.err
    both, single = json.loads(judged.out), json.loads(alone.out)
    with (trained / "history.csv").open() as file:
        losses = {row["accuracy"]: float(row["loss"]) for row in reversed([*csv.DictReader(file)])}
    # The results of both processes were combined before computing and writing the metrics.
    assert single["scores"]["loss"] == pytest.approx(losses[max(losses)], rel=1e-5)
    assert both["per_class"] == single["per_class"]
    assert both["scores"]["accuracy"] == single["scores"]["accuracy"]
    assert both["scores"]["loss"] == pytest.approx(single["scores"]["loss"], rel=1e-5)


def test_an_error_that_all_processes_meet_is_one_line_of_each(two: Told, data: Path) -> None:
    ran, folder = two.printed["missing"], data.parent / "no"
    assert ran.status != 0
    message = f"no folder '{folder}'; choose the folder of a data set, or a name such as"
    assert ran.err.count(f"featuretap: {message}") == 2, ran.err
    assert "gloo" not in ran.err


def test_an_error_that_the_first_process_meets_is_one_line_of_each(data: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("")
    more = ["--backbone", "mobilenet_v1", "--batch-size", 8, "--out", taken]
    ran = torchrun(2, "featuretap.command_line", "train", data, *more, fails=True)
    message = f"'{taken}' contains other files; set out to another folder"
    assert ran.count(f"featuretap: {message}") == 2, ran
    assert "gloo" not in ran
