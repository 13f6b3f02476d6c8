"""Errors in a run's settings or data are reported in one line before the first step, and no work is lost."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from support import Completed
from support.data_sets import classes_of, mask, picture
from support.full_disk import full_disk
from support.training_runs import coloured_folder, small_run

from featuretap import registry
from featuretap.registry.errors import DataError, FeaturetapError
from featuretap.workflows.training.configuration import Configuration
from featuretap.workflows.training.reports import per_class_rows
from featuretap.workflows.training.run import evaluate, train

Run = Callable[..., Completed]

SMALL = ("--backbone", "mobilenet_v1", "--option", "width=0.25", "--size", 32, "--batch-size", 8, "--workers", 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data") / "colours")


def said(run: Run, *arguments: object) -> str:
    """Return the one-line error of a failing command."""
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, ""), ran
    (line,) = [line for line in ran.err.splitlines() if line.startswith("featuretap: ")]
    return line.removeprefix("featuretap: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no training data; choose a folder, the name of a torchvision data set, or 'digits'"),
        (
            ("digits",),
            "no backbone to train; choose a weights file, or a backbone such as --backbone mobilenet_v3_large",
        ),
        (("nofolder/",), "no folder 'nofolder/'; choose the folder of a data set, or a name such as 'digits'"),
        (
            ("digits", "--backbone", "mobilenet_v2", "--head", "fpn"),
            "head 'fpn' has no task to train or evaluate; choose one of classification, deeplab_v3, "
            "faster_rcnn, fcos, lraspp, mask_rcnn, retinanet, ssd, ssdlite",
        ),
        (
            ("digits", "--backbone", "mobilenet_v2", "--head", "fnp"),
            "no head named 'fnp'; did you mean 'fpn'?",
        ),
        (
            ("digits", "--backbone", "mobilenet_v9"),
            "no backbone named 'mobilenet_v9'; did you mean 'mobilenet_v2'?",
        ),
        (
            ("digits", "--model", "mobilenet_v9"),
            "no backbone named 'mobilenet_v9'; did you mean 'mobilenet_v2'?",
        ),
        (
            ("digits", "--backbone", "mobilenet_v2", "--option", "freeze=C2"),
            "freeze is a training setting, and as an option it would be saved in the weights files; set freeze outside "
            "the options",
        ),
        (
            ("digits", "--backbone", "mobilenet_v2", "--batch-size", "5000"),
            "'digits' has 1438 training images, fewer than a batch of 5000; lower batch_size",
        ),
        (
            ("digits", "--backbone", "mobilenet_v2", "--in-channels", "4", "--out", "never"),
            "'mobilenet_v2' with in_channels=4 cannot be trained on images; set in_channels to 1 or 3",
        ),
        (
            ("--resume", "x", "--config", "y"),
            "--resume uses the settings of the run; leave --config, --option and --in-channels out",
        ),
        (("digits", "--epochs", "x"), "Invalid value for '--epochs': 'x' is not a valid integer."),
        (
            ("digits", "--epohcs", "3"),
            "No such option '--epohcs'. (Did you mean one of: '--epochs', '--warmup-epochs'?)",
        ),
    ],
)
def test_bad_settings_are_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(run, "train", *arguments) == message
    assert not list(tmp_path.iterdir())


def test_options_of_a_file_that_are_not_a_table_are_one_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('backbone = "mobilenet_v2"\noptions = "x"\n')
    assert said(run, "train", "digits", "--config", path, "--in-channels", 1) == (
        f"{path}: training cannot take options='x'; it must be a table of options"
    )


def test_accumulating_more_steps_than_an_epoch_has_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FeaturetapError) as caught:
        train(small_run(data, tmp_path / "run", accumulate=4), log=lambda line: None)
    assert str(caught.value) == "accumulate=4 is larger than the 3 steps of an epoch; lower it"


def test_a_run_that_failed_in_its_first_epoch_can_be_begun_with_other_settings(data: Path, tmp_path: Path) -> None:
    def log(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_run(data, tmp_path / "run"), log=log)
    train(small_run(data, tmp_path / "run", epochs=1, lr=1e-4), log=lambda line: None)


def test_an_interrupted_run_prints_how_to_resume_it(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = click.echo

    def echo(text: str = "", **options: bool) -> None:
        if text.startswith("epoch 1/"):
            raise KeyboardInterrupt
        real(text, **options)

    monkeypatch.setattr(click, "echo", echo)
    ran = run("train", data, *SMALL, "--epochs", 2, "--out", tmp_path / "run")
    assert (ran.status, ran.err) == (
        130,
        "featuretap: interrupted; resume from the last complete epoch with: featuretap train --resume "
        f"{tmp_path / 'run'}\n",
    )


def test_a_file_size_limit_is_noticed_before_the_first_step(run: Run, data: Path, tmp_path: Path) -> None:
    with full_disk(1_000_000):
        error = said(run, "train", data, *SMALL, "--out", tmp_path / "run")
    assert error == (f"cannot write the run's state (3 MB) to '{tmp_path / 'run'}': File too large")


def test_an_invalid_setting_in_a_file_names_the_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('backbone = "mobilenet_v2"\nepochs = 2.5\n')
    assert said(run, "train", "digits", "--config", path) == (
        f"{path}: training cannot take epochs=2.5; it must be a positive integer up to 65536"
    )


def test_unreadable_images_are_found_before_the_first_step(run: Run, tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "data", 6)
    (data / "red" / "0.png").write_bytes((data / "red" / "1.png").read_bytes()[:200])
    (data / "blue" / "3.png").write_bytes(b"")
    message = said(run, "train", data, "--backbone", "mobilenet_v1", "--batch-size", 4, "--out", tmp_path / "run")
    assert message.startswith("2 of 18 images cannot be used: ")
    assert str(data / "red" / "0.png") in message
    assert f"'{data / 'blue' / '3.png'}' is empty" in message
    assert not (tmp_path / "run" / "history.csv").exists()


def test_a_run_that_failed_before_its_first_step_can_begin_again(run: Run, tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "data", 6)
    content = (data / "red" / "0.png").read_bytes()
    (data / "red" / "0.png").write_bytes(b"")
    arguments = ("train", data, *SMALL, "--epochs", 1, "--out", tmp_path / "run")
    assert run(*arguments).status == 2
    (data / "red" / "0.png").write_bytes(content)
    assert run(*arguments).status == 0


def test_a_nan_loss_stops_the_run(data: Path, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3)
    torch.nn.init.constant_(next(model.parameters()), torch.nan)
    weights = registry.save(model, tmp_path / "broken.safetensors")
    with pytest.raises(FeaturetapError) as caught:
        train(small_run(data, tmp_path / "run", weights=str(weights)), log=lambda line: None)
    assert str(caught.value) == (
        "the loss became nan in epoch 1 of 2; try a lower lr, more warmup_epochs, or clip_norm=1 (weights of earlier "
        "epochs are kept)"
    )


def test_heads_with_batch_norm_after_pooling_refuse_one_image_a_step(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "data" / "images" / f"{number}.png", (32, 32), 60 * number)
        mask(tmp_path / "data" / "masks" / f"{number}.png", [[number % 2] * 32] * 32)
    with pytest.raises(FeaturetapError) as caught:
        train(
            small_run(tmp_path / "data", tmp_path / "run", head="deeplab_v3", batch_size=1, val_fraction=0.5),
            log=lambda line: None,
        )
    assert str(caught.value) == "batch norm cannot be trained with 1 image per process and step; increase batch_size"


def test_a_full_disk_is_noticed_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(FeaturetapError) as caught:
        train(small_run(data, tmp_path / "run"), log=lambda line: None)
    assert str(caught.value) == (
        f"the files of this run need up to 7 MB, but the disk of '{tmp_path / 'run'}' has only 1 MB free; free some "
        "space, or set out to another folder"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("digits", "--weights", "absent.safetensors"),
            "cannot read the weights 'absent.safetensors': No such file or directory",
        ),
        (("digits",), "Missing option '--weights'."),
    ],
)
def test_bad_arguments_of_evaluate_are_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    assert said(run, "evaluate", *arguments) == message


def test_evaluation_splits_a_data_set_as_training_does_by_default(run: Run) -> None:
    fraction = Configuration.__dataclass_fields__["val_fraction"].default
    assert f"[default: {fraction}" in run("evaluate", "--help").out


def test_a_model_is_evaluated_on_its_own_classes_only(run: Run, data: Path, tmp_path: Path) -> None:
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3)
    model.description = replace(model.description, classes=("blue", "green", "red"))
    weights = registry.save(model, tmp_path / "colours.safetensors")
    assert said(run, "evaluate", "digits", "--weights", weights) == (
        f"the data has classes that '{weights}' does not have: '0', '1', '2', '3', '4' and 5 more; name the classes "
        "as in training"
    )
    (data / "blue").rename(data / "azure")
    message = said(run, "evaluate", data, "--weights", weights)
    (data / "azure").rename(data / "blue")
    assert message == f"the data has classes that '{weights}' does not have: 'azure'; name the classes as in training"


def test_data_of_a_name_that_is_not_utf_8_is_refused(run: Run, tmp_path: Path) -> None:
    folder = coloured_folder(tmp_path / "caf\udce9")
    assert said(run, "train", folder, "--backbone", "mobilenet_v1") == (
        f"data is {str(folder)!r}, which is not valid UTF-8; rename it to save the run's settings"
    )


def test_classes_and_images_of_any_name_are_trained_on(run: Run, tmp_path: Path) -> None:
    folder = coloured_folder(tmp_path / "data")
    (folder / "red" / "0.png").rename(folder / "red" / "\udcff.png")
    (folder / "red").rename(folder / "\x1b[31mred")
    (folder / "blue").rename(folder / "caf\udce9")
    arguments = ("--backbone", "mobilenet_v1", "--option", "width=0.25", "--size", "32", "--epochs", "1")
    trained = run("train", folder, *arguments, "--batch-size", "8", "--out", tmp_path / "run")
    assert trained.status == 0
    assert "\x1b" not in trained.out + trained.err
    assert [line.split()[0] for line in trained.out.splitlines()[-4:-1]] == ["\\x1b[31mred", "caf\\udce9", "green"]
    assert run("evaluate", folder, "--weights", tmp_path / "run" / "best.safetensors").status == 0


@pytest.mark.parametrize("part", ["", "val"])
def test_a_model_is_evaluated_on_data_that_lacks_classes(
    tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3)
    model.description = replace(model.description, classes=("blue", "green", "red"))
    for place in ("train", "val") if part else ("",):
        classes_of(tmp_path / place, red=3, green=0)
    metrics, _, _ = evaluate(model, str(tmp_path), part="all")
    rows = [(each.name, each.occurrences, math.isnan(each.score)) for each in metrics.per_class]
    assert rows == [("blue", 0, True), ("green", 0, True), ("red", 6 if part else 3, False)]
    assert per_class_rows(metrics)[0] == ("blue", "0", "absent")
    assert caplog.messages[-1] == "2 classes have no images in this data set: 'blue', 'green'"


@pytest.mark.parametrize("part", ["val", "all"])
@pytest.mark.parametrize(("counts", "evaluated"), [({"red": 1}, 1), ({"blue": 1, "green": 1, "red": 1}, 3)])
def test_a_model_is_evaluated_on_one_image_of_a_class(
    tmp_path: Path, counts: dict[str, int], evaluated: int, part: Any
) -> None:
    model = registry.build("mobilenet_v1", width=0.25, num_classes=3)
    model.description = replace(model.description, classes=("blue", "green", "red"))
    classes_of(tmp_path, **counts)
    lines: list[str] = []
    metrics, _, _ = evaluate(model, str(tmp_path), part=part, log=lines.append)
    assert sum(each.occurrences for each in metrics.per_class) == evaluated
    every = ["the data has no validation set and no class with two images: evaluating on all images"]
    assert lines[1:] == (every if part == "val" else [])
    with pytest.raises(DataError) as error:
        evaluate(model, str(tmp_path), part="train", log=lines.append)
    assert str(error.value) == (
        f"{str(tmp_path)!r} has too few images for a validation set; evaluate on all images with part='all'"
    )


def test_a_validation_part_is_evaluated_without_more_words(tmp_path: Path) -> None:
    model = registry.build("mobilenet_v1", width=0.25, num_classes=2)
    model.description = replace(model.description, classes=("green", "red"))
    for place, count in (("train", 3), ("val", 1)):
        classes_of(tmp_path / place, red=count, green=count)
    lines: list[str] = []
    evaluate(model, str(tmp_path), log=lines.append)
    assert lines == ["class folders: 2 validation images, 2 classes"]


def test_a_model_of_unnamed_classes_is_evaluated_on_as_many(run: Run, tmp_path: Path) -> None:
    weights = registry.save(registry.build("mobilenet_v1", width=0.25), tmp_path / "unnamed.safetensors")
    assert said(run, "evaluate", "digits", "--weights", weights) == (
        f"the data has 10 classes, but '{weights}' has 1000; evaluate it on data with the classes of the model"
    )


def test_a_bare_backbone_cannot_be_evaluated(run: Run, tmp_path: Path) -> None:
    path = registry.save(registry.build("mobilenet_v1", width=0.25, features_only=True), tmp_path / "bare.safetensors")
    assert said(run, "evaluate", "digits", "--weights", path) == (
        f"'{path}' is a backbone without a head; only models with a head can be evaluated"
    )


def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    absent: Any = lambda name, *more: None if name in ("accelerate", "tomli_w") else find(name, *more)  # noqa: E731
    monkeypatch.setattr("featuretap.support.extras.find_spec", absent)
    assert said(run, "train", "digits", "--backbone", "mobilenet_v2") == (
        "featuretap train needs accelerate, tomli_w; run pip install 'featuretap[train]'"
    )
