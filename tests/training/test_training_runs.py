"""Complete runs: the files they write, the accuracy they reach, and weights files that work on their own."""

import csv
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import Completed
from support.training_runs import COLOURS, coloured_folder, small_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from featuretap import registry
from featuretap.specs.description import Description
from featuretap.workflows.training.run import Result, evaluate, train

Run = Callable[..., Completed]
FILES = {
    ".lock",
    "best.safetensors",
    "configuration.toml",
    "confusion.png",
    "curves.png",
    "history.csv",
    "last.safetensors",
    "logs",
    "metrics.json",
    "per-class.csv",
    "predictions.png",
    "resume.pt",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def finished(data: Path, lines: list[str], official_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run that trains only the classifier on pretrained weights, for which a few steps are enough."""
    learning = {"weights": str(official_weights), "freeze": "C5", "lr": 0.01, "epochs": 4}
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(small_run(data, out, backbone="mobilenet_v2", options={}, **learning), log=lines.append)


def test_a_short_run_raises_the_momentum_of_norms_and_files_keep_the_familys(data: Path, tmp_path: Path) -> None:
    own: list[str] = []
    run = small_run(data, tmp_path / "run", backbone="mobilenet_v3_small", options={"width": 0.35}, epochs=1)
    result = train(run, log=own.append)
    assert [line for line in own if "batch norm" in line] == [
        "batch norm: increased the momentum from 0.01 to 0.1, since the run has only 3 updates"
    ]
    best = registry.load(result.folder / "best.safetensors")
    assert {module.momentum for module in best.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.01}
    set_by_hand = train(replace(run, out=str(tmp_path / "other"), norm_momentum=0.01), log=own.append)
    assert sum("batch norm" in line for line in own) == 1
    other = registry.load(set_by_hand.folder / "best.safetensors")
    name = "backbone.stages.C1.0.norm.running_mean"
    assert not torch.equal(best.state_dict()[name], other.state_dict()[name])


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_prints_a_line_for_each_epoch(finished: Result, lines: list[str], data: Path) -> None:
    assert finished.metrics.scores["accuracy"] == 1.0
    assert lines[:2] == [
        "class folders: 30 training and 6 validation images, 3 classes",
        f"training mobilenet_v2 with classification; run folder: {finished.folder}",
    ]
    assert [line.split("  ")[0] for line in lines[2:]] == [f"epoch {number}/4" for number in range(1, 5)]
    assert {path.name for path in finished.folder.iterdir()} == FILES


def test_the_history_has_a_row_for_each_epoch_and_names_the_best(finished: Result) -> None:
    rows = history(finished.folder)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    # Ties in accuracy are resolved by the lower loss.
    best = max(rows, key=lambda row: (float(row["accuracy"]), -float(row["loss"])))
    assert finished.epoch == int(best["epoch"])
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    # The history records the rate of an epoch's last step. The peak falls before it, and 0 would follow the last step.
    rates = [float(row["lr"]) for row in rows]
    assert rates[0] < rates[1] > rates[2] > rates[3] > 0


def test_tensorboard_logs_the_losses_of_the_history(finished: Result) -> None:
    events = EventAccumulator(str(finished.folder / "logs")).Reload()
    logged = [event.value for event in events.Scalars("train_loss")]
    assert logged == pytest.approx([float(row["train_loss"]) for row in history(finished.folder)])


def test_tensorboard_logs_the_steps_of_all_epochs(finished: Result) -> None:
    events = EventAccumulator(str(finished.folder / "logs")).Reload()
    steps = events.Scalars("step loss")
    # Four epochs with three batches of eight images each.
    assert [event.step for event in steps] == list(range(1, 13))
    losses = [sum(event.value for event in steps[first : first + 3]) / 3 for first in range(0, 12, 3)]
    assert losses == pytest.approx([float(row["train_loss"]) for row in history(finished.folder)])
    assert [event.value for event in events.Scalars("step lr")][2::3] == pytest.approx(
        [float(row["lr"]) for row in history(finished.folder)]
    )


def test_weights_of_a_run_describe_their_classes_and_preprocessing(finished: Result) -> None:
    for name in ("best", "last"):
        said = registry.load(finished.folder / f"{name}.safetensors").description
        assert isinstance(said, Description)
        assert said.classes == tuple(sorted(COLOURS))
        assert (said.preprocessing.resize, said.preprocessing.crop) == (32, 32)
        assert (said.weights, said.random_head) == (finished.folder / f"{name}.safetensors", False)


def test_predict_needs_the_weights_file_alone(run: Run, finished: Result, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), (60, 200, 60)).save(tmp_path / "grass.png")
    ran = run("predict", tmp_path / "grass.png", "--weights", finished.folder / "best.safetensors", "--top", 1)
    assert ran.out.splitlines()[-1 if ran.out.splitlines()[-1].strip() else -2].split()[0] == "green"


def test_evaluate_reports_the_scores_of_the_run(run: Run, finished: Result, data: Path, tmp_path: Path) -> None:
    weights = finished.folder / "best.safetensors"
    said = json.loads(run("evaluate", data, "--weights", weights, "--json", "--out", tmp_path / "judged").out)
    assert said["scores"]["accuracy"] == finished.metrics.scores["accuracy"]
    assert said["scores"]["loss"] == pytest.approx(finished.metrics.scores["loss"], rel=1e-5)
    assert [row["class"] for row in said["per_class"]] == sorted(COLOURS)
    assert sum(row["images"] for row in said["per_class"]) == 6
    assert {path.name for path in (tmp_path / "judged").iterdir()} == {
        "confusion.png",
        "metrics.json",
        "per-class.csv",
        "predictions.png",
    }


@pytest.mark.parametrize(("part", "images"), [("val", 6), ("train", 30), ("all", 36)])
def test_evaluation_covers_the_part_that_is_asked_for(finished: Result, data: Path, part: Any, images: int) -> None:
    model = registry.load(finished.folder / "best.safetensors")
    metrics, _, _ = evaluate(model, str(data), part=part)
    assert sum(score.occurrences for score in metrics.per_class) == images


def test_accuracy_and_loss_equal_those_of_a_plain_loop(finished: Result, data: Path) -> None:
    model = registry.load(finished.folder / "best.safetensors").eval()
    prepare = registry.transforms(model)
    right, losses = 0, 0.0
    for label, name in enumerate(sorted(COLOURS)):
        for path in sorted((data / name).iterdir()):
            with torch.no_grad():
                logits = model(prepare(Image.open(path))[None])
            right += int(logits.argmax() == label)
            losses += float(torch.nn.functional.cross_entropy(logits, torch.tensor([label])))
    # The last batch has a single image.
    metrics, _, _ = evaluate(model, str(data), part="all", batch_size=5)
    assert metrics.scores["accuracy"] == pytest.approx(right / 36)
    assert metrics.scores["loss"] == pytest.approx(losses / 36, rel=1e-5)


def test_a_moving_average_warms_up(data: Path, official_weights: Path, tmp_path: Path) -> None:
    """With a constant decay of 0.9999, twelve steps would leave the average close to its initial values."""
    learning = {"weights": str(official_weights), "freeze": "C5", "lr": 0.01, "epochs": 4, "ema": 0.9999}
    result = train(
        small_run(data, tmp_path / "run", backbone="mobilenet_v2", options={}, **learning), log=lambda line: None
    )
    assert result.metrics.scores["accuracy"] == 1.0


def test_gradients_are_clipped_to_a_norm(data: Path, tmp_path: Path) -> None:
    start = registry.save(registry.build("mobilenet_v1", width=0.25, num_classes=3), tmp_path / "start.safetensors")
    settings = {"weights": str(start), "optimizer": "sgd", "weight_decay": 0.0, "epochs": 1, "clip_norm": 1e-6}
    train(small_run(data, tmp_path / "run", **settings), log=lambda line: None)
    before, after = (registry.load(path) for path in (start, tmp_path / "run" / "last.safetensors"))
    moved = [(new - old).abs().max() for old, new in zip(before.parameters(), after.parameters(), strict=True)]
    assert 0 < max(moved) < 1e-5


def test_command_line_options_override_a_configuration_file(run: Run, data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        'backbone = "mobilenet_v1"\nepochs = 9\nbatch_size = 8\nsize = 32\nworkers = 0\noptions = { width = 0.5 }\n'
    )
    out = tmp_path / "run"
    ran = run(
        "train", data, "--config", settings, "--epochs", 2, "--option", "width=0.25", "--in-channels", 1, "--out", out
    )
    assert (ran.status, ran.err) == (0, "")
    assert "best epoch: " in ran.out
    resolved = tomllib.loads((out / "configuration.toml").read_text())
    assert (resolved["epochs"], resolved["batch_size"], resolved["lr"]) == (2, 8, 0.001)
    assert resolved["options"] == {"width": 0.25, "in_channels": 1}
    said = registry.load(out / "last.safetensors").description
    assert isinstance(said, Description)
    assert len(said.preprocessing.mean) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "trivial", "mixed_precision": "bf16"},
        {"augment": "rand", "accumulate": 3, "clip_norm": 1.0, "options": {"width": 0.25, "in_channels": 1}},
        {"optimizer": "sgd", "schedule": "plateau", "layer_decay": 0.7, "crop_scale": 1.0},
    ],
    ids=["bf16, trivial", "accumulation, one channel", "SGD, plateau, layer decay"],
)
def test_combinations_of_training_settings_run(settings: dict[str, Any], data: Path, tmp_path: Path) -> None:
    result = train(small_run(data, tmp_path / "run", **settings), log=lambda line: None)
    assert len(history(result.folder)) == 2
    assert all(torch.isfinite(p).all() for p in registry.load(result.folder / "last.safetensors").parameters())


def test_equal_seeds_give_equal_files_and_others_do_not(data: Path, tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = train(small_run(data, tmp_path / name, epochs=1, seed=seed), log=lambda line: None)
        contents.append((result.folder / "last.safetensors").read_bytes())
    assert contents[0] == contents[1] != contents[2]
