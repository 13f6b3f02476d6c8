"""The commands `featuretap train` and `evaluate`. They import torch and the packages of the `train` extra on use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featuretap.command_line import completion, parameters
from featuretap.command_line.commands import Command
from featuretap.command_line.printing import echo, print_json, print_table
from featuretap.support.extras import check_extra
from featuretap.workflows.datasets.recognition import FORMATS
from featuretap.workflows.training.configuration import (
    NEEDED,
    SETTINGS,
    Configuration,
    make_configuration,
    read_configuration,
)

if TYPE_CHECKING:
    from torch import nn

    from featuretap.workflows.training.tasks.task import Metrics, Task

TYPES = {"int": int, "float": float, "str": str, "bool": bool, "tuple[str, ...]": parameters.TAPS}
COMPLETIONS = {
    "backbone": completion.backbones,
    "weights": completion.weights,
    "download_to": completion.folders,
    "images_root": completion.folders,
    "out": completion.folders,
}
NAMED: dict[str, Callable[[str], Callable[..., Any]]] = {
    "head": parameters.heads_option,
    "loss_weight": partial(parameters.named_option, "--loss-weight", click.FLOAT, "FACTOR"),
}
"""Setting that can differ between heads → function that returns its command-line option."""

OTHER_NAMES = {"backbone": ["--model"]}
"""Setting → aliases of its option, as other commands name it."""

DATA: dict[str, Any] = {"shell_complete": completion.data_sets, "help": SETTINGS["data"].help}


def _add_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for every training setting except `data` and `options`. None stands for the setting's default."""
    for setting in reversed(fields(Configuration)):
        name = setting.name
        if name in ("data", "options"):
            continue
        option, text = SETTINGS[name].option, SETTINGS[name].help
        if option.default not in (None, False) and "[default" not in text:
            text = f"{text}  [default: {option.default}]"
        if name in NAMED:
            command = NAMED[name](text)(command)
            continue
        kind = click.Choice(option.choices) if option.choices else TYPES[str(setting.type).removesuffix(" | None")]
        flags = [f"--{name.replace('_', '-')}", *OTHER_NAMES.get(name, [])]
        more: dict[str, Any] = {"is_flag": True} if kind is bool else {"type": kind}
        command = click.option(name, *flags, default=None, help=text, shell_complete=COMPLETIONS.get(name), **more)(
            command
        )
    return command


@click.command("train", cls=Command, short_help="Train a model on a data set.")
@click.argument("data", required=False, **DATA)
@parameters.named_option(
    "--data",
    click.STRING,
    "DATA",
    "Data set of one of several heads, instead of DATA: --data objects=coco/ --data road=masks/.",
    "data_sets",
)
@_add_settings
@click.option("--in-channels", type=int, help="Number of image channels; 1 for grayscale.  [default: 3]")
@parameters.backbone_options("Any option of the backbone or the head. Can be repeated.")
@click.option("--config", type=parameters.PATH, help="TOML file with these settings; options override its values.")
@click.option("--resume", type=parameters.PATH, help="Run folder to resume training in.")
def train_command(
    options: dict[str, Any],
    data_sets: dict[str, str] | None,
    in_channels: int | None,
    config: Path | None,
    resume: Path | None,
    **settings: Any,
) -> None:
    """Train a classifier, detector or segmenter on DATA.

    DATA is a folder, a YOLO data.yaml file, the name of a torchvision data set, or 'digits'. The format of a folder
    is detected and determines the default head: class folders, COCO, Pascal VOC, YOLO, or images with masks.

    Example: featuretap train photographs/ --backbone mobilenet_v3_large --pretrained --epochs 10
    """
    check_extra("featuretap train", "train", NEEDED)
    given = {name: value for name, value in settings.items() if value is not None}
    if data_sets is not None:
        if "data" in given:
            raise click.UsageError("DATA is for one head, --data for several; use one of the two")
        given["data"] = data_sets
    if in_channels is not None:
        options["in_channels"] = in_channels
    if resume is not None:
        if config is not None or options:
            raise click.UsageError(
                "--resume uses the settings of the run; leave --config, --option and --in-channels out"
            )
        from featuretap.workflows.training.run_folder import read_run

        configuration = read_run(resume, given)
    else:
        filed = read_configuration(config) if config else {}
        if options and isinstance(filed.get("options", {}), dict):
            given["options"] = {**filed.get("options", {}), **options}
        if config:
            # Check the file separately first, so that errors name it.
            make_configuration({"data": "digits", **filed, **given}, str(config))
        configuration = make_configuration({**filed, **given})
    from featuretap.workflows.training.run import train
    from featuretap.workflows.training.run_folder import CONFIGURATION, folder_of

    try:
        result = train(configuration, resume=resume is not None, log=echo)
    except KeyboardInterrupt as interrupt:
        folder = folder_of(configuration)
        resuming = f"resume from the last complete epoch with: featuretap train --resume {folder}"
        raise click.Abort(resuming if (folder / CONFIGURATION).exists() else "nothing was written") from interrupt
    if result.is_main:
        for head, task in result.tasks.items():
            if head:
                echo(f"{head}:")
            _print_classes(result.metrics.heads[head] if head else result.metrics, task)
        name, score = next(iter(result.metrics.scores.items()))
        echo(f"best epoch: {result.epoch}, {name} {score:.4f}; {result.folder / 'best.safetensors'}")


@click.command("evaluate", cls=Command, short_help="Evaluate a model on a data set.")
@click.argument("data", **DATA)
@click.option(
    "--weights",
    required=True,
    shell_complete=completion.weights,
    help="Weights file, exported file or URL; with --model, a weights tag.",
)
@click.option(
    "--model",
    shell_complete=completion.backbones,
    help="Name of the backbone.  [default: the model in the weights file]",
)
@parameters.one_head_option("Head to evaluate, if the file has several.")
@click.option(
    "--part",
    type=click.Choice(["val", "train", "all"]),
    default="val",
    help="Images to evaluate on: validation set, training set, or all.",
)
@parameters.batch_size_option(32)
@parameters.workers_option()
@click.option(
    "--val-fraction", type=click.FloatRange(0.01, 0.99), default=0.2, help="Validation fraction used in training."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Seed used in training; it determines the validation set.",
)
@click.option("--download-to", type=parameters.PATH, help="Folder for downloaded torchvision data sets.")
@click.option("--format", "data_format", type=click.Choice(FORMATS), help=SETTINGS["format"].help)
@click.option("--images-root", type=parameters.PATH, help=SETTINGS["images_root"].help)
@click.option("--out", type=parameters.PATH, help="Folder to write tables and pictures to.")
@click.option(
    "--log-every",
    type=click.FloatRange(min=0),
    default=SETTINGS["log_every"].option.default,
    help=SETTINGS["log_every"].help,
)
@parameters.JSON
def evaluate_command(
    data: str, weights: str, model: str | None, head: str | None, as_json: bool, **settings: Any
) -> None:
    """Evaluate a model on DATA, a data set in any form that `featuretap train` accepts.

    --weights can also be a file written by `featuretap export` or `featuretap quantize`.

    Example: featuretap evaluate photographs/ --weights runs/photographs-mobilenet_v3_large/best.safetensors
    """
    check_extra("featuretap evaluate", "train", NEEDED)
    if head and model:
        raise click.UsageError("--head selects a head of a weights file; leave --model out")
    from featuretap import registry
    from featuretap.models.built import description_of
    from featuretap.runtimes.exported_files import default_runtime
    from featuretap.runtimes.sessions import is_exported
    from featuretap.workflows.training.run import evaluate

    built: nn.Module
    exported = is_exported(registry.default, weights)
    if exported:
        if model:
            raise click.UsageError(f"the exported file {weights!r} already defines the model; omit --model")
        if head:
            raise click.UsageError(
                f"the exported file {weights!r} always computes all heads; leave --head out, or pass the weights file "
                "that it was exported from"
            )
        built = registry.compile(weights, default_runtime(registry.default, Path(weights)).name)
    else:
        built = registry.load(weights) if model is None else registry.build(model, pretrained=weights)
    if head:
        built = registry.select_head(built, head)
    elif description_of(built).heads:
        heads = ", ".join(description_of(built).heads)
        advice = "select one with" if not exported else "pass the weights file that it was exported from, with"
        raise click.UsageError(f"{weights!r} is a model with several heads: {heads}; {advice} --head NAME")
    # With --json, standard output must hold nothing but the JSON.
    log = partial(echo, err=as_json)
    metrics, task, is_main = evaluate(built, data, origin=repr(weights), log=log, **settings)
    if not is_main:
        return
    if as_json:
        columns = {task.class_metric: [score for *_, score in metrics.per_class], **metrics.class_columns}
        per_class = [
            {"class": name, task.counted: count, **{column: _or_null(columns[column][label]) for column in columns}}
            for label, (name, count, _) in enumerate(metrics.per_class)
        ]
        scores = {name: _or_null(score) for name, score in {**metrics.scores, **metrics.details}.items()}
        print_json({"scores": scores, "per_class": per_class})
        return
    _print_classes(metrics, task)
    measures = {**metrics.scores, **metrics.details}
    rows = [(name, "–" if math.isnan(value) else f"{value:.4f}") for name, value in measures.items()]
    print_table(("metric", ">value"), rows)


def _or_null(score: float) -> float | None:
    return None if math.isnan(score) else score


def _print_classes(metrics: Metrics, task: Task) -> None:
    from featuretap.workflows.training.reports import per_class_rows

    columns = (task.counted, task.class_metric, *metrics.class_columns)
    print_table(("class", *(f">{column}" for column in columns)), per_class_rows(metrics))
