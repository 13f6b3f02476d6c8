"""`featuretap train` and `featuretap evaluate`. The extra `train` and torch are imported on use."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from featuretap.command_line import completing
from featuretap.command_line.commands import Command
from featuretap.command_line.parameters import Addresses, OptionPair
from featuretap.command_line.printing import print_table, print_text
from featuretap.support.extras import check_extra
from featuretap.workflows.training.configuration import SETTINGS, Configuration, make_configuration, read_configuration

if TYPE_CHECKING:
    from featuretap.workflows.training.tasks.task import Metrics, Task

__all__ = ["evaluate_command", "train_command"]

NEEDED = ("accelerate", "faster_coco_eval", "matplotlib", "tensorboard", "tomli_w", "torchmetrics")
KINDS = {
    "int": click.INT,
    "float": click.FLOAT,
    "str": click.STRING,
    "bool": click.BOOL,
    "tuple[str, ...]": Addresses(),
}
COMPLETIONS = {
    "backbone": completing.backbones,
    "head": completing.heads,
    "weights": completing.weights,
    "download_to": completing.folders,
    "out": completing.folders,
}
ALIASES = {"backbone": ["--model"]}
"""What other commands call a setting's option."""
ELSEWHERE = {"data", "options"}
"""Settings that are no plain option of the command."""


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every setting of training. What is not given is None."""
    for setting in reversed(fields(Configuration)):
        if setting.name in ELSEWHERE:
            continue
        words, default = SETTINGS[setting.name].help, SETTINGS[setting.name].option.default
        if default not in (None, False) and "[default" not in words:
            words = f"{words}  [default: {default}]"
        kind = KINDS[str(setting.type).removesuffix(" | None")]
        flag: dict[str, Any] = {"is_flag": True} if kind is click.BOOL else {"type": kind}
        choices = SETTINGS[setting.name].option.choices
        if choices:
            flag |= {"metavar": f"[{'|'.join(choices)}]", "shell_complete": completing.one_of(choices)}
        if setting.name in COMPLETIONS:
            flag["shell_complete"] = COMPLETIONS[setting.name]
        names = [f"--{setting.name.replace('_', '-')}", *ALIASES.get(setting.name, [])]
        command = click.option(setting.name, *names, default=None, help=words, **flag)(command)
    return command


@click.command("train", cls=Command, short_help="Train a model on a folder, or a data set by its name.")
@click.argument("data", required=False, shell_complete=completing.data_sets, help=SETTINGS["data"].help)
@_settings
@click.option("--in-channels", type=int, help="Channels of the images: 1 for grey ones.  [default: 3]")
@click.option("--option", "options", type=OptionPair(), multiple=True, help="Any option of the backbone or the head.")
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file of these settings; the line wins.")
@click.option("--resume", type=click.Path(path_type=Path), help="Folder of a run that is to go on.")
def train_command(
    options: tuple[tuple[str, Any], ...],
    in_channels: int | None,
    config: Path | None,
    resume: Path | None,
    **settings: Any,
) -> None:
    """Train a model on DATA: a folder, a data set of torchvision's by its name, or 'digits'.

    Example: featuretap train photographs/ --backbone mobilenet_v3_large --pretrained --epochs 10
    """
    check_extra("featuretap train", "train", NEEDED)
    given = {name: value for name, value in settings.items() if value is not None}
    own = dict(options) if in_channels is None else {**dict(options), "in_channels": in_channels}
    if resume is not None:
        if config is not None or own:
            raise click.UsageError("--resume goes on as the run began; leave --config, --option and --in-channels out")
        from featuretap.workflows.training.run_folder import read_run

        configuration = read_run(resume, given)
    else:
        filed = read_configuration(config) if config else {}
        inside = filed.get("options", {})
        if own and isinstance(inside, dict):
            given["options"] = {**inside, **own}
        if config:
            # What the file says is checked by itself, so that a message names it.
            make_configuration({"data": "digits", **filed, **given}, str(config))
        configuration = make_configuration({**filed, **given})
    from featuretap.workflows.training.run import train
    from featuretap.workflows.training.run_folder import CONFIGURATION, folder_of

    try:
        result = train(configuration, resume=resume is not None, log=print_text)
    except KeyboardInterrupt as interrupt:
        folder = folder_of(configuration)
        begun = (folder / CONFIGURATION).exists()
        left = (
            f"featuretap train --resume {folder} goes on after the last whole epoch" if begun else "nothing was written"
        )
        raise click.Abort(left) from interrupt
    if result.is_main:
        _print_classes(result.metrics, result.task)
        name, score = next(iter(result.metrics.scores.items()))
        print_text(f"best epoch: {result.epoch}, {name} {score:.4f}; {result.folder / 'best.safetensors'}")


@click.command("evaluate", cls=Command, short_help="Judge weights by images.")
@click.argument("data", shell_complete=completing.data_sets, help=SETTINGS["data"].help)
@click.option("--weights", required=True, shell_complete=completing.weights, help="A file, or a tag of --model.")
@click.option("--model", shell_complete=completing.backbones, help="Name of the backbone.  [default: that of the file]")
@click.option(
    "--part",
    type=click.Choice(["val", "train", "all"]),
    default="val",
    show_default=True,
    help="Images to judge by, to learn from, or all.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images at a time.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that read images.")
@click.option(
    "--val-fraction", type=click.FloatRange(0.01, 0.99), default=0.2, show_default=True, help="As in training."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="As in training.")
@click.option("--download-to", type=click.Path(path_type=Path), help="Folder of torchvision's data sets.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for tables and pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate_command(
    data: str, weights: str, model: str | None, part: Literal["val", "train", "all"], as_json: bool, **settings: Any
) -> None:
    """Judge weights by DATA, which is what it is for `featuretap train`.

    Example: featuretap evaluate photographs/ --weights runs/photographs-mobilenet_v3_large/best.safetensors
    """
    check_extra("featuretap evaluate", "train", NEEDED)
    from featuretap import registry
    from featuretap.workflows.training.evaluation import evaluate

    path = Path(weights)
    built = registry.load(path) if model is None else registry.build(model, pretrained=weights)
    metrics, task, is_main = evaluate(built, data, origin=repr(weights), part=part, **settings)
    if not is_main:
        return
    if as_json:
        per_class = [
            {"class": name, task.counted: count, task.class_metric: None if math.isnan(score) else score}
            for name, count, score in metrics.per_class
        ]
        scores = {name: None if math.isnan(score) else score for name, score in metrics.scores.items()}
        click.echo(json.dumps({"scores": scores, "per_class": per_class}, indent=2))
        return
    _print_classes(metrics, task)
    print_table([("measure", "left"), ("value", "right")], [(n, f"{v:.4f}") for n, v in metrics.scores.items()])


def _print_classes(metrics: Metrics, task: Task) -> None:
    from featuretap.workflows.training.reports.tables import per_class_rows

    columns = [("class", "left"), (task.counted, "right"), (task.class_metric, "right")]
    print_table(columns, per_class_rows(metrics))
