"""Training settings from files and the command line: how they combine, and which are refused."""

import os
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from featuretap.registry.errors import FeaturetapError, OptionError, TrainingError, UnknownOptionError
from featuretap.workflows.training.configuration import (
    SETTINGS,
    Configuration,
    format_configuration,
    make_configuration,
    read_configuration,
    resolve_defaults,
)

BASE = {"data": "digits", "backbone": "mobilenet_v2"}


def test_every_setting_is_described_and_its_default_accepted() -> None:
    names = [each.name for each in fields(Configuration)]
    assert set(names) == set(SETTINGS)
    made = make_configuration(BASE)
    for name, setting in SETTINGS.items():
        assert setting.option.accepts(setting.option.default), name
        if name not in BASE:
            assert getattr(made, name) == setting.option.default, name


def test_resolved_settings_are_read_back_from_their_file(tmp_path: Path) -> None:
    configuration = resolve_defaults(
        make_configuration({**BASE, "options": {"width": 0.5}, "taps": ["C4", "C5"], "optimizer": "sgd"}),
        "classification",
        mirrors=False,
    )
    path = tmp_path / "configuration.toml"
    path.write_text(format_configuration(configuration))
    assert make_configuration(read_configuration(path)) == configuration


@pytest.mark.parametrize(
    ("task", "mirrors", "given", "decided"),
    [
        ("classification", True, {}, {"lr": 1e-3, "weight_decay": 0.05, "label_smoothing": 0.1, "flip": 0.5}),
        ("classification", False, {}, {"flip": 0.0}),
        ("classification", False, {"flip": 0.25}, {"flip": 0.25}),
        ("segmentation", True, {"optimizer": "sgd"}, {"lr": 0.05, "weight_decay": 1e-4, "label_smoothing": 0.0}),
        ("detection", True, {"lr": 0.01}, {"lr": 0.01, "label_smoothing": 0.0}),
        ("detection", True, {"epochs": 1}, {"warmup_epochs": 0.25}),
        ("detection", True, {"epochs": 9}, {"warmup_epochs": 1.0}),
        ("detection", True, {"epochs": 9, "warmup_epochs": 0}, {"warmup_epochs": 0}),
    ],
)
def test_defaults_follow_from_task_data_and_optimiser(
    task: str, mirrors: bool, given: dict[str, Any], decided: dict[str, Any]
) -> None:
    made = resolve_defaults(make_configuration({**BASE, **given}), task, mirrors=mirrors)
    assert {name: getattr(made, name) for name in decided} == decided
    assert tomllib.loads(format_configuration(made))["flip"] == made.flip


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"epoch": 3}, UnknownOptionError, "training has no setting 'epoch'; did you mean 'epochs'?"),
        (
            {"qqq": 3},
            UnknownOptionError,
            "training has no setting 'qqq'; featuretap train --help lists them",
        ),
        (
            {"in_channels": 1},
            UnknownOptionError,
            "training has no setting 'in_channels'; it is a backbone option, so put it into the table "
            "`options`: options = { in_channels = … }",
        ),
        (
            {"backbone": None, "weights": "absent.safetensors"},
            OptionError,
            "no weights file 'absent.safetensors'; choose an existing file, or set backbone if 'absent.safetensors' is "
            "a weights tag",
        ),
        (
            {"seed": 2**32},
            OptionError,
            "training cannot take seed=4294967296; it must be an integer from 0 to 4294967295",
        ),
        ({"epochs": 0}, OptionError, "training cannot take epochs=0; it must be a positive integer up to 65536"),
        (
            {"epochs": "ten"},
            OptionError,
            "training cannot take epochs='ten'; it must be a positive integer up to 65536",
        ),
        ({"epochs": True}, OptionError, "training cannot take epochs=True; it must be a positive integer up to 65536"),
        ({"lr": -1}, OptionError, "training cannot take lr=-1; it must be a number from 1e-09 to 100.0"),
        ({"optimizer": "adam"}, OptionError, "training cannot take optimizer='adam'; it must be 'adamw' or 'sgd'"),
        ({"freeze": "C6"}, OptionError, "training cannot take freeze='C6'; it must be 'C1', 'C2', 'C3', 'C4' or 'C5'"),
        (
            {"val_fraction": 1},
            OptionError,
            "training cannot take val_fraction=1; it must be a number from 0.01 to 0.99",
        ),
        ({"pretrained": "yes"}, OptionError, "training cannot take pretrained='yes'; it must be True or False"),
        ({"taps": []}, OptionError, "training cannot take taps=[]; it must be a list of tap addresses"),
        ({"seed": -1}, OptionError, "training cannot take seed=-1; it must be an integer from 0 to 4294967295"),
        (
            {"data": None},
            TrainingError,
            "no training data; choose a folder, the name of a torchvision data set, or 'digits'",
        ),
        (
            {"backbone": None},
            OptionError,
            "no backbone to train; choose a weights file, or a backbone such as backbone='mobilenet_v3_large'",
        ),
        (
            {"pretrained": True, "weights": "imagenet1k_v1"},
            OptionError,
            "pretrained and weights='imagenet1k_v1' both select initial weights; use one of them",
        ),
        (
            {"unfreeze_every": 2},
            OptionError,
            "unfreeze_every needs frozen levels; set freeze, such as freeze='C4'",
        ),
        (
            {"warmup_epochs": 5, "epochs": 5},
            OptionError,
            "warmup_epochs=5 must be less than epochs=5; lower warmup_epochs",
        ),
    ],
)
def test_invalid_settings_are_refused(given: dict[str, Any], error: type[FeaturetapError], message: str) -> None:
    with pytest.raises(error) as caught:
        make_configuration({**BASE, **given})
    assert str(caught.value) == message


def test_a_message_about_a_file_names_it() -> None:
    with pytest.raises(OptionError) as caught:
        make_configuration({**BASE, "epochs": 0}, "my.toml")
    assert str(caught.value) == "my.toml: training cannot take epochs=0; it must be a positive integer up to 65536"


def test_files_that_are_not_a_configuration_are_refused(tmp_path: Path) -> None:
    absent, broken = tmp_path / "absent.toml", tmp_path / "broken.toml"
    broken.write_text("epochs = ")
    with pytest.raises(TrainingError) as caught:
        read_configuration(absent)
    assert str(caught.value) == f"cannot read the configuration '{absent}': No such file or directory"
    with pytest.raises(TrainingError) as caught:
        read_configuration(broken)
    assert str(caught.value).startswith(f"the configuration '{broken}' is not valid TOML: Invalid value")


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    os.mkfifo(path)
    with pytest.raises(TrainingError) as error:
        read_configuration(path)
    assert str(error.value) == f"cannot read the configuration '{path}': it is a pipe, socket or device; use a file"
