"""Several heads are trained on one data set each, with alternating or mixed batches."""

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.data_sets import a_box, coco
from support.training_runs import COLOURS, coloured_folder

from featuretap import registry
from featuretap.command_line import command
from featuretap.registry.errors import FeaturetapError, HeadError, TrainingError
from featuretap.workflows.training.configuration import (
    Configuration,
    format_configuration,
    make_configuration,
    read_configuration,
)
from featuretap.workflows.training.evaluation import evaluate
from featuretap.workflows.training.run import Result, check_processes, train
from featuretap.workflows.training.run_folder import read_run
from featuretap.workflows.training.several_heads import HeadBatches, combine_metrics
from featuretap.workflows.training.tasks.task import Metrics

SIDE = 48


def rectangles(folder: Path, count: int = 20) -> Path:
    """Write noisy images with one bright rectangle each, together with masks and boxes."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    boxes = []
    for number in range(count):
        pixels = random.integers(0, 120, (SIDE, SIDE, 3)).astype(np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        left, top = (int(place) for place in random.integers(0, SIDE // 2, 2))
        place = slice(top, top + 24), slice(left, left + 24)
        pixels[place], mask[place] = (255, 230, 40), 1
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
        boxes.append(a_box(number, number + 1, [left, top, 24, 24]))
    names = tuple(f"{number}.png" for number in range(count))
    file = coco(folder / "annotations.json", boxes, names)
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["width"] = image["height"] = SIDE
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data sets for a classifier and a segmenter."""
    folder = tmp_path_factory.mktemp("data")
    return {"scene": str(coloured_folder(folder / "colours")), "road": str(rectangles(folder / "street"))}


HEADS = {"scene": "classification", "road": "lraspp"}


def several(sources: Mapping[str, str], out: Path, **settings: Any) -> Configuration:
    usual: dict[str, Any] = {
        "data": dict(sources),
        "backbone": "mobilenet_v1",
        "options": {"width": 0.25},
        "head": HEADS,
        "epochs": 2,
        "batch_size": 8,
        "size": 32,
        "crop_scale": 0.6,
        "lr": 0.005,
        "workers": 0,
        "out": str(out),
    }
    return make_configuration({**usual, **settings})


def silently(configuration: Configuration, *, resume: bool = False) -> Result:
    return train(configuration, resume=resume, log=lambda line: None)


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the history without the timing columns."""
    with (folder / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name not in ("seconds", "images_per_second")} for row in history]


@pytest.fixture(scope="module")
def finished(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[str]]:
    """A run of ten epochs and its log lines."""
    lines: list[str] = []
    configuration = several(data, tmp_path_factory.mktemp("run") / "run", epochs=10, batch_size=4, lr=0.01)
    return train(configuration, log=lines.append), lines


def test_both_heads_learn_in_one_run(finished: tuple[Result, list[str]]) -> None:
    scores = finished[0].metrics.scores
    assert scores["scene.accuracy"] >= 0.8
    assert scores["road.mIoU"] >= 0.5
    assert scores["mean"] == pytest.approx((scores["scene.accuracy"] + scores["road.mIoU"]) / 2)


def test_the_history_and_the_log_have_the_metrics_of_each_head(finished: tuple[Result, list[str]]) -> None:
    result, lines = finished
    last = rows(result.folder)[-1]
    assert list(last) == [
        *("epoch", "train_loss", "mean", "scene.accuracy", "scene.loss", "road.mIoU", "road.pixel accuracy"),
        *("road.loss", "lr"),
    ]
    assert lines[0].startswith("scene: ")
    assert lines[1].startswith("road: ")
    assert lines[2] == f"training mobilenet_v1 with scene=classification, road=lraspp; run folder: {result.folder}"
    assert f"scene.accuracy {float(last['scene.accuracy']):.4f}" in lines[-1]


def test_the_folder_has_the_reports_of_each_head(finished: tuple[Result, list[str]]) -> None:
    folder = finished[0].folder
    for name, head in finished[0].metrics.heads.items():
        found = json.loads((folder / name / "metrics.json").read_text())
        assert found == pytest.approx(head.scores)
        assert (folder / name / "predictions.png").exists()
    header = (folder / "scene" / "per-class.csv").read_text().splitlines()[0]
    assert header == "class,images,accuracy"


def test_one_file_holds_the_heads_and_each_is_evaluated_as_in_the_run(
    data: dict[str, str], finished: tuple[Result, list[str]]
) -> None:
    result = finished[0]
    for name, head in result.metrics.heads.items():
        model = registry.load(result.folder / "best.safetensors", head=name)
        metrics, _, _ = evaluate(model, data[name], batch_size=8, log=lambda line: None)
        assert metrics.scores == pytest.approx(dict(head.scores))
    assert registry.load(result.folder / "best.safetensors", head="scene").description.classes == tuple(COLOURS)


@pytest.mark.parametrize(
    "settings",
    [
        {"ema": 0.9, "freeze": "C2", "unfreeze_every": 1},
        {"batches": "mixed", "schedule": "plateau", "patience": 0, "optimizer": "sgd", "best": "road.mIoU"},
    ],
    ids=["alternating, average, thawing", "mixed, plateau, SGD"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    settings: dict[str, Any], data: dict[str, str], tmp_path: Path
) -> None:
    def log(line: str) -> None:
        if line.startswith("epoch 1/"):
            raise KeyboardInterrupt

    whole = silently(several(data, tmp_path / "whole", **settings))
    with pytest.raises(KeyboardInterrupt):
        train(several(data, tmp_path / "broken", **settings), log=log)
    broken = silently(read_run(tmp_path / "broken", {}), resume=True)
    assert rows(broken.folder) == rows(whole.folder)
    for name in ("last.safetensors", "best.safetensors", "scene/per-class.csv", "road/per-class.csv"):
        assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert (broken.epoch, broken.metrics.scores) == (whole.epoch, whole.metrics.scores)


@pytest.mark.parametrize("batches", ["alternate", "mixed"])
def test_a_weight_of_0_leaves_a_head_as_it_was_initialised(batches: str, data: dict[str, str], tmp_path: Path) -> None:
    weights = {"loss_weight": {"road": 0}, "weight_decay": 0.0, "epochs": 1, "batches": batches}
    trained = silently(several(data, tmp_path / "run", **weights)).folder / "last.safetensors"
    torch.manual_seed(0)
    start = registry.build("mobilenet_v1", width=0.25, head=HEADS, scene={"num_classes": 3}, road={"num_classes": 2})
    after = dict(registry.load(trained).named_parameters())
    changed = {name for name, value in start.named_parameters() if not torch.equal(value, after[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("heads.")} == {"scene"}
    assert any(name.startswith("backbone.") for name in changed)


def test_a_detector_is_trained_beside_a_segmenter(data: dict[str, str], tmp_path: Path) -> None:
    both = {"objects": data["road"], "road": data["road"]}
    heads = {"objects": "ssdlite", "road": "lraspp"}
    configuration = several(both, tmp_path / "run", head=heads, size=64, epochs=1, best="objects.map@0.5")
    result = silently(configuration)
    assert next(iter(result.metrics.scores)) == "objects.mAP@0.5"
    assert (result.folder / "objects" / "predictions.json").exists()
    model = registry.load(result.folder / "best.safetensors").eval()
    assert model.description.heads["objects"].options["size"] == 64
    assert [*model([torch.rand(3, 50, 40)])] == ["objects", "road"]


def counted(batches: HeadBatches) -> list[int]:
    """Return the index of the data set (of two) that each batch comes from."""
    return [int(batch[0] >= batches.lengths[0]) for batch in batches]


def test_alternating_batches_use_each_image_once_and_spread_the_smaller_set() -> None:
    order = HeadBatches([12, 4], 2, 0, mixed=False)
    assert counted(order) == [0, 0, 1, 0, 0, 0, 1, 0] or counted(order) == [0, 1, 0, 0, 0, 0, 1, 0]
    assert len(order) == 8
    assert sorted(index for batch in order for index in batch) == list(range(16))


def test_mixed_batches_take_turns_and_repeat_the_smaller_set() -> None:
    order = HeadBatches([12, 4], 2, 0, mixed=True)
    batches = list(order)
    assert counted(order) == [0, 1] * 6
    assert len(order) == 12
    used = Counter(index for batch in batches for index in batch)
    assert used == {**dict.fromkeys(range(12), 1), **dict.fromkeys(range(12, 16), 3)}


def test_the_order_follows_from_the_seed_and_the_epoch() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        order = HeadBatches([12, 4], 2, seed, mixed=False)
        order.set_epoch(epoch)
        orders.append(list(order))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


@pytest.mark.parametrize(
    ("best", "score"), [("mean", 0.5), ("objects.mAP", 0.2), ("road.mIoU", 0.8), ("road.pixel accuracy", 0.9)]
)
def test_the_best_epoch_is_chosen_by_one_metric_or_by_the_mean(best: str, score: float) -> None:
    metrics = {"objects": Metrics({"mAP": 0.2}, ()), "road": Metrics({"mIoU": 0.8, "pixel accuracy": 0.9}, ())}
    assert combine_metrics(metrics, best).deciding_score == pytest.approx(score)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"head": {"rode": "lraspp"}},
            "head names 'rode', which has no data set; did you mean 'road'? the data sets are scene, road",
        ),
        (
            {"loss_weight": {"objects": 2.0}},
            "loss_weight names 'objects', which has no data set; the data sets are scene, road",
        ),
        ({"best": "objects.mAP"}, "best names 'objects', which has no data set; the data sets are scene, road"),
        (
            {"head": "lraspp"},
            "head='lraspp' applies to one head, but the run has several; set it by name: head={'scene': 'lraspp'}",
        ),
        ({"backbone": None, "weights": "digits"}, None),
        (
            {"data": "digits", "head": {"road": "lraspp"}},
            "head={'road': 'lraspp'} needs several data sets, but data is a single one; leave head out, or name the "
            "data sets: data={'objects': ..., 'road': ...}",
        ),
        (
            {"data": "digits", "head": None, "best": "mean"},
            "best='mean' needs several data sets, but data is a single one; leave best out, or name the data sets: "
            "data={'objects': ..., 'road': ...}",
        ),
    ],
    ids=["head", "loss weight", "best", "one head", "no backbone", "heads of one set", "best of one set"],
)
def test_names_that_do_not_fit_the_data_are_refused(
    settings: dict[str, Any], message: str | None, data: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(FeaturetapError) as caught:
        several(data, tmp_path / "run", **settings)
    assert str(caught.value) == (
        message or "no backbone for the heads; choose one, such as backbone='mobilenet_v3_large'"
    )


def test_a_metric_that_no_head_has_is_refused_before_training(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        silently(several(data, tmp_path / "run", best="road.mAP"))
    assert str(caught.value) == (
        "best='road.mAP' is not a metric of these heads; choose one of mean, scene.accuracy, road.mIoU, "
        "road.pixel accuracy"
    )
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(data: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        check_processes(several(data, tmp_path / "run"), 2)
    assert str(caught.value) == "several heads cannot be trained with 2 processes; start one process"


def test_a_batch_size_that_processes_cannot_share_is_refused() -> None:
    configuration = make_configuration({"data": "digits", "backbone": "mobilenet_v2", "batch_size": 5})
    with pytest.raises(TrainingError) as caught:
        check_processes(configuration, 2)
    assert str(caught.value) == "batch_size=5 cannot be divided among 2 processes; use a multiple of 2"


def test_heads_that_contradict_each_other_are_refused(data: dict[str, str], tmp_path: Path) -> None:
    both = {"faces": data["road"], "objects": data["road"]}
    options = {"faces": {"size": 64}, "objects": {"size": 96}}
    heads = dict.fromkeys(both, "ssdlite")
    with pytest.raises(HeadError) as caught:
        silently(several(both, tmp_path / "run", head=heads, options=options, size=None))
    assert str(caught.value) == (
        "heads 'faces' and 'objects' preprocess images with size=64 and size=96; set one value for both, or build "
        "two models"
    )


def test_a_model_with_several_heads_is_not_evaluated_at_once(
    data: dict[str, str], finished: tuple[Result, list[str]]
) -> None:
    model = registry.load(finished[0].folder / "best.safetensors")
    with pytest.raises(HeadError) as caught:
        evaluate(model, data["road"])
    assert str(caught.value) == (
        "the model has several heads (scene, road), but only one can be evaluated at a time; load one of them "
        "with head='scene'"
    )


def test_the_command_trains_by_named_options(data: dict[str, str], tmp_path: Path) -> None:
    arguments = [
        *("train", "--backbone", "mobilenet_v1", "--epochs", "1", "--batch-size", "8", "--size", "32"),
        *("--workers", "0", "--out", str(tmp_path / "run"), "--loss-weight", "road=2", "--best", "road.miou"),
        *(part for name, folder in data.items() for part in ("--data", f"{name}={folder}")),
        *("--head", "road=lraspp", "--option", "road.inter_channels=32", "--option", "width=0.25"),
    ]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "best epoch: 1, road.mIoU" in result.output
    configuration = read_run(tmp_path / "run", {})
    assert configuration.loss_weight == {"road": 2}
    assert configuration.head == HEADS
    best = tmp_path / "run" / "best.safetensors"
    shown = CliRunner().invoke(command, ["evaluate", data["scene"], "--weights", str(best), "--head", "scene"])
    assert shown.exit_code == 0, shown.output
    assert "accuracy" in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "a=x", "--data", "a=y"], "--data has two values for 'a'; give each head one value"),
        (["--data", "x"], "'x' does not name a head; write NAME=DATA, such as objects=x"),
        (["x", "--data", "a=y"], "DATA is for one head, --data for several; use one of the two"),
    ],
    ids=["one name twice", "no name", "two ways"],
)
def test_named_options_that_contradict_each_other_are_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(command, ["train", "--backbone", "mobilenet_v2", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_settings_of_several_heads_are_read_as_they_are_written(data: dict[str, str], tmp_path: Path) -> None:
    configuration = several(data, tmp_path / "run", loss_weight={"road": 2.0}, best="mean", batches="mixed")
    path = tmp_path / "settings.toml"
    path.write_text(format_configuration(configuration))
    assert make_configuration(read_configuration(path)) == configuration
